Statements of the reducer's projection.

-- name: live
SELECT generation, fingerprint, namespace FROM state_generations WHERE status = 'live'

-- name: begin
-- The partial unique index lets only one be live; a loser of that race gets no row and asks again.
INSERT INTO state_generations (status, fingerprint, namespace)
SELECT CASE WHEN e.live THEN 'building' ELSE 'live' END, $1, CASE WHEN e.live THEN $2 END
FROM (SELECT EXISTS (SELECT FROM state_generations WHERE status = 'live') AS live) AS e
ON CONFLICT DO NOTHING
RETURNING generation, fingerprint, namespace

-- name: base
-- What retention folded, which every generation begins with.
SELECT generation, fingerprint, namespace FROM state_generations WHERE status = 'base'

-- name: copy_state
INSERT INTO bridge_state
SELECT $2, namespace, aggregation_type, group_key, total_stamps, failed, total_size_bytes, processing_time_us_sum,
    processing_time_us_min, processing_time_us_max, first_at, first_event_id, last_at, last_event_id
FROM bridge_state WHERE generation = $1 AND ($3::text IS NULL OR namespace = $3)

-- name: copy_positions
INSERT INTO consumer_positions (consumer, topic, shard, position, event_id)
SELECT $2, topic, shard, position, event_id FROM consumer_positions WHERE consumer = $1

-- name: copy_letters
-- Of records that are gone: no folding will read them again, and the base lacks them too.
INSERT INTO dead_letters
    (generation, topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason, status)
SELECT $1, l.topic, l.shard, l.position, l.event_id, l.previous_id, l.namespace, l.workflow_id, l.body, l.reason, l.status
FROM dead_letters AS l
JOIN state_generations AS g ON g.generation = l.generation AND g.status = 'live'
JOIN log_heads AS h ON h.topic = l.topic AND h.shard = l.shard AND l.position <= h.floor
WHERE l.status IN ('open', 'discarded') AND l.generation <> $1 AND ($2::text IS NULL OR l.namespace = $2)

-- name: positions
SELECT topic, shard, position, event_id FROM consumer_positions WHERE consumer = $1

-- name: hold_generation
-- The live one is shared among reducers, and a swap takes it alone. One that is being built has one builder,
-- who shows here that it is alive.
WITH built AS (
    UPDATE state_generations SET touched_at = now() WHERE generation = $1 AND status = 'building' RETURNING generation
), shared AS (
    SELECT generation FROM state_generations WHERE generation = $1 AND status = 'live' FOR SHARE
)
SELECT generation FROM built UNION ALL SELECT generation FROM shared

-- name: merge_state
-- The algebra of domain.reduction.merge, in SQL: sums add, LEAST and GREATEST ignore NULL, first and last go
-- by (time, event id).
INSERT INTO bridge_state AS b SELECT * FROM unnest($1::bridge_state[])
ON CONFLICT (generation, namespace, aggregation_type, group_key) DO UPDATE SET
    total_stamps = b.total_stamps + EXCLUDED.total_stamps,
    failed = b.failed + EXCLUDED.failed,
    total_size_bytes = b.total_size_bytes + EXCLUDED.total_size_bytes,
    processing_time_us_sum = b.processing_time_us_sum + EXCLUDED.processing_time_us_sum,
    processing_time_us_min = LEAST(b.processing_time_us_min, EXCLUDED.processing_time_us_min),
    processing_time_us_max = GREATEST(b.processing_time_us_max, EXCLUDED.processing_time_us_max),
    (first_at, first_event_id) = (
        SELECT t, i FROM (VALUES (b.first_at, b.first_event_id), (EXCLUDED.first_at, EXCLUDED.first_event_id)) AS f (t, i)
        WHERE t IS NOT NULL ORDER BY t, i LIMIT 1
    ),
    (last_at, last_event_id) = (
        SELECT t, i FROM (VALUES (b.last_at, b.last_event_id), (EXCLUDED.last_at, EXCLUDED.last_event_id)) AS l (t, i)
        WHERE t IS NOT NULL ORDER BY t DESC, i DESC LIMIT 1
    )

