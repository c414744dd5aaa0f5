"""Out-of-memory policy for batches: halve, try again, give up at one; dare more again after a good while."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from agent.batch_size import BatchSize
from agent.errors import DeviceMemoryError

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class BatchLimiter:
    """Splits work into batches no larger than the device has shown to bear.

    maximum: the size to start with; on_change: called with each new limit; patience: see `BatchSize`.
    """

    def __init__(self, maximum: int, on_change: Callable[[int], None] | None = None, *, patience: int = 500) -> None:
        if maximum < 1 or patience < 1:
            raise ValueError(f"maximum and patience must be 1 or more, got {maximum} and {patience}")
        self._size = BatchSize(maximum, patience)
        self._on_change = on_change

    @property
    def limit(self) -> int:
        """The largest batch at present."""
        return self._size.now

    @property
    def shortage(self) -> str:
        """What is wrong while batches are smaller than they should be; empty = nothing."""
        size = self._size
        return (
            ""
            if size.now == size.largest
            else f"out of device memory: batches of {size.now} in place of {size.largest}"
        )

    def run(self, count: int, call: Callable[[int, int], T]) -> list[T]:
        """`call(start, stop)` over 0..count in batches; its results in order.

        A batch that fails with DeviceMemoryError is tried again at half the size, which then becomes the limit.
        Raises DeviceMemoryError when not even one fits.
        """
        results: list[T] = []
        start = 0
        while start < count:
            stop = min(start + self._size.now, count)
            try:
                results.append(call(start, stop))
            except DeviceMemoryError:
                if stop - start == 1:
                    raise
                self._size.halve(stop - start)
                self._tell("out of device memory: smaller batches")
            else:
                start = stop
                if self._size.note_success():
                    self._tell("trying larger batches again")
        return results

    def _tell(self, why: str) -> None:
        _log.warning(why, limit=self._size.now, configured=self._size.largest)
        if self._on_change:
            self._on_change(self._size.now)
