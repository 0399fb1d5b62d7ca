-- Dead letters of the relay: events that the transport refused. No total lacks them, so they belong to no generation.

ALTER TABLE dead_letters ALTER COLUMN generation DROP NOT NULL;
ALTER TABLE dead_letters ADD COLUMN forwarded_at timestamptz;  -- when the transport's topic of dead letters got it

CREATE UNIQUE INDEX dead_letters_refused ON dead_letters (topic, shard, position) WHERE generation IS NULL;
CREATE INDEX dead_letters_unsent ON dead_letters (id) WHERE forwarded_at IS NULL;
