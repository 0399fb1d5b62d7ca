"""The reducer's projection, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omninode_bridge.adapters.memory.store import Folding, MemoryStore
from omninode_bridge.domain.log import START, Head, ShardKey
from omninode_bridge.domain.reduction import EMPTY, State, merge, merge_states
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import (
    DeadLetter,
    Finish,
    Generation,
    foreign_state,
)


class MemoryStateStore:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def live(self) -> Generation | None:
        folding = self._live()
        return folding.generation if folding else None

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        store = self._store
        store.generations += 1
        if store.live is None:
            # What queries read must hold every namespace.
            store.live, namespace = store.generations, None
        generation = Generation(store.generations, fingerprint, namespace)
        store.foldings[generation.number] = Folding(generation)
        return generation

    async def positions(self, generation: Generation) -> dict[ShardKey, Head]:
        folding = self._store.foldings.get(generation.number)
        return dict(folding.positions) if folding else {}

    async def apply(
        self,
        generation: Generation,
        delta: State,
        moves: Mapping[ShardKey, tuple[Head, Head]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> bool:
        folding = self._store.foldings.get(generation.number)
        if folding is None or any(folding.positions.get(key, START) != source for key, (source, _) in moves.items()):
            return False
        for group, totals in delta.items():
            folding.state[group] = merge(folding.state.get(group, EMPTY), totals)
        folding.positions.update((key, target) for key, (_, target) in moves.items())
        for letter in dead_letters:
            record = letter.record
            folding.dead_letters.setdefault((record.topic, record.shard, record.position), letter)
        return True

    async def swap(self, building: Generation, finish: Finish | None = None) -> bool:
        if finish is not None and (held := self._live()) is not None:
            await finish(dict(held.positions))  # nothing holds them still here: if they move, it is tried again
        store, live = self._store, self._live()
        built = store.foldings.get(building.number)
        if live is None or built is None or live is built or live.positions != built.positions:
            return False
        if building.namespace is None:
            del store.foldings[live.generation.number]
            store.live = building.number
            return True
        if live.generation.fingerprint != building.fingerprint:
            return False  # rows of two groupings in one state would add up to nothing
        others = {group: totals for group, totals in live.state.items() if group[0] != building.namespace}
        own = {group: totals for group, totals in built.state.items() if group[0] == building.namespace}
        live.state = merge_states(others, own)
        for place, letter in list(live.dead_letters.items()):
            if letter.record.namespace == building.namespace:
                del live.dead_letters[place]
        live.dead_letters.update(built.dead_letters)
        del store.foldings[building.number]
        return True

    async def discard(self, building: Generation) -> None:
        if building.number != self._store.live:
            self._store.foldings.pop(building.number, None)

    async def rows(
        self,
        aggregation_type: str | None,
        namespace: str | None = None,
        *,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        folding = self._live()
        if folding and fingerprint not in (None, folding.generation.fingerprint):
            raise foreign_state(folding.generation.number)
        return {
            group: totals
            for group, totals in (folding.state.items() if folding else ())
            if aggregation_type in (None, group[1]) and namespace in (None, group[0]) and visible.sees(group[0])
        }

    async def page(
        self,
        aggregation_type: str,
        namespace: str,
        *,
        after: str | None,
        limit: int,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        return _next(
            await self.rows(aggregation_type, namespace, fingerprint=fingerprint, visible=visible), after, limit
        )

    async def overview(
        self, *, after: str | None, limit: int, fingerprint: str | None = None, visible: Visible = EVERYTHING
    ) -> State:
        return _next(await self.rows("namespace", fingerprint=fingerprint, visible=visible), after, limit)

    def _live(self) -> Folding | None:
        return None if self._store.live is None else self._store.foldings[self._store.live]


def _next(state: State, after: str | None, limit: int) -> State:
    following = sorted(group for group in state if after is None or group[2] > after)
    return {group: state[group] for group in following[:limit]}
