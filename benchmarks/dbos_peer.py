"""The counterpart of `POST /stamp`: DBOS Transact, running the same three steps on the same PostgreSQL server.

    python -m benchmarks.dbos_peer URL COUNT CONCURRENT

runs COUNT workflows, CONCURRENT at a time, and prints the seconds that they took. Stamps are in the table `stamps`.

Its settings were chosen by 24 runs of 500 or 600 workflows, on a machine that others used as well: two runs of the
same settings lay up to 40 % apart, so only large differences say anything. In workflows/s:

* Synchronous workflows, called by as many threads as there are to be at a time, on 20 connections: 98-136 (8 runs).
  Asynchronous ones on uvloop, whose bookkeeping is handed to threads all the same: 81-121 (5 runs). Chosen: the
  synchronous ones.
* The insert as a plain step that may be repeated, against the transaction of a DBOS data source, which records it
  exactly once but asks more of the database, a run each: 132 and 100, 109 and 97; asynchronous, 81
  and 68. Chosen: the plain step.
* 20 connections for its own tables, its default, pinged before each use, also its default: 114-132 (4 runs); not
  pinged: 98-136 (4 runs); 4, 8 or 64 connections, not pinged: 106-120 (6 runs). Not told apart by this. Chosen: 20, not
  pinged, which asks less of the database.

There is no HTTP on its side: workflows are called in process, and what ours takes for requests and answers, it saves.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy
from blake3 import blake3
from dbos import DBOS, DBOSConfig

from benchmarks.measure import timed
from benchmarks.wanted import CONTENT_TYPE, NAMESPACE, Wanted, wanted

CONNECTIONS = 20
WARM_UP = 2
"""Workflows a thread, before the clock starts: connections are open, statements prepared."""
_TABLE = """
CREATE TABLE stamps (
    stamp_id uuid PRIMARY KEY, namespace text NOT NULL, file_path text NOT NULL, file_hash text NOT NULL,
    file_size bigint NOT NULL, content_type text NOT NULL, version integer NOT NULL,
    UNIQUE (namespace, file_path, version)
)
"""
_INSERT = sqlalchemy.text(
    "INSERT INTO stamps VALUES (:stamp_id, :namespace, :file_path, :file_hash, :file_size, :content_type, :version)"
    " ON CONFLICT (stamp_id) DO NOTHING"
)


def run(url: str, count: int, concurrent: int) -> float:
    """Run the workflows on an empty database; return the seconds that they took."""
    url = url.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, pool_size=CONNECTIONS, max_overflow=0)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(_TABLE))
    DBOS(
        config=DBOSConfig(
            name="benchmark",
            system_database_url=url,
            db_engine_kwargs={"pool_size": CONNECTIONS, "pool_pre_ping": False},
            application_version="1",
            log_level="ERROR",
        )
    )

    @DBOS.step()
    def digest(content: str) -> tuple[str, int]:
        data = content.encode()
        return blake3(data).hexdigest(), len(data)

    @DBOS.step()
    def build(file_path: str, file_hash: str, file_size: int) -> dict[str, Any]:
        return {
            "stamp_id": str(uuid.uuid4()),
            "namespace": NAMESPACE,
            "file_path": file_path,
            "file_hash": file_hash,
            "file_size": file_size,
            "content_type": CONTENT_TYPE,
            "version": 1,
        }

    @DBOS.step()
    def insert(stamp: dict[str, Any]) -> None:
        with engine.begin() as connection:
            connection.execute(_INSERT, stamp)

    @DBOS.workflow()
    def stamp(file_path: str, content: str) -> dict[str, Any]:
        made = build(file_path, *digest(content))
        insert(made)
        return made

    DBOS.launch()
    try:
        with ThreadPoolExecutor(concurrent) as threads:

            def all_of(asked: Sequence[Wanted]) -> None:
                for made in threads.map(lambda one: stamp(*one), asked):
                    assert made["version"] == 1

            all_of(wanted(WARM_UP * concurrent, "warm-up"))
            asked = wanted(count)
            with timed() as watch:
                all_of(asked)
    finally:
        DBOS.destroy()
        engine.dispose()
    return watch.seconds


if __name__ == "__main__":
    print(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
