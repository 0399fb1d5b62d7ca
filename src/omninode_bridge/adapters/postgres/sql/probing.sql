Statements of the health check.

-- name: writable
SELECT NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean

-- name: dead_letters
-- Of the live state; counted up to a limit, because it is asked often and its answer is "some".
SELECT count(*) FROM (
    SELECT FROM dead_letters AS d JOIN state_generations AS g USING (generation)
    WHERE g.status = 'live' AND d.status = 'open' LIMIT $1
) AS found
