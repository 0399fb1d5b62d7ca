"""Bridges as processes of their own on one PostgreSQL: some are killed, the others and the data are not harmed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from omninode_bridge import Bridge
from tests.chaos.running import PATIENCE_S, Tree, finish, look, running, stamping
from tests.conftest import Server

SEED = 20_260_303


@pytest_asyncio.fixture
async def url(servers: dict[str, Server]) -> AsyncIterator[str]:
    server = servers["postgresql15"]
    url = await server.create()
    yield url
    await server.drop(url)


async def test_a_killed_bridge_that_held_shards_does_not_stop_another_that_writes_the_same_paths(
    tree: Tree, url: str
) -> None:
    where = ("--database-url", url)
    rng = random.Random(SEED)
    async with running(*stamping(*where), cwd=tree.parent) as survivor:
        killed = []
        survived = asyncio.create_task(survivor.end())
        for _ in range(2):
            async with running(*stamping(*where), cwd=tree.parent) as run:
                # Told of new or unchanged: the two take the same files at the same time.
                assert await run.until_told(rng.randrange(1, 6_000)), run.complaints
                await run.kill()
                killed.append(run)
        assert await survived == 0, survivor.complaints
    last = await finish(tree, *where)
    assert last.summary["new"] == 0
    async with Bridge.connect(url) as bridge:
        await look(bridge, tree, [*killed, survivor, last])
    runs = [*killed, survivor]
    assert not any(a.stamps.keys() & b.stamps.keys() for a in runs for b in runs if a is not b)


async def test_a_rebuild_killed_on_its_way_changes_nothing_and_the_next_one_ends(tree: Tree, url: str) -> None:
    where = ("--database-url", url)
    first = await finish(tree, *where)
    async with Bridge.connect(url) as bridge:
        before = await bridge.states()
    holder = await asyncpg.connect(url)
    # What stops it in the middle of its fold, and right before its swap.
    for lock in ("LOCK bridge_state IN SHARE MODE", "SELECT FROM state_generations FOR SHARE"):
        async with running("rebuild", *where, cwd=tree.parent) as rebuild, holder.transaction():
            await holder.execute(lock)
            await _until(holder, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)", "the rebuild waits")
            await rebuild.kill()
        await _until(
            holder, "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()", "it is gone"
        )
    await holder.close()
    async with Bridge.connect(url) as bridge:
        assert await bridge.states() == before
        await bridge.rebuild()
        assert await bridge.states() == before
        await look(bridge, tree, [first])


async def _until(connection: asyncpg.Connection, query: str, what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetchval(query):  # noqa: ASYNC110 - a database has no events to wait for
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S:.0f} s: {what}") from None
