"""What can still be read of a damaged database, copied into a new one.

A damaged page makes every query fail that touches it. Messages are therefore read by ranges of their row id; a range that fails is
halved until the rows in the damaged page are singled out. Rows come from a file that cannot be trusted: what the new schema
refuses is left behind.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.outbox.sequence import MOST, is_series
from agent.types import Lane

_MESSAGES = (
    "message_id, lane, sequence, event_id, topic, payload, content_type, retain, kind, phase, camera_id, "
    "t_event_us, t_created_us"
)
_TYPES = (int, int, (int, type(None)), str, str, bytes, str, int, str, str, str, int, int, (str, type(None)))
_SEQUENCE, _LOST = 2, 13
_MARKS_SINCE = 5
"""The schema that brought the marks."""
_CHUNK = 256
_FAILURES = 20_000
_TIME_S = 30.0
BEYOND_ANY = 1 << 40
"""Row ids stay below. Where the highest cannot be read, so many are looked for."""

Row = tuple[Any, ...]


@dataclass(slots=True)
class Salvaged:
    """What came over. next_sequence: the highest that the damaged file still tells, or None; numbers: sequences that were saved,
    rising; pending: how many deliveries."""

    next_sequence: int | None = None
    numbers: list[int] = field(default_factory=list)
    pending: int = 0


class _Reader:
    """Reads one table of the damaged file by ranges of `message_id`."""

    def __init__(self, connection: sqlite3.Connection, table: str, columns: str, deadline_s: float) -> None:
        self._connection = connection
        self._sql = f"SELECT {columns} FROM {table} WHERE message_id BETWEEN ? AND ? ORDER BY message_id LIMIT {_CHUNK}"  # noqa: S608 - constants only
        self._newest = f"SELECT max(message_id) FROM {table}"  # noqa: S608
        self._deadline_s = deadline_s
        self._failures = 0
        self.unread: list[tuple[int, int]] = []
        """Ranges that could not be read, rising."""

    def rows(self) -> Iterator[Row]:
        """Every row that can be read, its row id first, rising."""
        last = BEYOND_ANY - 1
        with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
            last = min(last, int(self._connection.execute(self._newest).fetchone()[0] or 0))
        ranges = [(1, last)]  # a stack: the lowest last
        while ranges:
            first, last = ranges.pop()
            while first <= last:
                rows = self._read(first, last)
                if rows is None:
                    ranges += self._halves(first, last)
                    break
                yield from rows
                if len(rows) < _CHUNK:
                    break
                first = rows[-1][0] + 1

    def _read(self, first: int, last: int) -> list[Row] | None:
        try:
            rows = self._connection.execute(self._sql, (first, last)).fetchall()
        except (sqlite3.Error, UnicodeError):
            self._failures += 1
            return None
        ids = [row[0] for row in rows]
        in_order = all(first <= one <= last for one in ids) and ids == sorted(set(ids))
        return rows if in_order else None

    def _halves(self, first: int, last: int) -> list[tuple[int, int]]:
        if first == last or self._failures > _FAILURES or time.monotonic() > self._deadline_s:
            self.unread.append((first, last))
            return []
        middle = (first + last) // 2
        return [(middle + 1, last), (first, middle)]


def salvage(damaged: Path, connection: sqlite3.Connection) -> Salvaged:
    """Copy messages, deliveries and dead letters of `damaged` into the empty database of `connection`, in one transaction.

    A message of a sequenced lane of which nothing says that it was delivered counts as pending: it may arrive twice, with the same id.
    Raises sqlite3.Error when the new database cannot take them.
    """
    result = Salvaged(next_sequence=_counter(damaged))
    deadline_s = time.monotonic() + _TIME_S
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(contextlib.closing(_open_damaged(damaged)))
        except sqlite3.Error:
            return result
        connection.execute("BEGIN IMMEDIATE")
        try:
            _copy(source, connection, result, deadline_s)
            result.next_sequence = max(result.next_sequence or 1, (result.numbers or [0])[-1] + 1)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'next_sequence'", (result.next_sequence,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite itself rolls back when the disk is full
                connection.execute("ROLLBACK")
            raise
    return result


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, result: Salvaged, deadline_s: float) -> None:
    deliveries = _Reader(source, "outbox", "message_id, attempts", deadline_s)
    attempts: dict[int, int] = dict(_whole(deliveries.rows(), (int, int)))
    letters = _Reader(source, "dead_letters", "message_id, reason, attempts, t_dead_us", deadline_s)
    dead = {row[0]: row for row in _whole(letters.rows(), (int, str, int, int))}
    with contextlib.suppress(sqlite3.Error):  # the first schemas had none
        places = source.execute("SELECT sink, sequence, attempts FROM cursors").fetchall()
        for place in _whole(iter(places), (str, int, int)):
            _insert(target, "cursors", "sink, sequence, attempts", place)
        known = source.execute("SELECT key, value FROM meta WHERE key IN ('bound', 'series') AND value > 0").fetchall()
        for key, value in _whole(iter(known), (str, int)):
            if key == "bound" or is_series(value):
                _insert(target, "meta", "key, value", (key, value))
    marks = _marks(source)
    messages = _Reader(source, "messages", f"{_MESSAGES}, {_lost_column(source)}", deadline_s)
    last = 0
    for row in _rising(_whole(messages.rows(), _TYPES)):
        row_id, lane, sequence = row[:3]
        last = max(last, row_id)
        unsure = sequence is not None and _within(row_id, deliveries.unread)
        unsettled = row_id > marks.get(lane, 0) and row[_LOST] is None
        pending = row_id in attempts or ((unsure or unsettled) and row_id not in dead)
        if sequence is None and not pending and row_id not in dead:
            continue
        if not _insert(target, "messages", f"{_MESSAGES}, lost", row):
            continue
        if pending:
            delivery = (row_id, lane, len(row[5]), row[12], attempts.get(row_id, 0))
            _insert(target, "outbox", "message_id, lane, size_bytes, t_created_us, attempts", delivery)
        elif row_id in dead:
            _insert(target, "dead_letters", "message_id, reason, attempts, t_dead_us", dead[row_id])
        result.pending += pending
        if sequence is not None:
            result.numbers.append(sequence)
    target.execute("UPDATE marks SET settled = ?1, mirror = -1 - ?1", (last,))  # what waits is listed


def _marks(source: sqlite3.Connection) -> dict[int, int]:
    """Up to where each lane was settled; nothing for those whose mark cannot be read."""
    with contextlib.suppress(sqlite3.Error):
        (version,) = source.execute("PRAGMA user_version").fetchone()
        known = source.execute("SELECT 1 FROM sqlite_schema WHERE name = 'marks'").fetchone()
        if version < _MARKS_SINCE and not known:
            return dict.fromkeys(Lane, BEYOND_ANY)  # everything that waits is listed
        rows = source.execute("SELECT lane, settled FROM marks WHERE mirror = -1 - settled").fetchall()
        return dict(_whole(iter(rows), (int, int)))
    return {}


def _rising(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows without those whose number is none, or does not fit in between those of its neighbours."""
    before, held = 0, None
    for row in rows:
        sequence = row[_SEQUENCE]
        if sequence is None:
            yield row
        elif before < sequence < MOST:
            if held is not None and held[_SEQUENCE] < sequence:
                before = held[_SEQUENCE]
                yield held
            held = row
    if held is not None:
        yield held


