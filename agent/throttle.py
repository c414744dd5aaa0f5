"""Token buckets: over bytes for links that cost money, over messages from outside. Pure but for the clock that they are given."""

from __future__ import annotations

from collections.abc import Callable

_BURST_S = 2.0
"""What gathers while nothing is sent, in seconds of the rate."""
_ROUNDING_S = 0.001
"""Added to a wait, so that it does not end a rounding error too early."""


class Throttle:
    """Says when the next bytes may go. Everything that goes is charged; a message may overdraw, the next one waits.

    Urgent bytes wait only for urgent bytes, but the others wait for them too. So over any `t` seconds at most
    `rate * (t + 4)` bytes go, and two messages. rate_bytes_per_s: 0 = no bound. clock_s: monotonic seconds.
    """

    def __init__(self, rate_bytes_per_s: float, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._rate = 0.0
        self._levels = [0.0, 0.0]  # of all, of the urgent
        self._at_s = clock_s()
        self.reconfigure(rate_bytes_per_s)

    def reconfigure(self, rate_bytes_per_s: float) -> None:
        """Another rate from now on; a debt stays, in bytes."""
        self._refill()
        if not self._rate:
            self._levels = [rate_bytes_per_s * _BURST_S] * 2
        self._rate = rate_bytes_per_s
        self._cap()

    def wait_s(self, *, urgent: bool) -> float:
        """Seconds until the next message may go, 0 = now."""
        if not self._rate:
            return 0.0
        self._refill()
        level = self._levels[urgent]
        return -level / self._rate + _ROUNDING_S if level < 0 else 0.0

    def charge(self, size_bytes: int, *, urgent: bool) -> None:
        """`size_bytes` go now."""
        if self._rate:
            self._refill()
            self._levels[0] -= size_bytes
            if urgent:
                self._levels[1] -= size_bytes

    def _refill(self) -> None:
        now_s = self._clock_s()
        gain = (now_s - self._at_s) * self._rate
        self._at_s = now_s
        self._levels = [level + gain for level in self._levels]
        self._cap()

    def _cap(self) -> None:
        self._levels = [min(level, self._rate * _BURST_S) for level in self._levels]


class Allowance:
    """How many messages may come: `per_s`, and at most `burst` at once. clock_s: monotonic seconds."""

    def __init__(self, per_s: float, burst: float, clock_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock_s = clock_s
        self._left = burst
        self._at_s = clock_s()

    def take(self) -> bool:
        """Whether one more may come now; then it counts."""
        now_s = self._clock_s()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
