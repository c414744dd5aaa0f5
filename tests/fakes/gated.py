"""Plug-ins whose behaviour a test decides: an estimator that loads when it is let, sources that fail in the ways of plug-ins.

Entry points are found by name, so what they do lies in this module; `reset` begins a test.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from fakes.video import ScriptedSource, numbered_image

from agent.config.schema import CameraConfig, PoseConfig
from agent.errors import ModelError, SourceError
from agent.types import ImageArray, People

go = threading.Event()
"""Estimators wait for it as they load."""
loading = threading.Event()
loaded: list[Estimator] = []
fault: list[ModelError] = []
"""What loading raises, once each."""
built: list[str] = []
"""The sources that were asked for."""


def reset() -> None:
    """Nothing is loaded yet, and nothing is let."""
    go.clear()
    loading.clear()
    for one in (loaded, fault, built):
        one.clear()


class Estimator:
    """Sees nobody."""

    name = "gated"
    max_batch = 8

    def __init__(self) -> None:
        self.closed = False
        self.scale = self.own_scale = 1.0

    @property
    def canvas(self) -> tuple[int, int]:
        return round(480 * self.scale), round(640 * self.scale)

    def scale_pictures(self, scale: float) -> None:
        self.scale = scale

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        return [People.empty() for _ in images]

    def close(self) -> None:
        self.closed = True


def create_estimator(config: PoseConfig) -> Estimator:
    """Entry point `gated`."""
    loading.set()
    assert go.wait(30), "nobody let it load"
    if fault:
        raise fault.pop()
    loaded.append(Estimator())
    return loaded[-1]


class _Wrong(ScriptedSource):
    """Reads as no source should."""

    def __init__(self, kind: str) -> None:
        super().__init__([numbered_image(0)])
        self._kind = kind

    def read(self) -> tuple[ImageArray, int] | None:
        if self._kind == "raises":
            raise KeyError("frame")
        if self._kind == "exits":
            sys.exit(3)
        return numbered_image(0)  # type: ignore[return-value]


def create_source(config: CameraConfig) -> ScriptedSource:
    """Entry point `scripted`: `silent` gives five pictures and then nothing more; `raises`, `exits` and `silly` have a bug; the
    others cannot be made, `moody` only when it is looked at again and again."""
    kind = config.source.partition("://")[2]
    built.append(kind)
    if kind == "refused" or (kind == "moody" and built.count(kind) > 2):
        raise ValueError("port missing")
    if kind in ("raises", "exits", "silly"):
        return _Wrong(kind)
    if kind == "absent":
        raise SourceError("no such device")
    return ScriptedSource([*(numbered_image(n) for n in range(5)), -1.0])
