"""The places of further sinks in the history, on a connection that somebody else owns.

A sink goes through alarms and events in order of their sequence and may lag behind as far as the history reaches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.outbox.statements import RECORD

_NEXT = "(SELECT value FROM meta WHERE key = 'next_sequence')"
_AFTER = f"""
SELECT {RECORD}, m.t_created_us,
       CASE row_number() OVER (ORDER BY m.sequence) WHEN 1 THEN c.attempts ELSE 0 END
FROM cursors AS c JOIN messages AS m ON m.sequence > c.sequence WHERE c.sink = ? ORDER BY m.sequence LIMIT ?
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class SinkDepth:
    """How far a sink is behind. numbers: of the sequence, given-up ones included; oldest_age_s: of the next message, 0 = none."""

    numbers: int
    oldest_age_s: float


class Cursors:
    """Reads and writes of one connection; nothing here opens or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def keep(self, sinks: Collection[str], begin: int | None = None) -> None:
        """Have exactly these sinks; a new one begins with the number `begin`, None = the next message.

        One whose place lies beyond all messages, in a damaged database, goes on with the next.
        """
        known = {sink for (sink,) in self._connection.execute("SELECT sink FROM cursors")}
        self._connection.executemany("DELETE FROM cursors WHERE sink = ?", [(sink,) for sink in known - set(sinks)])
        self._connection.executemany(
            f"INSERT INTO cursors (sink, sequence) SELECT ?, coalesce(?, {_NEXT}) - 1",
            [(sink, begin) for sink in set(sinks) - known],
        )
        self._connection.execute(f"UPDATE cursors SET sequence = {_NEXT} - 1 WHERE sequence >= {_NEXT}")  # noqa: S608

    def advance(self, done: Mapping[str, int]) -> None:
        """done: the last number that each sink is done with; a cursor never goes back."""
        self._connection.executemany(
            "UPDATE cursors SET sequence = ?, attempts = 0 WHERE sink = ? AND sequence < ?",
            [(sequence, sink, sequence) for sink, sequence in done.items()],
        )

    def rewind(self, sink: str, sequence: int) -> bool:
        """Have `sink` begin again with the message after `sequence`; False when there is no such sink."""
        ask = "UPDATE cursors SET sequence = min(sequence, ?), attempts = 0 WHERE sink = ?"
        return self._connection.execute(ask, (sequence, sink)).rowcount == 1

    def count_attempt(self, sink: str) -> None:
        """One more failed attempt for the next message of `sink`."""
        self._connection.execute("UPDATE cursors SET attempts = attempts + 1 WHERE sink = ?", (sink,))

    def after(self, sink: str, limit: int) -> list[tuple[object, ...]]:
        """The next messages of `sink`, columns as `Tables.fetch` reads them."""
        return self._connection.execute(_AFTER, (sink, limit)).fetchall()

    def behind(self, sequences: Collection[int]) -> dict[str, list[int]]:
        """Which of `sequences` each sink has still before it."""
        if not sequences:
            return {}
        newest = max(sequences)
        places = self._connection.execute("SELECT sink, sequence FROM cursors WHERE sequence < ?", (newest,)).fetchall()
        return {sink: [number for number in sequences if number > place] for sink, place in places}

    def depth(self, now_us: int) -> dict[str, SinkDepth]:
        """How far each sink is behind."""
        ask = """
            SELECT c.sink, (SELECT value FROM meta WHERE key = 'next_sequence') - 1 - c.sequence,
                (SELECT t_created_us FROM messages WHERE sequence > c.sequence ORDER BY sequence LIMIT 1)
            FROM cursors AS c"""
        return {
            sink: SinkDepth(numbers, max(0.0, (now_us - oldest_us) / 1e6) if oldest_us is not None else 0.0)
            for sink, numbers, oldest_us in self._connection.execute(ask)
        }
