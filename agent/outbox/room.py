"""What the writer does when the disk is full: alarms must still fit.

While there is space, a file beside the database holds some of it. When a commit finds the disk full the file is deleted and the
space is turned into free pages inside the database at once, before somebody else takes it. From then on, until the disk has space
again, what is worth least makes room: telemetry, states, the oldest of the delivered history, and for alarms the oldest events.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from agent.outbox.tables import Tables
from agent.types import Lane, LossReason

_PER_MESSAGE_BYTES = 16_384
"""Room that a message may need with its index entries; payloads are known only once they have their number."""
_ALARMS_SHARE = 0.2
"""Of the reserve: free pages that only alarms may use."""
_CLAIM_SHARE = 0.4
"""Of the reserve: turned into free pages. The log needs as much again to write them."""
_MOST_SHARE = 0.05
"""Of the file system: the reserve is never more."""
_LOG_SHARE = 0.25
"""Of the reserve: a log of this size may have to become pages of the database on a full disk."""
_LOG_PAGES, _LEAST_LOG_PAGES, _PAGE_BYTES = 1000, 16, 4096  # the first is SQLite's own
_SLICE = 50
"""Messages of the history that go at a time: also their going has to fit into the log."""
_LOOK_AGAIN_S = 10.0
"""Where no delivered history was left, it is not looked for again at once: that means passing over everything that waits."""


class Room:
    """Used by the writer thread only.

    path: of the file that holds the space. size_bytes: 0 = no reserve. tight: the disk was full and has not recovered.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.tight = False
        self._path = path
        self._size = size_bytes
        self._history_from_s = 0.0

    def fit(self) -> None:
        """Before the database is opened, its folder being there: on a small file system the reserve is smaller."""
        with contextlib.suppress(OSError):
            state = os.statvfs(self._path.parent)
            self._size = min(self._size, int(state.f_blocks * state.f_frsize * _MOST_SHARE))

    def prepare(self) -> None:
        """Hold the reserve, or be tight from the start."""
        self.tight = not self._hold(self._size)

    def bound_log(self, connection: sqlite3.Connection) -> None:
        """Have the write-ahead log moved to the database before it is larger than what the reserve can take in."""
        if self._size:
            pages = min(_LOG_PAGES, int(self._size * _LOG_SHARE) // _PAGE_BYTES)
            connection.execute(f"PRAGMA wal_autocheckpoint={max(_LEAST_LOG_PAGES, pages)}")

    def recover(self) -> bool:
        """Hold the reserve again once the disk has twice as much; returns whether the shortage has ended just now."""
        if not self.tight or not self._hold(2 * self._size):
            return False
        self.tight = False
        return True

    def release(self) -> None:
        """Give the reserve to whoever is fastest."""
        self.tight = True
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def claim(self, tables: Tables) -> None:
        """Right after `release`: have the space become free pages of the database, as far as they are missing. Never raises."""
        connection = tables.connection
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(RESTART)")  # the log keeps its place on the disk and begins anew
        claim = int(self._size * _CLAIM_SHARE) - tables.free_bytes()
        if claim <= 0:
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE room (filling BLOB)")
            connection.execute("INSERT INTO room VALUES (zeroblob(?))", (claim,))
            connection.execute("DROP TABLE room")
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def make(self, tables: Tables, alarms: int, others: int) -> bool:
        """Inside a transaction on a full disk: throw out what is worth least; returns whether the `others` may come in.

        alarms, others: messages that are about to be inserted. Pending events give way to alarms alone.
        """
        for_alarms = int(self._size * _ALARMS_SHARE)
        wanted = for_alarms + (alarms + others) * _PER_MESSAGE_BYTES
        for lane in (Lane.TELEMETRY, Lane.STATE):
            self._until(tables, wanted, lambda lane=lane: tables.drop_oldest(lane, wanted, LossReason.SPACE) > 0)  # type: ignore[misc]
        self._until(tables, wanted, lambda: self._shed_history(tables))
        needed = alarms * _PER_MESSAGE_BYTES
        self._until(tables, needed, lambda: tables.drop_oldest(Lane.EVENT, needed, LossReason.SPACE) > 0)
        return self._free_bytes(tables) >= wanted

    def _shed_history(self, tables: Tables) -> bool:
        if time.monotonic() < self._history_from_s:
            return False
        if tables.drop_history(_SLICE) == 0:
            self._history_from_s = time.monotonic() + _LOOK_AGAIN_S
            return False
        return True

    def _until(self, tables: Tables, wanted: int, shed: Callable[[], bool]) -> None:
        while self._free_bytes(tables) < wanted and shed():
            pass

    def _free_bytes(self, tables: Tables) -> int:
        """Inside the database, and what the disk has by now for it and its log."""
        on_disk = 0
        with contextlib.suppress(OSError):
            state = os.statvfs(self._path.parent)
            on_disk = state.f_bavail * state.f_frsize
        return tables.free_bytes() + on_disk // 3

    def _hold(self, free_bytes: int) -> bool:
        """Set the space aside if the disk has `free_bytes`. Never raises."""
        try:
            if self._size == 0 or (self._path.exists() and self._path.stat().st_size >= self._size):
                return True
            state = os.statvfs(self._path.parent)
            if state.f_bavail * state.f_frsize < free_bytes:
                return False
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            return False
        return True
