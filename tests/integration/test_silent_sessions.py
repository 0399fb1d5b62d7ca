"""PostgreSQL's sessions after a network forgot them: they are silent, and nobody says so."""

from __future__ import annotations

import asyncio

import pytest

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.connection import pool
from tests.chaos.cable import DatabaseCable
from tests.conftest import Server

SILENCE_S = 6.0
SESSIONS = 4
NEVER_S = 600.0


async def test_one_that_is_silent_is_waited_for_once_and_those_idle_beside_it_not_at_all(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", SILENCE_S)
    monkeypatch.setattr(connection, "CANCEL_TIMEOUT_S", 0.1)
    async with DatabaseCable(await servers["embedded"].create()) as cable, pool(cable.url) as opened:
        at_once = asyncio.Barrier(SESSIONS)

        async def use() -> None:
            async with opened.acquire() as session:
                await session.execute("SELECT")
                await at_once.wait()

        await asyncio.gather(*(use() for _ in range(SESSIONS)))
        assert opened.get_idle_size() == SESSIONS
        cable.forget(NEVER_S)
        with pytest.raises(TimeoutError):
            await opened.fetchval("SELECT 1")
        async with asyncio.timeout(SILENCE_S):
            async with asyncio.TaskGroup() as readers:
                for _ in range(SESSIONS):
                    readers.create_task(use())
