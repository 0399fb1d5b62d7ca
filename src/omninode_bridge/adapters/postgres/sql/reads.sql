Queries by key over what the ledger has recorded.

-- name: bounded
-- The newest of the stamps, as many as so many bytes allow; the first comes whatever its size.
SELECT * FROM (
    SELECT s.*, row_number() OVER newest AS place, sum(
        octet_length(s.file_path) + octet_length(s.metadata::text) + coalesce(octet_length(s.intelligence::text), 0)
    ) OVER newest AS bytes
    FROM ({stamps}) AS s WINDOW newest AS (ORDER BY s.stamp_id DESC)
) AS sized WHERE bytes <= {bytes_max} OR place = 1 ORDER BY place

-- name: by_hash
-- The ids are in the index, so that of a digest that thousands share only the newest stamps are read. Materialised:
-- with the limit in the same query the planner may walk all stamps backwards instead.
WITH found AS MATERIALIZED (SELECT stamp_id FROM metadata_stamps WHERE digest = $1)
SELECT s.*
FROM (SELECT stamp_id FROM found ORDER BY stamp_id DESC LIMIT $2) AS newest
JOIN metadata_stamps AS s USING (stamp_id)

-- name: by_hash_in
-- The newest of each namespace, from the end of its part of the index: other tenants' stamps are not met.
SELECT s.*
FROM (SELECT DISTINCT unnest($3::text[]) AS namespace) AS n
CROSS JOIN LATERAL (
    SELECT * FROM metadata_stamps AS m
    WHERE m.digest = $1 AND m.namespace COLLATE "C" = n.namespace ORDER BY m.stamp_id DESC LIMIT $2
) AS s
ORDER BY s.stamp_id DESC LIMIT $2

-- name: by_hash_matching
-- Of the namespaces named, and of those with certain beginnings: each is a range of the index, and other tenants'
-- stamps are not met. No character of a namespace comes after "z".
SELECT DISTINCT ON (s.stamp_id) s.*
FROM (
    SELECT name AS low, name AS high FROM unnest($3::text[]) AS n (name)
    UNION ALL SELECT beginning, beginning || '~' FROM unnest($4::text[]) AS b (beginning)
) AS ranges
CROSS JOIN LATERAL (
    SELECT * FROM metadata_stamps AS m
    WHERE m.digest = $1 AND m.namespace COLLATE "C" BETWEEN ranges.low AND ranges.high
    ORDER BY m.stamp_id DESC LIMIT $2
) AS s
ORDER BY s.stamp_id DESC LIMIT $2

-- name: stamps_of_namespace
-- The bounds and the order are in this form so that only the index metadata_stamps_newest fits: else the planner may
-- walk all stamps backwards by their id, past those of every other tenant.
SELECT * FROM metadata_stamps
WHERE (namespace, stamp_id) < ($4, $2) AND namespace >= $4 AND $1::bytea IS NOT NULL
ORDER BY namespace DESC, stamp_id DESC LIMIT $3

-- name: stamps_of_path
-- OFFSET 0: found by the path first, and then sorted; for the same reason.
SELECT * FROM (SELECT * FROM metadata_stamps WHERE path_hash = $1 AND stamp_id < $2 OFFSET 0) AS p
ORDER BY stamp_id DESC LIMIT $3

-- name: stamps_of_digest
SELECT * FROM (
    SELECT * FROM metadata_stamps WHERE digest = $1 AND namespace COLLATE "C" = $4 AND stamp_id < $2 OFFSET 0
) AS d ORDER BY stamp_id DESC LIMIT $3

-- name: page
-- Newest first, from a stamp on. A filter looks through a bounded number of rows; the first row tells how far it came,
-- and how many stamps there were before they were bounded by bytes.
WITH walked AS MATERIALIZED ({source}), matching AS (
    SELECT * FROM walked
    WHERE namespace = $4 AND ($6::text IS NULL OR content_type = $6) AND ($7::text IS NULL OR stamped_by = $7)
        AND ($8::text IS NULL OR digest_origin = $8)
        AND ($9::timestamptz IS NULL OR completed_at >= $9) AND ($10::timestamptz IS NULL OR completed_at < $10)
        AND ($11::bytea IS NULL OR digest = $11)
    ORDER BY stamp_id DESC LIMIT $5
)
SELECT w.*, m.*
FROM (
    SELECT count(*) AS walked, (SELECT stamp_id FROM walked ORDER BY stamp_id LIMIT 1) AS last_walked,
        (SELECT count(*) FROM matching) AS matched
    FROM walked
) AS w
LEFT JOIN ({bounded}) AS m ON true
ORDER BY m.stamp_id DESC

-- name: by_id
SELECT * FROM metadata_stamps WHERE stamp_id = $1

-- name: history
SELECT * FROM metadata_stamps WHERE path_hash = $1 ORDER BY version DESC

-- name: wait_for_reader
SELECT set_config('idle_in_transaction_session_timeout', $1, true)

-- name: latest_under
-- The prefix is compared as bytes of text: every path that starts with it, in the order of code points.
SELECT DISTINCT ON (s.file_path COLLATE "C") s.* FROM metadata_stamps AS s
WHERE s.namespace = $1 AND ($2::text IS NULL OR starts_with(s.file_path, $2))
ORDER BY s.file_path COLLATE "C", s.version DESC

-- name: workflow
SELECT f.*, i.fence, i.attempts, i.available_at, i.worker,
    i.error_code AS attempt_error_code, i.error_message AS attempt_error_message
FROM fsm_states AS f LEFT JOIN workflow_inputs AS i USING (workflow_id, namespace)
WHERE f.workflow_id = $1 AND ($2::text IS NULL OR f.namespace = $2) ORDER BY f.namespace

-- name: counted_workflows
-- A page of the index fsm_states_counted, from a key on. The bounds are in this form so that a plan made for any
-- arguments is a range of that index.
SELECT f.*, s AS stamp
FROM fsm_states AS f LEFT JOIN metadata_stamps AS s ON s.stamp_id = f.stamp_id
WHERE NOT f.deduplicated AND (f.stamp_id IS NOT NULL OR f.error_code IS NOT NULL)
    AND (f.namespace COLLATE "C", f.workflow_id) >= ($1, $2) AND f.namespace COLLATE "C" <= $3
ORDER BY f.namespace COLLATE "C", f.workflow_id LIMIT $4

-- name: known_files
-- Facts vouch for the latest version only: with a newer one beside them they say nothing.
SELECT f.path_hash, f.size, f.mtime_ns, f.ctime_ns, f.inode, f.device, f.stamp_id, s.content_type, s.metadata
FROM unnest($1::bytea[]) AS k (path_hash)
JOIN file_facts AS f ON f.path_hash = k.path_hash
CROSS JOIN LATERAL (
    SELECT * FROM metadata_stamps AS m WHERE m.path_hash = k.path_hash ORDER BY m.version DESC LIMIT 1
) AS s
WHERE s.stamp_id = f.stamp_id
