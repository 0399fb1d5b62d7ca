"""How the reducer's loop makes its transactions, over the stores in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omninode_bridge.adapters.memory import MemoryStore
from omninode_bridge.adapters.memory.source import MemoryEventSource
from omninode_bridge.adapters.memory.state import MemoryStateStore
from omninode_bridge.adapters.postgres.positions import Moves
from omninode_bridge.app.carrying import running
from omninode_bridge.app.project import Projector
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import State
from omninode_bridge.ports import DeadLetter, Generation
from tests.making import COMPLETED, GROUPINGS, chain

BATCH_MAX = 50
FOR_EVER_S = 3600.0
PATIENCE_S = 30.0
KEY = (COMPLETED, 0)


class Noting(MemoryStateStore):
    """The store, noting how many events had been folded after each transaction."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.made: list[int] = []
        self.told = asyncio.Event()

    async def apply(
        self, generation: Generation, delta: State, moves: Moves, dead_letters: Sequence[DeadLetter] = ()
    ) -> bool:
        applied = await super().apply(generation, delta, moves, dead_letters)
        self.made.append(moves[KEY][1].position)
        self.told.set()
        return applied

    async def until(self, position: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.made or self.made[-1] < position:
                await self.told.wait()
                self.told.clear()


def parts(batch_s: float, records: Sequence[Record] = ()) -> tuple[MemoryStore, Noting, Projector]:
    store = MemoryStore()
    store.log[KEY] = list(records)
    state = Noting(store)
    return store, state, Projector(MemoryEventSource(store), state, GROUPINGS, batch_max=BATCH_MAX, batch_s=batch_s)


async def test_events_that_trickle_in_share_transactions_by_time() -> None:
    store, state, projector = parts(batch_s := 0.1)
    records = chain(40)
    clock = asyncio.get_running_loop().time
    async with running(projector, "reducer"):
        began_s = clock()
        for record in records:
            store.log[KEY].append(record)
            projector.wake.set()
            await asyncio.sleep(batch_s / 10)
        await state.until(len(records))
        took_s = clock() - began_s
    assert len(state.made) <= took_s / batch_s + 2


async def test_the_first_event_after_a_rest_does_not_wait_for_others() -> None:
    store, state, projector = parts(FOR_EVER_S)
    async with running(projector, "reducer"):
        await asyncio.sleep(0.01)  # it rests by now
        store.log[KEY] += chain(1)
        projector.wake.set()
        await state.until(1)


async def test_a_backlog_is_folded_in_full_transactions_without_pauses() -> None:
    _, state, projector = parts(FOR_EVER_S, chain(10 * BATCH_MAX))
    async with running(projector, "reducer"):
        await state.until(10 * BATCH_MAX)
    assert state.made == [BATCH_MAX * n for n in range(1, 11)]


async def test_who_waits_for_the_state_does_not_wait_for_a_batch_to_gather() -> None:
    store, state, projector = parts(FOR_EVER_S, chain(1))
    source = MemoryEventSource(store)
    async with running(projector, "reducer"):
        await state.until(1)
        store.log[KEY] += chain(1, after=store.log[KEY][-1].head)
        async with asyncio.timeout(PATIENCE_S):
            await projector.catch_up(await source.heads())
    assert state.made == [1, 2]


async def test_up_to_given_heads_exactly_nothing_beyond_them_is_folded() -> None:
    """In the middle of what one transaction may have, and of a shard that the heads don't know nothing."""
    store, state, projector = parts(0, chain(BATCH_MAX + 30))
    store.log[COMPLETED, 1] = chain(3, shard=1)
    for end in (BATCH_MAX - 10, BATCH_MAX + 10):
        await projector.catch_up({KEY: store.log[KEY][end - 1].head}, exactly=True)
        live = await state.live()
        assert live is not None
        assert await state.positions(live) == {KEY: store.log[KEY][end - 1].head}
