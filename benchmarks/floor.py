"""The floor of stamping: the bare multi-row INSERT of rows that a real run wrote, into the same tables with the same
indexes, on the same server, through one connection.

What a stamp needs beside it is left out: walking, hashing, ids, looking for earlier versions, deciding, encoding
events, moving heads, aggregates. The rows are read back from the real run, so they are the same to the bit, and are
sent in the way that we found fastest: one array of rows a statement, statements prepared beforehand.
"""

from __future__ import annotations

from typing import Any

from asyncpg.connection import Connection

COMMIT_ROWS = 1000
"""Of each table; as many files as share a commit in the real run, at most."""

# In the order in which the ledger writes them. Each with the key that it shares with metadata_stamps, and the order of
# its rows within a commit.
_TABLES = {
    "fsm_states": ("workflow_id", "t.workflow_id, t.namespace"),
    "metadata_stamps": ("stamp_id", "t.namespace, t.file_path, t.version"),
    "event_log": ("workflow_id", "t.topic, t.shard, t.position"),
    "file_facts": ("stamp_id", "t.path_hash"),
}

# A stamp goes into commit n / COMMIT_ROWS, counted by stamp id, which is the order of their making; what belongs to it
# goes along.
_READ = """
WITH numbered AS (SELECT {key}, (row_number() OVER (ORDER BY stamp_id) - 1) / {rows} AS commit FROM metadata_stamps)
SELECT n.commit, t FROM numbered AS n JOIN {table} AS t USING ({key}) ORDER BY n.commit, {order}
"""
_WRITE = "INSERT INTO {table} SELECT * FROM unnest($1::{table}[])"
_DIGEST = "SELECT md5(string_agg(md5(t::text), '' ORDER BY t::text)) FROM {table} AS t"

type Commits = list[dict[str, list[tuple[Any, ...]]]]
"""Of each commit, the rows of each table."""


async def read_back(connection: Connection) -> Commits:
    """Return what a run has written, grouped into commits."""
    commits: dict[int, dict[str, list[tuple[Any, ...]]]] = {}
    for table, (key, order) in _TABLES.items():
        for number, row in await connection.fetch(_READ.format(table=table, key=key, order=order, rows=COMMIT_ROWS)):
            commits.setdefault(number, {}).setdefault(table, []).append(tuple(row))
    return [commits[number] for number in sorted(commits)]


class Floor:
    """A connection that is ready to write: nothing is left to be prepared."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._statements: dict[str, Any] = {}

    async def prepare(self) -> None:
        for table in _TABLES:
            self._statements[table] = await self._connection.prepare(_WRITE.format(table=table))

    async def write(self, commits: Commits) -> None:
        """Write the rows, a transaction a commit."""
        for tables in commits:
            async with self._connection.transaction():
                for table, rows in tables.items():
                    await self._statements[table].fetch(rows)


async def contents(connection: Connection) -> list[str]:
    """Return a digest of all rows of each table."""
    return [f"{table} {await connection.fetchval(_DIGEST.format(table=table))}" for table in _TABLES]
