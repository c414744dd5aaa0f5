-- Seconds that the shadow run or the probation has taken so far: their limits count over restarts of the agent.
ALTER TABLE actions ADD COLUMN spent_s REAL NOT NULL DEFAULT 0;
