"""The history of events: one query for the running agent and for the command line, which reads beside it."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from agent.errors import StorageError
from agent.outbox.audit import CommandEntry, select_commands
from agent.outbox.faults import storage_error
from agent.outbox.moments import from_us, to_us
from agent.outbox.numbers import row_of
from agent.outbox.tables import DeadLetter, select_dead_letters
from agent.outbox.waiting import Waiting
from agent.types import Lane

Delivery = Literal["pending", "delivered", "dead", "lost"]

_FIELDS = ("sequence", "t_utc", "kind", "phase", "camera_id", "delivery", "event_id", "topic")
_TOLD = ("incident_id", "confidence", "duration_s", "evidence")
"""Members of the message's data that a table has beside them."""


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events. Empty fields do not filter.

    since, until: aware times, when it happened, since <= t < until. after: only sequences above this one.
    newest_first: else in order of sequence. limit: at most so many; None = all.
    """

    since: datetime | None = None
    until: datetime | None = None
    kind: str = ""
    phase: str = ""
    camera_id: str = ""
    after: int = 0
    limit: int | None = 100
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event as committed. payload: the bytes that are or were published; delivery: what became of them."""

    sequence: int
    lane: Lane
    event_id: str
    kind: str
    phase: str
    camera_id: str
    t_utc: datetime
    topic: str
    payload: bytes
    delivery: Delivery

    def as_json(self) -> dict[str, Any]:
        """The message and its delivery; of one that cannot be read its bytes, since it must not hide the others."""
        document = _readable(self.payload).get("payload")
        return (document if isinstance(document, dict) else _encoded(self.payload)) | {"delivery": self.delivery}


def events_sql(query: EventQuery, first_row: int = 0) -> tuple[str, list[Any]]:
    """The statement and its parameters; columns as in EventRow, times in microseconds. first_row: nothing lies before it."""
    wanted = {"kind = ?": query.kind, "phase = ?": query.phase, "camera_id = ?": query.camera_id}
    times = {"t_event_us >= ?": query.since, "t_event_us < ?": query.until}
    chosen: dict[str, str | int] = {"message_id >= ?": first_row, "sequence > ?": query.after}
    chosen |= {condition: value for condition, value in wanted.items() if value}
    chosen |= {condition: to_us(moment) for condition, moment in times.items() if moment is not None}
    where = " AND ".join(chosen)
    order = "DESC" if query.newest_first else "ASC"
    texts = {name: f"CAST({name} AS TEXT)" for name in ("event_id", "kind", "phase", "camera_id", "topic")}
    columns = (
        "sequence, lane, {event_id}, {kind}, {phase}, {camera_id}, t_event_us, {topic}, CAST(payload AS BLOB), delivery"
    ).format(**texts)
    sql = f"SELECT {columns} FROM events WHERE {where} ORDER BY message_id {order} LIMIT ?"  # noqa: S608 - constants only
    return sql, [*chosen.values(), -1 if query.limit is None else query.limit]


def select_events(connection: sqlite3.Connection, query: EventQuery) -> list[EventRow]:
    """The rows of `query`."""
    sql, values = events_sql(query, _first_row(connection, query))
    return [_event_row(row) for row in connection.execute(sql, values).fetchall()]


def _first_row(connection: sqlite3.Connection, query: EventQuery) -> int:
    return row_of(connection, query.after + 1) if query.after else 0


