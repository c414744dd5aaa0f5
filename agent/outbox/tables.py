"""The SQL of the event database, on a connection that somebody else owns.

Nothing here opens or commits a transaction. Statements work on many rows at a time: every row that Python steps through
gives up the interpreter lock and has to win it back from a busy event loop.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent.outbox.audit import CommandLog
from agent.outbox.cursors import Cursors
from agent.outbox.limits import missing, runs
from agent.outbox.moments import from_us, to_us
from agent.outbox.statements import (
    CHUNKS,
    DROP,
    FOUND_AGAIN,
    HAVE,
    IDS,
    INSERT,
    LOWEST,
    OLDEST,
    OLDEST_DEAD,
    OLDEST_DELIVERED,
    PENDING,
    PURGE,
    QUEUE,
    QUEUE_FROM,
    REQUEUE,
    SUPERSEDED,
)
from agent.ports import Message
from agent.types import GAP, Lane, Loss, LossReason, OutboxRecord

SEQUENCED = frozenset({Lane.ALARM, Lane.EVENT})
"""Lanes whose rows carry a sequence and stay as the history."""

_AT_A_TIME = 1000

Row = tuple[int, int, int | None, str, str, bytes, str, bool, str, str, str, int, int]


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """What waits in a lane. rows: pending deliveries; size_bytes: of their payloads; oldest_age_s: 0 when empty."""

    rows: int = 0
    size_bytes: int = 0
    oldest_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was refused for good. The sequence is None outside the alarm and event lanes."""

    row_id: int
    lane: Lane
    sequence: int | None
    event_id: str
    topic: str
    payload: bytes
    reason: str
    attempts: int
    t_dead_utc: datetime


@dataclass(frozen=True, slots=True)
class Requeued:
    """Messages that are on their way again. found: how many the history has, those that still waited included; missing: runs of
    numbers that it has not; lowest: row id to begin again with, per lane, those that still waited included as well: whoever asks
    again after an answer that got lost has the relay turn back all the same."""

    found: int
    missing: tuple[tuple[int, int], ...]
    lowest: dict[Lane, int]


def message_row(message: Message, row_id: int, sequence: int | None, payload: bytes, t_created_us: int) -> Row:
    """The row of `message`. A missing or unreadable `t_utc_iso` becomes the time of the commit.

    Raises TypeError, UnicodeEncodeError for what SQLite could not store: found here, it costs this message alone.
    """
    if not isinstance(payload, bytes):
        raise TypeError(f"payload: expected bytes, got {type(payload).__name__}")
    names = (message.event_id, message.topic, message.content_type, message.kind, message.phase, message.camera_id)
    "".join(names).encode()
    t_event_us = t_created_us
    if message.t_utc_iso:
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(message.t_utc_iso)
            t_event_us = to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return (
        row_id, message.lane, sequence, message.event_id, message.topic, payload, message.content_type,
        message.retain, message.kind, message.phase, message.camera_id, t_event_us, t_created_us,
    )  # fmt: skip


