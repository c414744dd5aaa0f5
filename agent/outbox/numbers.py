"""Where a sequence number lies, on a connection that somebody else owns.

Sequences rise with row ids, so one is found by halving the row ids; an index would cost every put a page of the log.
"""

from __future__ import annotations

import sqlite3

from agent.outbox.sequence import MOST

NEWEST = "SELECT sequence FROM messages WHERE sequence IS NOT NULL ORDER BY message_id DESC LIMIT 1"
"""The highest number that a message has."""
_ENDS = "SELECT (SELECT min(message_id) FROM messages), (SELECT max(message_id) FROM messages)"
_FROM = """
SELECT message_id, CAST(sequence AS INTEGER) FROM messages
WHERE message_id >= ? AND message_id < ? AND sequence IS NOT NULL ORDER BY message_id LIMIT 1"""


def disorder(connection: sqlite3.Connection) -> int | None:
    """The first row id with a number that is none, or not above the one before it; None = all are in order."""
    before = 0
    for row_id, sequence in connection.execute(
        "SELECT message_id, sequence FROM messages WHERE sequence IS NOT NULL ORDER BY message_id"
    ):
        if not isinstance(sequence, int) or not before < sequence < MOST:
            return int(row_id)
        before = sequence
    return None


def row_of(connection: sqlite3.Connection, sequence: int) -> int:
    """A row id that lies above all lower numbers and not above `sequence` and all higher ones."""
    first, last = connection.execute(_ENDS).fetchone()
    if last is None:
        return 1
    low, high = int(first), int(last) + 1
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(_FROM, (middle, high)).fetchone()
        if found is None or found[1] >= sequence:
            high = middle
        else:
            low = found[0] + 1
    return low
