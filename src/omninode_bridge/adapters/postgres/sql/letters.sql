Statements of dead letters.

-- name: page
-- Those of the live generation and the relay's.
SELECT l.id, l.generation, l.status, l.topic, l.shard, l.position, l.event_id, l.previous_id, l.namespace, l.workflow_id,
    ''::bytea AS body, octet_length(l.body) AS octets, l.reason, l.history, l.created_at
FROM dead_letters AS l
WHERE l.id > $1
    AND (l.generation IS NULL OR l.generation = (SELECT g.generation FROM state_generations AS g WHERE g.status = 'live'))
    AND ($2::text IS NULL OR l.namespace = $2) AND ($3::boolean OR l.status = 'open')
ORDER BY l.id LIMIT $4

-- name: get
SELECT l.*, octet_length(l.body) AS octets FROM dead_letters AS l
WHERE l.id = $1
    AND (l.generation IS NULL OR l.generation = (SELECT g.generation FROM state_generations AS g WHERE g.status = 'live'))

-- name: live
SELECT generation, fingerprint, namespace FROM state_generations WHERE status = 'live'

-- name: share_live
-- As reducers do: a swap takes it alone.
SELECT generation, fingerprint, namespace FROM state_generations WHERE status = 'live' FOR SHARE

-- name: hold
SELECT l.*, octet_length(l.body) AS octets FROM dead_letters AS l
WHERE l.id = $1 AND (l.generation IS NULL OR l.generation = $2) FOR UPDATE

-- name: stands
-- The record of a letter as the log has it now; as the letter has it where retention deleted it.
SELECT false AS pruned, e.topic, e.shard, e.position, e.event_id, e.previous_id, e.namespace, e.workflow_id, e.body
FROM dead_letters AS l JOIN event_log AS e ON e.topic = l.topic AND e.shard = l.shard AND e.position = l.position
WHERE l.id = $1
UNION ALL
SELECT true, l.topic, l.shard, l.position, l.event_id, l.previous_id, l.namespace, l.workflow_id, l.body
FROM dead_letters AS l JOIN log_heads AS h ON h.topic = l.topic AND h.shard = l.shard AND h.floor >= l.position
WHERE l.id = $1

-- name: write
UPDATE dead_letters SET status = $2, history = $3::text::json WHERE id = $1
