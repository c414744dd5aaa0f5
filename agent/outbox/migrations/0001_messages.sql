-- What was said, who still has to hear it, and what nobody wanted to hear.

-- next_sequence: the number the next alarm or event gets.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES ('next_sequence', 1);

-- Every message once. Alarm (0) and event (1) rows stay as the history after delivery, state (2) and telemetry (3) do not.
CREATE TABLE messages (
    message_id   INTEGER PRIMARY KEY,
    lane         INTEGER NOT NULL CHECK (lane BETWEEN 0 AND 3),
    sequence     INTEGER CHECK ((sequence IS NULL) = (lane > 1)),
    event_id     TEXT    NOT NULL,
    topic        TEXT    NOT NULL,
    payload      BLOB    NOT NULL,
    content_type TEXT    NOT NULL,
    retain       INTEGER NOT NULL,
    kind         TEXT    NOT NULL,
    phase        TEXT    NOT NULL,
    camera_id    TEXT    NOT NULL,
    t_event_us   INTEGER NOT NULL, -- when it happened, microseconds since 1970 UTC
    t_created_us INTEGER NOT NULL  -- when it was committed
);
CREATE UNIQUE INDEX messages_by_sequence ON messages (sequence) WHERE sequence IS NOT NULL;
CREATE INDEX messages_by_state_topic ON messages (topic) WHERE lane = 2;

-- Pending deliveries: small rows, so that an acknowledgement does not rewrite payloads.
CREATE TABLE outbox (
    message_id   INTEGER PRIMARY KEY,
    lane         INTEGER NOT NULL,
    size_bytes   INTEGER NOT NULL,
    t_created_us INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX outbox_by_lane ON outbox (lane);

-- Deliveries that were refused for good.
CREATE TABLE dead_letters (
    message_id INTEGER PRIMARY KEY,
    reason     TEXT    NOT NULL,
    attempts   INTEGER NOT NULL,
    t_dead_us  INTEGER NOT NULL
);

CREATE VIEW events AS
SELECT m.message_id, m.sequence, m.lane, m.event_id, m.kind, m.phase, m.camera_id, m.t_event_us, m.t_created_us,
       m.topic, m.payload,
       CASE WHEN o.message_id IS NOT NULL THEN 'pending'
            WHEN d.message_id IS NOT NULL THEN 'dead'
            ELSE 'delivered' END AS delivery
FROM messages AS m
LEFT JOIN outbox AS o ON o.message_id = m.message_id
LEFT JOIN dead_letters AS d ON d.message_id = m.message_id
WHERE m.sequence IS NOT NULL;
