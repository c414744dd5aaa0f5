"""The places of further sinks in the history, on a connection that somebody else owns.

A sink goes through alarms and events in order of their sequence and may lag behind as far as the history reaches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.outbox.numbers import row_of
from agent.outbox.statements import RECORD

_AFTER = f"""
SELECT {RECORD}, CAST(m.t_created_us AS INTEGER), 0 FROM messages AS m WHERE m.message_id >= ? AND m.sequence > ? ORDER BY m.message_id LIMIT ?
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class SinkDepth:
    """How far a sink is behind. numbers: of the sequence, given-up ones included; oldest_age_s: of the next message, 0 = none."""

    numbers: int
    oldest_age_s: float


class Cursors:
    """Reads and writes of one connection; nothing here opens or commits a transaction.

    next_sequence: the number of the next alarm or event, when the transaction began.
    """

    def __init__(self, connection: sqlite3.Connection, next_sequence: int) -> None:
        self.next_sequence = next_sequence
        self._connection = connection

    def keep(self, sinks: Collection[str], begin: int | None = None) -> None:
        """Have exactly these sinks; a new one begins with the number `begin`, None = the next message.

        One whose place lies beyond all messages, in a damaged database, goes on with the next.
        """
        known = {sink for (sink,) in self._connection.execute("SELECT sink FROM cursors")}
        self._connection.executemany("DELETE FROM cursors WHERE sink = ?", [(sink,) for sink in known - set(sinks)])
        place = (self.next_sequence if begin is None else begin) - 1
        self._connection.executemany(
            "INSERT INTO cursors (sink, sequence) VALUES (?, ?)", [(sink, place) for sink in set(sinks) - known]
        )
        last = self.next_sequence - 1
        self._connection.execute("UPDATE cursors SET sequence = ? WHERE sequence > ?", (last, last))

    def advance(self, done: Mapping[str, int]) -> None:
        """done: the last number that each sink is done with; a cursor never goes back."""
        self._connection.executemany(
            "UPDATE cursors SET sequence = ?, attempts = 0 WHERE sink = ? AND sequence < ?",
            [(sequence, sink, sequence) for sink, sequence in done.items()],
        )

    def count_attempt(self, sink: str) -> None:
        """One more failed attempt for the next message of `sink`."""
        self._connection.execute("UPDATE cursors SET attempts = attempts + 1 WHERE sink = ?", (sink,))

    def after(self, sink: str, limit: int) -> list[tuple[object, ...]]:
        """The next messages of `sink`, columns as `Tables.fetch` reads them."""
        place = self._connection.execute("SELECT sequence, attempts FROM cursors WHERE sink = ?", (sink,)).fetchone()
        if place is None:
            return []
        rows = self._connection.execute(_AFTER, (self._row_after(place[0]), place[0], limit)).fetchall()
        if rows:
            rows[0] = (*rows[0][:-1], place[1])
        return rows

    def behind(self, sequences: Collection[int]) -> dict[str, list[int]]:
        """Which of `sequences` each sink has still before it."""
        if not sequences:
            return {}
        newest = max(sequences)
        places = self._connection.execute("SELECT sink, sequence FROM cursors WHERE sequence < ?", (newest,)).fetchall()
        return {sink: [number for number in sequences if number > place] for sink, place in places}

    def depth(self, now_us: int) -> dict[str, SinkDepth]:
        """How far each sink is behind."""
        result = {}
        for sink, sequence in self._connection.execute("SELECT sink, sequence FROM cursors").fetchall():
            oldest = self._connection.execute(_AFTER, (self._row_after(sequence), sequence, 1)).fetchone()
            age_s = max(0.0, (now_us - oldest[-2]) / 1e6) if oldest else 0.0
            result[sink] = SinkDepth(self.next_sequence - 1 - sequence, age_s)
        return result

    def _row_after(self, sequence: int) -> int:
        return row_of(self._connection, sequence + 1)
