-- Tenants, asynchronous workflows, API tokens.
--
-- Two roles, of the whole server: sessions take one of them at their start. The tenant's sees the rows of the namespaces
-- that its transaction was given, the service's (reducer, relay, audit, upkeep) sees all. Neither owns a table, and
-- row-level security is forced, so that an owner without a role of the two sees nothing by mistake. For that he may take
-- the roles and must not inherit what they see: before PostgreSQL 16 that is an attribute of his (NOINHERIT).

DO $$
DECLARE
    needed text;
BEGIN
    FOREACH needed IN ARRAY ARRAY['omninode_bridge_tenant', 'omninode_bridge_service'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = needed) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOBYPASSRLS', needed);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;                             -- another database of this server was migrated at the same time
            END;
        END IF;
        IF (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = needed) THEN
            RAISE EXCEPTION 'role % may pass row-level security by: ALTER ROLE % NOSUPERUSER NOBYPASSRLS', needed, needed;
        END IF;
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', needed, current_user) ||
                    CASE WHEN current_setting('server_version_num')::integer >= 160000
                        THEN ' WITH INHERIT FALSE, SET TRUE' ELSE '' END;
            EXCEPTION WHEN insufficient_privilege THEN
                IF NOT pg_has_role(current_user, needed, 'MEMBER') THEN
                    RAISE;
                END IF;                           -- an administrator made the roles, and granted them
            END;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), needed);
    END LOOP;
END
$$;

-- What an accepted workflow is to be run with. A row is there from its acceptance until its end.
CREATE TABLE workflow_inputs (
    workflow_id  uuid        NOT NULL,
    namespace    text        NOT NULL,
    request      json        NOT NULL,            -- all of the request but its content
    content      bytea       NOT NULL CHECK (octet_length(content) <= 8388608),
    fence        bigint      NOT NULL DEFAULT 0,  -- how often it was leased: a worker's proof that the lease is still its own
    attempts     integer     NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL DEFAULT now(), -- a lease, and a pause before the next attempt, move it ahead
    worker       text,
    error_code   text,                            -- of the last attempt
    error_message text,
    accepted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workflow_id, namespace)
);

CREATE INDEX workflow_inputs_available ON workflow_inputs (available_at);

CREATE TABLE api_tokens (
    token_id       uuid        NOT NULL PRIMARY KEY,
    name           text        NOT NULL UNIQUE,   -- recorded as stamped_by
    secret_hash    bytea       NOT NULL UNIQUE CHECK (octet_length(secret_hash) = 32), -- SHA-256; the secret itself is 256 random bits
    scopes         text[]      NOT NULL,
    namespaces     text[]      NOT NULL,          -- patterns: legal.contracts, acme.*, *
    requests_per_s integer     CHECK (requests_per_s > 0),
    stamps_per_day bigint      CHECK (stamps_per_day >= 0),
    bytes_per_day  bigint      CHECK (bytes_per_day >= 0),
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz,
    revoked_at     timestamptz
);

CREATE TABLE token_usage (
    token_id uuid   NOT NULL REFERENCES api_tokens,
    day      date   NOT NULL,                     -- of UTC
    stamps   bigint NOT NULL,
    bytes    bigint NOT NULL,
    PRIMARY KEY (token_id, day)
);

-- Every administrative act. Nothing of the program ever changes or deletes a row.
CREATE TABLE admin_log (
    id      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    actor   text        NOT NULL,
    act     text        NOT NULL,                 -- token.create, namespace.erase, …
    subject text        NOT NULL,
    details json        NOT NULL DEFAULT '{}'
);

-- Generation 0 is the base: what retention folded before it deleted the events.
ALTER TABLE state_generations DROP CONSTRAINT state_generations_status_check;
ALTER TABLE state_generations ADD CONSTRAINT state_generations_status_check
    CHECK (status IN ('building', 'live', 'retired') OR (status = 'base' AND generation = 0));

-- With fsm_states_counted, an erasure finds what a namespace was written to last without reading the whole table.
CREATE INDEX fsm_states_repeated ON fsm_states (namespace COLLATE "C") WHERE deduplicated;

-- A cursor pages through a namespace's stamps by this order, and a token's pattern is a range of it.
DROP INDEX metadata_stamps_digest;
CREATE INDEX metadata_stamps_digest ON metadata_stamps (digest, namespace COLLATE "C", stamp_id);

GRANT SELECT, INSERT ON metadata_stamps, event_log TO omninode_bridge_tenant;
GRANT SELECT, INSERT, UPDATE ON fsm_states, file_facts, log_heads TO omninode_bridge_tenant;
GRANT SELECT, INSERT, DELETE ON workflow_inputs TO omninode_bridge_tenant;
GRANT SELECT ON bridge_state TO omninode_bridge_tenant;
GRANT SELECT (generation, status, fingerprint) ON state_generations TO omninode_bridge_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    metadata_stamps, event_log, fsm_states, file_facts, log_heads, workflow_inputs, bridge_state, state_generations,
    consumer_positions, dead_letters, api_tokens, token_usage TO omninode_bridge_service;
GRANT SELECT, INSERT ON admin_log TO omninode_bridge_service;

DO $$
DECLARE
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY ARRAY['metadata_stamps', 'event_log', 'fsm_states', 'file_facts', 'workflow_inputs',
            'bridge_state', 'dead_letters', 'state_generations', 'api_tokens', 'token_usage', 'admin_log'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', guarded);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', guarded);
        EXECUTE format('CREATE POLICY service ON %I TO omninode_bridge_service USING (true) WITH CHECK (true)', guarded);
    END LOOP;
    FOREACH guarded IN ARRAY ARRAY['metadata_stamps', 'event_log', 'fsm_states', 'file_facts', 'workflow_inputs',
            'bridge_state'] LOOP
        -- Names are compared with a hashed list, read once a statement; never as an index condition, which would tempt
        -- the planner to read a namespace from end to end. Patterns, which only reads have, come after.
        EXECUTE format($policy$
            CREATE POLICY tenant ON %I TO omninode_bridge_tenant USING (
                namespace IN (SELECT unnest(string_to_array(current_setting('omninode_bridge.namespaces', true), ',')))
                OR EXISTS (
                    SELECT FROM unnest(string_to_array(current_setting('omninode_bridge.patterns', true), ',')) AS p
                    WHERE starts_with(namespace, rtrim(p, '*'))
                )
            ) WITH CHECK (
                namespace IN (SELECT unnest(string_to_array(current_setting('omninode_bridge.namespaces', true), ',')))
            )$policy$, guarded);
    END LOOP;
END
$$;

-- Which generation is read is no tenant's secret; which namespace is being rebuilt is.
CREATE POLICY tenant ON state_generations TO omninode_bridge_tenant USING (status = 'live');
