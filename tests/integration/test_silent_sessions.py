"""PostgreSQL's sessions after a network forgot them: they are silent, and nobody says so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.relay import PostgresForwarding
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.stamp import Stamp
from tests.broker import free_ports
from tests.chaos.cable import DatabaseCable
from tests.conftest import Server
from tests.making import PLAN, draft

SILENCE_S = 6.0
READERS = 4
NEVER_S = 600.0
PATIENCE_S = 30.0
"""Less than a statement may take."""
MORE_THAN_BUFFERS_HOLD = 32 * 1024**2


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
    """Whoever finds out finds out for the readers' pool, for the writers, and for a relay."""
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", SILENCE_S)
    monkeypatch.setattr(connection, "CANCEL_TIMEOUT_S", 0.1)
    async with DatabaseCable(await servers["embedded"].create()) as cable, pool(cable.url) as opened:
        first, second = ledgers = [PostgresLedgerSession(cable.url, PLAN, utc_now, uuid7_batch) for _ in range(2)]
        forwarding = PostgresForwarding(cable.url, opened)
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
                users.create_task(forwarding.hold())

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
        await forwarding.release()


async def test_the_kernel_ends_a_session_whose_other_side_takes_nothing_any_more(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a host that is gone; nobody waits for that for as long as a statement may take."""
    monkeypatch.setattr(connection, "PEER_GONE_S", 4)
    async with DatabaseCable(await servers["embedded"].create(), next(free_ports())) as cable:
        session = await connection.connect(cable.url)
        measure = await session.prepare("SELECT length($1::bytea)")
        assert await measure.fetchval(b"ab") == 2
        cable.stall()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            async with asyncio.timeout(PATIENCE_S):
                await measure.fetchval(bytes(MORE_THAN_BUFFERS_HOLD))
        assert session.is_closed()


async def test_the_kernel_asks_whether_the_other_side_is_there_while_nothing_is_sent(
    servers: dict[str, Server],
) -> None:
    """That it ends a session whose questions nobody answers is its own business: here it is seen to be told."""
    async with DatabaseCable(await servers["embedded"].create(), next(free_ports())) as cable:
        session = await connection.connect(cable.url)
        way = session._transport.get_extra_info("socket")
        assert way.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        asked = [
            way.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{what}")) for what in ("IDLE", "INTVL", "CNT")
        ]
        assert asked[0] + asked[1] * asked[2] == connection.PEER_GONE_S
        await session.close()
