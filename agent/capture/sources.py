"""From a `source` string to the VideoSource that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from agent.capture.base import redact_in
from agent.config.schema import CameraConfig
from agent.errors import ConfigError, ConfigProblem, FatalError, SourceError, TransientError
from agent.ports import StreamInfo, VideoSource
from agent.types import ImageArray

PLUGIN_GROUP = "recognizer_agent.sources"
"""Entry points: name = URL scheme, object = `factory(config: CameraConfig) -> VideoSource`.

A plug-in's source counts as live unless it has an attribute `live = False`.
"""
NETWORK_SCHEMES = ("http", "https", "rtsp", "rtsps")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_DEVICE = re.compile(r"\d{1,3}|/dev/.+")


@dataclass(frozen=True, slots=True)
class BuiltSource:
    """A source that is not open yet. endless: it never ends by itself, a failure means connecting again."""

    source: VideoSource
    endless: bool


class _AbsentSource:
    """What a plug-in could not make now: it says why, and its camera's next life asks the plug-in again."""

    live = False

    def __init__(self, error: TransientError) -> None:
        self._error = error

    def open(self) -> StreamInfo:
        raise SourceError(str(self._error)) from self._error

    def read(self) -> tuple[ImageArray, int] | None:
        return None

    def close(self) -> None:
        pass


def recorded_path(source: str) -> Path | None:
    """The file or folder that `source` names, a `~` as it stands; None for whatever else it may name."""
    text = source.strip()
    if text.startswith("gst:") or _DEVICE.fullmatch(text) or _scheme(text) != "file":
        return None
    return Path(text.removeprefix("file://"))


def build_source(config: CameraConfig) -> BuiltSource:
    """The source that `config.source` asks for; opens nothing.

    Raises ConfigError for an unknown scheme, a broken plug-in, bad `sim://` parameters, a `~` that is nobody's, or GStreamer where
    OpenCV has none.
    """
    text = config.source.strip()
    if text.startswith("gst:"):
        from agent.capture.devices import gstreamer_source

        return BuiltSource(gstreamer_source(text.removeprefix("gst:").strip(), config.read_timeout_s), endless=True)
    if _DEVICE.fullmatch(text):
        from agent.capture.devices import V4l2Source

        return BuiltSource(V4l2Source(text), endless=True)
    scheme = _scheme(text)
    if scheme == "file":
        return BuiltSource(_recorded(text.removeprefix("file://"), config), endless=False)
    if scheme in NETWORK_SCHEMES:
        from agent.capture.network import NetworkSource

        return BuiltSource(NetworkSource(text, config.read_timeout_s), endless=True)
    if scheme == "sim":
        from agent.capture.simulated import SimulatedSource, parse_simulated

        try:
            simulated = SimulatedSource(parse_simulated(text, config.id))
        except ValueError as error:  # `sim://[`
            raise ConfigError([_problem(config, f"sim:// {error}", "write sim://?name=value&...")]) from error
        return BuiltSource(simulated, endless=simulated.live)
    source = _plugin(scheme, config)
    return BuiltSource(source, endless=bool(getattr(source, "live", True)))


def _scheme(text: str) -> str:
    match = _SCHEME.match(text)
    return match.group(1).lower() if match else "file"


def _recorded(text: str, config: CameraConfig) -> VideoSource:
    from agent.capture.files import FileSource, FolderSource

    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # an unknown user, or no home folder at all
        raise ConfigError(
            [_problem(config, "there is no home folder for its ~", "write the folder in full")]
        ) from error
    is_folder = os.path.isdir(path)  # noqa: PTH112  `Path.is_dir` raises where it may not look: that is for `open` to say
    return FolderSource(path) if is_folder else FileSource(path)


def _plugin(scheme: str, config: CameraConfig) -> VideoSource:
    plugins = {entry.name.lower(): entry for entry in entry_points(group=PLUGIN_GROUP)}
    if scheme not in plugins:
        known = ", ".join(f"{name}://" for name in sorted({*NETWORK_SCHEMES, "file", "sim", *plugins}))
        raise ConfigError(
            [_problem(config, f"unknown kind of source {scheme!r}", f"known: {known}, gst:, /dev/videoN")]
        )
    entry = plugins[scheme]
    try:
        factory = cast("Callable[[CameraConfig], VideoSource]", entry.load())
    except (Exception, SystemExit) as error:  # whatever its code does as it is imported
        raise _fault(config, entry, f"cannot be loaded: {_text(config, error)}", f"reinstall {entry.value}") from error
    try:
        source = factory(config)
    except (ConfigError, FatalError):
        raise
    except TransientError as error:
        return _AbsentSource(error)
    except (Exception, SystemExit) as error:  # a plug-in's bug, or its way to say that it does not like the address
        raise _fault(config, entry, f"failed: {_text(config, error)}", f"see what {entry.value} expects") from error
    if not all(callable(getattr(source, method, None)) for method in ("open", "read", "close")):
        raise _fault(config, entry, f"made a {type(source).__name__}, which is no VideoSource", f"mend {entry.value}")
    return source


def _fault(config: CameraConfig, entry: EntryPoint, what: str, hint: str) -> ConfigError:
    return ConfigError([_problem(config, f"the plug-in for {entry.name.lower()!r} {what}", hint)])


def _text(config: CameraConfig, error: BaseException) -> str:
    return redact_in(f"{type(error).__name__}: {error}", config.source)


def _problem(config: CameraConfig, message: str, hint: str) -> ConfigProblem:
    return ConfigProblem(message=f"camera {config.id!r}: {message}", path="cameras", hint=hint)