-- name: insert_dead_letters
INSERT INTO dead_letters
    (generation, topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
SELECT $1, topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason
FROM unnest($2::event_log[]) WITH ORDINALITY AS e (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, n)
JOIN unnest($3::text[]) WITH ORDINALITY AS r (reason, n) USING (n)
ON CONFLICT (generation, topic, shard, position) DO NOTHING

-- name: replayed_meanwhile
-- Records that the generation being built could not read, and that were replayed into the live one: as the log has them
-- now, or as their letters have them where retention deleted them.
SELECT b.id, r.*
FROM dead_letters AS b
JOIN dead_letters AS l ON l.generation = $1 AND l.status = 'replayed'
    AND l.topic = b.topic AND l.shard = b.shard AND l.position = b.position
CROSS JOIN LATERAL (
    SELECT e.topic, e.shard, e.position, e.event_id, e.previous_id, e.namespace, e.workflow_id, e.body
    FROM event_log AS e WHERE e.topic = l.topic AND e.shard = l.shard AND e.position = l.position
    UNION ALL
    SELECT l.topic, l.shard, l.position, l.event_id, l.previous_id, l.namespace, l.workflow_id, l.body
    FROM log_heads AS h WHERE h.topic = l.topic AND h.shard = l.shard AND h.floor >= l.position
) AS r
WHERE b.generation = $2

-- name: drop_letters
DELETE FROM dead_letters WHERE id = ANY ($1::bigint[])

-- name: settle_letters
-- A record that neither folding could read stays the same letter, discarded if it was. One that only the old one
-- could not read is folded now: its letter is closed.
UPDATE dead_letters AS l SET
    status = s.status,
    reason = s.reason,
    body = s.body,
    history = CASE WHEN s.status = l.status THEN l.history ELSE (l.history::jsonb || jsonb_build_array(
        jsonb_build_object('at', now(), 'actor', 'rebuild', 'act', 'rebuild', 'status', s.status)
    ))::json END
FROM (
    SELECT k.id, coalesce(b.reason, k.reason) AS reason, coalesce(b.body, k.body) AS body,
        CASE WHEN b.id IS NULL THEN 'replayed' WHEN k.status = 'discarded' THEN k.status ELSE 'open' END AS status
    FROM dead_letters AS k
    LEFT JOIN dead_letters AS b
        ON b.generation = $2 AND b.topic = k.topic AND b.shard = k.shard AND b.position = k.position
    WHERE k.generation = $1 AND ($3::text IS NULL OR k.namespace = $3)
) AS s
WHERE s.id = l.id

-- name: drop_repeated_letters
DELETE FROM dead_letters AS b USING dead_letters AS l
WHERE l.generation = $1 AND b.generation = $2
    AND b.topic = l.topic AND b.shard = l.shard AND b.position = l.position

-- name: adopt_letters
UPDATE dead_letters SET generation = $2 WHERE generation = $1

-- name: clear_letters
DELETE FROM dead_letters WHERE generation = $1

-- name: hold_live_alone
-- Reducers of the live generation wait from here on; those of the one being built do not.
SELECT generation, fingerprint, namespace FROM state_generations WHERE status = 'live' FOR UPDATE

-- name: join_generations
-- Upkeep, which takes this table for itself, waits for a swap under way or comes before it.
LOCK TABLE state_generations IN ROW EXCLUSIVE MODE

-- name: hold_generations_alone
SELECT generation, status, fingerprint FROM state_generations WHERE status IN ('live', 'building') ORDER BY generation FOR UPDATE

-- name: retire
UPDATE state_generations SET status = 'retired' WHERE generation = $1

-- name: abandon
UPDATE state_generations SET status = 'retired' WHERE generation = $1 AND status = 'building' RETURNING generation

-- name: lapse
-- By the server's clock: those whose builder was not heard of for so long.
UPDATE state_generations SET status = 'retired'
WHERE status = 'building' AND touched_at < now() - make_interval(secs => $1) RETURNING generation, fingerprint, namespace

-- name: make_live
UPDATE state_generations SET status = 'live' WHERE generation = $1

-- name: clear_state
DELETE FROM bridge_state WHERE generation = $1 AND ($2::text IS NULL OR namespace = $2)

-- name: clear_positions
DELETE FROM consumer_positions WHERE consumer = $1

-- name: adopt_state
UPDATE bridge_state SET generation = $2 WHERE generation = $1

-- name: rows
-- Whose rows they are is told by the statement that reads them: a swap may come between two statements. Where
-- there are no rows there is one of NULLs, which tells it.
SELECT g.generation AS live, ($1::text IS NULL OR g.fingerprint = $1) AS ours, b.*
FROM state_generations AS g
LEFT JOIN bridge_state AS b ON b.generation = g.generation AND ($1::text IS NULL OR g.fingerprint = $1)
    AND ($2::text IS NULL OR b.aggregation_type = $2) AND ($3::text IS NULL OR b.namespace = $3)
WHERE g.status = 'live'

-- name: page
-- The same, from one key on but for that one: a range of the primary key. A key may be empty, so that no key comes
-- before all; and $2 is no expression, because one that isn't known as leakproof is no bound under row-level security.
SELECT g.generation AS live, ($1::text IS NULL OR g.fingerprint = $1) AS ours, b.*
FROM state_generations AS g
LEFT JOIN LATERAL (
    SELECT * FROM bridge_state AS s
    WHERE s.generation = g.generation AND s.namespace = $5 AND s.aggregation_type = $6
        AND s.group_key >= $2 AND s.group_key IS DISTINCT FROM $3
    ORDER BY s.group_key LIMIT $4
) AS b ON $1::text IS NULL OR g.fingerprint = $1
WHERE g.status = 'live'

-- name: overview
-- The same, of the namespaces that follow one: a range of the index bridge_state_overview.
SELECT g.generation AS live, ($1::text IS NULL OR g.fingerprint = $1) AS ours, b.*
FROM state_generations AS g
LEFT JOIN LATERAL (
    SELECT * FROM bridge_state AS s
    WHERE s.generation = g.generation AND s.aggregation_type = 'namespace'
        AND s.group_key >= $2 AND s.group_key IS DISTINCT FROM $3
    ORDER BY s.group_key LIMIT $4
) AS b ON $1::text IS NULL OR g.fingerprint = $1
WHERE g.status = 'live'

-- name: heads
SELECT topic, shard, position, event_id FROM log_heads WHERE position > 0

-- name: read_log
-- The shards take turns, a record each, until their shares or the bytes are used up; the first record comes
-- whatever its size.
SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, body
FROM (
    SELECT e.*, k.n, sum(octet_length(e.body)) OVER (ORDER BY e.turn, k.n) AS bytes
    FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) WITH ORDINALITY
        AS k (topic, shard, position, share, n)
    CROSS JOIN LATERAL (
        SELECT l.*, l.position - k.position AS turn FROM event_log AS l
        WHERE l.topic = k.topic AND l.shard = k.shard AND l.position > k.position
        ORDER BY l.position LIMIT k.share
    ) AS e
) AS taken
WHERE bytes <= $5 OR bytes = octet_length(body)
ORDER BY turn, n

