"""What each camera used to look at, kept in a file: a camera that was turned while the agent was off is noticed as well."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from agent.capture.viewpoint import EDGES_SHAPE, Learned, Viewpoint
from agent.config.schema import CameraConfig
from agent.durable import write_durably

_log = structlog.get_logger(__name__)

SAVE_EVERY_S = 300.0


class Viewpoints:
    """One `Viewpoint` for each camera id, whatever lives the camera has. All methods belong to the loop.

    file: kept between two runs; what cannot be read is learned again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[str, Viewpoint]] = {}  # with the mark of the source
        self._saved: dict[str, Any] = {}
        self._saved_s = time.monotonic()

    async def open(self) -> None:
        """Go on where the last run stopped."""
        try:
            text = await asyncio.to_thread(self._file.read_text, encoding="utf-8")
            self._known = {name: _restored(entry) for name, entry in json.loads(text).items()}
        except FileNotFoundError:
            return
        except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            _log.error("camera_views_unreadable", file=str(self._file), error=repr(error))

    def of(self, config: CameraConfig) -> Viewpoint:
        """For the next life of a camera. Another source has another view."""
        mark = _mark(config.source)
        known_mark, viewpoint = self._known.get(config.id, ("", None))
        if viewpoint is None or known_mark != mark:
            viewpoint = Viewpoint(config.moved_after_s)
        viewpoint.moved_after_s = config.moved_after_s
        self._known[config.id] = mark, viewpoint
        return viewpoint

    def keep(self, cameras: Sequence[CameraConfig]) -> None:
        """Forget cameras that are not configured any more."""
        names = {camera.id for camera in cameras}
        self._known = {name: known for name, known in self._known.items() if name in names}

    def accept(self, camera_id: str) -> None:
        """What the camera shows is right."""
        if camera_id in self._known:
            self._known[camera_id][1].accept()

    async def round(self) -> None:
        """Save what was learned, now and then."""
        if time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            await self.save()

    async def save(self) -> None:
        """Keep what was learned."""
        self._saved_s = time.monotonic()
        state = {name: entry for name, known in self._known.items() if (entry := _entry(*known)) is not None}
        if state == self._saved:
            return
        try:
            await asyncio.to_thread(write_durably, self._file, json.dumps(state).encode(), 0o600)
        except OSError as error:  # the next save may succeed; until then a restart takes the views of last time
            _log.warning("camera_views_not_saved", file=str(self._file), error=str(error))
        else:
            self._saved = state


def _mark(source: str) -> str:
    """Tells one source from another; too short to guess a password with."""
    return hashlib.sha256(source.encode()).hexdigest()[:4]


def _entry(mark: str, viewpoint: Viewpoint) -> dict[str, Any] | None:
    learned = viewpoint.learned
    if learned is None:
        return None
    edges = base64.b64encode(learned.reference.tobytes()).decode("ascii")
    return {"source": mark, "edges": edges, "known_s": round(learned.known_s), "other_s": round(learned.other_s)} | (
        {"accept": True} if learned.accept else {}
    )


def _restored(entry: dict[str, Any]) -> tuple[str, Viewpoint]:
    """Raises KeyError, TypeError, ValueError."""
    edges = np.frombuffer(base64.b64decode(entry["edges"], validate=True), np.int8).reshape(EDGES_SHAPE)
    known_s, other_s = float(entry["known_s"]), float(entry["other_s"])
    if not all(0 <= time_s < float("inf") for time_s in (known_s, other_s)):
        raise ValueError(f"known_s, other_s are {known_s}, {other_s}")
    return str(entry["source"]), Viewpoint(0.0, Learned(edges, known_s, other_s, entry.get("accept") is True))
