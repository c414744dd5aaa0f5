-- What will not arrive is remembered as such, and an older copy of the database is known by its generation.

-- Why it was given up (a LossReason); NULL for all others.
ALTER TABLE messages ADD COLUMN lost TEXT;

-- generation: rises with every opening and every minute with new numbers, here first and then in the file beside the database.
-- copied: 1 in a backup, so that the numbers given out since are not given out again.
INSERT INTO meta (key, value) VALUES ('generation', 0), ('copied', 0);

DROP VIEW events;
CREATE VIEW events AS
SELECT m.message_id, m.sequence, m.lane, m.event_id, m.kind, m.phase, m.camera_id, m.t_event_us, m.t_created_us,
       m.topic, m.payload,
       CASE WHEN o.message_id IS NOT NULL THEN 'pending'
            WHEN d.message_id IS NOT NULL THEN 'dead'
            WHEN m.lost IS NOT NULL THEN 'lost'
            ELSE 'delivered' END AS delivery
FROM messages AS m
LEFT JOIN outbox AS o ON o.message_id = m.message_id
LEFT JOIN dead_letters AS d ON d.message_id = m.message_id
WHERE m.sequence IS NOT NULL;
