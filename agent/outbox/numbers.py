"""Where a sequence number lies, on a connection that somebody else owns.

Sequences rise with row ids, so one is found by halving the row ids; an index would cost every put a page of the log.
"""

from __future__ import annotations

import sqlite3

NEWEST = "SELECT sequence FROM messages WHERE sequence IS NOT NULL ORDER BY message_id DESC LIMIT 1"
"""The highest number that a message has."""
DISORDER = """
SELECT message_id FROM (
    SELECT message_id, sequence, lag(sequence) OVER (ORDER BY message_id) AS before FROM messages WHERE sequence IS NOT NULL
) WHERE sequence <= before LIMIT 1"""
"""A message whose number is not above the one before it."""
_ENDS = "SELECT (SELECT min(message_id) FROM messages), (SELECT max(message_id) FROM messages)"
_FROM = """
SELECT message_id, CAST(sequence AS INTEGER) FROM messages
WHERE message_id >= ? AND message_id < ? AND sequence IS NOT NULL ORDER BY message_id LIMIT 1"""


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