-- name: extents
SELECT topic, shard, floor, position, event_id FROM log_heads WHERE position > 0

-- name: look
-- As `read_log`, between two positions of each shard. A row without an event is a shard whose floor is beyond the start
-- of its window: told by the statement that reads the records, because retention may come between two statements.
WITH k AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) WITH ORDINALITY
        AS k (topic, shard, after, until, n)
), seen AS (
    SELECT e.*, k.n, sum(octet_length(e.body)) OVER (ORDER BY e.turn, k.n) AS bytes, count(*) OVER () AS found
    FROM k CROSS JOIN LATERAL (
        SELECT l.*, l.position - k.after AS turn FROM event_log AS l
        WHERE l.topic = k.topic AND l.shard = k.shard AND l.position > k.after AND l.position <= k.until
        ORDER BY l.position LIMIT $5
    ) AS e
)
SELECT h.topic, h.shard, h.floor AS position, NULL::uuid AS event_id, NULL::uuid AS previous_id,
    NULL::text AS namespace, NULL::uuid AS workflow_id, NULL::bytea AS body, 0 AS found, -1 AS turn, 0 AS n
FROM log_heads AS h JOIN k ON k.topic = h.topic AND k.shard = h.shard WHERE h.floor > k.after
UNION ALL
SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, body, found, turn, n
FROM seen WHERE bytes <= $6 OR bytes = octet_length(body)
ORDER BY turn, n LIMIT $5

-- name: event_ids
SELECT l.topic, l.shard, l.event_id
FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS k (topic, shard, position)
JOIN event_log AS l ON l.topic = k.topic AND l.shard = k.shard AND l.position = k.position
