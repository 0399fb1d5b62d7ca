Statements of the queue of accepted workflows. Its clock is the server's.

-- name: claim
-- As many of those that are due as the bytes allow, the first whatever its size. The size of a content is known
-- without reading it.
WITH due AS (
    SELECT workflow_id, namespace, available_at, octet_length(content) AS bytes FROM workflow_inputs
    WHERE available_at <= now() ORDER BY available_at LIMIT $1 FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT workflow_id, namespace, bytes, sum(bytes) OVER (ORDER BY available_at, workflow_id, namespace) AS total FROM due
), taken AS (
    UPDATE workflow_inputs AS i SET
        fence = i.fence + 1, attempts = i.attempts + 1, worker = $4,
        available_at = clock_timestamp() + make_interval(secs => $3)
    FROM summed AS s
    WHERE i.workflow_id = s.workflow_id AND i.namespace = s.namespace AND (s.total <= $2 OR s.total = s.bytes)
    RETURNING i.workflow_id, i.namespace, i.request, i.content, i.fence, i.attempts
)
SELECT f.*, t.request, t.content, t.fence, t.attempts
FROM taken AS t JOIN fsm_states AS f ON f.workflow_id = t.workflow_id AND f.namespace = t.namespace

-- name: move
UPDATE fsm_states AS f SET state = m.state, history = m.history
FROM unnest($1::fsm_states[]) AS m WHERE f.workflow_id = m.workflow_id AND f.namespace = m.namespace

-- name: renew
-- Not what was given back meanwhile.
UPDATE workflow_inputs AS i SET available_at = clock_timestamp() + make_interval(secs => $4)
FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS k (workflow_id, namespace, fence)
WHERE i.workflow_id = k.workflow_id AND i.namespace = k.namespace AND i.fence = k.fence AND i.worker IS NOT NULL

-- name: release
UPDATE workflow_inputs AS i SET
    available_at = clock_timestamp() + make_interval(secs => $4), worker = NULL, attempts = i.attempts - $7,
    error_code = coalesce($5, i.error_code), error_message = coalesce($6, i.error_message)
FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS k (workflow_id, namespace, fence)
WHERE i.workflow_id = k.workflow_id AND i.namespace = k.namespace AND i.fence = k.fence AND i.worker IS NOT NULL

-- name: disown
-- What another one is taking meanwhile, because the lease has run out, is his.
UPDATE workflow_inputs AS i SET available_at = clock_timestamp(), worker = NULL, attempts = i.attempts - 1
FROM (
    SELECT workflow_id, namespace FROM workflow_inputs WHERE worker = ANY($1) FOR UPDATE SKIP LOCKED
) AS u
WHERE i.workflow_id = u.workflow_id AND i.namespace = u.namespace

-- name: size
-- The size of a content is known without reading it.
SELECT count(*) AS waiting, coalesce(sum(octet_length(content)), 0)::bigint AS bytes FROM workflow_inputs

-- name: depth
SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(accepted_at)), 0)::float8 AS oldest_s FROM workflow_inputs
