#!/usr/bin/env bash
# The main job on real files: stamp this project's sources and Python's standard library, show the totals, verify, show
# drift after a change. Everything it makes lies in ./demo-data, which is removed first; the trees it stamps are only read.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=demo-data
export PATH="$PWD/.venv/bin:$PATH"
# A database of the user's own is none of the demo's business.
unset "${!BRIDGE_@}"
export BRIDGE_DATA_DIR="$data/bridge"

say() { printf '\n==> %s\n' "$*"; }
type_out() { printf '$ %s\n' "$*"; }
run() {
    type_out "$@"
    "$@"
}

# An installation may hold what this user can't read: it is named, and the rest is stamped.
run_on_library() {
    local code=0
    run "$@" "$library" -n demo.python --exclude __pycache__ --exclude site-packages --exclude dist-packages || code=$?
    if [ "$code" -eq 1 ]; then echo "(exit code 1: what could not be read is named above)"; else return "$code"; fi
}

rm -rf "$data"
mkdir -p "$data"
library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
sources=()
for path in src tests docs scripts benchmarks README.md Makefile pyproject.toml; do
    if [ -e "$path" ]; then sources+=("$path"); fi
done

say "The embedded PostgreSQL lives in ./$BRIDGE_DATA_DIR (the first command makes it)"
type_out "export BRIDGE_DATA_DIR=$BRIDGE_DATA_DIR"

say "Stamp the project's own sources, then Python's standard library"
run omninode-bridge stamp "${sources[@]}" -n demo.project --exclude __pycache__ --meta project=omninode-bridge
run_on_library omninode-bridge stamp

say "The same again: what has not changed is not even read"
run_on_library omninode-bridge stamp

say "The totals, counted once: by namespace, and the library's by type of content"
run omninode-bridge state
run omninode-bridge state demo.python --by content_type

say "Read every file again and compare it with its stamp"
run omninode-bridge verify "${sources[@]}" -n demo.project --exclude __pycache__
run_on_library omninode-bridge verify

say "Drift: stamp a copy of the domain's sources, then change one file, remove one, add one"
run cp -r src/omninode_bridge/domain "$data/copy"
run omninode-bridge stamp "$data/copy" -n demo.copy --exclude __pycache__
type_out "echo '# changed' >> $data/copy/stamp.py; rm $data/copy/log.py; touch $data/copy/new.py"
echo '# changed' >>"$data/copy/stamp.py"
rm "$data/copy/log.py"
touch "$data/copy/new.py"
drift=0
run omninode-bridge verify "$data/copy" -n demo.copy --exclude __pycache__ || drift=$?
echo "(exit code $drift: there is drift)"
[ "$drift" -eq 1 ]

say "A new version of what changed, and both versions of it"
run omninode-bridge stamp "$data/copy" -n demo.copy --exclude __pycache__
run omninode-bridge history "$data/copy/stamp.py" -n demo.copy

if command -v b3sum >/dev/null; then
    say "Another program agrees: Debian's b3sum checks what was stamped"
    type_out "omninode-bridge export -n demo.project --format b3sums | b3sum --check"
    if ! omninode-bridge export -n demo.project --format b3sums | b3sum --check >"$data/b3sum.txt"; then
        grep -v ': OK$' "$data/b3sum.txt" || true
        echo "b3sum found other content than was stamped: were these files changed while the demo ran?" >&2
        exit 1
    fi
    echo "$(grep -c ': OK$' "$data/b3sum.txt") files: OK"
fi

say "The laws, checked on the live data by code that shares nothing with what it checks"
run omninode-bridge audit

say "Done. All of it is in ./$data; try: BRIDGE_DATA_DIR=$BRIDGE_DATA_DIR .venv/bin/omninode-bridge state"
