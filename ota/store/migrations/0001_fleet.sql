-- $identity is what makes a column number its rows in the database at hand.
CREATE TABLE devices (
  id $identity,
  controller_id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  token_hash TEXT,
  attributes JSON NOT NULL,
  created_ms BIGINT NOT NULL,
  last_seen_ms BIGINT,
  address TEXT NOT NULL,
  update_status TEXT NOT NULL,
  ask_attributes BOOLEAN NOT NULL,
  auto_confirm_by TEXT,
  auto_confirm_remark TEXT,
  auto_confirm_ms BIGINT
);

CREATE TABLE releases (
  id $identity,
  slot TEXT NOT NULL,
  name TEXT NOT NULL,
  version TEXT NOT NULL,
  number BIGINT NOT NULL,
  target TEXT NOT NULL,
  length BIGINT NOT NULL,
  sha256 TEXT NOT NULL,
  sha1 TEXT NOT NULL,
  md5 TEXT NOT NULL,
  custom JSON NOT NULL,
  created_ms BIGINT NOT NULL,
  available BOOLEAN NOT NULL,
  UNIQUE (target, sha256)
);

CREATE TABLE rollouts (
  id $identity,
  name TEXT NOT NULL,
  release_id BIGINT NOT NULL REFERENCES releases (id),
  filter TEXT NOT NULL,
  plan JSON NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  created_by TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  changed_ms BIGINT NOT NULL,
  started_ms BIGINT,
  ended_ms BIGINT
);

CREATE TABLE rollout_groups (
  rollout_id BIGINT NOT NULL REFERENCES rollouts (id),
  position INTEGER NOT NULL,
  state TEXT NOT NULL,
  approved_by TEXT,
  started_ms BIGINT,
  met_ms BIGINT,
  PRIMARY KEY (rollout_id, position)
);

CREATE TABLE actions (
  id $identity,
  device_id BIGINT NOT NULL REFERENCES devices (id),
  release_id BIGINT NOT NULL REFERENCES releases (id),
  previous_release_id BIGINT REFERENCES releases (id),
  rollout_id BIGINT REFERENCES rollouts (id),
  state TEXT NOT NULL,
  open BOOLEAN NOT NULL,
  forced BOOLEAN NOT NULL,
  detail TEXT NOT NULL,
  code BIGINT,
  created_by TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  updated_ms BIGINT NOT NULL
);
CREATE INDEX actions_by_device ON actions (device_id, id);
CREATE INDEX actions_by_rollout ON actions (rollout_id);
CREATE INDEX actions_open ON actions (device_id) WHERE open;

CREATE TABLE rollout_members (
  rollout_id BIGINT NOT NULL REFERENCES rollouts (id),
  device_id BIGINT NOT NULL REFERENCES devices (id),
  position INTEGER NOT NULL,
  action_id BIGINT REFERENCES actions (id),
  back_action_id BIGINT REFERENCES actions (id),
  PRIMARY KEY (rollout_id, device_id)
);

CREATE TABLE installed (
  device_id BIGINT NOT NULL REFERENCES devices (id),
  slot TEXT NOT NULL,
  release_id BIGINT NOT NULL REFERENCES releases (id),
  action_id BIGINT NOT NULL REFERENCES actions (id),
  at_ms BIGINT NOT NULL,
  PRIMARY KEY (device_id, slot)
);

CREATE TABLE feedback (
  id $identity,
  action_id BIGINT NOT NULL REFERENCES actions (id),
  at_ms BIGINT NOT NULL,
  kind TEXT NOT NULL,
  execution TEXT NOT NULL,
  finished TEXT NOT NULL,
  code BIGINT,
  details JSON NOT NULL,
  progress JSON NOT NULL
);
CREATE INDEX feedback_by_action ON feedback (action_id, id);

CREATE TABLE users (
  id $identity,
  name TEXT NOT NULL UNIQUE,
  role TEXT NOT NULL,
  token_hash TEXT NOT NULL UNIQUE,
  active BOOLEAN NOT NULL,
  created_by TEXT NOT NULL,
  created_ms BIGINT NOT NULL
);

CREATE TABLE audit (
  id $identity,
  at_ms BIGINT NOT NULL,
  who TEXT NOT NULL,
  role TEXT NOT NULL,
  address TEXT NOT NULL,
  what TEXT NOT NULL,
  subject TEXT NOT NULL,
  detail JSON NOT NULL
);

CREATE TABLE settings (
  key TEXT NOT NULL PRIMARY KEY,
  value JSON NOT NULL
);
