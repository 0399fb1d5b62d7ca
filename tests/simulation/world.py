"""A small world on the memory adapters: clients that retry, ledgers that share shards, projectors that compete.

Everything that happens is decided by one seeded generator: the same seed is the same run, to the last await.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from omninode_bridge.adapters.memory import (
    FixedClock,
    MemoryEventSource,
    MemoryLedger,
    MemoryStateStore,
    MemoryStore,
    SeededIds,
)
from omninode_bridge.app.project import Projector, rebuild
from omninode_bridge.domain.errors import BridgeError, LawBroken, OutcomeUnknown, ServiceUnavailable
from omninode_bridge.domain.log import Head, Record
from omninode_bridge.domain.recording import Decision, Verdict
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.domain.stamp import Outcome
from tests.making import PLAN, draft, failure
from tests.simulation.faults import Chaos, Died, FaultySource, MortalLedger, MortalState, Process, beyond

CONTRACTS = [
    Groupings(metadata_fields=("project",), size_bounds=(2, 4), window_ms=1_000),
    Groupings(metadata_fields=(), size_bounds=(3,), window_ms=7_000, content_type=False),
]
NAMESPACES = ["a", "b"]
CLIENTS = 3
PROJECTORS = 2
REBUILDERS = 2
GROUPS = 8
AFTERMATH_TURNS = 200
"""How long trouble goes on after the last answer, in turns of the event loop."""


class WornStore(MemoryStore):
    """Counts the races that were lost, and damages a record now and then, before anybody can have read it."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self._chaos = chaos
        self._damaged: list[Record] = []
        """As they were."""

    def mend(self) -> None:
        """Make a record readable again, which a reducer may have met before."""
        if self._damaged and self._chaos.strikes("body mended", 0.3):
            record = self._damaged.pop()
            self.log[record.topic, record.shard][record.position - 1] = record

    def write(self, decision: Decision, heads: Mapping[str, Head], now: datetime) -> bool:
        written = super().write(decision, heads, now)
        if not written:
            self._chaos.seen["race of writers lost"] += 1
        elif decision.records and self._chaos.strikes("body damaged", 0.05):
            record = decision.records[-1]
            damaged = msgspec.structs.replace(record, body=record.body[: len(record.body) // 2])
            self.log[record.topic, record.shard][-1] = damaged
            self._damaged.append(record)
        return written


def said(verdicts: Sequence[Verdict]) -> list[Any]:
    """Verdicts in a form that can be compared."""
    return [(type(each), each.message) if isinstance(each, BridgeError) else each for each in verdicts]


class World:
    def __init__(self, seed: int) -> None:
        self.chaos = Chaos(seed)
        self.rng = self.chaos.rng
        self.store = WornStore(self.chaos)
        self.clock, self.ids = FixedClock(), SeededIds(seed)
        self._ops = SeededIds(seed + 1_000_000)
        self.source = MemoryEventSource(self.store)
        self.state = MemoryStateStore(self.store)
        self.answers: list[tuple[Outcome, Verdict]] = []
        self._busy = True

    async def run(self) -> None:
        """Let all of it happen at once; then let one projector finish in peace."""
        async with asyncio.TaskGroup() as background:
            for _ in range(PROJECTORS):
                background.create_task(self._project())
            for _ in range(REBUILDERS):
                background.create_task(self._rebuild())
            background.create_task(self._mend())
            async with asyncio.TaskGroup() as clients:
                for _ in range(CLIENTS):
                    clients.create_task(self._client())
            for _ in range(AFTERMATH_TURNS):
                await asyncio.sleep(0)
            self._busy = False
        self.chaos.calm = True
        contract = await self._contract()
        await Projector(self.source, self.state, contract).catch_up(await self.source.heads())
        live = await self.state.live()
        assert live is not None
        assert beyond(await self.state.positions(live), await self.source.heads()) == []

    async def rebuild(self) -> None:
        """Fold everything anew, in peace."""
        await rebuild(self.source, self.state, await self._contract())

    async def again(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """Ask once more, in peace."""
        return await MemoryLedger(self.store, PLAN, self.clock, self.ids).record(outcomes)

    async def contract_in_force(self) -> dict[str, Any]:
        """The groupings of the live state, as JSON has them."""
        found: dict[str, Any] = msgspec.to_builtins(await self._contract())
        return found

    async def _client(self) -> None:
        for _ in range(GROUPS):
            group = [self._outcome() for _ in range(self.rng.randrange(1, 5))]
            verdicts = None
            while verdicts is None:  # until there is an answer, with the same op ids
                if self.chaos.strikes("request sent twice at once", 0.2):
                    one, other = await asyncio.gather(self._ask(group), self._ask(group))
                    assert one is None or other is None or said(one) == said(other)
                    verdicts = one or other
                else:
                    verdicts = await self._ask(group)
            self.answers += zip(group, verdicts, strict=True)

    async def _ask(self, group: list[Outcome]) -> list[Verdict] | None:
        ledger = MemoryLedger(self.store, PLAN, self.clock, self.ids, shard=self.rng.randrange(2))
        try:
            return await MortalLedger(Process(self.chaos), ledger).record(group)
        except (Died, OutcomeUnknown):
            return None

    def _outcome(self) -> Outcome:
        rng = self.rng
        asked: dict[str, Any] = {"op": self._ops(1)[0], "namespace": rng.choice(NAMESPACES), "at": self.clock()}
        path = rng.choice(["p", "q", "r"])
        if rng.random() < 0.2:
            return failure(path, **asked)
        return draft(
            path,
            b"x" * rng.randrange(6),
            origin=rng.choice(["computed", "computed", "claimed"]),
            content_type=rng.choice(["text/plain", "image/png"]),
            metadata=rng.choice([{}, {"project": "one"}, {"project": "two", "other": 1}]),
            **asked,
        )

    async def _project(self) -> None:
        while self._busy:
            process = Process(self.chaos)
            source, state = FaultySource(process, self.source), MortalState(process, self.state)
            projector = Projector(source, state, await self._contract(), batch_max=self.rng.randrange(1, 7))
            try:
                while self._busy:
                    await self._step(projector)
            except Died:
                pass
            except OutcomeUnknown:
                pass
            except ServiceUnavailable:
                self.chaos.seen["projector found another contract"] += 1

    async def _step(self, projector: Projector) -> None:
        try:
            await projector.step()
        except LawBroken:
            self.chaos.seen["projector stopped at a misfit"] += 1
        await asyncio.sleep(0)

    async def _rebuild(self) -> None:
        while self._busy:
            for _ in range(self.rng.randrange(40)):
                await asyncio.sleep(0)
            process = Process(self.chaos)
            source, state = FaultySource(process, self.source), MortalState(process, self.state)
            partly = self.rng.random() < 0.5
            contract = await self._contract() if partly else self.rng.choice(CONTRACTS)
            try:
                await rebuild(source, state, contract, namespace=self.rng.choice(NAMESPACES) if partly else None)
            except (Died, LawBroken, ServiceUnavailable):
                continue
            self.chaos.seen["one namespace rebuilt" if partly else "all rebuilt"] += 1

    async def _mend(self) -> None:
        while self._busy:
            for _ in range(20):
                await asyncio.sleep(0)
            self.store.mend()

    async def _contract(self) -> Groupings:
        live = await self.state.live()
        return msgspec.json.decode(live.fingerprint, type=Groupings) if live else CONTRACTS[0]
