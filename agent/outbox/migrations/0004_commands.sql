-- Commands from outside: the audit record, and what keeps one that is sent twice from being done twice.

-- state: 'accepted' until it is answered. answer: what was sent back, and is sent again for the same id.
CREATE TABLE commands (
    command_id TEXT PRIMARY KEY,
    name       TEXT    NOT NULL,
    client     TEXT    NOT NULL, -- who signed it; '' = nobody
    role       TEXT    NOT NULL,
    arguments  TEXT    NOT NULL, -- JSON
    t_us       INTEGER NOT NULL, -- when it came first
    state      TEXT    NOT NULL,
    answer     BLOB,
    t_done_us  INTEGER
) WITHOUT ROWID;
CREATE INDEX commands_by_time ON commands (t_us);
