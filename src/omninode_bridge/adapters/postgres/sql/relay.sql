Statements of the relay.

-- name: hold
-- The shards that nobody forwards, of those that are not held already; a lock taken twice would have to be given back
-- twice.
SELECT s.shard FROM (SELECT DISTINCT shard FROM log_heads WHERE shard <> ALL ($2::integer[]) OFFSET 0) AS s
WHERE pg_try_advisory_lock($1, s.shard)

-- name: begin
-- Retention deletes only what every consumer has passed: one that begins later begins there.
INSERT INTO consumer_positions (consumer, topic, shard, position, event_id)
SELECT $1, p.topic, p.shard, p.position, p.event_id FROM consumer_positions AS p
JOIN state_generations AS g ON g.status = 'base' AND p.consumer = 'reducer/' || g.generation
ON CONFLICT DO NOTHING

-- name: positions
SELECT topic, shard, position, event_id FROM consumer_positions WHERE consumer = $1

-- name: keep_out_erasure
LOCK TABLE state_generations IN ROW EXCLUSIVE MODE

-- name: refuse
-- As the log has them now: a namespace may have been erased since they were read, and must not come back here.
INSERT INTO dead_letters (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
SELECT e.*, r.reason
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[]) AS r (topic, shard, position, reason)
JOIN event_log AS e USING (topic, shard, position)
WHERE e.namespace <> ''
ON CONFLICT DO NOTHING

-- name: key
SELECT key FROM transport_key

-- name: unsent
-- Those that wait for a decision: the relay's own, and the live state's. One of a state that is being built may yet turn
-- out to be the live one's, or vanish.
SELECT id, topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason FROM dead_letters
WHERE forwarded_at IS NULL AND shard = ANY ($2::integer[]) AND status = 'open'
    AND (generation IS NULL OR generation = (SELECT generation FROM state_generations WHERE status = 'live'))
ORDER BY id LIMIT $1

-- name: sent
UPDATE dead_letters SET forwarded_at = now() WHERE id = ANY ($1::bigint[])
