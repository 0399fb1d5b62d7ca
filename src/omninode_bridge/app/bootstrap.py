"""The assembly: plain constructor calls. What runs is made of adapters here, and nowhere else.

settings ─▶ contracts ─▶ database ─▶ ledger sessions ─▶ ingest ─┐
                               └──▶ source, state ─▶ projector ─┼─▶ nodes ─▶ Bridge
             hasher, intelligence, clock, ids ──────────────────┘
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from omninode_bridge.adapters import filesystem
from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.onextree import LocalIntelligence
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.evidence import evidence
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.migrations import migrate, require_current
from omninode_bridge.adapters.postgres.reads import PostgresReads
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.streaming import Blake3Stream
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.app.audit import LawFinding, audit
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.app.project import Projector, live_generation, rebuild
from omninode_bridge.app.query import Query
from omninode_bridge.app.settings import Settings
from omninode_bridge.app.tree import Tree
from omninode_bridge.domain.errors import DataDirectoryError, Overloaded, ServiceUnavailable
from omninode_bridge.nodes.container import build_container
from omninode_bridge.nodes.contracts import Contracts, load_contracts
from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
from omninode_bridge.nodes.reducer.v1_0_0.node import NodeBridgeReducer
from omninode_bridge.ports import fingerprint

DEATH_S = 10.0
"""How long to look whether a server that refuses connections recovers or dies."""
DEATH_LOOK_S = 0.1
AUDITS_MAX = 1
"""Audits under way at once. Each holds a connection of the pool for as long as reading the whole database takes."""

type Kind = Literal["up", "command"]
"""A process that others may attach to, or one that uses the data directory alone."""
type Died = Callable[[], Awaitable[ServiceUnavailable]]
"""Waits until the database's server ends by itself; returns what to tell."""


class Maintenance:
    """What looks after the data: audit, rebuild, readiness."""

    def __init__(
        self,
        pool: postgres.Pool,
        contracts: Contracts,
        source: PostgresEventSource,
        state: PostgresStateStore,
        died: Died | None,
    ) -> None:
        self._pool = pool
        self._died = died
        self._contracts = contracts
        self._source = source
        self._state = state
        self._audits = asyncio.Semaphore(AUDITS_MAX)

    async def audit(self) -> list[LawFinding]:
        """Check the laws; Overloaded while an audit of this process is under way."""
        if self._audits.locked():
            raise Overloaded("an audit is under way: wait for its findings, or try again later")
        async with self._audits, evidence(self._pool) as snapshot:
            return await audit(snapshot, self._contracts.orchestrator.plan.machine)

    async def rebuild(self, namespace: str | None = None) -> None:
        await rebuild(self._source, self._state, self._contracts.reducer.groupings, namespace=namespace)

    async def follow_contract(self) -> None:
        """Fold the log anew when the reducer's contract is not the one that the live state was folded by.

        For the process whose business the state is: others have no say in what their neighbours read.
        """
        await self._state.sweep()
        live = await live_generation(self._state, self._contracts.reducer.groupings)
        if live.fingerprint != fingerprint(self._contracts.reducer.groupings):
            await self.rebuild()

    async def ready(self) -> None:
        """Raise ServiceUnavailable when stamps could not be recorded now."""
        await self._source.heads()

    async def database_died(self) -> ServiceUnavailable:
        """Wait until the embedded server ends by itself, and return what to tell; for ever where it is not ours."""
        if self._died is None:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        return await self._died()


@asynccontextmanager
async def open_bridge(settings: Settings, kind: Kind = "command") -> AsyncIterator[Bridge]:
    """Open the bridge that the settings describe: on your server, or on the embedded one."""
    if settings.database_url is not None:
        async with connect(settings.database_url, settings, kind) as bridge:
            yield bridge
    else:
        async with embedded(settings.data_dir, settings, kind) as bridge:
            yield bridge


@asynccontextmanager
async def embedded(
    data_dir: str | os.PathLike[str] | None = None, settings: Settings | None = None, kind: Kind = "command"
) -> AsyncIterator[Bridge]:
    """Open a bridge on the embedded PostgreSQL; its schema is brought up to date first."""
    settings = settings or Settings.read()
    contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    async with _server(settings, data_dir, kind) as server:
        if kind == "up" and server.attached:
            raise DataDirectoryError(
                f"{server.data_dir} is served by another `up` already (pid {server.pid}): "
                "use that one, end it, or name another folder with --data-dir"
            )
        session = await postgres.connect(server.dsn)
        try:
            await migrate(session)
        finally:
            await session.close()
        async with _assemble(server.dsn, settings, contracts, not server.attached, server.died) as bridge:
            yield bridge


