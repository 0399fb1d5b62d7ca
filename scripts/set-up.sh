#!/usr/bin/env bash
# Build .venv with everything pinned in requirements/dev.txt and the project itself, or do nothing when it is up to date.
#
# Nothing unpinned is fetched: pip installs uv by hash, uv the rest by hash, and the project is built by the pinned hatchling
# without isolation. `set-up.sh bench` adds what the benchmarks are compared with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '==> %s\n' "$*"; }
venv_python=.venv/bin/python

# uv reads its own settings, pip's are pip's: whoever told pip about a certificate bundle or a mirror meant both.
# Settings made for uv itself win.
hand_pip_settings_to_uv() {
    local settings certificates index extra_indexes
    settings=$("$venv_python" -m pip config list 2>/dev/null || true)
    setting() { # the environment is listed last and wins over files
        sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" <<<"$settings" | tail -n 1 | sed 's/\\n/ /g; s/^ *//'
    }
    certificates=$(setting cert)
    if [ -z "${SSL_CERT_FILE:-}" ] && [ -n "$certificates" ]; then export SSL_CERT_FILE="$certificates"; fi
    index=$(setting index-url)
    if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] && [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
    extra_indexes=$(setting extra-index-url)
    if [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ] && [ -n "$extra_indexes" ]; then export UV_INDEX="$extra_indexes"; fi
    export UV_PYTHON_DOWNLOADS=never
    export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
}

# The folder is part of the key: scripts in a virtual environment name it, so a moved one must be built anew.
wanted_key() { { pwd; cat pyproject.toml requirements/uv.txt requirements/dev.txt scripts/set-up.sh; } | sha256sum; }
wanted_bench_key() { cat requirements/bench.txt requirements/peers/quix.txt | sha256sum; }
identity='import sys; print(sys.base_prefix, *sys.version_info[:3])'

runs_as_wanted() {
    local found
    found=$("$venv_python" -I -c "$identity" 2>/dev/null) || return 1
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -I -c "$identity" 2>/dev/null)" = "$found" ]
}

up_to_date() { [ "$(cat .venv/set-up.key 2>/dev/null)" = "$(wanted_key)" ] && runs_as_wanted; }

# Kept when it still works here: then only what changed is installed.
reusable() {
    [ "$(cat .venv/set-up.folder 2>/dev/null)" = "$PWD" ] && runs_as_wanted && "$venv_python" -m pip --version >/dev/null 2>&1
}

create_environment() {
    local python
    python=$(scripts/find-python.sh)
    say "creating .venv with $("$python" -I -c 'import platform; print("CPython", platform.python_version())') ($python)"
    if ! "$python" -I -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot create virtual environments: install its venv module (on Debian and Ubuntu: apt-get install python3-venv)." >&2
        exit 1
    fi
    "$python" -I -m venv --clear .venv
    pwd >.venv/set-up.folder
}

fill_environment() {
    rm -f .venv/set-up.key .venv/set-up-bench.key
    say "installing uv into .venv (requirements/uv.txt, by hash)"
    "$venv_python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
    hand_pip_settings_to_uv
    say "installing $(grep -c '^[a-z0-9]' requirements/dev.txt) pinned packages and compiling their bytecode (requirements/dev.txt)"
    .venv/bin/uv pip sync --quiet --python "$venv_python" --require-hashes --compile-bytecode requirements/dev.txt
    say "installing omninode-bridge itself, editable"
    .venv/bin/uv pip install --quiet --python "$venv_python" --no-deps --no-build-isolation --editable .
    wanted_key >.venv/set-up.key
    say "set-up done"
}

add_bench() {
    if [ "$(cat .venv/set-up-bench.key 2>/dev/null)" = "$(wanted_bench_key)" ]; then return; fi
    hand_pip_settings_to_uv
    say "installing what the benchmarks are compared with (requirements/bench.txt)"
    .venv/bin/uv pip install --quiet --python "$venv_python" --require-hashes --compile-bytecode -r requirements/bench.txt
    say "installing a peer that needs an environment of its own (requirements/peers/quix.txt, .venv-quix)"
    "$venv_python" -m venv .venv-quix
    .venv/bin/uv pip install --quiet --python .venv-quix/bin/python --require-hashes -r requirements/peers/quix.txt
    wanted_bench_key >.venv/set-up-bench.key
}

if ! up_to_date; then
    if ! reusable; then create_environment; fi
    fill_environment
fi
if [ "${1:-}" = bench ]; then add_bench; fi
