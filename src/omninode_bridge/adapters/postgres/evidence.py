"""What an audit looks at, read in one snapshot of the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import LONG_TIMEOUT_S, translated
from omninode_bridge.adapters.postgres.reads import CURSOR_ROWS
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.reduction import State
from omninode_bridge.ports import AuditedEvent, Generation, HistoryShape

_SQL = load("audit")


_AS_THEY_ARE = (
    "stamped_by", "version", "digest_origin", "file_size", "content_type", "metadata", "intelligence",
    "workflow_state", "created_at", "completed_at",
)  # fmt: skip


class PostgresEvidence:
    """ports.Evidence: one repeatable-read transaction, which sees one moment of the database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def chain_faults(self) -> list[str]:
        found = await self._fetch("holes")
        return [f"{row['topic']} shard {row['shard']} position {row['position']}: {row['fault']}" for row in found]

    async def count_faults(self) -> list[str]:
        faults = [
            f"workflow {row['workflow_id']} in {row['namespace']}: {row['fault']}"
            for row in await self._fetch("uncounted")
        ]
        faults += [
            f"{row['file_path']} in {row['namespace']}: {row['stamps']} stamps, but version {row['latest']}"
            for row in await self._fetch("versions")
        ]
        return faults

    async def position_faults(self) -> list[str]:
        return [
            f"{row['consumer']} stands at {row['topic']} shard {row['shard']} position {row['position']}, "
            "which the log does not have"
            for row in await self._fetch("strayed")
        ]

    async def histories(self) -> list[HistoryShape]:
        return [
            HistoryShape(row["shape"], row["state"], row["example"], row["workflows"])
            for row in await self._fetch("histories")
        ]

    async def live(self) -> Generation | None:
        row = await self._connection.fetchrow(load("state")["live"])
        return None if row is None else Generation(row["generation"], row["fingerprint"], row["namespace"])

    async def events(self, live: Generation | None) -> AsyncIterator[AuditedEvent]:
        consumer, generation = (live.consumer, live.number) if live else ("", 0)
        with translated("auditing events"):
            async for row in self._connection.cursor(
                _SQL["events"], consumer, generation, prefetch=CURSOR_ROWS, timeout=LONG_TIMEOUT_S
            ):
                yield AuditedEvent(rows.record_of(row), _kept(row), row["folded"])

    async def unlogged(self, live: Generation | None) -> AsyncIterator[dict[str, Any]]:
        with translated("auditing what retention deleted"):
            async for row in self._connection.cursor(
                _SQL["unlogged"], live.number if live else 0, prefetch=CURSOR_ROWS, timeout=LONG_TIMEOUT_S
            ):
                yield dict(row)

    async def state(self) -> State:
        return await self._groups("live")

    async def base(self) -> State:
        return await self._groups("base")

    async def waiting(self) -> int:
        (row,) = await self._fetch("waiting")
        waiting: int = row["count"]
        return waiting

    async def waiting_faults(self) -> list[str]:
        return [
            f"workflow {row['workflow_id']} in {row['namespace']}: {row['fault']}"
            for row in await self._fetch("unkept")
        ]

    async def _groups(self, status: str) -> State:
        found = await self._fetch("state", status)
        return {(row["namespace"], row["aggregation_type"], row["group_key"]): rows.totals_of(row) for row in found}

    async def _fetch(self, statement: str, *arguments: object) -> list[rows.Row]:
        with translated("auditing"):
            # The whole database is read: how long that takes is its size's affair.
            found: list[rows.Row] = await self._connection.fetch(_SQL[statement], *arguments, timeout=LONG_TIMEOUT_S)
        return found


def _kept(row: rows.Row) -> dict[str, Any]:
    if row["error_code"] is not None:
        return {
            "file_path": row["workflow_path"],
            "step": row["step"],
            "error_code": row["error_code"],
            "error_message": row["error_message"],
        }
    if row["stamp_id"] is None:
        return {}
    return {name: row[name] for name in _AS_THEY_ARE} | {
        "stamp_id": str(row["stamp_id"]),
        "file_path": row["stamp_path"],
        "file_hash": row["digest"].hex(),
        "workflow_steps_executed": row["steps_executed"],
        "processing_time_us": row["processing_us"],
        "hash_generation_time_us": row["hash_us"],
    }


@asynccontextmanager
async def evidence(pool: Pool) -> AsyncIterator[PostgresEvidence]:
    """Open a snapshot for an audit."""
    with translated("auditing"):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_SQL["snapshot"])
            # These statements read whole tables: undo the pool's preference for look-ups by key.
            await connection.execute(
                "SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on"
            )
            yield PostgresEvidence(connection)
