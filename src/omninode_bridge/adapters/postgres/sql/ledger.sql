Statements of the ledger's one transaction, in its one order: heads, op ids, stamps, events, facts.

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

-- name: move_head
UPDATE log_heads SET position = $5, event_id = $6
WHERE topic = $1 AND shard = $2 AND position = $3 AND event_id = $4

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

-- name: insert_workflows
INSERT INTO fsm_states SELECT * FROM unnest($1::fsm_states[])

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

-- name: insert_stamps
INSERT INTO metadata_stamps SELECT * FROM unnest($1::metadata_stamps[])

-- name: insert_events
INSERT INTO event_log SELECT * FROM unnest($1::event_log[])

-- name: upsert_facts
INSERT INTO file_facts SELECT * FROM unnest($1::file_facts[])
ON CONFLICT (path_hash) DO UPDATE SET
    size = EXCLUDED.size, mtime_ns = EXCLUDED.mtime_ns, ctime_ns = EXCLUDED.ctime_ns,
    inode = EXCLUDED.inode, device = EXCLUDED.device, stamp_id = EXCLUDED.stamp_id, version = EXCLUDED.version
