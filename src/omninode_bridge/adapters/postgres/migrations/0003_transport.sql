-- The transport: dead letters of the relay, and the key that records are sealed with on their way.

-- Events that the transport refused. No total lacks them, so they belong to no generation.

ALTER TABLE dead_letters ALTER COLUMN generation DROP NOT NULL;
ALTER TABLE dead_letters ADD COLUMN forwarded_at timestamptz;  -- when the transport's topic of dead letters got it

CREATE UNIQUE INDEX dead_letters_refused ON dead_letters (topic, shard, position) WHERE generation IS NULL;
CREATE INDEX dead_letters_unsent ON dead_letters (id) WHERE forwarded_at IS NULL AND status = 'open';

-- What arrives over the transport is believed only with a digest that was made with this key: whoever may write to the
-- topics, and has not the database, can't change a total. One row; each database has its own.
CREATE TABLE transport_key (
    one boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    key bytea   NOT NULL CHECK (octet_length(key) = 32)
);
INSERT INTO transport_key (key) SELECT sha256(string_agg(uuid_send(gen_random_uuid()), '')) FROM generate_series(1, 4);

GRANT SELECT ON transport_key TO omninode_bridge_service;
ALTER TABLE transport_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE transport_key FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON transport_key TO omninode_bridge_service USING (true) WITH CHECK (true);
