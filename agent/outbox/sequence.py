"""A second home for the sequence counter, so that a lost database never makes it start again.

Beside the database lies a small file with an upper bound: no number at or above it has been given out. It is written,
synced and renamed into place *before* a number beyond it is committed, once per block of numbers. The database knows
the exact counter; when the database is gone, counting goes on at the bound: a gap of at most one block, never a repeat.

The file also holds the database's generation, which rises with every opening and every minute with new numbers, in the
database first: one whose generation is lower than the file's is an older copy.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.durable import sync

BLOCK = 10_000
"""Numbers per write of the file."""
MOST = 1 << 53
"""Numbers stay below: what reads them as floating point keeps them apart. A larger one is damage."""


class SequenceReserve:
    """The bound and the generation in `path`. Used by the writer thread only.

    bound: the first number that was certainly not given out; None when the file is absent or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bound, self.generation = self._read()

    def cover(self, first: int, end: int) -> None:
        """Have the numbers `first` <= n < `end` below the bound, on disk. Raises OSError."""
        if self.bound is None or self.bound < end:
            self._write(max(first + BLOCK, end), self.generation)  # what was given up may be many numbers at once

    def renew(self, generation: int) -> None:
        """Remember the database's generation, once the database has it on disk. Raises OSError."""
        if self.bound is not None:
            self._write(self.bound, generation)

    def _read(self) -> tuple[int | None, int]:
        try:
            bound, *more = (int(word) for word in self._path.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            return None, 0
        generation = more[0] if more else 0
        return (bound, generation) if 0 < bound < MOST and 0 <= generation < MOST else (None, 0)

    def _write(self, bound: int, generation: int) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("w", encoding="ascii") as file:
            file.write(f"{bound}\n{generation}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        sync(self._path.parent)
        self.bound, self.generation = bound, generation
