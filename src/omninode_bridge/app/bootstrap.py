"""The assembly: plain constructor calls. What runs is made of adapters here, and nowhere else.

settings ─▶ contracts ─▶ database ─▶ ledger sessions ─▶ ingest ─┐
                               └──▶ source, state ─▶ projector ─┼─▶ nodes ─▶ worker ─▶ Bridge
             hasher, intelligence, clock, ids ──────────────────┘

What a process does beside answering calls is its role's: who folds the log, who runs accepted workflows.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal, NamedTuple

from omninode_bridge.adapters import filesystem
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.memory import MemoryReads, MemoryStore
from omninode_bridge.adapters.onextree import LocalIntelligence
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.evidence import evidence
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.migrations import migrate, require_current
from omninode_bridge.adapters.postgres.probing import PostgresProbe
from omninode_bridge.adapters.postgres.queue import PostgresWorkQueue
from omninode_bridge.adapters.postgres.reads import PostgresReads
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.postgres.tokens import PostgresTokens, record_act
from omninode_bridge.adapters.streaming import Blake3Stream
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.app.access import Access
from omninode_bridge.app.audit import LawFinding, audit
from omninode_bridge.app.backlog import Backlog
from omninode_bridge.app.bridge import Bridge, stamp_batches
from omninode_bridge.app.carrying import carried, running
from omninode_bridge.app.database import server as embedded_server
from omninode_bridge.app.following import Tail
from omninode_bridge.app.gather import Gather
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.app.monitor import Duty, watch
from omninode_bridge.app.project import Projector, live_generation, rebuild
from omninode_bridge.app.query import Query
from omninode_bridge.app.settings import Settings
from omninode_bridge.app.telemetry import Telemetry
from omninode_bridge.app.tree import Tree, TreeResult
from omninode_bridge.app.work import Worker
from omninode_bridge.domain.errors import DataDirectoryError, Overloaded, ServiceUnavailable
from omninode_bridge.domain.tenancy import local_principal
from omninode_bridge.nodes.container import build_container
from omninode_bridge.nodes.contracts import Contracts, load_contracts
from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
from omninode_bridge.nodes.reducer.v1_0_0.node import NodeBridgeReducer
from omninode_bridge.ports import EventSource, Hasher, fingerprint

AUDITS_MAX = 1
"""Audits under way at once. Each holds a connection of the pool for as long as reading the whole database takes."""

type Role = Literal["api", "orchestrator", "stamping", "relay", "reducer", "all"]


class Duties(NamedTuple):
    """What a process does by itself, beside answering calls."""

    folds: bool
    """Folds the log as it grows. Whoever reads the state folds what is missing all the same."""
    keeps: bool
    """Sees to it that the state follows this process's contract."""
    works: bool
    """Runs accepted workflows."""
    records: bool = True
    """Records stamps."""
    relays: bool = False
    """Forwards the log to Kafka, where there is one."""
    listens: bool = False
    """Folds what arrives over Kafka, where there is one."""


_DUTIES: dict[Role | None, Duties] = {
    # A command of a person, or a Python program.
    None: Duties(folds=True, keeps=False, works=False),
    "api": Duties(folds=False, keeps=False, works=False),
    "orchestrator": Duties(folds=False, keeps=False, works=True),
    "stamping": Duties(folds=False, keeps=False, works=False),
    "relay": Duties(folds=False, keeps=False, works=False, records=False, relays=True),
    "reducer": Duties(folds=True, keeps=True, works=False, records=False, listens=True),
    "all": Duties(folds=True, keeps=True, works=True, relays=True, listens=True),
}
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

    async def rebuild(self, namespace: str | None = None, *, actor: str | None = None) -> None:
        """Fold the log anew and swap the result in. The log of acts tells first which `actor` wants that."""
        if actor is not None:
            with postgres.translated("keeping the log of acts"):
                async with self._pool.acquire() as connection:
                    await record_act(connection, actor, "state.rebuild", namespace or "*")
        await rebuild(self._source, self._state, self._contracts.reducer.groupings, namespace=namespace)

    async def follow_contract(self) -> None:
        """Fold the log anew when the reducer's contract is not the one that the live state was folded by.

        For the process whose business the state is: others have no say in what their neighbours read.
        """
        await self._state.sweep()
        live = await live_generation(self._state, self._contracts.reducer.groupings)
        if live.fingerprint != fingerprint(self._contracts.reducer.groupings):
            await self.rebuild()

    async def database_died(self) -> ServiceUnavailable:
        """Wait until the embedded server ends by itself, and return what to tell; for ever where it is not ours."""
        if self._died is None:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        return await self._died()


