Statements of the ledger's one transaction, in its one order: heads, op ids, stamps and events together, then facts.

-- name: try_shard
SELECT pg_try_advisory_lock($1, $2)

-- name: wait_for_shard
SELECT pg_advisory_lock($1, $2)

-- name: shard_holder
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND classid = $1 AND objid = $2 AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: backend_pid
SELECT pg_backend_pid()

-- name: shards
SELECT DISTINCT shard FROM log_heads ORDER BY shard

-- name: create_heads
INSERT INTO log_heads (topic, shard, position, event_id)
SELECT topic, $2, 0, $3 FROM unnest($1::text[]) AS t (topic) ORDER BY topic
ON CONFLICT DO NOTHING

-- name: heads
SELECT topic, position, event_id FROM log_heads WHERE shard = $2 AND topic = ANY ($1::text[])

-- name: latest_stamps
-- A version that another writer adds after this was read is a lost race.
SELECT s.*
FROM unnest($1::bytea[]) AS k (path_hash)
CROSS JOIN LATERAL (
    SELECT * FROM metadata_stamps AS m WHERE m.path_hash = k.path_hash ORDER BY m.version DESC LIMIT 1
) AS s

-- name: workflows
SELECT f.*, i.fence, i.attempts, i.available_at, i.worker,
    i.error_code AS attempt_error_code, i.error_message AS attempt_error_message
FROM unnest($1::text[], $2::uuid[]) AS k (namespace, workflow_id)
JOIN fsm_states AS f ON f.workflow_id = k.workflow_id AND f.namespace = k.namespace
LEFT JOIN workflow_inputs AS i ON i.workflow_id = k.workflow_id AND i.namespace = k.namespace

-- name: stamps_by_id
SELECT s.* FROM unnest($1::uuid[]) AS k (stamp_id) JOIN metadata_stamps AS s ON s.stamp_id = k.stamp_id

-- name: insert_inputs
INSERT INTO workflow_inputs (workflow_id, namespace, request, content)
SELECT workflow_id, namespace, request, content FROM unnest($1::workflow_inputs[])

-- name: delete_inputs
-- Before the workflows' own rows, as whoever leases them takes both.
DELETE FROM workflow_inputs AS i
USING unnest($1::uuid[], $2::text[], $3::bigint[]) AS k (workflow_id, namespace, fence)
WHERE i.workflow_id = k.workflow_id AND i.namespace = k.namespace AND i.fence = k.fence

-- name: end_workflows
UPDATE fsm_states AS f SET
    state = e.state, history = e.history, stamp_id = e.stamp_id, deduplicated = e.deduplicated,
    step = e.step, error_code = e.error_code, error_message = e.error_message
FROM unnest($1::fsm_states[]) AS e
WHERE f.workflow_id = e.workflow_id AND f.namespace = e.namespace

-- name: record
-- Heads, workflows, stamps and events in one go, for each trip to the server costs a small group more than its rows.
-- Returns whether all heads were where they should be. The rest waits for that, and is not written where they were not.
WITH moved AS (
    UPDATE log_heads AS h SET position = m.to_position, event_id = m.to_id
    FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::bigint[], $5::uuid[])
        AS m (topic, from_position, from_id, to_position, to_id)
    WHERE h.topic = m.topic AND h.shard = $6 AND h.position = m.from_position AND h.event_id = m.from_id
    RETURNING 1
),
fits AS (SELECT count(*) = cardinality($1) AS so FROM moved),
workflows AS (INSERT INTO fsm_states SELECT * FROM unnest($7::fsm_states[]) WHERE (SELECT so FROM fits)),
stamps AS (INSERT INTO metadata_stamps SELECT * FROM unnest($8::metadata_stamps[]) WHERE (SELECT so FROM fits)),
events AS (INSERT INTO event_log SELECT * FROM unnest($9::event_log[]) WHERE (SELECT so FROM fits))
SELECT so FROM fits

-- name: upsert_facts
INSERT INTO file_facts SELECT * FROM unnest($1::file_facts[])
ON CONFLICT (path_hash) DO UPDATE SET
    size = EXCLUDED.size, mtime_ns = EXCLUDED.mtime_ns, ctime_ns = EXCLUDED.ctime_ns,
    inode = EXCLUDED.inode, device = EXCLUDED.device, stamp_id = EXCLUDED.stamp_id, version = EXCLUDED.version
