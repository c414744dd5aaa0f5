"""The reason `camera_slow`: pictures of a camera come, and too few of them are looked at to recognise anything."""

from __future__ import annotations

from agent.pipeline.camera import RESET_GAP_NS
from agent.types import CameraPhase, CameraStatus

JUDGED_S = 60.0
"""So much of its time is looked at, again and again: a model that is exchanged, or a moment of load, makes no camera slow."""


class Slowness:
    """One life of a live camera. Frames farther apart than `RESET_GAP_NS` start tracks and windows afresh, each of them."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None  # since when it has been streaming, and with which frame
        self._detail = ""

    def look(self, status: CameraStatus, now_s: float) -> str:
        """Once a round, on the monotonic clock: what is wrong, empty = nothing."""
        if status.phase is not CameraPhase.STREAMING:
            self._began, self._detail = None, ""
        elif self._began is None:
            self._began = now_s, status.frames
        elif (seconds := now_s - self._began[0]) >= JUDGED_S:
            fps = (status.frames - self._began[1]) / seconds
            self._detail = f"{fps:.2f} frames/s are looked at" if fps * RESET_GAP_NS < 1e9 else ""
            self._began = now_s, status.frames
        return self._detail
