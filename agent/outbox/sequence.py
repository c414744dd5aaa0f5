"""A second home for the sequence counter, so that a lost database never makes it start again.

Beside the database lies a small file with an upper bound: no number at or above it has been given out. It is written,
synced and renamed into place *before* a number beyond it is committed, once per block of numbers. The database knows
the exact counter; when the database is gone, counting goes on at the bound: a gap of at most one block, never a repeat.

The file also holds the database's generation, which rises with every opening and every minute with new numbers, in the
database first: one whose generation is lower than the file's is an older copy. And the name of the series that the numbers
belong to: where neither the database nor the file is left, counting begins again in a new one.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from agent.durable import sync

BLOCK = 10_000
"""Numbers per write of the file."""
MOST = 1 << 53
"""Numbers stay below: what reads them as floating point keeps them apart. A larger one is damage."""
_SERIES_DIGITS = 12


def new_series() -> int:
    """Of numbers that begin again: at random, so that no other device has it."""
    return 1 + secrets.randbelow(16**_SERIES_DIGITS - 1)


def is_series(value: object) -> bool:
    """Whether `new_series` can have made it."""
    return isinstance(value, int) and 0 < value < 16**_SERIES_DIGITS


def series_name(series: int) -> str:
    """As events have it."""
    return f"{series:0{_SERIES_DIGITS}x}"


class SequenceReserve:
    """The bound, the generation and the series in `path`. Used by the writer thread only.

    bound: the first number that was certainly not given out; None when the file is absent or unreadable. series: 0 = unknown.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bound, self.generation, self.series = self._read()

    def cover(self, first: int, end: int) -> None:
        """Have the numbers `first` <= n < `end` below the bound, on disk. Raises OSError."""
        if self.bound is None or self.bound < end:
            bound = max(first + BLOCK, end)  # what was given up may be many numbers at once
            self._write(bound, self.generation, self.series)

    def renew(self, generation: int, series: int = 0) -> None:
        """Remember the database's generation and series (0 = as it was), once the database has them on disk. Raises OSError."""
        if self.bound is not None:
            self._write(self.bound, generation, series or self.series)

    def _read(self) -> tuple[int | None, int, int]:
        try:
            bound, *more = (int(word) for word in self._path.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            return None, 0, 0
        generation, series = (*more, 0, 0)[:2]  # older agents wrote less
        if not (0 < bound < MOST and 0 <= generation < MOST):
            return None, 0, 0
        return bound, generation, series if is_series(series) else 0

    def _write(self, bound: int, generation: int, series: int) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("w", encoding="ascii") as file:
            file.write(f"{bound}\n{generation}\n{series}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        sync(self._path.parent)
        self.bound, self.generation, self.series = bound, generation, series
