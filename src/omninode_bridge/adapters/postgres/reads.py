"""Queries by key over what the ledger has recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.recording import PathKey, Prior
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.ports import KnownFile

CURSOR_ROWS = 1000
"""Rows held at a time while a long result is streamed."""

_SQL = load("reads")
_LATEST = load("ledger")["latest_stamps"]


class PostgresReads:
    """ports.Reads on a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def by_hash(self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100) -> list[Stamp]:
        return await self._stamps("by_hash", bytes.fromhex(file_hash), namespaces, limit)

    async def by_id(self, stamp_id: str) -> Stamp | None:
        return next(iter(await self._stamps("by_id", stamp_id)), None)

    async def history(self, namespace: str, file_path: str) -> list[Stamp]:
        return await self._stamps("history", path_hash(namespace, file_path))

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        hashes = [path_hash(namespace, path) for path in file_paths]
        with translated("reading stamps"):
            found = await self._pool.fetch(_LATEST, hashes)
        return {stamp.file_path: stamp for stamp in map(rows.stamp_of, found)}

    async def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        below = None if prefix is None else prefix.rstrip("/") + "/"
        async for row in self._stream("latest_under", namespace, below):
            yield rows.stamp_of(row)

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]:
        with translated("reading a workflow"):
            found = await self._pool.fetch(_SQL["workflow"], workflow_id, namespace)
        workflows = [rows.workflow_of(row) for row in found]
        return [Prior(w, await self.by_id(w.stamp_id) if w.stamp_id else None) for w in workflows]

    async def workflows(self, namespace: str | None = None) -> AsyncGenerator[Prior]:
        async for row in self._stream("workflows", namespace):
            stamp = row["stamp"]
            yield Prior(rows.workflow_of(row), None if stamp is None else rows.stamp_of(stamp))

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        with translated("reading file facts"):
            found = await self._pool.fetch(_SQL["known_files"], keys)
        return {
            row["path_hash"]: KnownFile(
                rows.facts_of(row), str(row["stamp_id"]), row["content_type"], row["metadata"].encode()
            )
            for row in found
        }

    async def _stamps(self, statement: str, *arguments: Any) -> list[Stamp]:
        with translated("reading stamps"):
            return [rows.stamp_of(row) for row in await self._pool.fetch(_SQL[statement], *arguments)]

    async def _stream(self, statement: str, *arguments: Any) -> AsyncIterator[rows.Row]:
        with translated("reading stamps"):
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on")
                async for row in connection.cursor(_SQL[statement], *arguments, prefetch=CURSOR_ROWS):
                    yield row
