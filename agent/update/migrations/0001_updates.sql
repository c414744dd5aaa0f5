-- One row per update that the server asked for. phase: see agent/update/machine.py; settled: nothing is left to be done about it.
-- starts: deaths of the process during the probation; clean: the agent was stopped properly since.
CREATE TABLE actions (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    action_id   TEXT NOT NULL UNIQUE,
    target      TEXT NOT NULL,
    slot        TEXT NOT NULL,
    phase       TEXT NOT NULL,
    settled     INTEGER NOT NULL DEFAULT 0,
    release     TEXT,
    sha256      TEXT,
    came_from   TEXT NOT NULL DEFAULT '',
    reason      TEXT NOT NULL DEFAULT '',
    text        TEXT NOT NULL DEFAULT '',
    figures     TEXT NOT NULL DEFAULT '{}',
    failures    INTEGER NOT NULL DEFAULT 0,
    starts      INTEGER NOT NULL DEFAULT 0,
    clean       INTEGER NOT NULL DEFAULT 0,
    t_begun_us  INTEGER NOT NULL,
    t_phase_us  INTEGER NOT NULL
) STRICT;

-- What serves each slot: digests of archives, NULL = what the configuration names. before: what there is to go back to;
-- highest: number of the newest release that was ever committed.
CREATE TABLE slots (
    slot        TEXT PRIMARY KEY,
    sha256      TEXT,
    release     TEXT,
    before_sha256  TEXT,
    before_release TEXT,
    has_before  INTEGER NOT NULL DEFAULT 0,
    highest     INTEGER NOT NULL DEFAULT 0,
    t_changed_us   INTEGER NOT NULL
) STRICT;

-- What the server has not accepted yet. about: 'deployment', 'cancel' or 'confirmation'.
CREATE TABLE feedback (
    feedback_id INTEGER PRIMARY KEY AUTOINCREMENT,
    action_id   TEXT NOT NULL,
    about       TEXT NOT NULL,
    body        TEXT NOT NULL,
    final       INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
    audit_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    t_us        INTEGER NOT NULL,
    action_id   TEXT NOT NULL,
    what        TEXT NOT NULL,
    detail      TEXT NOT NULL
) STRICT;
