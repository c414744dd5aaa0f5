"""Paths in the configuration: relative ones belong to the file that names them; the state folder."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from agent.errors import ConfigError, ConfigProblem, StorageError

SHIPPED = "shipped:"
"""`model: shipped:fight-stgcn` names a bundle that comes with the agent."""
CATALOGUE = "catalogue:"
"""`model: catalogue:rtmo-s` names a bundle that `recognizer-agent models pull` fetched."""
PULLED = "pulled"
"""The sub-folder of pulled models that has them by name."""
MODELS_VARIABLE = "RECOGNIZER_MODELS"


@dataclass(frozen=True, slots=True)
class PulledModels:
    """What `catalogue:NAME` means; the `context` of validation.

    folder: of pulled models; required: a model that is not there is an error (not so for the command that pulls it); files: of the
    configuration, for that command to find the same folder.
    """

    folder: Path
    required: bool = True
    files: tuple[Path, ...] = ()


class LocatedStr(str):
    """A string of a configuration file that remembers the folder of that file."""

    __slots__ = ("folder",)
    folder: Path

    def __new__(cls, text: str, folder: Path) -> Self:
        value = super().__new__(cls, text)
        value.folder = folder
        return value


def resource_dir(name: str) -> Path:
    """Folder `configs` or `models` as shipped: beside the package in a source tree, else under `<prefix>/share`."""
    beside = Path(__file__).resolve().parent.parent.parent / name
    return beside if beside.is_dir() else Path(sys.prefix) / "share" / "recognizer-agent" / name


def _absolute(text: str, folder: Path) -> str:
    """Raises ValueError for what cannot be a path here."""
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL character")
    try:
        return str((folder / Path(text).expanduser()).absolute())
    except RuntimeError as error:  # an unknown user, or a user without an entry and without HOME, as in containers
        raise ValueError("there is no home folder for its ~ (write the folder in full)") from error


def models_dir(state_dir: object, env: Mapping[str, str]) -> Path:
    """Folder of pulled models: the variable RECOGNIZER_MODELS, else `<state_dir>/models`; state_dir: as configured.

    Raises ConfigError for a variable, ValueError for a state_dir that cannot be a path.
    """
    if named := env.get(MODELS_VARIABLE):
        try:
            return Path(_absolute(named, Path()))
        except ValueError as error:
            raise ConfigError([ConfigProblem(str(error), path=MODELS_VARIABLE)]) from error
    resolved = _absolute(state_dir, state_dir.folder) if isinstance(state_dir, LocatedStr) else str(state_dir)
    return Path(resolved) / "models"


def _resolve_path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) and value.startswith(CATALOGUE):
        return _resolve_pulled(value.removeprefix(CATALOGUE), info.context)
    if isinstance(value, str) and value.startswith(SHIPPED):
        return _resolve_shipped(value.removeprefix(SHIPPED))
    return _absolute(value, value.folder) if isinstance(value, LocatedStr) and value else value


def _resolve_shipped(name: str) -> str:
    folder = resource_dir("models")
    known = sorted(manifest.parent.name for manifest in folder.glob("*/manifest.json"))
    if known and name not in known:  # without any this is no place where the agent is installed
        raise PydanticCustomError("shipped_model", "no model of this name comes with the agent", {"known": known})
    return str(folder / name)


def _resolve_pulled(name: str, context: object) -> str:
    if not isinstance(context, PulledModels):
        raise PydanticCustomError("no_models_folder", "only a configuration file can name a pulled model")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise PydanticCustomError(
            "pulled_model", "not a name of the catalogue", {"hint": "for example catalogue:rtmo-s"}
        )
    folder = context.folder / PULLED / name
    if context.required and not folder.is_dir():
        options = [option for file in context.files for option in ("--config", str(file))]
        hint = shlex.join(["recognizer-agent", "models", "pull", name, *options])
        raise PydanticCustomError("pulled_model", "this model is not on this machine yet", {"hint": hint})
    return str(folder)


def _resolve_source(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a V4L2 index
    if isinstance(value, LocatedStr) and value and not re.match(r"[a-z][a-z0-9+.-]*:|\d+$", value):
        return _absolute(value, value.folder)
    return value


ConfigPath = Annotated[Path, BeforeValidator(_resolve_path)]
"""A path; made absolute against the folder of the file that names it."""

SourceText = Annotated[str, BeforeValidator(_resolve_source)]
"""A video source; a plain file name is treated as `ConfigPath`."""


def prepare_state_dir(path: Path) -> None:
    """Make the folder and make sure that it can be written. Raises StorageError with a hint."""
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        hint = "set state_dir to a folder that the agent's user may write"
        raise StorageError(f"{path}: cannot be written: {error.strerror} (hint: {hint})") from error
