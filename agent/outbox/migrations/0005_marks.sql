-- What waits follows from one mark per lane, so that a put writes its message and nothing else.

-- Most messages are events (1): they are found by passing over the others.
CREATE INDEX messages_by_lane ON messages (lane) WHERE lane <> 1;

-- Sequences rise with row ids, so a number is found by halving.
DROP INDEX messages_by_sequence;

-- Before the table: where a view is the last of the schema, SQLite's check passes over the free pages.
DROP VIEW events;
CREATE VIEW events AS
SELECT m.message_id, m.sequence, m.lane, m.event_id, m.kind, m.phase, m.camera_id, m.t_event_us, m.t_created_us,
       m.topic, m.payload,
       CASE WHEN o.message_id IS NOT NULL OR m.message_id > k.settled THEN 'pending'
            WHEN d.message_id IS NOT NULL THEN 'dead'
            WHEN m.lost IS NOT NULL THEN 'lost'
            ELSE 'delivered' END AS delivery
FROM messages AS m
LEFT JOIN marks AS k ON k.lane = m.lane
LEFT JOIN outbox AS o ON o.message_id = m.message_id
LEFT JOIN dead_letters AS d ON d.message_id = m.message_id
WHERE m.sequence IS NOT NULL;

-- settled: of the messages up to this row id only those in `outbox` wait; above it all of the lane do.
-- mirror: says the same again, because one flipped bit in `settled` would settle thousands.
CREATE TABLE marks (
    lane    INTEGER PRIMARY KEY,
    settled INTEGER NOT NULL CHECK (settled >= 0),
    mirror  INTEGER NOT NULL CHECK (mirror = -1 - settled)
);
WITH lanes (lane) AS (VALUES (0), (1), (2), (3)), newest (message_id) AS (SELECT coalesce(max(message_id), 0) FROM messages)
INSERT INTO marks (lane, settled, mirror) SELECT lane, message_id, -1 - message_id FROM lanes, newest;
