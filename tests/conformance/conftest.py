"""Every suite here runs on memory, on the embedded PostgreSQL and on PostgreSQL 15."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import pytest_asyncio

from omninode_bridge.adapters.memory import (
    FixedClock,
    MemoryEventSource,
    MemoryLedger,
    MemoryReads,
    MemoryStateStore,
    MemoryStore,
    SeededIds,
)
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.reads import PostgresReads
from omninode_bridge.adapters.postgres.rows import record_of
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.domain.log import Record
from tests.conformance.storage import Storage
from tests.conftest import SERVERS, Server
from tests.making import GROUPINGS, PLAN



@pytest_asyncio.fixture(params=["memory", *SERVERS])
async def storage(request: pytest.FixtureRequest, servers: dict[str, Server]) -> AsyncIterator[Storage]:
    if request.param == "memory":
        yield memory_storage()
        return
    server = servers[request.param]
    url = await server.create()
    try:
        async with postgres_storage(url) as found:
            yield found
    finally:
        await server.drop(url)


@asynccontextmanager
async def postgres_storage(url: str) -> AsyncIterator[Storage]:
    async def corrupt(record: Record, body: bytes) -> None:
        key = (record.topic, record.shard, record.position)
        await opened.execute(
            "UPDATE event_log SET body = $4 WHERE topic = $1 AND shard = $2 AND position = $3", *key, body
        )

    async def dead_letters() -> list[tuple[Record, str]]:
        found = await opened.fetch("SELECT * FROM dead_letters ORDER BY topic, shard, position")
        return [(record_of(row), row["reason"]) for row in found]

    clock, ids = FixedClock(), SeededIds()
    sessions = [PostgresLedgerSession(url, PLAN, clock, ids) for _ in range(2)]
    async with pool(url) as opened, Ingest(sessions[:1]) as ledger, Ingest(sessions[1:]) as rival:
        yield Storage(
            ledger=ledger,
            rival=rival,
            source=PostgresEventSource(opened),
            state=PostgresStateStore(opened),
            reads=PostgresReads(opened),
            plan=PLAN,
            groupings=GROUPINGS,
            corrupt=corrupt,
            dead_letters=dead_letters,
        )


def memory_storage() -> Storage:
    store, clock = MemoryStore(), FixedClock()

    async def corrupt(record: Record, body: bytes) -> None:
        records = store.log[record.topic, record.shard]
        records[record.position - 1] = msgspec.structs.replace(record, body=body)

    async def dead_letters() -> list[tuple[Record, str]]:
        return [(letter.record, letter.reason) for _, letter in sorted(store.dead_letters.items())]

    ids = SeededIds()
    return Storage(
        ledger=MemoryLedger(store, PLAN, clock, ids),
        rival=MemoryLedger(store, PLAN, clock, ids),
        source=MemoryEventSource(store),
        state=MemoryStateStore(store),
        reads=MemoryReads(store),
        plan=PLAN,
        groupings=GROUPINGS,
        corrupt=corrupt,
        dead_letters=dead_letters,
    )


import asyncpg, pytest_asyncio
from contextlib import AsyncExitStack
from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.migrations import migrate
from omninode_bridge.adapters.postgres.reads import PostgresReads
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.postgres import rows
from omninode_bridge.app.ingest import Ingest
from tests.conftest import POSTGRES_15, TEMPLATE, Server


async def _serve(folder, binaries):
    async with await EmbeddedPostgres.start(folder, binaries=binaries, wait_s=60) as running:
        connection = await asyncpg.connect(running.dsn.replace("/bridge?", "/postgres?"))
        major = connection.get_server_version().major
        await connection.execute(f'CREATE DATABASE "{TEMPLATE}"')
        await connection.close()
        found = Server(running.dsn, major)
        template = await asyncpg.connect(found.url(TEMPLATE))
        await migrate(template)
        await template.close()
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_server(tmp_path_factory):
    async for found in _serve(tmp_path_factory.mktemp("server-emb") / "data", None):
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgresql15_server(tmp_path_factory):
    async for found in _serve(tmp_path_factory.mktemp("server-15") / "data", POSTGRES_15):
        yield found


@pytest_asyncio.fixture
async def embedded_storage(embedded_server):
    async for found in _storage(embedded_server):
        yield found


@pytest_asyncio.fixture
async def postgresql15_storage(postgresql15_server):
    async for found in _storage(postgresql15_server):
        yield found


async def _storage(server):
    url = await server.create()
    try:
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(pool(url))
            clock, ids = FixedClock(), SeededIds()
            ledgers = [
                await stack.enter_async_context(Ingest([PostgresLedgerSession(url, PLAN, clock, ids) for _ in range(2)]))
                for _ in range(2)
            ]

            async def corrupt(record: Record, body: bytes) -> None:
                await opened.execute(
                    "UPDATE event_log SET body = $4 WHERE topic = $1 AND shard = $2 AND position = $3",
                    record.topic, record.shard, record.position, body,
                )

            async def dead_letters() -> list[tuple[Record, str]]:
                found = await opened.fetch("SELECT * FROM dead_letters ORDER BY topic, shard, position")
                return [(rows.record_of(row), row["reason"]) for row in found]

            yield Storage(
                ledger=ledgers[0], rival=ledgers[1], source=PostgresEventSource(opened), state=PostgresStateStore(opened),
                reads=PostgresReads(opened), plan=PLAN, groupings=GROUPINGS, corrupt=corrupt, dead_letters=dead_letters,
            )
    finally:
        await server.drop(url)