@asynccontextmanager
async def open_bridge(settings: Settings, role: Role | None = None) -> AsyncIterator[Bridge]:
    """Open the bridge that the settings describe: on your server, or on the embedded one.

    A process with a role serves: others may attach to its embedded server. Without one it is a command's.
    """
    if settings.database_url is not None:
        async with connect(settings.database_url, settings, role) as bridge:
            yield bridge
    else:
        async with embedded(settings.data_dir, settings, role) as bridge:
            yield bridge


@asynccontextmanager
async def embedded(
    data_dir: str | os.PathLike[str] | None = None, settings: Settings | None = None, role: Role | None = None
) -> AsyncIterator[Bridge]:
    """Open a bridge on the embedded PostgreSQL; its schema is brought up to date first."""
    settings = settings or Settings.read()
    contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    async with embedded_server(settings, data_dir, "command" if role is None else "up") as server:
        if role is not None and server.attached:
            raise DataDirectoryError(
                f"{server.data_dir} is served by another `up` already (pid {server.pid}): "
                "use that one, end it, or name another folder with --data-dir"
            )
        session = await postgres.connect(server.dsn)
        try:
            await migrate(session)
        finally:
            await session.close()
        duties = _DUTIES[role]._replace(keeps=not server.attached)
        async with _assemble(server.dsn, settings, contracts, duties, server.died) as bridge:
            yield bridge


@asynccontextmanager
async def connect(
    database_url: str, settings: Settings | None = None, role: Role | None = None, *, kafka: str | None = None
) -> AsyncIterator[Bridge]:
    """Open a bridge on your own PostgreSQL; SchemaMismatch unless its schema is this program's.

    `kafka`: its bootstrap servers; what is stamped is forwarded there, and folded from there.

    Where the state is kept by another reducer contract than the settings', only a reducer folds it anew at its
    start; others' reads of the state raise ForeignState until then, or until `rebuild` is called.
    """
    settings = settings or Settings.read()
    contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    session = await postgres.connect(database_url)
    try:
        await require_current(session)
    finally:
        await session.close()
    duties = _DUTIES[role]
    if kafka is not None:
        settings = settings.model_copy(update={"kafka_bootstrap_servers": kafka})
        duties = duties._replace(relays=True, listens=True)
    async with _assemble(database_url, settings, contracts, duties) as bridge:
        yield bridge


@asynccontextmanager
async def remote_stamper(url: str, settings: Settings) -> AsyncIterator[Callable[..., AsyncIterator[list[TreeResult]]]]:
    """Open what stamps files of this machine at a server: `stamp_tree_batches` as the bridge has it.

    Each file is sent, since nothing is known here of what the server has; an unchanged one is answered so.
    """
    from omninode_bridge.adapters.bridge_http import RemoteBridge

    async with RemoteBridge(url, token=settings.token) as server:
        tree = Tree(
            walk=partial(filesystem.walk, batch=settings.tree_batch_files),
            content_type=filesystem.guess_content_type,
            executor=server,
            hasher=Blake3Hasher(),
            reads=MemoryReads(MemoryStore()),
            clock=utc_now,
            ids=uuid7_batch,
            in_flight=settings.tree_batches_in_flight,
        )
        yield partial(stamp_batches, tree, settings.stamped_by)