@asynccontextmanager
async def connect(database_url: str, settings: Settings | None = None, kind: Kind = "command") -> AsyncIterator[Bridge]:
    """Open a bridge on your own PostgreSQL; SchemaMismatch unless its schema is this program's.

    Where the state is kept by another reducer contract than the settings', only `up` folds it anew at its start;
    a command's reads of the state raise ForeignState until it calls `rebuild`.
    """
    settings = settings or Settings.read()
    contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    session = await postgres.connect(database_url)
    try:
        await require_current(session)
    finally:
        await session.close()
    async with _assemble(database_url, settings, contracts, kind == "up") as bridge:
        yield bridge


@asynccontextmanager
async def database(
    settings: Settings, data_dir: str | os.PathLike[str] | None = None, kind: Kind = "command"
) -> AsyncIterator[str]:
    """Yield the URL of the database: the configured one, or the embedded server's while it runs."""
    if data_dir is None and settings.database_url is not None:
        yield settings.database_url
        return
    async with _server(settings, data_dir, kind) as server:
        yield server.dsn


@asynccontextmanager
async def _server(
    settings: Settings, data_dir: str | os.PathLike[str] | None, kind: Kind
) -> AsyncIterator[EmbeddedPostgres]:
    folder = Path(data_dir) if data_dir is not None else settings.data_dir
    async with await EmbeddedPostgres.start(folder, kind=kind, binaries=settings.postgres_binaries) as server:
        try:
            yield server
        except ServiceUnavailable as error:
            if (death := await _death(server)) is not None:
                raise death from error
            raise


async def _death(server: EmbeddedPostgres) -> ServiceUnavailable | None:
    """Return what our server died of, None when it serves.

    A server whose disk is full dies in two steps: it crashes, and then fails to recover. That is waited for:
    what its users saw was only a lost connection, and the server says why.
    """
    death = asyncio.ensure_future(server.died())
    try:
        async with asyncio.timeout(DEATH_S):
            while not death.done():
                with suppress(ServiceUnavailable):
                    (await postgres.connect(server.dsn)).terminate()
                    return None
                await asyncio.wait({death}, timeout=DEATH_LOOK_S)
            return death.result()
    except TimeoutError:
        return None
    finally:
        death.cancel()


@asynccontextmanager
async def _assemble(
    url: str, settings: Settings, contracts: Contracts, keeper: bool, died: Died | None = None
) -> AsyncIterator[Bridge]:
    """`keeper`: the state is this process's business; it is to follow this process's contract."""
    plan, groupings = contracts.orchestrator.plan, contracts.reducer.groupings
    hasher, intelligence = Blake3Hasher(), LocalIntelligence()
    async with postgres.pool(url) as pool:
        source, state, reads = PostgresEventSource(pool), PostgresStateStore(pool), PostgresReads(pool)
        maintenance = Maintenance(pool, contracts, source, state, died)
        if keeper:
            await maintenance.follow_contract()
        projector = Projector(source, state, groupings, batch_max=contracts.reducer.batch_size)
        sessions = [PostgresLedgerSession(url, plan, utc_now, uuid7_batch) for _ in range(settings.writers)]
        async with (
            Ingest(
                sessions, group_max=settings.group_max, queue_max=settings.queue_max, committed=projector.wake.set
            ) as ledger,
            _running(projector),
        ):
            container = await build_container(
                ledger=ledger,
                hasher=hasher,
                intelligence=intelligence,
                state_store=state,
                clock=utc_now,
                ids=uuid7_batch,
            )
            orchestrator = NodeBridgeOrchestrator(container, contracts.orchestrator)
            tree = Tree(
                walk=partial(filesystem.walk, batch=settings.tree_batch_files),
                content_type=filesystem.guess_content_type,
                executor=orchestrator,
                hasher=hasher,
                reads=reads,
                clock=utc_now,
                ids=uuid7_batch,
                in_flight=settings.tree_batches_in_flight,
            )
            yield Bridge(
                orchestrator=orchestrator,
                reducer=NodeBridgeReducer(container, contracts.reducer),
                tree=tree,
                query=Query(source, state, reads, projector, groupings, settings.state_timeout_s),
                reads=reads,
                source=source,
                maintenance=maintenance,
                guess_content_type=filesystem.guess_content_type,
                running_digest=Blake3Stream,
                clock=utc_now,
                ids=uuid7_batch,
                stamped_by=settings.stamped_by,
            )


@asynccontextmanager
async def _running(projector: Projector) -> AsyncIterator[None]:
    task = asyncio.create_task(projector.run(), name="reducer")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
