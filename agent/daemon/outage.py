"""The reason `no_camera`: the agent watches nothing, though it should."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from agent.health.reasons import Reason
from agent.ports import HealthSink
from agent.types import CameraPhase, CameraStatus

GRACE_S = 60.0
"""To start with cameras that are not there yet is normal, and so is a switch that starts anew."""

_MISSING = frozenset({CameraPhase.CONNECTING, CameraPhase.OFFLINE})
_AT_REST = frozenset({CameraPhase.PAUSED, CameraPhase.ENDED})
"""They deliver nothing because nothing is wanted of them, or because there is nothing left."""


class Outage:
    """Raises and clears `no_camera`. A frozen or a blind camera delivers pictures; each has a reason of its own."""

    def __init__(self, health: HealthSink, clock: Callable[[], float] = time.monotonic) -> None:
        self._health = health
        self._clock = clock
        self._some = True
        self._frames = 0
        self._since_s: float | None = None

    def configured(self, some: bool) -> None:
        """Whether there is a camera to watch, after each change of the configuration."""
        if not some:
            self._since_s = None
            self._health.raise_reason(Reason.NO_CAMERA, "no camera is configured")
        elif not self._some:
            self._health.clear_reason(Reason.NO_CAMERA)
        self._some = some

    def look(self, statuses: Sequence[CameraStatus]) -> None:
        """Once a round, at the cameras that are enabled."""
        if not self._some:
            return
        frames, before = sum(status.frames for status in statuses), self._frames
        self._frames = frames
        wanted = [status for status in statuses if status.phase not in _AT_REST]
        missing = bool(wanted) and frames <= before and all(status.phase in _MISSING for status in wanted)
        now_s = self._clock()
        if not missing:
            self._since_s = None
            self._health.clear_reason(Reason.NO_CAMERA)
        elif self._since_s is None:
            self._since_s = now_s
        elif (dark_s := now_s - self._since_s) >= GRACE_S:
            names = ", ".join(status.camera_id for status in wanted)
            self._health.raise_reason(Reason.NO_CAMERA, f"no picture for {dark_s:.0f} s from {names}")
