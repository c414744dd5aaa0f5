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
from itertools import chain
from typing import Any

from agent.outbox.audit import CommandLog
from agent.outbox.cursors import Cursors
from agent.outbox.limits import missing, runs
from agent.outbox.moments import from_us, to_us
from agent.outbox.numbers import row_of
from agent.outbox.salvage import BEYOND_ANY
from agent.outbox.statements import (
    BURY,
    CHUNKS,
    DROP,
    FOLLOWING,
    FOUND_AGAIN,
    HAVE,
    IDS,
    INSERT,
    LOWEST,
    OLDEST_DEAD,
    OLDEST_DELIVERED,
    PURGE,
    QUEUE,
    REQUEUE,
    SLICE,
    SUPERSEDED,
)
from agent.outbox.waiting import State, Waiting
from agent.ports import Message
from agent.types import GAP, Lane, Loss, LossReason, OutboxRecord

SEQUENCED = frozenset({Lane.ALARM, Lane.EVENT})
"""Lanes whose rows carry a sequence and stay as the history."""

_AT_A_TIME = 1000
REQUEUE_ROWS = 5_000
"""Some tens of milliseconds."""

Row = tuple[int, int, int | None, str, str, bytes, str, int, str, str, str, int, int]


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

    def and_then(self, more: Requeued) -> Requeued:
        """With those of the numbers that follow immediately."""
        runs, further = list(self.missing), list(more.missing)
        if runs and further and runs[-1][1] + 1 == further[0][0]:
            further[0] = (runs.pop()[0], further[0][1])
        return Requeued(self.found + more.found, (*runs, *further), more.lowest | self.lowest)


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
    return (  # plain numbers: SQLite's adapter looks long at whatever else can be one
        row_id, int(message.lane), sequence, message.event_id, message.topic, payload, message.content_type,
        int(message.retain), message.kind, message.phase, message.camera_id, t_event_us, t_created_us,
    )  # fmt: skip


