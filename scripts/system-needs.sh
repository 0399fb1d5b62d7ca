#!/usr/bin/env bash
# See to what the tests need besides Python: Debian's b3sum and kcat, the server binaries of a PostgreSQL 15 or newer, and for
# Apache Kafka a Java 17 or newer and Maven.
#
# Missing ones are installed where that is possible (root, apt-get); elsewhere the packages are named and the exit code is 1.
# No database cluster is created or started: the tests run servers of their own, in folders of their own.
set -euo pipefail

say() { printf '==> %s\n' "$*"; }

server_binaries() {
    local initdb major
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb "$(command -v initdb || true)"; do
        if [ -x "$initdb" ] && [ -x "${initdb%initdb}postgres" ]; then
            major=$("$initdb" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
            if [ "$major" -ge 15 ]; then return 0; fi
        fi
    done
    return 1
}

java_17() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || return 1
    [ "${version:-0}" -ge 17 ]
}

missing=()
if ! command -v b3sum >/dev/null; then missing+=(b3sum); fi
if ! command -v kcat >/dev/null; then missing+=(kcat); fi
if ! java_17; then missing+=(default-jre-headless); fi
if ! command -v mvn >/dev/null; then missing+=(maven); fi
if ! server_binaries; then missing+=(postgresql); fi
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "The tests need ${missing[*]} (Debian package names; PostgreSQL 15 or newer, its server binaries only; Java 17 or newer): install, then run again. As root on Debian or Ubuntu this is done for you." >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# Debian's packages are talkative: what they say is shown only when it explains a failure.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        echo "'$*' failed: install ${missing[*]} by hand, then run again." >&2
        exit 1
    fi
    rm -f "$log"
}
install_packages() { quietly apt-get install --yes --no-install-recommends "$@"; }

say "installing Debian packages the tests need: ${missing[*]}"
quietly apt-get update

for package in "${missing[@]}"; do
    if [ "$package" = postgresql ]; then
        # Debian's package would set up and start a server of its own, unless this file says otherwise while it is installed.
        install_packages postgresql-common
        settings=/etc/postgresql-common/createcluster.conf
        original=$(mktemp)
        cp -p "$settings" "$original"
        trap 'cp -p "$original" "$settings"; rm -f "$original"' EXIT
        echo "create_main_cluster = false" >>"$settings"
    fi
    install_packages "$package"
done

if ! server_binaries; then
    echo "This system's postgresql package is older than 15, which the tests need: install postgresql-15 or newer, then run again." >&2
    exit 1
fi

if ! java_17; then
    echo "The java on PATH is older than 17, which Kafka needs: install openjdk-17-jre-headless or newer and put it first, then run again." >&2
    exit 1
fi
