"""A second home for the sequence counter, so that a lost database never makes it start again.

Beside the database lies a small file with an upper bound: no number at or above it has been given out. It is written,
synced and renamed into place *before* a number beyond it is committed, once per block of numbers. The database knows
the exact counter; when the database is gone, counting goes on at the bound: a gap of at most one block, never a repeat.
"""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 10_000
"""Numbers per write of the file; no commit holds more rows than this."""


class SequenceReserve:
    """The bound in `path`. Used by the writer thread only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bound = self._read()
        """The first number that was certainly not given out; None when the file is absent or unreadable."""

    def cover(self, first: int, end: int) -> None:
        """Have the numbers `first` <= n < `end` below the bound, on disk. Raises OSError."""
        if self.bound is None or self.bound < end:
            self._write(first + BLOCK)

    def _read(self) -> int | None:
        try:
            bound = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return bound if bound > 0 else None

    def _write(self, bound: int) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("w", encoding="ascii") as file:
            file.write(f"{bound}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.bound = bound