@asynccontextmanager
async def _assemble(
    url: str, settings: Settings, contracts: Contracts, duties: Duties, died: Died | None = None
) -> AsyncIterator[Bridge]:
    plan, groupings = contracts.orchestrator.plan, contracts.reducer.groupings
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(postgres.pool(url))
        source, state, reads = PostgresEventSource(pool), PostgresStateStore(pool), PostgresReads(pool)
        maintenance = Maintenance(pool, contracts, source, state, died)
        if duties.keeps:
            await maintenance.follow_contract()
        telemetry, tail = Telemetry(), Tail(source)

        def projector_of(events: EventSource) -> Projector:
            return Projector(
                events,
                state,
                groupings,
                batch_max=contracts.reducer.batch_size,
                batch_s=contracts.reducer.batch_ms / 1000,
                meter=telemetry.reducer,
            )

        # Whoever waits for the state folds the log itself; the loop may fold what arrives over Kafka.
        reader = projector_of(source)
        transport = await stack.enter_async_context(
            carried(
                url,
                pool,
                settings,
                contracts.orchestrator.topics,
                source,
                projector_of,
                telemetry.relay,
                utc_now,
                relays=duties.relays,
                listens=duties.listens,
            )
        )
        projector = transport.projector or reader
        news = [projector.wake.set, tail.hint, transport.hint]
        ledger = await stack.enter_async_context(
            Ingest(
                [PostgresLedgerSession(url, plan, utc_now, uuid7_batch) for _ in range(settings.writers)],
                group_max=settings.group_max,
                queue_max=settings.queue_max,
                committed=lambda: _tell(news),
                meter=telemetry.ledger,
            )
        )
        if duties.folds:
            await stack.enter_async_context(running(projector, "reducer"))
        hasher = await stack.enter_async_context(_hasher(settings, contracts))
        container = await build_container(
            ledger=ledger,
            hasher=hasher,
            intelligence=LocalIntelligence(),
            state_store=state,
            clock=utc_now,
            ids=uuid7_batch,
        )
        orchestrator = NodeBridgeOrchestrator(container, contracts.orchestrator)
        queue = PostgresWorkQueue(pool, plan, utc_now)
        worker = None
        if duties.works:
            worker = Worker(queue, orchestrator, plan, name=f"{socket.gethostname()}/{os.getpid()}")
            news.append(worker.wake.set)
            await stack.enter_async_context(worker.working())
        access = Access(PostgresTokens(pool), utc_now, local_principal(settings.stamped_by))
        await stack.enter_async_context(access)
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
        monitor = watch(
            duty=Duty(duties.records, folds=duties.folds and not duties.records),
            telemetry=telemetry,
            tail=tail,
            probe=PostgresProbe(pool),
            ledger=ledger,
            source=source,
            state=state,
            queue=queue,
            projector=projector if duties.folds else None,
            in_flight=None if worker is None else partial(getattr, worker, "in_flight"),
            services=getattr(hasher, "breakers", None),  # the local one has none
            door=access,
            clock=utc_now,
            more=transport.parts,
        )
        yield Bridge(
            orchestrator=orchestrator,
            reducer=NodeBridgeReducer(container, contracts.reducer),
            gather=Gather(
                orchestrator.run_many,
                items_max=contracts.orchestrator.batch_items_max,
                hashes_here=not settings.stamping_urls,
            ),
            backlog=Backlog(
                queue, count_max=settings.workflows_waiting_max, bytes_max=settings.workflows_waiting_bytes_max
            ),
            tree=tree,
            query=Query(source, state, reads, reader, groupings, settings.state_timeout_s),
            reads=reads,
            source=source,
            maintenance=maintenance,
            guess_content_type=filesystem.guess_content_type,
            running_digest=Blake3Stream,
            clock=utc_now,
            ids=uuid7_batch,
            stamped_by=settings.stamped_by,
            access=access,
            monitor=monitor,
        )


@asynccontextmanager
async def _hasher(settings: Settings, contracts: Contracts) -> AsyncIterator[Hasher]:
    """Give what hashes contents: this process, or the stamping services where the settings name some."""
    local = Blake3Hasher()
    if not settings.stamping_urls:
        yield local
        return
    # Only here: the HTTP client takes a tenth of a second to import.
    from omninode_bridge.adapters.stamping_http import RemoteHasher

    policy, token = contracts.orchestrator.stamping, settings.stamping_token
    async with RemoteHasher(settings.stamping_urls, policy, local=local, token=token) as remote:
        yield remote


def _tell(news: Sequence[Callable[[], None]]) -> None:
    for hint in news:
        hint()
