"""SQL texts of the event database.

Statements work on many rows at a time: every row that Python steps through gives up the interpreter lock and has to win it back
from a busy event loop.
"""

from __future__ import annotations

from agent.types import GAP, Lane

COLUMNS = (
    "message_id, lane, sequence, event_id, topic, payload, content_type, retain, kind, phase, camera_id, "
    "t_event_us, t_created_us"
)
CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)  # rows per INSERT: any number takes few statements, and all stay prepared
VALUES = "(?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT = {n: f"INSERT INTO messages ({COLUMNS}) VALUES {','.join([VALUES] * n)}" for n in CHUNKS}  # noqa: S608 - constants only
IDS = "(SELECT value FROM json_each(?))"
RECORD = (  # whatever a damaged row holds has the type that it should have
    "m.message_id, m.lane, m.sequence, CAST(m.event_id AS TEXT), CAST(m.topic AS TEXT), CAST(m.payload AS BLOB), "
    "CAST(m.content_type AS TEXT), m.retain"
)
SIZE = f"CASE m.kind WHEN '{GAP}' THEN 0 ELSE length(m.payload) END"

# --- what waits: see `agent.outbox.waiting` ---------------------------------------------------------------------------

WAITS = (
    "(m.message_id > (SELECT k.settled FROM marks AS k WHERE k.lane = m.lane) "
    "OR EXISTS (SELECT 1 FROM outbox AS o WHERE o.message_id = m.message_id))"
)
_SINCE = "CAST(coalesce(o.t_created_us, m.t_created_us) AS INTEGER)"
_BELOW = """
FROM outbox AS o JOIN messages AS m ON m.message_id = o.message_id
WHERE o.lane = ? AND o.message_id > ? AND o.message_id <= ?"""
_ABOVE = "FROM messages AS m LEFT JOIN outbox AS o ON o.message_id = m.message_id WHERE {lane} AND m.message_id > ?"
_OF = {
    lane: f"m.lane = {lane:d}" + ("" if lane is Lane.EVENT else f" AND m.lane <> {Lane.EVENT:d}")  # which has no index
    for lane in Lane
}
"""Lanes are written out: SQLite prepares a statement anew for each value that decides whether an index of some rows serves."""


def _waiting(columns: str, condition: str = "") -> tuple[str, dict[Lane, str]]:
    """What waits of a lane in order: below the mark (lane, after, mark, ..., limit) and above it (after, ..., limit)."""
    below = f"SELECT {columns} {_BELOW} {condition} ORDER BY o.message_id LIMIT ?"
    above = f"SELECT {columns} {_ABOVE} {condition} ORDER BY m.message_id LIMIT ?"
    return below, {lane: above.format(lane=of) for lane, of in _OF.items()}


PENDING = _waiting(f"{RECORD}, {_SINCE}, coalesce(o.attempts, 0)", f"AND {_SINCE} >= ?")
OLDEST = _waiting(f"m.message_id, m.sequence, {SIZE}, {_SINCE}", f"AND m.kind <> '{GAP}'")
FIRST = _waiting(_SINCE)
WAITING_BELOW = f"""
SELECT m.lane, count(*), sum({SIZE}) FROM outbox AS o JOIN messages AS m ON m.message_id = o.message_id
WHERE m.message_id <= (SELECT k.settled FROM marks AS k WHERE k.lane = m.lane) GROUP BY m.lane
"""  # noqa: S608 - constants only
WAITING_ABOVE = {
    lane: f"SELECT count(*), coalesce(sum({SIZE}), 0) FROM messages AS m WHERE {of} AND m.message_id > ?"  # noqa: S608 - constants only
    for lane, of in _OF.items()
}
NEWEST_BELOW = "SELECT coalesce(max(message_id), 0) FROM outbox WHERE lane = ?"
NEWEST_ABOVE = {
    lane: f"SELECT m.message_id FROM messages AS m WHERE {of} AND m.message_id > ? ORDER BY m.message_id DESC LIMIT 1"  # noqa: S608
    for lane, of in _OF.items()
}
AMONG = f"""
SELECT m.lane, count(*), sum({SIZE}), max(m.message_id) FROM messages AS m WHERE m.message_id IN {IDS} AND {WAITS} GROUP BY m.lane
"""  # noqa: S608 - constants only
FOLLOWING = """
SELECT CAST(sequence AS INTEGER) FROM messages
WHERE message_id >= ? AND sequence > ? ORDER BY message_id LIMIT 1"""
_QUEUE = f"""
INSERT INTO outbox (message_id, lane, size_bytes, t_created_us, attempts)
SELECT m.message_id, m.lane, {SIZE}, CAST(m.t_created_us AS INTEGER), {{attempts}} FROM messages AS m
"""  # noqa: S608 - constants only
KEEP_BELOW = {
    lane: _QUEUE.format(attempts=0)
    + f"WHERE {of} AND m.message_id > ? AND m.message_id < ? AND m.message_id NOT IN {IDS} ON CONFLICT DO NOTHING"
    for lane, of in _OF.items()
}
_MISTIMED = "({0}.message_id >= ? OR ({0}.t_created_us > ? AND {0}.t_created_us <= ?))"
QUEUE_MISTIMED = {
    lane: _QUEUE.format(attempts=0)
    + f"WHERE {of} AND m.message_id > ? AND {_MISTIMED.format('m')} ON CONFLICT DO NOTHING"
    for lane, of in _OF.items()
}
SHIFT = f"UPDATE outbox AS o SET t_created_us = t_created_us + ? WHERE {_MISTIMED.format('o')}"  # noqa: S608 - constants only
SHIFT_HISTORY = f"""
UPDATE messages SET t_created_us = t_created_us + ?
WHERE t_created_us NOT BETWEEN ? AND ? AND message_id IN (SELECT o.message_id FROM outbox AS o WHERE {_MISTIMED.format("o")})
"""  # noqa: S608 - constants only
COUNT_ATTEMPTS = _QUEUE.format(attempts="(SELECT count(*) FROM json_each(?) WHERE value = m.message_id)") + (  # noqa: S608 - constants only
    f"WHERE m.message_id IN {IDS} AND {WAITS} ON CONFLICT DO UPDATE SET attempts = attempts + excluded.attempts"
)
UNQUEUE = f"DELETE FROM outbox WHERE message_id IN {IDS}"  # noqa: S608 - constants only
MARK = "UPDATE marks SET settled = ?1, mirror = -1 - ?1 WHERE lane = ?2"

