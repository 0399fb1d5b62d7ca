"""The reducer cut off from PostgreSQL at every step of its transaction, and many reducers at once, on real servers.

The law: state and position move together or not at all, so each event is in the totals once.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.app.project import Projector
from omninode_bridge.domain.errors import ServiceUnavailable
from tests.integration.books import Books, eventually
from tests.integration.proxy import Fault, Proxy, is_begin, is_commit, nth_request
from tests.making import GROUPINGS, draft, failure


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.BEFORE, id="row_7_folded_before_the_state_transaction_is_committed"),
        pytest.param(Fault.AFTER, id="row_8_state_committed_and_nobody_told"),
    ],
)
async def test_crash_a_reducer_cut_at_every_step_folds_each_event_once(
    books: Books, proxy: Proxy, fault: Fault
) -> None:
    ledger = books.session()
    number = 0
    async with pool(proxy.url) as opened:
        while True:
            await books.record(ledger, draft("a", b"%d" % number), failure("x"), draft(f"{number}"))
            heads = await books.source.heads()
            reducer = books.projector(opened)
            proxy.arm(fault, nth_request(number, since=is_begin))
            try:
                await reducer.catch_up(heads)
                cut = False
            except ServiceUnavailable:
                cut = True
                await reducer.catch_up(heads)
            assert cut == proxy.struck.is_set()
            if not cut:
                break
            await books.balance()
            number += 1
    assert number >= 5  # BEGIN, the generation, the positions, the totals, COMMIT
    await books.balance()


async def test_a_reducer_whose_old_transaction_still_lives_waits_for_it(books: Books, proxy: Proxy) -> None:
    ledger = books.session()
    await books.record(ledger, draft("a"), draft("b"))
    async with pool(proxy.url) as opened:
        reducer = books.projector(opened)
        await reducer.catch_up(await books.source.heads())
        await books.record(ledger, draft("c"), failure("x"))
        heads = await books.source.heads()
        proxy.arm(Fault.HOLD_BEFORE, is_commit)
        with pytest.raises(ServiceUnavailable):
            await reducer.catch_up(heads)
        again = asyncio.create_task(reducer.catch_up(heads))
        await eventually(lambda: _a_transaction_is_waited_for(books), "the positions are locked")
        proxy.release()
        await again
    await books.balance()


async def test_a_running_reducer_outlives_an_outage(books: Books, proxy: Proxy) -> None:
    ledger = books.session()
    async with pool(proxy.url) as opened:
        reducer = books.projector(opened)
        running = asyncio.create_task(reducer.run())
        proxy.arm(Fault.AFTER, is_commit, then_refuse=True)
        await books.record(ledger, draft("a"), failure("x"))
        reducer.wake.set()
        await proxy.struck.wait()
        await books.record(ledger, draft("b"))
        proxy.admit()
        await eventually(lambda: _folded(books, reducer), "the reducer has caught up")
        running.cancel()
    await books.balance()


async def test_reducers_that_start_at_once_on_a_new_database_share_one_state(books: Books) -> None:
    ledger = books.session()
    await books.record(ledger, *(draft(f"{number}") for number in range(20)), failure("x"))
    heads = await books.source.heads()
    reducers = [books.projector() for _ in range(8)]

    async def fold(reducer: Projector) -> None:
        await reducer.catch_up(heads)
        live = await books.state.live()
        assert live is not None
        assert await books.state.positions(live) == heads  # whoever has caught up may read

    await asyncio.gather(*map(fold, reducers))
    statuses = await books.pool.fetch("SELECT status FROM state_generations WHERE status <> 'retired'")
    assert [row["status"] for row in statuses] == ["live"]
    await books.balance()


async def test_several_reducers_beside_several_writers_fold_each_event_once(books: Books) -> None:
    rng = random.Random(20_260_307)
    reducers = [Projector(books.source, books.state, GROUPINGS, batch_max=7) for _ in range(3)]
    running = [asyncio.create_task(reducer.run()) for reducer in reducers]

    async def write(writer: int) -> None:
        session = books.session()
        for turn in range(10):
            names = rng.sample(["a", "b", "c", "d"], 3)
            await books.record(session, failure("x"), *(draft(name, b"%d %d" % (writer, turn)) for name in names))
            rng.choice(reducers).wake.set()

    await asyncio.gather(*map(write, range(3)))
    for reducer in reducers:
        await reducer.catch_up(await books.source.heads())
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await books.balance()


async def _a_transaction_is_waited_for(books: Books) -> bool:
    waiting: bool = await books.pool.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    return waiting


async def _folded(books: Books, reducer: Projector) -> bool:
    reducer.wake.set()
    live = await books.state.live()
    return live is not None and await books.state.positions(live) == await books.source.heads()
