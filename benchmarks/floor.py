"""The floor of stamping: the bare multi-row INSERT of rows that a real run wrote, into the same tables with the same
indexes, on the same server, through one connection.

What a stamp needs beside it is left out: walking, hashing, ids, looking for earlier versions, deciding, encoding
events, moving heads, aggregates. The rows are read back from the real run, so they are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncpg.connection import Connection

COMMIT_ROWS = 1000
"""Of each table; as many files as share a commit in the real run, at most."""

# In the order in which the ledger writes them, each with the order of its rows within a commit.
_TABLES = {
    "fsm_states": ("workflow_id", "t.workflow_id, t.namespace"),
    "metadata_stamps": ("stamp_id", "t.stamp_id"),
    "event_log": ("workflow_id", "t.topic, t.shard, t.position"),
    "file_facts": ("stamp_id", "t.namespace, t.path_hash"),
}

_COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# Row n of a table goes into commit n / COMMIT_ROWS, counted by the stamps' ids, which is the order of their making.
_ROWS = """
WITH numbered AS (SELECT {key}, (row_number() OVER (ORDER BY stamp_id) - 1) / {rows} AS commit FROM metadata_stamps)
SELECT n.commit, t.* FROM numbered AS n JOIN {table} AS t USING ({key}) ORDER BY n.commit, {order}
"""
_DIGEST = "SELECT md5(string_agg(md5(t::text), '' ORDER BY t::text)) FROM {table} AS t"


class Insert(NamedTuple):
    """A statement and its arguments: an array a column."""

    statement: str
    columns: Sequence[Sequence[Any]]


type Commits = list[list[Insert]]


async def read_back(connection: Connection) -> Commits:
    """Return the inserts that write what a run has written, grouped into commits."""
    commits: dict[int, list[Insert]] = {}
    for table, (key, order) in _TABLES.items():
        columns = [(row["name"], row["type"]) for row in await connection.fetch(_COLUMNS, table)]
        names = ", ".join(name for name, _ in columns)
        arrays = ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(columns, 1))
        statement = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays})"  # noqa: S608 - names of our own tables
        rows: dict[int, list[Any]] = {}
        for row in await connection.fetch(_ROWS.format(table=table, key=key, order=order, rows=COMMIT_ROWS)):
            rows.setdefault(row["commit"], []).append(row)
        for number, found in rows.items():
            insert = Insert(statement, [[row[name] for row in found] for name, _ in columns])
            commits.setdefault(number, []).append(insert)
    return [commits[number] for number in sorted(commits)]


async def write(connection: Connection, commits: Commits) -> None:
    """Write the rows, a transaction a commit."""
    for inserts in commits:
        async with connection.transaction():
            for insert in inserts:
                await connection.execute(insert.statement, *insert.columns)


async def contents(connection: Connection) -> list[str]:
    """Return a digest of all rows of each table."""
    return [f"{table} {await connection.fetchval(_DIGEST.format(table=table))}" for table in _TABLES]