class EventArchive:
    """Reads a database beside a running agent, or without one; never writes. A context manager.

    Raises StorageError when there is no readable database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._database: Any = None

    def __enter__(self) -> Self:
        if not self._path.is_file():
            raise StorageError(f"{self._path}: no event database here (hint: check state_dir and outbox.file)")
        try:
            self._database = _open_read_only(self._path, "mode=ro")
        except sqlite3.OperationalError as error:
            # Without a log file nobody is writing; a reader that may not create one can still read the file as it is.
            if self._path.with_name(self._path.name + "-wal").exists():
                raise storage_error(error, self._path) from error
            self._database = _open_read_only(self._path, "mode=ro&immutable=1")
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._database is not None:
            self._database.conn.close()
            self._database = None

    def events(self, query: EventQuery) -> Iterator[EventRow]:
        """The rows of `query`, read as they are asked for."""
        with self._reading() as database:
            sql, values = events_sql(query, _first_row(database.conn, query))
            for row in database.query(sql, values):
                yield _event_row(tuple(row.values()))

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The latest refused messages, newest first."""
        with self._reading() as database:
            return select_dead_letters(database.conn, limit)

    def commands(self, limit: int = 100) -> list[CommandEntry]:
        """The latest commands, newest first."""
        with self._reading() as database:
            return select_commands(database.conn, limit)

    def pending(self) -> dict[Lane, int]:
        """How many deliveries wait, per lane."""
        with self._reading() as database:
            if "marks" in database.table_names():
                return {lane: rows for lane, (rows, _) in zip(Lane, Waiting(database.conn).totals, strict=True)}
            # the agent that will bring it up to date has not started yet
            counts = database.query("SELECT lane, count(*) AS waiting FROM outbox GROUP BY lane")
            return dict.fromkeys(Lane, 0) | {Lane(row["lane"]): row["waiting"] for row in counts}

    def check(self) -> str:
        """What is wrong with the file, empty = nothing. Takes as long as reading all of it."""
        with self._reading() as database:
            (verdict,) = database.conn.execute("PRAGMA quick_check(1)").fetchone()
        return "" if verdict == "ok" else str(verdict)

    def export(self, query: EventQuery, file: TextIO, form: Literal["jsonl", "csv"]) -> int:
        """Write the rows of `query` to `file`; returns how many.

        jsonl: one object per line, the message under `payload` (or `payload_base64` when it is not JSON).
        csv: a header and one line per event, with what the message tells of an incident in place of the message.
        """
        table = csv.DictWriter(file, _FIELDS + _TOLD, lineterminator="\n")
        if form == "csv":
            table.writeheader()
        count = 0
        for count, row in enumerate(self.events(query), 1):  # noqa: B007 - the count is the result
            if form == "csv":
                table.writerow(_cells(row) | _told(row.payload))
            else:
                file.write(json.dumps(_cells(row) | _readable(row.payload), ensure_ascii=False) + "\n")
        return count

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        if self._database is None:
            raise StorageError(f"{self._path}: not open")
        try:
            yield self._database
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error


def check(path: Path) -> str:
    """What is wrong with the database at `path`, empty = nothing. Takes as long as reading all of it; blocks."""
    try:
        with EventArchive(path) as archive:
            return archive.check()
    except StorageError as error:
        return str(error)


def _open_read_only(path: Path, options: str) -> Any:
    """A `sqlite_utils.Database` that cannot write."""
    import sqlite_utils

    connection = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # a damaged letter must not hide the others
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the files, the log included
        connection.execute("PRAGMA query_only=1")
    except sqlite3.Error:
        connection.close()
        raise
    return sqlite_utils.Database(connection, execute_plugins=False)


def _event_row(row: tuple[Any, ...]) -> EventRow:
    sequence, lane, event_id, kind, phase, camera_id, t_event_us, topic, payload, delivery = row
    t_utc = from_us(t_event_us)
    return EventRow(sequence, Lane(lane), event_id, kind, phase, camera_id, t_utc, topic, payload, delivery)


def _cells(row: EventRow) -> dict[str, object]:
    return {name: row.t_utc.isoformat() if name == "t_utc" else getattr(row, name) for name in _FIELDS}


def _told(payload: bytes) -> dict[str, object]:
    """Nothing of a message that has no such data, or cannot be read: its line must be there all the same."""
    message = _readable(payload).get("payload")
    data = message.get("data") if isinstance(message, dict) else None
    return {name: data.get(name) for name in _TOLD} if isinstance(data, dict) else {}


def _readable(payload: bytes) -> dict[str, object]:
    try:
        return {"payload": json.loads(payload)}
    except (ValueError, RecursionError):
        return _encoded(payload)


def _encoded(payload: bytes) -> dict[str, object]:
    return {"payload_base64": base64.b64encode(payload).decode("ascii")}
