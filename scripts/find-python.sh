#!/usr/bin/env bash
# Print the path of a usable CPython (3.12 or 3.13), or say on stderr what is missing and exit 1.
#
# A name on PATH proves nothing: under pyenv it may be a shim that answers "command not found", and a bare python3 may be
# an older release. So each candidate is run and asked. PYTHON, when set, is the only candidate.
set -euo pipefail

ask='import sys
if sys.implementation.name == "cpython" and (3, 12) <= sys.version_info < (3, 14):
    print(sys.executable)'

usable() {
    local path
    path=$("$@" -I -c "$ask" 2>/dev/null </dev/null) && [ -n "$path" ] && printf '%s\n' "$path"
}

if [ -n "${PYTHON:-}" ]; then
    if usable "$PYTHON"; then exit 0; fi
    echo "PYTHON=$PYTHON is not a CPython 3.12 or 3.13 that runs; name another, or leave PYTHON unset to have one found." >&2
    exit 1
fi

for name in python3.12 python3.13 python3 python; do
    if command -v "$name" >/dev/null && usable "$name"; then exit 0; fi
done

# pyenv keeps versions that its shims do not offer while another one is selected.
if command -v pyenv >/dev/null; then
    for path in "$(pyenv root)"/versions/3.1[23].*/bin/python; do
        if [ -x "$path" ] && usable "$path"; then exit 0; fi
    done
fi

echo "No CPython 3.12 or 3.13 was found (tried python3.12, python3.13, python3, python and pyenv's versions): install one, or run 'make PYTHON=/path/to/python3.12 …'." >&2
exit 1
