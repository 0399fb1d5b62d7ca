Statements of erasure and retention. They run as the service, in transactions that look at whole tables.

-- name: alone
-- One erasure or pruning at a time: they take the same locks in other orders.
SELECT pg_advisory_xact_lock($1)

-- name: read_whole_tables
SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on

-- name: look_up_by_key
SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off

-- name: keep_writers_out
-- Every writer takes this table first, in a mode that conflicts with this one and with no reader's.
LOCK TABLE fsm_states IN SHARE ROW EXCLUSIVE MODE

-- name: keep_generations
-- None is begun, dropped, swapped in or folded into meanwhile.
LOCK TABLE state_generations IN SHARE ROW EXCLUSIVE MODE

-- name: places
-- The records of a namespace between two positions of each shard.
SELECT e.topic, e.shard, e.position, e.event_id, e.previous_id
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[]) AS k (topic, shard, after, until)
JOIN event_log AS e ON e.topic = k.topic AND e.shard = k.shard AND e.position > k.after AND e.position <= k.until
WHERE e.namespace = $1

-- name: bury
UPDATE event_log AS e SET namespace = t.namespace, workflow_id = t.workflow_id, body = t.body
FROM unnest($1::event_log[]) AS t
WHERE e.topic = t.topic AND e.shard = t.shard AND e.position = t.position

-- name: erase_stamps
DELETE FROM metadata_stamps WHERE namespace = $1

-- name: erase_settled_workflows
-- Also those that no law explains: all but the ones that wait. Writers only ever change those.
DELETE FROM fsm_states AS f
WHERE f.namespace = $1
    AND NOT EXISTS (SELECT FROM workflow_inputs AS i WHERE i.workflow_id = f.workflow_id AND i.namespace = f.namespace)

-- name: erase_counted_workflows
-- These three find what is left without reading the whole table.
DELETE FROM fsm_states
WHERE namespace COLLATE "C" = $1 AND NOT deduplicated AND (stamp_id IS NOT NULL OR error_code IS NOT NULL)

-- name: erase_repeated_workflows
DELETE FROM fsm_states WHERE namespace COLLATE "C" = $1 AND deduplicated

-- name: erase_waiting_workflows
DELETE FROM fsm_states AS f USING workflow_inputs AS i
WHERE i.namespace = $1 AND f.workflow_id = i.workflow_id AND f.namespace = i.namespace

-- name: erase_inputs
DELETE FROM workflow_inputs WHERE namespace = $1

-- name: erase_facts
DELETE FROM file_facts WHERE namespace = $1

-- name: erase_letters
DELETE FROM dead_letters WHERE namespace = $1

-- name: erase_state
-- Of every generation, the base too.
DELETE FROM bridge_state AS b USING state_generations AS g WHERE b.generation = g.generation AND b.namespace = $1

-- name: drop_unfinished
-- Who builds one holds records in memory that are erased now.
UPDATE state_generations SET status = 'retired' WHERE status = 'building' RETURNING generation, fingerprint, namespace

-- name: write_down
INSERT INTO admin_log (actor, act, subject, details) VALUES ($1, $2, $3, $4)

-- name: building
SELECT EXISTS (SELECT FROM state_generations WHERE status = 'building')

-- name: passed
-- Up to where the records of each shard were read by every consumer, and which of them is the last.
WITH readers AS (
    SELECT 'reducer/' || generation AS consumer FROM state_generations WHERE status IN ('live', 'building')
    UNION SELECT consumer FROM consumer_positions WHERE consumer NOT LIKE 'reducer/%'
)
SELECT DISTINCT ON (h.topic, h.shard)
    h.topic, h.shard, h.floor, h.position AS head, coalesce(p.position, 0) AS passed, r.consumer
FROM log_heads AS h CROSS JOIN readers AS r
LEFT JOIN consumer_positions AS p ON p.consumer = r.consumer AND p.topic = h.topic AND p.shard = h.shard
WHERE h.position > h.floor
ORDER BY h.topic, h.shard, coalesce(p.position, 0), r.consumer

-- name: measure
-- The records of a shard that come before the first that is too young, those that all have passed and those that one
-- has not. Ids begin with their time.
SELECT count(*) FILTER (WHERE e.position <= $5) AS events, count(*) FILTER (WHERE e.position > $5) AS held,
    coalesce(sum(octet_length(e.body)) FILTER (WHERE e.position <= $5), 0)::bigint AS octets
FROM event_log AS e
WHERE e.topic = $1 AND e.shard = $2 AND e.position > $3 AND e.position <= $4 AND e.position < coalesce((
    SELECT y.position FROM event_log AS y
    WHERE y.topic = $1 AND y.shard = $2 AND y.position > $3 AND y.position <= $4 AND y.event_id >= $6
    ORDER BY y.position LIMIT 1
), $4 + 1)

-- name: oldest
-- The first records of a shard, as many as the bytes allow, the first whatever its size.
SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, body
FROM (
    SELECT e.*, sum(octet_length(e.body)) OVER (ORDER BY e.position) AS bytes
    FROM (
        SELECT * FROM event_log WHERE topic = $1 AND shard = $2 AND position > $3 AND position <= $4
        ORDER BY position LIMIT $5
    ) AS e
) AS s
WHERE bytes <= $6 OR bytes = octet_length(body)
ORDER BY position

-- name: lettered
-- Positions of a shard that the live generation lacks, and the base is to lack as well.
SELECT l.position FROM dead_letters AS l JOIN state_generations AS g ON g.generation = l.generation AND g.status = 'live'
WHERE l.topic = $1 AND l.shard = $2 AND l.position > $3 AND l.position <= $4 AND l.status IN ('open', 'discarded')

-- name: lay_base
INSERT INTO state_generations (generation, status, fingerprint) OVERRIDING SYSTEM VALUE VALUES (0, 'base', $1)
ON CONFLICT (generation) DO NOTHING

-- name: move_base
INSERT INTO consumer_positions (consumer, topic, shard, position, event_id) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (consumer, topic, shard) DO UPDATE SET position = EXCLUDED.position, event_id = EXCLUDED.event_id

-- name: raise_floor
UPDATE log_heads SET floor = $4 WHERE topic = $1 AND shard = $2 AND floor = $3

-- name: delete_records
DELETE FROM event_log WHERE topic = $1 AND shard = $2 AND position > $3 AND position <= $4

-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
