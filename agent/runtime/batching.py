"""Out-of-memory policy for batches: halve, try again, give up at one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from agent.errors import DeviceMemoryError

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class BatchLimiter:
    """Splits work into batches no larger than the device has shown to bear.

    maximum: the size to start with; on_shrink: called with each new, smaller limit.
    """

    def __init__(self, maximum: int, on_shrink: Callable[[int], None] | None = None) -> None:
        if maximum < 1:
            raise ValueError(f"maximum must be 1 or more, got {maximum}")
        self._maximum = maximum
        self._limit = maximum
        self._on_shrink = on_shrink

    @property
    def limit(self) -> int:
        """The largest batch at present."""
        return self._limit

    def reset(self) -> None:
        """Dare the full size again, for example once memory has been freed."""
        self._limit = self._maximum

    def run(self, count: int, call: Callable[[int, int], T]) -> list[T]:
        """`call(start, stop)` over 0..count in batches; its results in order.

        A batch that fails with DeviceMemoryError is tried again at half the size, which then stays the limit.
        Raises DeviceMemoryError when not even one fits.
        """
        results: list[T] = []
        start = 0
        while start < count:
            stop = min(start + self._limit, count)
            try:
                results.append(call(start, stop))
            except DeviceMemoryError:
                if stop - start == 1:
                    raise
                self._shrink((stop - start) // 2)
            else:
                start = stop
        return results

    def _shrink(self, limit: int) -> None:
        self._limit = limit
        _log.warning("out of device memory: smaller batches", limit=limit, configured=self._maximum)
        if self._on_shrink:
            self._on_shrink(limit)