# --- the rest ---------------------------------------------------------------------------------------------------------

SUPERSEDED = f"""
SELECT m.message_id FROM messages AS new
CROSS JOIN messages AS m ON m.topic = new.topic AND m.message_id < new.message_id
WHERE m.lane = 2 AND new.lane = 2 AND new.message_id >= ? AND {WAITS}
"""  # noqa: S608 - constants only
DROP = f"DELETE FROM messages AS m WHERE m.lane > 1 AND m.message_id IN {IDS} AND {WAITS}"  # noqa: S608 - constants only
BURY = f"""
INSERT INTO dead_letters (message_id, reason, attempts, t_dead_us)
SELECT m.message_id, ?, 1 + coalesce((SELECT attempts FROM outbox AS o WHERE o.message_id = m.message_id), 0), ?
FROM messages AS m WHERE m.message_id = ? AND {WAITS}
"""  # noqa: S608 - constants only
_FORGOTTEN = f"NOT {WAITS} AND NOT EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.message_id = m.message_id)"  # noqa: S608 - constants only
_SLICE = """
    SELECT message_id, lane, sequence, t_created_us FROM messages WHERE message_id > ? AND message_id < ? ORDER BY message_id LIMIT ?"""
SLICE = f"SELECT max(message_id), count(*), min(t_created_us) FROM ({_SLICE})"  # noqa: S608 - constants only
PURGE = f"""
SELECT message_id, sequence FROM ({_SLICE}) AS m
WHERE t_created_us < ? AND {_FORGOTTEN}
"""  # noqa: S608 - constants only
OLDEST_DELIVERED = f"""
SELECT message_id, sequence FROM messages AS m
WHERE message_id <= (SELECT max(settled) FROM marks) AND {_FORGOTTEN} ORDER BY message_id LIMIT ?
"""  # noqa: S608 - constants only
OLDEST_DEAD = """
SELECT m.message_id, m.sequence FROM dead_letters AS d JOIN messages AS m ON m.message_id = d.message_id
ORDER BY d.message_id LIMIT ?
"""
NUMBERED = "m.message_id >= ? AND m.message_id < ? AND m.sequence BETWEEN ? AND ?"
REQUEUE = (
    f"SELECT m.message_id, m.lane, {SIZE} FROM messages AS m WHERE {NUMBERED} AND NOT {WAITS} ORDER BY m.message_id"  # noqa: S608 - constants only
)
QUEUE = f"""
INSERT INTO outbox (message_id, lane, size_bytes, t_created_us)
SELECT m.message_id, m.lane, {SIZE}, ? FROM messages AS m WHERE m.message_id IN {IDS}
"""  # noqa: S608 - constants only
LOWEST = f"SELECT m.lane, min(m.message_id) FROM messages AS m WHERE {NUMBERED} AND {WAITS} GROUP BY m.lane"  # noqa: S608 - constants only
FOUND_AGAIN = f"UPDATE messages SET lost = NULL WHERE lost IS NOT NULL AND message_id IN {IDS}"  # noqa: S608 - constants only
HAVE = f"SELECT m.sequence FROM messages AS m WHERE {NUMBERED} ORDER BY m.message_id"  # noqa: S608 - constants only
