#!/usr/bin/env bash
# Recompile the pinned requirements from pyproject.toml: exact versions, hashes, no index address.
#
# Arguments go to every `uv pip compile`: `lock.sh --upgrade` moves all pins, `lock.sh --upgrade-package NAME` one.
# bench.txt is resolved first and constrains the others, so that one environment can hold all three: the benchmarks' peers
# are the pickiest about versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv="${UV:-.venv/bin/uv}"

compile() {
    local output=$1
    shift
    printf '==> compiling %s\n' "$output"
    "$uv" pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-emit-index-url \
        --custom-compile-command "make lock" --output-file "$output" "$@" >/dev/null
}

compile requirements/uv.txt "$@" requirements/uv.in
compile requirements/bench.txt "$@" pyproject.toml --group bench
compile requirements/dev.txt "$@" pyproject.toml --group dev --constraint requirements/bench.txt
compile requirements/runtime.txt "$@" pyproject.toml --extra kafka --constraint requirements/dev.txt
# What builds the package, for an image that has nothing else of development.
compile requirements/build.txt "$@" --group pyproject.toml:build --constraint requirements/dev.txt
# Of the benchmarks' peers the one that can't share an environment with ours.
compile requirements/peers/quix.txt "$@" --group pyproject.toml:quix
