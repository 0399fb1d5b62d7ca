"""Ports that fail: a process dies at a named point, and a transport repeats, loses and reorders.

A dead process does nothing more: every further call through its ports dies as well, whatever the code above
does to clean up. What reached the store stays there, as with `kill -9`.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from omninode_bridge.domain.errors import OutcomeUnknown
from omninode_bridge.domain.log import START, Head, Record, ShardKey
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.reduction import State
from omninode_bridge.domain.stamp import Outcome
from omninode_bridge.ports import DeadLetter, EventSource, Finish, Generation, Ledger, StateStore
from tests.making import new_id


class Died(BaseException):
    """The process ended here. Not an Exception: no code may survive it."""


class Chaos:
    """The seeded source of all misfortune, and the count of what happened."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.calm = False

    def strikes(self, what: str, probability: float) -> bool:
        struck = not self.calm and self.rng.random() < probability
        if struck:
            self.seen[what] += 1
        return struck


class Process:
    """One life of a process. Each point in it gives others their turn, and may be its last."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.dead = False

    async def point(self, name: str) -> None:
        for _ in range(self.chaos.rng.randrange(4)):
            await asyncio.sleep(0)
        self.dead = self.dead or self.chaos.strikes(f"died {name}", 0.04)
        if self.dead:
            raise Died(name)

    def lose(self, answer: str) -> None:
        """Let the connection break after the work was done: the process lives, and does not know."""
        if self.chaos.strikes(f"{answer} lost", 0.05):
            raise OutcomeUnknown(f"the {answer} is lost")


class MortalLedger:
    def __init__(self, process: Process, ledger: Ledger) -> None:
        self._process = process
        self._ledger = ledger

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        await self._process.point("before the commit")
        verdicts = await self._ledger.record(outcomes)
        await self._process.point("after the commit, before the answer")
        self._process.lose("answer of the ledger")
        return verdicts


class MortalState:
    def __init__(self, process: Process, state: StateStore) -> None:
        self._process = process
        self._state = state

    async def live(self) -> Generation | None:
        await self._process.point("before reading the live generation")
        return await self._state.live()

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        await self._process.point("before beginning a generation")
        generation = await self._state.begin(fingerprint, namespace)
        await self._process.point("after beginning a generation")
        return generation

    async def positions(self, generation: Generation) -> dict[ShardKey, Head]:
        await self._process.point("before reading positions")
        return await self._state.positions(generation)

    async def apply(
        self,
        generation: Generation,
        delta: State,
        moves: Mapping[ShardKey, tuple[Head, Head]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> bool:
        await self._process.point("folded, before the state transaction")
        applied = await self._state.apply(generation, delta, moves, dead_letters)
        self._process.chaos.seen["batch applied" if applied else "batch refused: somebody else folded it"] += 1
        await self._process.point("after the state transaction")
        self._process.lose("answer of the state transaction")
        return applied

    async def swap(self, building: Generation, finish: Finish | None = None) -> bool:
        await self._process.point("before a swap")
        swapped = await self._state.swap(building, finish)
        self._process.chaos.seen["swapped" if swapped else "swap refused: positions differ"] += 1
        await self._process.point("after a swap")
        self._process.lose("answer of a swap")
        return swapped

    async def discard(self, building: Generation) -> None:
        await self._process.point("before discarding")
        await self._state.discard(building)

    async def rows(
        self, aggregation_type: str | None, namespace: str | None = None, *, fingerprint: str | None = None
    ) -> State:
        return await self._state.rows(aggregation_type, namespace, fingerprint=fingerprint)


class FaultySource:
    """An event source that repeats, loses, reorders and forges records, most of the time a little."""

    def __init__(self, process: Process, source: EventSource) -> None:
        self._process = process
        self._source = source

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        await self._process.point("before reading events")
        chaos, rng = self._process.chaos, self._process.chaos.rng
        if chaos.strikes("old records came again", 0.2):
            after = {key: Head(max(0, head.position - rng.randrange(4)), head.event_id) for key, head in after.items()}
        records = await self._source.read(after, limit)
        if records and chaos.strikes("record twice", 0.15):
            records.insert(rng.randrange(len(records) + 1), rng.choice(records))
        if records and chaos.strikes("record lost", 0.1):
            del records[rng.randrange(len(records))]
        if records and chaos.strikes("records out of order", 0.1):
            rng.shuffle(records)
        if records and chaos.strikes("read cut short", 0.1):
            del records[rng.randrange(len(records)) :]
        if records and chaos.strikes("foreign record", 0.1):
            place = rng.randrange(len(records))
            records[place] = msgspec.structs.replace(records[place], event_id=new_id(), previous_id=new_id())
        await self._process.point("after reading events")
        return records

    async def heads(self) -> dict[ShardKey, Head]:
        await self._process.point("before reading heads")
        return await self._source.heads()


def beyond(positions: Mapping[ShardKey, Head], heads: Mapping[ShardKey, Head]) -> list[ShardKey]:
    """The shards in which positions are not exactly at the heads."""
    return [key for key in {*positions, *heads} if positions.get(key, START) != heads.get(key, START)]
