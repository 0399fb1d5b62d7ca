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
    MemoryWorkQueue,
    SeededIds,
)
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.queue import PostgresWorkQueue
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
        found = await opened.fetch(
            """SELECT d.* FROM dead_letters AS d JOIN state_generations AS g USING (generation)
            WHERE g.status = 'live' AND d.status = 'open' ORDER BY topic, shard, position"""
        )
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
            queue=PostgresWorkQueue(opened, PLAN, clock),
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
        rival=MemoryLedger(store, PLAN, clock, ids, shard=1),
        source=MemoryEventSource(store),
        state=MemoryStateStore(store),
        reads=MemoryReads(store),
        queue=MemoryWorkQueue(store, PLAN, clock),
        plan=PLAN,
        groupings=GROUPINGS,
        corrupt=corrupt,
        dead_letters=dead_letters,
    )
