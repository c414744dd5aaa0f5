-- Sinks beside the broker read the history in order of sequence; each has its own place in it.

-- sequence: the last number that the sink is done with; attempts: failed ones of the next.
CREATE TABLE cursors (
    sink     TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
