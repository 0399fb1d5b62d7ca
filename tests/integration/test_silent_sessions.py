"""PostgreSQL's sessions after a network forgot them: they are silent, and nobody says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.stamp import Stamp
from tests.chaos.cable import DatabaseCable
from tests.conftest import Server
from tests.making import PLAN, draft

SILENCE_S = 6.0
READERS = 4
NEVER_S = 600.0


async def read(opened: Pool, ledger: PostgresLedgerSession) -> None:
    await opened.fetchval("SELECT 1")


async def stamp(opened: Pool, ledger: PostgresLedgerSession) -> None:
    (verdict,) = await ledger.commit([draft()])
    assert isinstance(verdict, Stamp)


@pytest.mark.parametrize(("use", "told"), [(read, TimeoutError), (stamp, ServiceUnavailable)])
async def test_one_that_is_silent_is_waited_for_once_and_those_idle_beside_it_not_at_all(
    servers: dict[str, Server],
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Pool, PostgresLedgerSession], Awaitable[None]],
    told: type[Exception],
) -> None:
    """Whoever finds out finds out for the readers' pool, and for the writers."""
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", SILENCE_S)
    monkeypatch.setattr(connection, "CANCEL_TIMEOUT_S", 0.1)
    async with DatabaseCable(await servers["embedded"].create()) as cable, pool(cable.url) as opened:
        first, second = ledgers = [PostgresLedgerSession(cable.url, PLAN, utc_now, uuid7_batch) for _ in range(2)]
        at_once = asyncio.Barrier(READERS)

        async def read_together() -> None:
            async with opened.acquire() as session:
                await session.execute("SELECT")
                await at_once.wait()

        async def use_all() -> None:
            async with asyncio.TaskGroup() as users:
                for ledger in ledgers:
                    users.create_task(stamp(opened, ledger))
                for _ in range(READERS):
                    users.create_task(read_together())

        await use_all()
        assert opened.get_idle_size() == READERS
        assert first.shard != second.shard
        cable.forget(NEVER_S)
        with pytest.raises(told):
            await use(opened, first)
        async with asyncio.timeout(SILENCE_S):
            await use_all()
        for ledger in ledgers:
            await ledger.close()