class Tables:
    """Reads and writes of one connection, with running totals of what is pending.

    The totals follow the statements; after a rollback the owner calls `recount`.
    losses: what statements gave up since the owner emptied it.
    """

    def __init__(self, connection: sqlite3.Connection, clock_us: Callable[[], int]) -> None:
        self.connection = connection
        self.cursors = Cursors(connection)
        self.commands = CommandLog(connection, clock_us)
        self._clock_us = clock_us
        self._totals: dict[Lane, tuple[int, int]] = {}
        self.losses: list[Loss] = []
        self.recount()

    def recount(self) -> None:
        """Take the totals from the table, after a rollback."""
        self.losses.clear()
        self._totals = dict.fromkeys(Lane, (0, 0))
        for lane, rows, size in self.connection.execute(
            "SELECT lane, count(*), sum(size_bytes) FROM outbox GROUP BY lane"
        ):
            self._totals[Lane(lane)] = (rows, size)

    def newest(self) -> dict[Lane, int]:
        """The highest pending row id per lane, 0 for none."""
        ask = "SELECT coalesce(max(message_id), 0) FROM outbox WHERE lane = ?"
        return {lane: self.connection.execute(ask, (lane,)).fetchone()[0] for lane in Lane}

    def size_bytes(self, lane: Lane) -> int:
        """Payloads that wait in `lane`."""
        return self._totals[lane][1]

    def free_bytes(self) -> int:
        """Pages inside the file that new rows can use."""
        (pages,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages) * self._page_bytes()

    def used_bytes(self) -> int:
        """Pages of the file that hold something."""
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        return int(pages) * self._page_bytes() - self.free_bytes()

    def max_row_id(self) -> int:
        """The highest row id in use, 0 for none."""
        return int(self.connection.execute("SELECT coalesce(max(message_id), 0) FROM messages").fetchone()[0])

    # --- writing ------------------------------------------------------------------------------------------------------

    def insert(self, rows: Sequence[Row]) -> None:
        """New messages with their pending deliveries. Row ids must rise. A state replaces the older ones of its topic."""
        if not rows:
            return
        start = 0
        for size in CHUNKS:
            while len(rows) - start >= size:
                flat = [value for row in rows[start : start + size] for value in row]
                self.connection.execute(INSERT[size], flat)
                start += size
        first = rows[0][0]
        self.connection.execute(QUEUE_FROM, (first,))
        counts: dict[int, tuple[int, int]] = {}
        for row in rows:  # an announcement takes no room from what it announces
            have = counts.get(row[1], (0, 0))
            counts[row[1]] = (have[0] + 1, have[1] + (0 if row[8] == GAP else len(row[5])))
        for lane, (number, size) in counts.items():
            self._count(Lane(lane), number, size)
        if Lane.STATE in counts:
            self.delete([row_id for (row_id,) in self.connection.execute(SUPERSEDED, (first,))])

    def set_next_sequence(self, next_sequence: int) -> None:
        """The number that the next alarm or event gets."""
        self.connection.execute("UPDATE meta SET value = ? WHERE key = 'next_sequence'", (next_sequence,))

    def settle(self) -> None:
        """What opening found missing is announced in this transaction."""
        self.connection.execute("DELETE FROM meta WHERE key = 'unsettled'")

    def delete(self, row_ids: Collection[int]) -> None:
        """Forget pending deliveries, and outside the history also the messages. Unknown ids are fine."""
        if not row_ids:
            return
        ids = json.dumps(list(row_ids))
        self._uncount(ids)
        self.connection.execute(DROP, (ids,))  # a dead letter keeps its message
        self.connection.execute(f"DELETE FROM outbox WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only

    def set_generation(self, generation: int) -> None:
        """Which edition of the database this is: see `agent.outbox.sequence`."""
        self.connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (generation,))

    def vacuum(self, pages: int) -> None:
        """Give at most so many free pages back to the file system; outside a transaction."""
        self.connection.executescript(f"PRAGMA incremental_vacuum({pages});")  # `execute` stops after the first page

    def count_attempts(self, row_ids: Collection[int]) -> None:
        """One more failed attempt for each of `row_ids`; one may be named more than once."""
        if not row_ids:
            return
        ids = json.dumps(list(row_ids))
        counted = "attempts + (SELECT count(*) FROM json_each(?) WHERE value = message_id)"
        self.connection.execute(f"UPDATE outbox SET attempts = {counted} WHERE message_id IN {IDS}", (ids, ids))  # noqa: S608 - constants only

    def bury(self, row_id: int, reason: str) -> bool:
        """Turn a pending delivery into a dead letter, which is a loss; False when it is not pending."""
        moved = self.connection.execute(
            "INSERT INTO dead_letters (message_id, reason, attempts, t_dead_us) "
            "SELECT message_id, ?, attempts + 1, ? FROM outbox WHERE message_id = ?",
            (reason, self._clock_us(), row_id),
        ).rowcount
        self._uncount(json.dumps([row_id]))
        self.connection.execute("DELETE FROM outbox WHERE message_id = ?", (row_id,))
        if moved:
            ask = "SELECT lane, sequence, kind FROM messages WHERE message_id = ?"
            lane, sequence, kind = self.connection.execute(ask, (row_id,)).fetchone()
            if kind != GAP:  # who does not take the announcement would not take one of its own end
                self._give_up(Lane(lane), LossReason.REFUSED, [sequence], reason)
        return moved == 1

    def expire(self, lane: Lane, before_us: int, limit: int) -> int:
        """Give up those of the `limit` oldest pending rows of `lane` that were committed before `before_us`; returns how many.

        Events stay in the history.
        """
        rows = [row for row in self.connection.execute(OLDEST, (lane, GAP, limit)) if row[3] < before_us]
        if lane in SEQUENCED:
            self._mark_lost([row[0] for row in rows], LossReason.AGE)
        self.delete([row[0] for row in rows])
        self._give_up(lane, LossReason.AGE, [row[1] for row in rows])
        return len(rows)

    def drop_oldest(self, lane: Lane, size_bytes: int, reason: LossReason) -> int:
        """Give up the oldest pending rows of `lane`, at least `size_bytes` of payload if there are as many, and delete them.

        Returns how many.
        """
        chosen: list[tuple[int, int | None]] = []
        for row_id, sequence, size, _ in self.connection.execute(OLDEST, (lane, GAP, _AT_A_TIME)).fetchall():
            if size_bytes <= 0:
                break
            chosen.append((row_id, sequence))
            size_bytes -= size
        ids = json.dumps([row_id for row_id, _ in chosen])
        self._uncount(ids)
        for table in ("messages", "outbox"):
            self.connection.execute(f"DELETE FROM {table} WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only
        self._give_up(lane, reason, [sequence for _, sequence in chosen])
        return len(chosen)

    def drop_history(self, limit: int) -> int:
        """Delete the oldest messages that wait for nobody, at most `limit`, dead letters last; returns how many."""
        rows = self.connection.execute(OLDEST_DELIVERED, (limit,)).fetchall()
        rows = rows or self.connection.execute(OLDEST_DEAD, (limit,)).fetchall()
        self._delete_history(rows, LossReason.BYTES)
        return len(rows)

    def shift(self, first_id: int, by_us: int) -> None:
        """The clock was put right: what waits from row id `first_id` on was stamped by the wrong one."""
        self.connection.execute(
            "UPDATE outbox SET t_created_us = t_created_us + ? WHERE message_id >= ?", (by_us, first_id)
        )

    def purge_history(self, before_us: int, limit: int, after: int = 0, end: int | None = None) -> int | None:
        """Drop messages committed before `before_us` that wait for nobody.

        Looks at the `limit` messages above the row id `after` and below `end`; returns the last one looked at, None at the end of
        what is old enough.
        """
        self.connection.execute("DELETE FROM dead_letters WHERE t_dead_us < ?", (before_us,))
        ask = "SELECT max(message_id), count(*), min(t_created_us) FROM (SELECT message_id, t_created_us FROM messages WHERE message_id > ? ORDER BY message_id LIMIT ?)"
        last, looked_at, oldest_us = self.connection.execute(ask, (after, limit)).fetchone()
        if not looked_at or oldest_us >= before_us or (end is not None and last >= end):
            return None
        self._delete_history(self.connection.execute(PURGE, (after, limit, before_us)).fetchall(), LossReason.AGE)
        return int(last) if looked_at == limit else None

    def requeue(self, first: int, last: int) -> Requeued:
        """Have the messages of the history with sequences `first` to `last` delivered again, dead letters included."""
        rows = self.connection.execute(REQUEUE, (first, last)).fetchall()
        ids = json.dumps([row[0] for row in rows])
        self.connection.execute(QUEUE, (self._clock_us(), ids))
        self.connection.execute(f"DELETE FROM dead_letters WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only
        self.connection.execute(FOUND_AGAIN, (ids,))
        for _, lane, size in rows:
            self._count(Lane(lane), 1, size)
        lowest = {Lane(lane): row_id for lane, row_id in self.connection.execute(LOWEST, (first, last))}
        have = [number for (number,) in self.connection.execute(HAVE, (first, last))]
        return Requeued(len(have), missing(have, first, last + 1), lowest)

    def pass_over(self, sink: str, record: OutboxRecord, reason: str) -> None:
        """A further sink will never take `record`: a loss of that sink alone."""
        if record.sequence is None:
            raise ValueError(f"sinks take alarms and events, not {record.lane.name.lower()}")
        self.cursors.advance({sink: record.sequence})
        (kind,) = self.connection.execute(
            "SELECT kind FROM messages WHERE message_id = ?", (record.row_id,)
        ).fetchone() or ("",)
        if kind != GAP:
            run = ((record.sequence, record.sequence),)
            self.losses.append(Loss(LossReason.REFUSED, record.lane, run, 1, reason, sink))

    # --- reading ------------------------------------------------------------------------------------------------------

    def fetch(self, lane: Lane, limit: int, after: int, not_before_us: int = 0) -> list[OutboxRecord]:
        """Pending rows of `lane` with a row id above `after`, in order of commit."""
        return _records(self.connection.execute(PENDING, (lane, after, not_before_us, limit)).fetchall())

    def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
        """The next alarms and events of a further sink, in order of sequence."""
        return _records(self.cursors.after(sink, limit))

    def depth(self) -> dict[Lane, LaneDepth]:
        """What waits, per lane."""
        now_us = self._clock_us()
        ask = "SELECT t_created_us FROM outbox WHERE lane = ? ORDER BY message_id LIMIT 1"
        result = {}
        for lane, (rows, size) in self._totals.items():
            oldest = self.connection.execute(ask, (lane,)).fetchone()
            result[lane] = LaneDepth(rows, size, max(0.0, (now_us - oldest[0]) / 1e6) if oldest else 0.0)
        return result

    def _page_bytes(self) -> int:
        return int(self.connection.execute("PRAGMA page_size").fetchone()[0])

    def _delete_history(self, rows: Sequence[tuple[int, int | None]], reason: LossReason) -> None:
        """rows: row id and sequence. A loss for the sinks that had them still before them."""
        ids = json.dumps([row_id for row_id, _ in rows])
        for table in ("messages", "dead_letters"):
            self.connection.execute(f"DELETE FROM {table} WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only
        numbers = sorted(sequence for _, sequence in rows if sequence is not None)
        for sink, missed in self.cursors.behind(numbers).items():
            self.losses.append(Loss(reason, None, runs(missed), len(missed), sink=sink))

    def _mark_lost(self, row_ids: Collection[int], reason: LossReason) -> None:
        ids = json.dumps(list(row_ids))
        self.connection.execute(f"UPDATE messages SET lost = ? WHERE message_id IN {IDS}", (reason.value, ids))  # noqa: S608 - constants only

    def _give_up(self, lane: Lane, reason: LossReason, sequences: Sequence[int | None], detail: str = "") -> None:
        if sequences:
            numbers = sorted(number for number in sequences if number is not None)
            self.losses.append(Loss(reason, lane, runs(numbers), len(sequences), detail))

    def _count(self, lane: Lane, rows: int, size_bytes: int) -> None:
        have = self._totals[lane]
        self._totals[lane] = (have[0] + rows, have[1] + size_bytes)

    def _uncount(self, ids: str) -> None:
        ask = f"SELECT lane, count(*), sum(size_bytes) FROM outbox WHERE message_id IN {IDS} GROUP BY lane"  # noqa: S608 - constants only
        for lane, rows, size in self.connection.execute(ask, (ids,)).fetchall():
            self._count(Lane(lane), -rows, -size)


def _records(rows: Sequence[tuple[Any, ...]]) -> list[OutboxRecord]:
    return [
        OutboxRecord(
            row_id, Lane(lane), sequence, event_id, topic, payload, content_type, bool(retain), from_us(t_us), attempts
        )
        for row_id, lane, sequence, event_id, topic, payload, content_type, retain, t_us, attempts in rows
    ]


def select_dead_letters(connection: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    """The latest refused messages, newest first."""
    rows = connection.execute(
        "SELECT m.message_id, m.lane, m.sequence, m.event_id, m.topic, m.payload, d.reason, d.attempts, d.t_dead_us "
        "FROM dead_letters AS d JOIN messages AS m ON m.message_id = d.message_id "
        "ORDER BY d.t_dead_us DESC, d.message_id DESC LIMIT ?",
        (limit,),
    )
    return [
        DeadLetter(row_id, Lane(lane), sequence, event_id, topic, payload, reason, attempts, from_us(t_dead_us))
        for row_id, lane, sequence, event_id, topic, payload, reason, attempts, t_dead_us in rows
    ]