class Tables:
    """Reads and writes of one connection.

    losses: what statements of this transaction gave up.
    """

    def __init__(self, connection: sqlite3.Connection, clock_us: Callable[[], int]) -> None:
        self.connection = connection
        self.commands = CommandLog(connection, clock_us)
        self.waiting = Waiting(connection)
        self.losses: list[Loss] = []
        self._clock_us = clock_us
        self._before: State | None = None  # what waited when the transaction began
        (counter,) = connection.execute("SELECT value FROM meta WHERE key = 'next_sequence'").fetchone()
        self.cursors = Cursors(connection, counter)
        self._bound: int | None = None
        self._last_number = 0  # of the newest message of this transaction
        self._numbers_deleted = False

    # --- transactions -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self._before = self.waiting.state()
        self._last_number, self._numbers_deleted = 0, False

    def commit(self, next_sequence: int, bound: int | None) -> None:
        """Commit. The number that comes next is written down only where the newest message does not tell it, and once per block
        of numbers the `bound` below which it stays, for the day when that message is damaged."""
        told = next_sequence == (self._last_number + 1 if self._last_number else self.cursors.next_sequence)
        if self._numbers_deleted or not told:
            self.connection.execute("UPDATE meta SET value = ? WHERE key = 'next_sequence'", (next_sequence,))
        if bound != self._bound and next_sequence > self.cursors.next_sequence:
            self.connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('bound', ?)", (bound,))
        self.connection.execute("COMMIT")
        self._bound = bound
        self.cursors.next_sequence = next_sequence
        self._before = None
        if self.losses:
            self.losses.clear()

    def roll_back(self) -> None:
        """Undo the transaction, if there is one. Raises sqlite3.Error."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        if self._before is not None:
            self.waiting.go_back(self._before)
            self._before = None
        self.losses.clear()

    # --- figures ------------------------------------------------------------------------------------------------------

    def size_bytes(self, lane: Lane) -> int:
        """Payloads that wait in `lane`."""
        return self.waiting.totals[lane][1]

    def free_bytes(self) -> int:
        """Pages inside the file that new rows can use."""
        (pages,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages) * self._page_bytes()

    def used_bytes(self) -> int:
        """Pages of the file that hold something."""
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        return int(pages) * self._page_bytes() - self.free_bytes()

    def max_row_id(self) -> int:
        """The highest row id that was given out as far as the database tells, 0 for none."""
        (used,) = self.connection.execute("SELECT coalesce(max(message_id), 0) FROM messages").fetchone()
        return max(int(used), self.waiting.highest_mark())

    # --- writing ------------------------------------------------------------------------------------------------------

    def insert(self, rows: Sequence[Row]) -> None:
        """New messages, which wait. Row ids must rise. A state replaces the older ones of its topic."""
        start = 0
        for size in CHUNKS:
            while len(rows) - start >= size:
                self.connection.execute(INSERT[size], list(chain.from_iterable(rows[start : start + size])))
                start += size
        for lane in {row[1] for row in rows}:
            ours = [row for row in rows if row[1] == lane]
            # an announcement takes no room from what it announces
            self.waiting.count(lane, len(ours), sum([len(row[5]) for row in ours if row[8] != GAP]))
            self._last_number = max(self._last_number, ours[-1][2] or 0)
            if lane == Lane.STATE:
                self.delete([row_id for (row_id,) in self.connection.execute(SUPERSEDED, (rows[0][0],))])

    def settle(self) -> None:
        """What opening found missing is announced in this transaction."""
        self.connection.execute("DELETE FROM meta WHERE key = 'unsettled'")

    def delete(self, row_ids: Collection[int]) -> None:
        """Forget pending deliveries, and outside the history also the messages. Unknown ids are fine."""
        if not row_ids:
            return
        ids = json.dumps(list(row_ids))
        highest = self.waiting.uncount(ids)
        if highest.keys() - SEQUENCED:
            self.connection.execute(DROP, (ids,))  # a dead letter keeps its message
        self.waiting.settle(ids, {lane: row_id for lane, row_id in highest.items() if lane in SEQUENCED})

    def set_generation(self, generation: int) -> None:
        """Which edition of the database this is: see `agent.outbox.sequence`."""
        self.connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (generation,))

    def vacuum(self, pages: int) -> None:
        """Give at most so many free pages back to the file system; outside a transaction."""
        self.connection.executescript(f"PRAGMA incremental_vacuum({pages});")  # `execute` stops after the first page

    def bury(self, row_id: int, reason: str) -> bool:
        """Turn a pending delivery into a dead letter, which is a loss; False when it is not pending."""
        moved = self.connection.execute(BURY, (reason, self._clock_us(), row_id)).rowcount
        ids = json.dumps([row_id])
        self.waiting.settle(ids, self.waiting.uncount(ids))
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
        rows = [row for row in self.waiting.oldest(lane, limit) if row[3] < before_us]
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
        for row_id, sequence, size, _ in self.waiting.oldest(lane, _AT_A_TIME):
            if size_bytes <= 0:
                break
            chosen.append((row_id, sequence))
            size_bytes -= size
        ids = json.dumps([row_id for row_id, _ in chosen])
        self.waiting.uncount(ids)
        self._numbers_deleted |= lane in SEQUENCED
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

    def purge_history(
        self, now_us: int, kept_us: int, limit: int, after: int = 0, end: int | None = None
    ) -> int | None:
        """Drop messages that were committed more than `kept_us` ago and wait for nobody.

        Looks at the `limit` messages above the row id `after` and below `end`; returns the last one looked at, None at the end of
        what is old enough. Messages that a wrong clock stamped in the future say nothing of those behind them.
        """
        before_us = now_us - kept_us
        self.connection.execute("DELETE FROM dead_letters WHERE t_dead_us < ?", (before_us,))
        slice_ = (after, BEYOND_ANY if end is None else end, limit)
        last, looked_at, oldest_us = self.connection.execute(SLICE, slice_).fetchone()
        if not looked_at or before_us <= oldest_us <= now_us:
            return None
        self._delete_history(self.connection.execute(PURGE, (*slice_, before_us)).fetchall(), LossReason.AGE)
        return int(last) if looked_at == limit else None

    def requeue(self, first: int, last: int) -> tuple[Requeued, int | None]:
        """Have the messages of the history with sequences `first` to `last` delivered again, dead letters included.

        At most `REQUEUE_ROWS` row ids at once, so that new messages need not wait; returns also the number to go on with.
        """
        begin = row_of(self.connection, first)
        (following,) = self.connection.execute(FOLLOWING, (begin + REQUEUE_ROWS, first)).fetchone() or (None,)
        if following is not None and following <= last:
            last = following - 1
        else:
            following = None
        numbered = (begin, row_of(self.connection, last + 1), first, last)
        rows = self.connection.execute(REQUEUE, numbered).fetchall()
        ids = json.dumps([row[0] for row in rows])
        self.connection.execute(QUEUE, (self._clock_us(), ids))
        self.connection.execute(f"DELETE FROM dead_letters WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only
        self.connection.execute(FOUND_AGAIN, (ids,))
        for _, lane, size in rows:
            self.waiting.count(lane, 1, size)
        lowest = {Lane(lane): row_id for lane, row_id in self.connection.execute(LOWEST, numbered)}
        have = [number for (number,) in self.connection.execute(HAVE, numbered)]
        return Requeued(len(have), missing(have, first, last + 1), lowest), following

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
        return _records(self.waiting.fetch(lane, limit, after, not_before_us))

    def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
        """The next alarms and events of a further sink, in order of sequence."""
        return _records(self.cursors.after(sink, limit))

    def depth(self) -> dict[Lane, LaneDepth]:
        """What waits, per lane."""
        now_us = self._clock_us()
        result = {}
        for lane, (rows, size) in zip(Lane, self.waiting.totals, strict=True):
            since_us = self.waiting.since_us(lane)
            result[lane] = LaneDepth(rows, size, 0.0 if since_us is None else max(0.0, (now_us - since_us) / 1e6))
        return result

    def _page_bytes(self) -> int:
        return int(self.connection.execute("PRAGMA page_size").fetchone()[0])

    def _delete_history(self, rows: Sequence[tuple[int, int | None]], reason: LossReason) -> None:
        """rows: row id and sequence. A loss for the sinks that had them still before them."""
        ids = json.dumps([row_id for row_id, _ in rows])
        for table in ("messages", "dead_letters"):
            self.connection.execute(f"DELETE FROM {table} WHERE message_id IN {IDS}", (ids,))  # noqa: S608 - constants only
        numbers = sorted(sequence for _, sequence in rows if sequence is not None)
        self._numbers_deleted |= bool(numbers)
        for sink, missed in self.cursors.behind(numbers).items():
            self.losses.append(Loss(reason, None, runs(missed), len(missed), sink=sink))

    def _mark_lost(self, row_ids: Collection[int], reason: LossReason) -> None:
        ids = json.dumps(list(row_ids))
        self.connection.execute(f"UPDATE messages SET lost = ? WHERE message_id IN {IDS}", (reason.value, ids))  # noqa: S608 - constants only

    def _give_up(self, lane: Lane, reason: LossReason, sequences: Sequence[int | None], detail: str = "") -> None:
        if sequences:
            numbers = sorted(number for number in sequences if number is not None)
            self.losses.append(Loss(reason, lane, runs(numbers), len(sequences), detail))


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
