#!/usr/bin/env bash
# A real Apache Kafka without Docker, from the jars that deploy/kafka/pom.xml names. It needs Java 17 or newer; jars needs mvn.
#
#   kafka.sh jars                  see to the jars, in .kafka/KEY/libs; instant when they are there
#   kafka.sh java CLASS [ARG …]    become a class of Kafka's, with the JVM settings of a small broker
#   kafka.sh run                   run a broker on 127.0.0.1:9092 in the foreground, its data in .kafka/data
#
# KEY is the hash of the pom, so that a change of version makes a folder of its own.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pom="$project/deploy/kafka/pom.xml"
key=$(sha256sum <"$pom")
home="$project/.kafka/${key:0:16}"

# Little heap, and compiled quickly instead of well: a broker that starts soon and serves one person or a test.
jvm=(
    -Xms64m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1
    -Dorg.slf4j.simpleLogger.showDateTime=true
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"
    # It would list some 300 settings, several times.
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn
)

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

see_to_jars() {
    if [ -d "$home/libs" ]; then return; fi
    if ! command -v mvn >/dev/null; then
        fail "mvn fetches Kafka's jars and is not on PATH: install Maven (on Debian and Ubuntu: apt-get install maven), then run again."
    fi
    mkdir -p "$project/.kafka"
    # Complete in a folder of its own, then renamed: whoever is killed on the way, or comes second, leaves nothing half done.
    new=$(mktemp -d "$project/.kafka/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    if ! mvn --batch-mode --strict-checksums --file "$pom" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$new/libs" </dev/null >"$new/log" 2>&1; then
        cat "$new/log" >&2
        fail "Maven could not fetch the jars of deploy/kafka/pom.xml: see its errors above. It needs Maven Central, or the mirror that your Maven settings (~/.m2/settings.xml) name; then run again."
    fi
    if ! mv --no-target-directory "$new" "$home" 2>/dev/null; then
        rm -rf "$new"
        if [ ! -d "$home/libs" ]; then fail "$home is in the way: remove it, then run again."; fi
    fi
}

become() { # [JVM SETTING …] CLASS [ARG …]
    if ! command -v java >/dev/null; then
        fail "Kafka needs Java 17 or newer, and java is not on PATH: install it (on Debian and Ubuntu: apt-get install default-jre-headless), then run again."
    fi
    exec java "${jvm[@]}" -classpath "$home/libs/*" "$@"
}

run_broker() {
    local data="$project/.kafka/data" properties="$project/.kafka/server.properties" cluster
    local warnings=-Dorg.slf4j.simpleLogger.defaultLogLevel=warn
    if (exec 3<>/dev/tcp/127.0.0.1/9092) 2>/dev/null; then
        fail "Something listens on 127.0.0.1:9092 already, perhaps another broker: stop it, then run again."
    fi
    {
        cat "$project/deploy/kafka/server.properties"
        echo "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
        echo "advertised.listeners=PLAINTEXT://127.0.0.1:9092"
        echo "controller.quorum.bootstrap.servers=127.0.0.1:9093"
        echo "log.dirs=$data"
    } >"$properties"
    if [ ! -e "$data/meta.properties" ]; then
        cluster=$(become "$warnings" kafka.tools.StorageTool random-uuid)
        (become "$warnings" kafka.tools.StorageTool format --standalone --cluster-id "$cluster" --config "$properties" >/dev/null)
    fi
    echo "==> Apache Kafka starts on 127.0.0.1:9092, its data in .kafka/data; Ctrl-C stops it"
    become "$warnings" -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info kafka.Kafka "$properties"
}

case "${1:-}" in
jars) see_to_jars ;;
java)
    see_to_jars
    shift
    become "$@"
    ;;
run)
    see_to_jars
    run_broker
    ;;
*) fail "usage: scripts/kafka.sh jars | java CLASS [ARG …] | run" ;;
esac
