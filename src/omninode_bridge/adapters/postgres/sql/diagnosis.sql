What `doctor` asks a server about itself. Nothing here needs our schema, nor our roles.

-- name: settings
SELECT
    current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names,
    pg_is_in_recovery() AS read_only,
    NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AND EXISTS (
        SELECT FROM pg_roles WHERE rolname IN ('omninode_bridge_tenant', 'omninode_bridge_service')
            AND pg_has_role(session_user, oid, 'USAGE')
    ) AS inherits,
    (SELECT count(*) FROM pg_stat_replication) AS standbys

-- name: backend
SELECT pg_backend_pid()

-- name: clock
-- Not now(), which is the transaction's start.
SELECT clock_timestamp()
