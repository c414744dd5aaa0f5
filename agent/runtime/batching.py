"""Out-of-memory policy for batches: halve, try again, give up at one; dare more again after a good while."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from agent.errors import DeviceMemoryError

_log = structlog.get_logger(__name__)
T = TypeVar("T")
_MAX_PATIENCE = 1 << 20


class BatchLimiter:
    """Splits work into batches no larger than the device has shown to bear.

    maximum: the size to start with; on_change: called with each new limit; patience: that many good batches in a row
    double a reduced limit. Each time memory runs out the patience doubles, so that a device that is simply too small is
    bothered ever more rarely; a failed attempt costs time and no result.
    """

    def __init__(self, maximum: int, on_change: Callable[[int], None] | None = None, *, patience: int = 500) -> None:
        if maximum < 1 or patience < 1:
            raise ValueError(f"maximum and patience must be 1 or more, got {maximum} and {patience}")
        self._maximum = maximum
        self._limit = maximum
        self._on_change = on_change
        self._patience = patience
        self._good = 0

    @property
    def limit(self) -> int:
        """The largest batch at present."""
        return self._limit

    @property
    def shortage(self) -> str:
        """What is wrong while batches are smaller than they should be; empty = nothing."""
        if self._limit == self._maximum:
            return ""
        return f"out of device memory: batches of {self._limit} in place of {self._maximum}"

    def run(self, count: int, call: Callable[[int, int], T]) -> list[T]:
        """`call(start, stop)` over 0..count in batches; its results in order.

        A batch that fails with DeviceMemoryError is tried again at half the size, which then becomes the limit.
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
                self._patience = min(2 * self._patience, _MAX_PATIENCE)
                self._change((stop - start) // 2, "out of device memory: smaller batches")
            else:
                start = stop
                self._note_success()
        return results

    def _note_success(self) -> None:
        if self._limit == self._maximum:
            return
        self._good += 1
        if self._good >= self._patience:
            self._change(min(2 * self._limit, self._maximum), "trying larger batches again")

    def _change(self, limit: int, why: str) -> None:
        self._limit, self._good = limit, 0
        _log.warning(why, limit=limit, configured=self._maximum)
        if self._on_change:
            self._on_change(limit)
