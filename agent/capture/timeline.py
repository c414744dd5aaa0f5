"""Time on a camera: repaired presentation times, thinning to a frame rate, measured frame rate. Pure."""

from __future__ import annotations

from collections import deque

from agent.capture.base import NS_PER_S

_DEFAULT_PERIOD_NS = 40_000_000
"""Distance between frames when neither the stream nor its container knows a rate (25 fps)."""
_FASTEST_FPS = 240.0
"""Beyond this a stated rate is no camera's."""
_JUMP_BACK_NS = NS_PER_S
"""A step back by more than this is a new time base (joined recordings), by less it is disorder."""


def plausible_fps(*stated: float) -> float:
    """The first of the stated rates that a camera can have, 0 = unknown when none can.

    Where pictures come at varying distances containers state the rate of their clock instead: 90,000 in MPEG-TS.
    """
    return next((fps for fps in stated if 0 < fps <= _FASTEST_FPS), 0.0)


def period_ns(fps: float) -> int:
    """Distance between two frames at `fps`; 40 ms when that is unknown (0, not finite, beyond any camera)."""
    return round(NS_PER_S / fps) if 0.001 <= fps <= 10_000 else _DEFAULT_PERIOD_NS


class Timeline:
    """Lays presentation times of one or several passes on one strictly increasing line that starts at 0."""

    def __init__(self) -> None:
        self._offset_ns = 0
        self._last_ns: int | None = None
        self._period_ns = _DEFAULT_PERIOD_NS
        self._rebase = True

    def start_pass(self, fps: float) -> None:
        """A source was opened, for the first time or again: its first frame follows the last one by a frame period."""
        self._period_ns = period_ns(fps)
        self._rebase = True

    @property
    def last_ns(self) -> int:
        """Position of the last frame, 0 before the first."""
        return self._last_ns or 0

    def place(self, pts_ns: int | None) -> int:
        """Position of a frame on the line, in ns. None: the stream has no time for it, it follows by a frame period.

        Disorder (time stamps that repeat or step back a little, as B-frames in AVI do) is repaired by one frame
        period after the last frame; the line meets the stream's own times again as soon as these have caught up.
        """
        if pts_ns is None:
            self._last_ns = 0 if self._last_ns is None else self._last_ns + self._period_ns
            return self._last_ns
        if self._last_ns is None:
            self._offset_ns = -pts_ns
        elif self._rebase or pts_ns + self._offset_ns < self._last_ns - _JUMP_BACK_NS:
            self._offset_ns = self._last_ns + self._period_ns - pts_ns
        self._rebase = False
        t_ns = pts_ns + self._offset_ns
        if self._last_ns is not None and t_ns <= self._last_ns:
            t_ns = self._last_ns + self._period_ns
        self._last_ns = t_ns
        return t_ns


class Thinner:
    """Picks frames so that at most `max_fps` a second pass on average; 0 lets all of them pass."""

    def __init__(self, max_fps: float = 0.0) -> None:
        self.max_fps = max_fps
        self._due_ns: int | None = None

    def accept(self, t_ns: int) -> bool:
        """Whether the frame at `t_ns` passes. The schedule, not the last frame, says when the next one is due: jitter
        of a quarter period loses no frame, and the average never exceeds the bound."""
        if self.max_fps <= 0:
            self._due_ns = None
            return True
        period = round(NS_PER_S / self.max_fps)
        slack = period // 4
        due_ns = t_ns if self._due_ns is None else min(self._due_ns, t_ns + period + slack)
        if t_ns < due_ns - slack:
            self._due_ns = due_ns  # earlier than it was if the bound has been raised
            return False
        self._due_ns = due_ns + period if t_ns < due_ns + period else t_ns + period
        return True


class RateMeter:
    """Events per second over the last `window_s`, in constant memory."""

    def __init__(self, window_s: float = 5.0, buckets: int = 10) -> None:
        self._bucket_ns = max(1, round(window_s * NS_PER_S / buckets))
        self._counts: deque[list[int]] = deque(maxlen=buckets)  # [bucket number, events in it]
        self._first_ns: int | None = None

    def add(self, now_ns: int) -> None:
        """Count one event at `now_ns`."""
        if self._first_ns is None:
            self._first_ns = now_ns
        bucket = now_ns // self._bucket_ns
        if self._counts and self._counts[-1][0] == bucket:
            self._counts[-1][1] += 1
        else:
            self._counts.append([bucket, 1])

    def per_second(self, now_ns: int) -> float:
        """Rate over the window that ends at `now_ns`; over the time since the first event while that is shorter."""
        if self._first_ns is None:
            return 0.0
        oldest = now_ns // self._bucket_ns - (self._counts.maxlen or 1) + 1
        # A copy in one step: another thread may be adding.
        events = sum(count for bucket, count in tuple(self._counts) if bucket >= oldest)
        since_ns = max(oldest * self._bucket_ns, self._first_ns)
        return events * NS_PER_S / max(now_ns - since_ns, self._bucket_ns)
