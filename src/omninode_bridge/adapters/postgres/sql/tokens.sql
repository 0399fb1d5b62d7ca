Statements of the API tokens, of what they used, and of the log of administrative acts.

-- name: look
-- One row at least: it tells whether there are any tokens at all.
SELECT e.any_token, t.*
FROM (SELECT EXISTS (SELECT FROM api_tokens) AS any_token) AS e
LEFT JOIN api_tokens AS t ON t.secret_hash = ANY ($1::bytea[])

-- name: use
-- Sorted by whoever calls, so that two processes take the rows in one order. A token that somebody deleted must not
-- keep the others from being counted.
INSERT INTO token_usage AS u (token_id, day, stamps, bytes)
SELECT n.token_id, n.day, n.stamps, n.bytes
FROM unnest($1::uuid[], $2::date[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS n (token_id, day, stamps, bytes, at)
WHERE EXISTS (SELECT FROM api_tokens AS t WHERE t.token_id = n.token_id)
ORDER BY n.at
ON CONFLICT (token_id, day) DO UPDATE SET stamps = u.stamps + EXCLUDED.stamps, bytes = u.bytes + EXCLUDED.bytes
RETURNING token_id, day, stamps, bytes

-- name: create
INSERT INTO api_tokens (
    token_id, name, secret_hash, scopes, namespaces, requests_per_s, stamps_per_day, bytes_per_day, created_at, expires_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (name) DO NOTHING
RETURNING token_id

-- name: hold
SELECT * FROM api_tokens WHERE name = $1 FOR UPDATE

-- name: revoke
-- The time at which it is done, and not the one at which the transaction began to wait for the row.
UPDATE api_tokens SET revoked_at = clock_timestamp() WHERE token_id = $1 RETURNING *

-- name: every
SELECT t.*, coalesce(u.stamps, 0) AS stamps, coalesce(u.bytes, 0) AS bytes
FROM api_tokens AS t LEFT JOIN token_usage AS u ON u.token_id = t.token_id AND u.day = $1
ORDER BY t.name COLLATE "C"

-- name: record_act
INSERT INTO admin_log (actor, act, subject, details) VALUES ($1, $2, $3, $4::text::json)
