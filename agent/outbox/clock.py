"""Time as the database counts it: the wall clock's, but without its jumps.

Ages are differences of such times, so a clock that is put right (a box without a battery starts in 1970) must not make
everything that waits too old at once. Time runs on with the monotonic clock; when the wall clock has jumped the owner moves
what it stamped along, and takes the jump over.
"""

from __future__ import annotations

from collections.abc import Callable

_JUMP_US = 30_000_000
"""Less is a clock that is being slewed, and matters to no age limit."""


class SteadyClock:
    """Called it says the time, microseconds since 1970 UTC. `take_over` belongs to the thread that owns the database."""

    def __init__(self, clock_us: Callable[[], int], monotonic_us: Callable[[], int]) -> None:
        self._clock_us = clock_us
        self._monotonic_us = monotonic_us
        self._began_us = monotonic_us()
        self._offset_us = clock_us() - self._began_us

    def __call__(self) -> int:
        return self._monotonic_us() + self._offset_us

    @property
    def running_us(self) -> int:
        """For how long it has been running, whatever the wall clock has done meanwhile."""
        return self._monotonic_us() - self._began_us

    @property
    def jump_us(self) -> int:
        """By how much the wall clock has jumped and the rows not yet, 0 = not worth mentioning."""
        jump_us = self._clock_us() - self()
        return jump_us if abs(jump_us) >= _JUMP_US else 0

    def take_over(self, jump_us: int) -> None:
        """The rows have been moved by `jump_us`."""
        self._offset_us += jump_us
