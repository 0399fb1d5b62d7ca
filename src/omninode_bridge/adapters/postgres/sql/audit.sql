What the laws forbid, looked for in one snapshot. Each statement returns the offenders; none is the good answer.

-- name: snapshot
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- name: holes
-- Law 2: above the floor positions have no hole, each record names the one before it, the head is the last. What stood
-- at the floor is told by the base.
WITH heads AS (
    SELECT h.topic, h.shard, h.position, h.event_id, h.floor, b.event_id AS floor_id
    FROM log_heads AS h LEFT JOIN consumer_positions AS b
        ON b.consumer = 'reducer/0' AND b.topic = h.topic AND b.shard = h.shard AND b.position = h.floor
), chain AS (
    SELECT topic, shard, position, event_id, previous_id,
        lag(position) OVER w AS before, lag(event_id) OVER w AS before_id
    FROM event_log WINDOW w AS (PARTITION BY topic, shard ORDER BY position)
), ends AS (
    SELECT DISTINCT ON (topic, shard) topic, shard, position, event_id FROM event_log
    ORDER BY topic, shard, position DESC
)
SELECT c.topic, c.shard, c.position, 'does not follow the record before it' AS fault
FROM chain AS c JOIN heads AS h USING (topic, shard)
WHERE c.position > h.floor + 1 AND (c.before IS DISTINCT FROM c.position - 1 OR c.before_id IS DISTINCT FROM c.previous_id)
UNION ALL
SELECT c.topic, c.shard, c.position, 'the first record does not name the nil id'
FROM chain AS c WHERE c.position = 1 AND c.previous_id <> '00000000-0000-0000-0000-000000000000'
UNION ALL
SELECT topic, shard, min(c.position), 'the chain does not start right above its floor'
FROM chain AS c JOIN heads AS h USING (topic, shard) WHERE c.position > h.floor
GROUP BY topic, shard, h.floor HAVING min(c.position) <> h.floor + 1
UNION ALL
SELECT topic, shard, c.position, 'does not name the record that stood at the floor'
FROM chain AS c JOIN heads AS h USING (topic, shard)
WHERE h.floor > 0 AND c.position = h.floor + 1 AND c.previous_id IS DISTINCT FROM h.floor_id
UNION ALL
SELECT topic, shard, c.position, 'is still there, below the floor'
FROM event_log AS c JOIN log_heads AS h USING (topic, shard) WHERE c.position <= h.floor
UNION ALL
SELECT topic, shard, coalesce(h.position, e.position), 'the head is not the last record'
FROM heads AS h FULL JOIN ends AS e USING (topic, shard)
WHERE (h.position > h.floor OR h.topic IS NULL)
    AND (h.position IS DISTINCT FROM e.position OR h.event_id IS DISTINCT FROM e.event_id)
UNION ALL
SELECT topic, shard, position, 'the head is not the record that stood at the floor'
FROM heads WHERE floor > 0 AND position = floor AND event_id IS DISTINCT FROM floor_id

-- name: uncounted
-- Law 1: every workflow that made a stamp or failed has exactly one event, every other has none. Where retention has
-- deleted events, those who have none are told by `unlogged`.
SELECT f.namespace, f.workflow_id, format('%s with %s events', f.state, coalesce(e.events, 0)) AS fault
FROM fsm_states AS f
LEFT JOIN (SELECT namespace, workflow_id, count(*) AS events FROM event_log GROUP BY 1, 2) AS e
    USING (namespace, workflow_id)
CROSS JOIN LATERAL (
    SELECT f.error_code IS NOT NULL OR (f.stamp_id IS NOT NULL AND NOT f.deduplicated) AS counts
) AS w
WHERE coalesce(e.events, 0) <> w.counts::integer
    AND NOT (w.counts AND e.events IS NULL AND EXISTS (SELECT FROM log_heads WHERE floor > 0))
UNION ALL
SELECT s.namespace, s.workflow_id, 'a stamp that its workflow does not name'
FROM metadata_stamps AS s LEFT JOIN fsm_states AS f USING (namespace, workflow_id)
WHERE f.stamp_id IS DISTINCT FROM s.stamp_id OR f.deduplicated
UNION ALL
SELECT f.namespace, f.workflow_id, 'names a stamp that is not there'
FROM fsm_states AS f LEFT JOIN metadata_stamps AS s USING (stamp_id)
WHERE f.stamp_id IS NOT NULL AND (s.stamp_id IS NULL OR s.namespace <> f.namespace)
UNION ALL
SELECT f.namespace, f.workflow_id, 'names the stamp of another path'
FROM fsm_states AS f JOIN metadata_stamps AS s USING (stamp_id, namespace) WHERE s.file_path <> f.file_path
UNION ALL
SELECT s.namespace, s.workflow_id, 'a stamp under another key than that of its path'
FROM metadata_stamps AS s
WHERE s.path_hash <> sha256(convert_to(s.namespace, 'UTF8') || '\x00'::bytea || convert_to(s.file_path, 'UTF8'))

-- name: unlogged
-- Law 1: the workflows that count, whose events retention has deleted. Together they are what the base must hold. One
-- whose dead letter is left is in no total. A failed one ended with its last visit.
SELECT f.namespace, s.content_type, s.file_size, s.processing_us, s.metadata,
    coalesce(s.completed_at, (
        SELECT (v ->> 'at')::timestamptz FROM json_array_elements(f.history) WITH ORDINALITY AS h (v, n)
        ORDER BY n DESC LIMIT 1
    )) AS at
