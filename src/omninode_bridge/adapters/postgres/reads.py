"""Queries by key over what the ledger has recorded.

A long result is streamed at the pace of its reader. Where an index has its order it is read page by page, with
nothing held in between; a listing by path has to be sorted, so that it holds a connection and a snapshot, and
the number of such streams is limited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import LONG_TIMEOUT_S, TENANT, given, seeing, translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import Overloaded
from omninode_bridge.domain.log import NIL_ID
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.recording import PathKey, Prior
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import PAGE_BYTES_MAX, KnownFile, StampFilter, StampPage

CURSOR_ROWS = 1000
"""Rows held at a time while a long result is streamed."""
STREAMS_MAX = 4
"""Listings under way at once: half of the pool's connections. What only takes a moment has the others."""
READER_PAUSE_S = 3600
"""How long a listing's reader may pause (`export | less`). Its snapshot keeps the server from tidying up after
updates, so it can't be for ever."""
PAGE_WALK_ROWS_MAX = 10_000
"""Stamps that a filter looks through for one page; beyond it the page ends, however few
it has, and the next goes on."""
_ID_LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_NAMESPACE_LAST = "\U0010ffff"
"""Follows every namespace, in the order of code points."""

_SQL = load("reads")
_LATEST = load("ledger")["latest_stamps"]


class PostgresReads:
    """ports.Reads on a pool of the service's sessions. All rows are seen, but for what `seen_by` leaves out."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._visible: Visible | None = None
        self._streams = asyncio.BoundedSemaphore(STREAMS_MAX)

    def seen_by(self, visible: Visible) -> PostgresReads:
        limited = PostgresReads(self._pool)
        limited._visible = None if visible == EVERYTHING else visible
        limited._streams = self._streams
        return limited

    async def by_hash(self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100) -> list[Stamp]:
        digest = bytes.fromhex(file_hash)
        if namespaces is not None:
            return await self._stamps(_bounded(_SQL["by_hash_in"]), digest, limit, namespaces)
        if self._visible is None:
            return await self._stamps(_bounded(_SQL["by_hash"]), digest, limit)
        names, beginnings = self._visible.names, [pattern[:-1] for pattern in self._visible.wildcards]
        return await self._stamps(_bounded(_SQL["by_hash_matching"]), digest, limit, names, beginnings)

    async def page(
        self, namespace: str, wanted: StampFilter, *, before: str | None = None, limit: int = 100
    ) -> StampPage:
        digest = None if wanted.file_hash is None else bytes.fromhex(wanted.file_hash)
        source, key = "stamps_of_namespace", namespace.encode()
        if wanted.file_path is not None:
            source, key = "stamps_of_path", path_hash(namespace, wanted.file_path)
        elif digest is not None:
            source, key = "stamps_of_digest", digest
        statement = _SQL["page"].replace("{source}", _SQL[source]).replace("{bounded}", _bounded("TABLE matching"))
        walk = limit + 1 if wanted.by_index else PAGE_WALK_ROWS_MAX
        arguments = (
            key, before or _ID_LAST, walk, namespace, limit + 1, wanted.content_type, wanted.stamped_by, wanted.origin,
            wanted.since, wanted.until, digest,
        )  # fmt: skip
        with translated("listing stamps"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(statement, *arguments)
        walked, last, matched = found[0]["walked"], found[0]["last_walked"], found[0]["matched"]
        stamps = [rows.stamp_of(row) for row in found if row["stamp_id"] is not None]
        if len(stamps) > limit:
            return StampPage(stamps[:limit], stamps[limit - 1].stamp_id)
        if len(stamps) < matched:
            return StampPage(stamps, stamps[-1].stamp_id)
        return StampPage(stamps, str(last) if walked == walk else None)

    async def by_id(self, stamp_id: str) -> Stamp | None:
        return next(iter(await self._stamps(_SQL["by_id"], stamp_id)), None)

    async def history(self, namespace: str, file_path: str) -> list[Stamp]:
        return await self._stamps(_SQL["history"], path_hash(namespace, file_path))

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        hashes = [path_hash(namespace, path) for path in file_paths]
        with translated("reading stamps"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(_LATEST, hashes)
        return {stamp.file_path: stamp for stamp in map(rows.stamp_of, found)}

    async def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        below = None if prefix is None else prefix.rstrip("/") + "/"
        with translated("listing stamps"):
            async with self._snapshot() as connection:
                async for row in connection.cursor(
                    _SQL["latest_under"], namespace, below, prefetch=CURSOR_ROWS, timeout=LONG_TIMEOUT_S
                ):
                    yield rows.stamp_of(row)

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]:
        with translated("reading a workflow"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(_SQL["workflow"], workflow_id, namespace)
        workflows = [(rows.workflow_of(row), rows.waiting_of(row)) for row in found]
        return [
            Prior(workflow, await self.by_id(workflow.stamp_id) if workflow.stamp_id else None, waiting)
            for workflow, waiting in workflows
        ]

    async def workflows(self, namespace: str | None = None, *, after: str | None = None) -> AsyncGenerator[Prior]:
        first, last = (namespace or "", after or NIL_ID), namespace or _NAMESPACE_LAST
        while True:
            with translated("reading workflows"):
                async with seeing(self._pool, self._visible) as connection:
                    page = await connection.fetch(_SQL["counted_workflows"], *first, last, CURSOR_ROWS + 1)
            for row in page[:CURSOR_ROWS]:
                stamp = row["stamp"]
                if str(row["workflow_id"]) != after:
                    yield Prior(rows.workflow_of(row), None if stamp is None else rows.stamp_of(stamp))
            if len(page) <= CURSOR_ROWS:
                return
            first = page[-1]["namespace"], page[-1]["workflow_id"]

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        with translated("reading file facts"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(_SQL["known_files"], keys)
        return {
            row["path_hash"]: KnownFile(
                rows.facts_of(row), str(row["stamp_id"]), row["content_type"], row["metadata"].encode()
            )
            for row in found
        }

    async def _stamps(self, statement: str, *arguments: Any) -> list[Stamp]:
        with translated("reading stamps"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(statement, *arguments)
        return [rows.stamp_of(row) for row in found]

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Connection]:
        """Give a connection for one listing; Overloaded when too many are under way."""
        if self._streams.locked():
            raise Overloaded(f"{STREAMS_MAX} listings are being read: end one of them, or try again later")
        async with self._streams, self._pool.acquire() as connection, connection.transaction(readonly=True):
            if self._visible is not None:
                what = given(self._visible.names, self._visible.wildcards)
                await connection.execute(f"SET LOCAL ROLE {TENANT}; {what}")
            await connection.execute(_SQL["wait_for_reader"], f"{READER_PAUSE_S}s")
            await connection.execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on")
            yield connection


def _bounded(stamps: str) -> str:
    return _SQL["bounded"].replace("{stamps}", stamps).replace("{bytes_max}", str(PAGE_BYTES_MAX))