def _lost_column(source: sqlite3.Connection) -> str:
    """The first schema did not have it."""
    try:
        source.execute("SELECT lost FROM messages LIMIT 0")
    except sqlite3.Error:
        return "NULL"
    return "lost"


def _whole(rows: Iterator[Row], types: tuple[Any, ...]) -> Iterator[Row]:
    """The rows whose columns are what they should be."""
    return (row for row in rows if all(isinstance(value, kind) for value, kind in zip(row, types, strict=True)))


def _within(row_id: int, ranges: list[tuple[int, int]]) -> bool:
    return any(first <= row_id <= last for first, last in ranges)


def _insert(connection: sqlite3.Connection, table: str, columns: str, row: Row) -> bool:
    """Whether the new schema took the row; a full disk is not the row's fault and goes up."""
    places = ",".join("?" * len(row))
    try:
        connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", row)  # noqa: S608 - constants only
    except (sqlite3.IntegrityError, sqlite3.DataError):
        return False
    return True


def _counter(path: Path) -> int | None:
    """The highest next sequence that the damaged file still tells, or None."""
    found = []
    for question in (
        f"SELECT value FROM meta WHERE key = 'next_sequence' AND value BETWEEN 1 AND {MOST}",  # noqa: S608 - constants only
        f"SELECT max(sequence) + 1 FROM messages WHERE sequence < {MOST}",  # noqa: S608
        f"SELECT sequence + 1 FROM messages WHERE sequence < {MOST} ORDER BY message_id DESC LIMIT 1",  # noqa: S608
    ):
        with (
            contextlib.suppress(sqlite3.Error, TypeError, ValueError),
            contextlib.closing(_open_damaged(path)) as connection,
        ):
            found.append(int(connection.execute(question).fetchone()[0]))
    return max(found, default=None)


def _open_damaged(path: Path) -> sqlite3.Connection:
    """For reading; a write-ahead log that lies beside it is taken into account. Raises sqlite3.Error."""
    return _first_that_reads(
        lambda: sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True),
        lambda: sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True),
    )


def _first_that_reads(*ways: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    problem: sqlite3.Error | None = None
    for way in ways:
        connection = way()
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem or sqlite3.OperationalError("cannot be opened")
