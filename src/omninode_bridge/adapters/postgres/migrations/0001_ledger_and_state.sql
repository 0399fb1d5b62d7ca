-- The ledger (stamps, workflows, event log) and the reducer's state.
--
-- Ids are UUIDv7 made by the program: their index entries land side by side. `json` and not `jsonb`, because
-- deduplication compares the canonical text, and jsonb would rewrite its numbers.

CREATE TABLE metadata_stamps (
    stamp_id       uuid        NOT NULL PRIMARY KEY,
    namespace      text        NOT NULL,
    file_path      text        NOT NULL,
    path_hash      bytea       NOT NULL,          -- SHA-256 of namespace and file_path
    version        integer     NOT NULL CHECK (version > 0),
    digest         bytea       NOT NULL CHECK (octet_length(digest) = 32),
    digest_origin  text        NOT NULL CHECK (digest_origin IN ('computed', 'claimed')),
    file_size      bigint      NOT NULL CHECK (file_size >= 0),
    content_type   text        NOT NULL,
    metadata       json        NOT NULL,
    intelligence   json,
    workflow_id    uuid        NOT NULL,
    workflow_state text        NOT NULL,
    stamped_by     text        NOT NULL,
    steps_executed smallint    NOT NULL,
    created_at     timestamptz NOT NULL,
    completed_at   timestamptz NOT NULL,
    processing_us  bigint      NOT NULL CHECK (processing_us >= 0),
    hash_us        bigint      NOT NULL CHECK (hash_us >= 0),
    -- Two writers that both make version n of a path: one of them loses here, and runs again. The namespace is in the
    -- hash, so this is the only index that a look-up by path can use: with the namespace as a column of its own the
    -- planner, going by old statistics, took the index by namespace and read all of it for each path.
    CONSTRAINT metadata_stamps_version UNIQUE (path_hash, version)
);

-- With the namespace: a digest that every tenant has must not cost each of them the stamps of all.
CREATE INDEX metadata_stamps_digest ON metadata_stamps (digest, namespace, stamp_id);
CREATE INDEX metadata_stamps_newest ON metadata_stamps (namespace, stamp_id);

-- One row for every op id: also the deduplicated and the failed ones, so that a retry gets its first answer.
CREATE TABLE fsm_states (
    workflow_id    uuid        NOT NULL,
    namespace      text        NOT NULL,
    file_path      text        NOT NULL,
    state          text        NOT NULL,
    history        json        NOT NULL,          -- [{"state", "at", "trigger"}, …]
    request_digest bytea       NOT NULL CHECK (octet_length(request_digest) = 32),
    stamp_id       uuid,
    deduplicated   boolean     NOT NULL,
    step           text,
    error_code     text,
    error_message  text,
    -- The id comes first, so that a workflow is found by its id alone.
    PRIMARY KEY (workflow_id, namespace)
);

-- The workflows that count. A path stamped again and again unchanged adds none.
CREATE INDEX fsm_states_counted ON fsm_states (namespace COLLATE "C", workflow_id)
WHERE NOT deduplicated AND (stamp_id IS NOT NULL OR error_code IS NOT NULL);

-- The fence: a shard's head moves by compare-and-set in the transaction that writes its events.
CREATE TABLE log_heads (
    topic    text    NOT NULL,
    shard    integer NOT NULL CHECK (shard BETWEEN 0 AND 255),
    position bigint  NOT NULL CHECK (position >= floor),
    event_id uuid    NOT NULL,
    floor    bigint  NOT NULL DEFAULT 0 CHECK (floor >= 0),
    PRIMARY KEY (topic, shard)
) WITH (fillfactor = 50);                         -- room for updates in place: this row moves at every commit

CREATE TABLE event_log (
    topic       text    NOT NULL,
    shard       integer NOT NULL,
    position    bigint  NOT NULL CHECK (position > 0),
    event_id    uuid    NOT NULL,
    previous_id uuid    NOT NULL,
    namespace   text    NOT NULL,
    workflow_id uuid    NOT NULL,
    body        bytea   NOT NULL,                 -- the encoded CloudEvent
    PRIMARY KEY (topic, shard, position)
);

-- What lets an unchanged file be skipped without reading it.
CREATE TABLE file_facts (
    namespace text    NOT NULL,
    path_hash bytea   NOT NULL,
    size      bigint  NOT NULL,
    mtime_ns  bigint  NOT NULL,
    ctime_ns  bigint  NOT NULL,
    inode     bigint  NOT NULL,                   -- the 64 bits of an unsigned number, read as signed
    device    bigint  NOT NULL,
    stamp_id  uuid    NOT NULL,
    version   integer NOT NULL,
    PRIMARY KEY (path_hash)
);

-- One folding of the log. One is live; a rebuild or a changed contract folds another beside it.
CREATE TABLE state_generations (
    generation  integer     NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    status      text        NOT NULL CHECK (status IN ('building', 'live', 'retired')),
    fingerprint text        NOT NULL,             -- the groupings it was folded by
    namespace   text,                             -- the only namespace folded, in a partial rebuild
    created_at  timestamptz NOT NULL DEFAULT now(),
    touched_at  timestamptz NOT NULL DEFAULT now()  -- moves with each batch while it is built: its builder's lease
);

CREATE UNIQUE INDEX state_generations_one_live ON state_generations (status) WHERE status = 'live';

CREATE TABLE bridge_state (
    generation             integer NOT NULL,
    namespace              text    NOT NULL,
    aggregation_type       text    NOT NULL,
    group_key              text    NOT NULL,
    total_stamps           bigint  NOT NULL,
    failed                 bigint  NOT NULL,
    total_size_bytes       numeric NOT NULL,      -- a sum of bigints: may outgrow one
    processing_time_us_sum numeric NOT NULL,
    processing_time_us_min bigint,
    processing_time_us_max bigint,
    first_at               timestamptz,
    first_event_id         uuid,
    last_at                timestamptz,
    last_event_id          uuid,
    PRIMARY KEY (generation, namespace, aggregation_type, group_key)
) WITH (fillfactor = 70);

-- How far each consumer is. Moves in the transaction of its effect, by compare-and-set.
CREATE TABLE consumer_positions (
    consumer text    NOT NULL,
    topic    text    NOT NULL,
    shard    integer NOT NULL,
    position bigint  NOT NULL,
    event_id uuid    NOT NULL,
    PRIMARY KEY (consumer, topic, shard)
) WITH (fillfactor = 50);

CREATE TABLE dead_letters (
    id          bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    generation  integer     NOT NULL,             -- the folding that lacks it; a swap settles the letters of both
    topic       text        NOT NULL,
    shard       integer     NOT NULL,
    position    bigint      NOT NULL,
    event_id    uuid        NOT NULL,
    previous_id uuid        NOT NULL,
    namespace   text        NOT NULL,
    workflow_id uuid        NOT NULL,
    body        bytea       NOT NULL,
    reason      text        NOT NULL,
    status      text        NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'discarded')),
    history     json        NOT NULL DEFAULT '[]',
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (generation, topic, shard, position)
);
