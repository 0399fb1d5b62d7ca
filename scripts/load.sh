#!/usr/bin/env bash
# Let a thousand users of Locust at the service, on a PostgreSQL of its own, then check that nothing is lost or doubled.
#
# LOAD_USERS (1000), LOAD_SECONDS (60) and LOAD_SEED in the environment. Exit code 0 only when the reckoning is right.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A connection a user, on both of its ends, and some for files: processes inherit the limit.
needed=$((2 * ${LOAD_USERS:-1000} + 500))
if [ "$(ulimit -n)" != unlimited ] && [ "$(ulimit -n)" -lt "$needed" ]; then
    if ! ulimit -n "$needed" 2>/dev/null; then
        echo "a process may have $(ulimit -Hn) files open here, and ${LOAD_USERS:-1000} users need $needed: raise the limit (ulimit -n, /etc/security/limits.conf), or ask for fewer with LOAD_USERS." >&2
        exit 1
    fi
fi
exec .venv/bin/python -m tests.load.trial
