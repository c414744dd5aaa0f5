"""The reason `camera_slow`: pictures of a camera come, and too few of them are looked at to recognise what is looked for."""

from __future__ import annotations

from collections.abc import Mapping

from agent.pipeline.camera import RESET_GAP_NS
from agent.types import CameraPhase, CameraStatus

JUDGED_S = 60.0
"""So much of its time is looked at, again and again: a model that is exchanged, or a moment of load, makes no camera slow."""
CLEAR_OF = 1.1
"""Times the bar before it is well again: a rate at the bar is no news each minute."""


class Slowness:
    """One life of a live camera. Frames farther apart than `RESET_GAP_NS` start tracks and windows afresh, each of them."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None  # since when it has been streaming, and with which frame
        self._detail = ""

    def look(self, status: CameraStatus, now_s: float, needs: Mapping[str, float]) -> str:
        """Once a round, on the monotonic clock: what is wrong, empty = nothing. needs: frames/s by service."""
        if status.phase is not CameraPhase.STREAMING:
            self._began, self._detail = None, ""
        elif self._began is None:
            self._began = now_s, status.frames
        elif (seconds := now_s - self._began[0]) >= JUDGED_S:
            self._detail = self._judge((status.frames - self._began[1]) / seconds, needs)
            self._began = now_s, status.frames
        return self._detail

    def _judge(self, fps: float, needs: Mapping[str, float]) -> str:
        rate = f"{fps:.2f} frames/s are looked at"
        if fps * RESET_GAP_NS < 1e9:
            return f"{rate}: nothing is recognised"
        factor = CLEAR_OF if self._detail else 1.0
        short = [f"{name} asks for {need:g}" for name, need in needs.items() if fps < need * factor]
        return f"{rate}: {', '.join(short)}" if short else ""
