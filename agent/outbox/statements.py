"""SQL texts of the event database.

Statements work on many rows at a time: every row that Python steps through gives up the interpreter lock and has to win it back
from a busy event loop.
"""

from __future__ import annotations

from agent.types import GAP

COLUMNS = (
    "message_id, lane, sequence, event_id, topic, payload, content_type, retain, kind, phase, camera_id, "
    "t_event_us, t_created_us"
)
CHUNKS = (64, 8, 1)  # rows per INSERT; few different texts, so that the prepared statements stay cached
VALUES = "(?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT = {n: f"INSERT INTO messages ({COLUMNS}) VALUES {','.join([VALUES] * n)}" for n in CHUNKS}  # noqa: S608 - constants only
IDS = "(SELECT value FROM json_each(?))"
RECORD = (  # whatever a damaged row holds has the type that it should have
    "m.message_id, m.lane, m.sequence, CAST(m.event_id AS TEXT), CAST(m.topic AS TEXT), CAST(m.payload AS BLOB), "
    "CAST(m.content_type AS TEXT), m.retain"
)
PENDING = f"""
SELECT {RECORD}, o.t_created_us, o.attempts
FROM outbox AS o JOIN messages AS m ON m.message_id = o.message_id
WHERE o.lane = ? AND o.message_id > ? AND o.t_created_us >= ? ORDER BY o.message_id LIMIT ?
"""  # noqa: S608 - constants only
SUPERSEDED = """
SELECT old.message_id FROM messages AS new
JOIN messages AS old ON old.topic = new.topic AND old.message_id < new.message_id
JOIN outbox AS o ON o.message_id = old.message_id
WHERE old.lane = 2 AND new.lane = 2 AND new.message_id >= ?
"""
DROP = f"DELETE FROM messages WHERE lane > 1 AND message_id IN {IDS} AND message_id IN (SELECT message_id FROM outbox)"  # noqa: S608 - constants only
PURGE = """
SELECT message_id, sequence FROM (
    SELECT message_id, sequence, t_created_us FROM messages WHERE message_id > ? ORDER BY message_id LIMIT ?) AS m
WHERE t_created_us < ?
AND NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.message_id = m.message_id)
AND NOT EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.message_id = m.message_id)
"""
OLDEST = """
SELECT o.message_id, m.sequence, o.size_bytes, o.t_created_us FROM outbox AS o JOIN messages AS m ON m.message_id = o.message_id
WHERE o.lane = ? AND m.kind <> ? ORDER BY o.message_id LIMIT ?
"""
OLDEST_DELIVERED = """
SELECT message_id, sequence FROM messages AS m WHERE NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.message_id = m.message_id)
AND NOT EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.message_id = m.message_id) ORDER BY message_id LIMIT ?
"""
OLDEST_DEAD = """
SELECT m.message_id, m.sequence FROM dead_letters AS d JOIN messages AS m ON m.message_id = d.message_id
ORDER BY d.message_id LIMIT ?
"""
SIZE = f"CASE kind WHEN '{GAP}' THEN 0 ELSE length(payload) END"
QUEUE_FROM = f"""
INSERT INTO outbox (message_id, lane, size_bytes, t_created_us)
SELECT message_id, lane, {SIZE}, t_created_us FROM messages WHERE message_id >= ?
"""  # noqa: S608 - constants only
REQUEUE = f"""
SELECT message_id, lane, {SIZE} FROM messages AS m
WHERE sequence BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.message_id = m.message_id)
ORDER BY message_id
"""  # noqa: S608 - constants only
QUEUE = f"""
INSERT INTO outbox (message_id, lane, size_bytes, t_created_us)
SELECT message_id, lane, {SIZE}, ? FROM messages WHERE message_id IN {IDS}
"""  # noqa: S608 - constants only
LOWEST = """
SELECT o.lane, min(o.message_id) FROM messages AS m JOIN outbox AS o ON o.message_id = m.message_id
WHERE m.sequence BETWEEN ? AND ? GROUP BY o.lane
"""
FOUND_AGAIN = f"UPDATE messages SET lost = NULL WHERE lost IS NOT NULL AND message_id IN {IDS}"  # noqa: S608 - constants only
HAVE = "SELECT sequence FROM messages WHERE sequence BETWEEN ? AND ? ORDER BY sequence"
