"""What waits to be delivered, on a connection that somebody else owns.

Each lane has a mark: above it every message waits, so that putting one writes nothing but the message, and acknowledgements in
order write one small row however many they are. Below it only what `outbox` lists waits: what was passed over by an
acknowledgement out of order, and what was queued again. A message above the mark is listed as well once an attempt failed or
its time was moved.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from agent.outbox.statements import (
    AMONG,
    COUNT_ATTEMPTS,
    FIRST,
    KEEP_BELOW,
    MARK,
    NEWEST_ABOVE,
    NEWEST_BELOW,
    OLDEST,
    PENDING,
    QUEUE_MISTIMED,
    SHIFT,
    SHIFT_HISTORY,
    UNQUEUE,
    WAITING_ABOVE,
    WAITING_BELOW,
)
from agent.types import Lane

_ANY_TIME_US = -(1 << 63)

State = tuple[list[int], list[tuple[int, int]]]
_Rows = list[tuple[Any, ...]]


class Waiting:
    """Marks and running totals of one connection; nothing here opens or commits a transaction.

    totals: messages and bytes of payload that wait, by lane; announcements of losses count no bytes. After a rollback the
    owner calls `go_back` with what `state` gave before.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        marks = dict(connection.execute("SELECT lane, settled FROM marks").fetchall())
        self._marks: list[int] = [marks.get(int(lane), 0) for lane in Lane]  # by lane, as the totals
        self.totals: list[tuple[int, int]] = [
            connection.execute(WAITING_ABOVE[lane], (self._marks[lane],)).fetchone() for lane in Lane
        ]
        for lane, rows, size in connection.execute(WAITING_BELOW).fetchall():
            self.count(lane, rows, size)

    def state(self) -> State:
        """For `go_back`."""
        return self._marks.copy(), self.totals.copy()

    def go_back(self, state: State) -> None:
        """The database is again as it was at that time."""
        self._marks, self.totals = state

    def count(self, lane: int, rows: int, size_bytes: int) -> None:
        """So many more wait."""
        have = self.totals[lane]
        self.totals[lane] = (have[0] + rows, have[1] + size_bytes)

    def highest_mark(self) -> int:
        """New messages need a row id above it."""
        return max(self._marks)

    def newest(self) -> dict[Lane, int]:
        """The highest row id that waits in each lane, 0 for none."""
        return {lane: self._newest(lane) for lane in Lane}

    def _newest(self, lane: Lane) -> int:
        above = self._connection.execute(NEWEST_ABOVE[lane], (self._marks[lane],)).fetchone()
        (below,) = self._connection.execute(NEWEST_BELOW, (lane,)).fetchone()
        return max(int(below), int(above[0]) if above else 0)

    # --- writing ------------------------------------------------------------------------------------------------------

    def uncount(self, ids: str) -> dict[Lane, int]:
        """Take those of `ids`, a JSON list, that wait off the totals; returns the highest of each lane."""
        found = self._connection.execute(AMONG, (ids,)).fetchall()
        for lane, rows, size, _ in found:
            self.count(lane, -rows, -size)
        return {Lane(lane): highest for lane, _, _, highest in found}

    def settle(self, ids: str, highest: Mapping[Lane, int]) -> None:
        """None of `ids` waits any more. highest: of those that did, as `uncount` returned it."""
        for lane, row_id in highest.items():
            mark = self._marks[lane]
            if row_id > mark:
                self._connection.execute(KEEP_BELOW[lane], (mark, row_id, ids))
                self._connection.execute(MARK, (row_id, lane))
                self._marks[lane] = row_id
        self._connection.execute(UNQUEUE, (ids,))

    def count_attempts(self, row_ids: Collection[int]) -> None:
        """One more failed attempt for each of `row_ids` that waits; one may be named more than once."""
        if row_ids:
            ids = json.dumps(list(row_ids))
            self._connection.execute(COUNT_ATTEMPTS, (ids, ids))

    def shift(self, first_id: int, by_us: int, now_us: int, history_us: int) -> None:
        """The clock, which said `now_us`, has jumped by `by_us`: what waits and was stamped by it moves along.

        That is what waits from row id `first_id` on, and of earlier starts what can be of the same wrong clock: for a jump ahead
        everything stamped until now (a box that was started again before it learnt the time), for one back what would lie in
        the future. What is then not of the last `history_us` moves in the history as well, or it would leave that on delivery, or
        never.
        """
        then_us = now_us + by_us
        mistimed = (first_id, _ANY_TIME_US if by_us > 0 else then_us, now_us)
        for lane in Lane:
            self._connection.execute(QUEUE_MISTIMED[lane], (self._marks[lane], *mistimed))
        self._connection.execute(SHIFT_HISTORY, (by_us, then_us - history_us, then_us, *mistimed))
        self._connection.execute(SHIFT, (by_us, *mistimed))

    # --- reading ------------------------------------------------------------------------------------------------------

    def fetch(self, lane: Lane, limit: int, after: int, not_before_us: int) -> _Rows:
        """Columns of a record, since when it waits, failed attempts; rows above `after` in order of commit."""
        return self._select(PENDING, lane, limit, after, (not_before_us,))

    def oldest(self, lane: Lane, limit: int) -> _Rows:
        """Row id, sequence, size, since when it waits; without announcements of losses."""
        return self._select(OLDEST, lane, limit)

    def since_us(self, lane: Lane) -> int | None:
        """Since when the oldest waits, None = nothing waits."""
        rows = self._select(FIRST, lane, 1)
        return int(rows[0][0]) if rows else None

    def _select(
        self,
        statements: tuple[str, dict[Lane, str]],
        lane: Lane,
        limit: int,
        after: int = 0,
        values: tuple[int, ...] = (),
    ) -> _Rows:
        below, above = statements
        mark, rows = self._marks[lane], []
        if after < mark:
            rows = self._connection.execute(below, (int(lane), after, mark, *values, limit)).fetchall()
        if len(rows) < limit:
            rest = (max(after, mark), *values, limit - len(rows))
            rows += self._connection.execute(above[lane], rest).fetchall()
        return rows