FROM fsm_states AS f LEFT JOIN metadata_stamps AS s ON s.stamp_id = f.stamp_id
WHERE EXISTS (SELECT FROM log_heads WHERE floor > 0)
    AND NOT f.deduplicated AND (f.stamp_id IS NOT NULL OR f.error_code IS NOT NULL)
    AND NOT EXISTS (SELECT FROM event_log AS e WHERE e.namespace = f.namespace AND e.workflow_id = f.workflow_id)
    AND NOT EXISTS (
        SELECT FROM dead_letters AS d JOIN log_heads AS h ON h.topic = d.topic AND h.shard = d.shard AND d.position <= h.floor
        WHERE d.generation = $1 AND d.status IN ('open', 'discarded')
            AND d.namespace = f.namespace AND d.workflow_id = f.workflow_id
    )

-- name: versions
-- Law 1: the versions of a path are 1, 2, 3, …
SELECT min(namespace) AS namespace, min(file_path) AS file_path, count(*) AS stamps, max(version) AS latest
FROM metadata_stamps GROUP BY path_hash HAVING count(*) <> max(version)

-- name: histories
-- Law 3: the distinct shapes of history, each with one workflow as an example.
-- A contract that drops or renames a state makes the histories that went through it illegal.
SELECT shape, state, min(format('%s in %s', workflow_id, namespace)) AS example, count(*) AS workflows
FROM (
    SELECT f.workflow_id, f.namespace, f.state,
        (SELECT json_agg(json_build_array(v ->> 'trigger', v ->> 'state') ORDER BY n)
         FROM json_array_elements(f.history) WITH ORDINALITY AS h (v, n))::text AS shape
    FROM fsm_states AS f
) AS shapes GROUP BY shape, state

-- name: events
-- Laws 1 and 6: every event with what it tells of, and whether the live state should have it.
SELECT e.topic, e.shard, e.position, e.event_id, e.previous_id, e.namespace, e.workflow_id, e.body,
    f.file_path AS workflow_path, f.step, f.error_code, f.error_message,
    s.stamp_id, s.file_path AS stamp_path, s.stamped_by, s.version, s.digest, s.digest_origin, s.file_size,
    s.content_type, s.metadata, s.intelligence, s.workflow_state, s.steps_executed, s.created_at, s.completed_at,
    s.processing_us, s.hash_us,
    e.position <= coalesce(c.position, 0) AND d.id IS NULL AS folded
FROM event_log AS e
LEFT JOIN fsm_states AS f ON f.workflow_id = e.workflow_id AND f.namespace = e.namespace
LEFT JOIN metadata_stamps AS s ON s.stamp_id = f.stamp_id
LEFT JOIN consumer_positions AS c ON c.consumer = $1 AND c.topic = e.topic AND c.shard = e.shard
LEFT JOIN dead_letters AS d
    ON d.generation = $2 AND d.topic = e.topic AND d.shard = e.shard AND d.position = e.position AND d.status IN ('open', 'discarded')

-- name: strayed
-- Law 6: a position that the log does not have. At the floor it is the base that knows which event stood there; below it,
-- or without any position where there is a floor, a consumer would miss what is gone.
SELECT c.consumer, c.topic, c.shard, c.position
FROM consumer_positions AS c
LEFT JOIN log_heads AS h ON h.topic = c.topic AND h.shard = c.shard
LEFT JOIN event_log AS e ON e.topic = c.topic AND e.shard = c.shard AND e.position = c.position
LEFT JOIN consumer_positions AS b ON b.consumer = 'reducer/0' AND b.topic = c.topic AND b.shard = c.shard
WHERE CASE WHEN c.consumer = 'reducer/0' THEN c.position IS DISTINCT FROM h.floor
    WHEN c.position > coalesce(h.floor, 0) THEN e.event_id IS DISTINCT FROM c.event_id
    ELSE c.position < h.floor OR b.event_id IS DISTINCT FROM c.event_id END
UNION ALL
SELECT r.consumer, h.topic, h.shard, 0
FROM log_heads AS h
CROSS JOIN (
    SELECT 'reducer/' || generation AS consumer FROM state_generations WHERE status IN ('base', 'live', 'building')
    UNION SELECT 'reducer/0'
) AS r
WHERE h.floor > 0 AND NOT EXISTS (
    SELECT FROM consumer_positions AS c WHERE c.consumer = r.consumer AND c.topic = h.topic AND c.shard = h.shard
)

-- name: state
SELECT b.* FROM bridge_state AS b JOIN state_generations AS g USING (generation) WHERE g.status = $1

-- name: waiting
-- Law 5: how many accepted workflows have not ended.
SELECT count(*) FROM fsm_states WHERE stamp_id IS NULL AND error_code IS NULL

-- name: unkept
-- Law 5: an accepted workflow has its input until it ends, and no longer.
SELECT f.namespace, f.workflow_id, format('%s, without the input that it is to be run with', f.state) AS fault
FROM fsm_states AS f LEFT JOIN workflow_inputs AS i USING (workflow_id, namespace)
WHERE f.stamp_id IS NULL AND f.error_code IS NULL AND i.workflow_id IS NULL
UNION ALL
SELECT i.namespace, i.workflow_id,
    CASE WHEN f.workflow_id IS NULL THEN 'an input that no workflow has' ELSE format('%s, and still has an input', f.state) END
FROM workflow_inputs AS i LEFT JOIN fsm_states AS f USING (workflow_id, namespace)
WHERE f.workflow_id IS NULL OR f.stamp_id IS NOT NULL OR f.error_code IS NOT NULL
