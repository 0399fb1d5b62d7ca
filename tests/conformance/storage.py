"""What a backend hands to the conformance suites: one of each storage port over one fresh, empty storage."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from omninode_bridge.domain.events import decode
from omninode_bridge.domain.log import Head, Record, ShardKey, follow
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.reduction import Groupings, State, fold, item_of
from omninode_bridge.domain.stamp import Outcome, Stamp
from omninode_bridge.domain.workflow import Plan
from omninode_bridge.ports import EventSource, Generation, Ledger, Reads, StateStore, WorkQueue


@dataclass(frozen=True)
class Storage:
    """`rival` is a second, independent ledger over the same storage, as of another process."""

    ledger: Ledger
    rival: Ledger
    source: EventSource
    state: StateStore
    reads: Reads
    queue: WorkQueue
    plan: Plan
    groupings: Groupings
    corrupt: Callable[[Record, bytes], Awaitable[None]]
    """Replace the body of a record that the log holds."""
    dead_letters: Callable[[], Awaitable[list[tuple[Record, str]]]]
    """The open dead letters of the live generation, with the reasons, by topic, shard and position."""

    async def stamp(self, *outcomes: Outcome) -> list[Stamp]:
        """Record outcomes, each in a group of its own, all of which become stamps."""
        stamps = []
        for outcome in outcomes:
            (verdict,) = await self.ledger.record([outcome])
            stamps.append(stamped(verdict))
        return stamps

    async def whole_log(self) -> dict[ShardKey, list[Record]]:
        """Read the log from its start, a few records at a time, as its readers do."""
        found: dict[ShardKey, list[Record]] = {}
        while True:
            heads = {key: records[-1].head for key, records in found.items()}
            batch = await self.source.read(heads, 7)
            if not batch:
                return found
            for record in batch:
                found.setdefault((record.topic, record.shard), []).append(record)

    async def fold_all(self, generation: Generation, namespace: str | None = None) -> int:
        """Fold what the generation has not folded yet, in one step; return the number of records."""
        positions = await self.state.positions(generation)
        records = await self.source.read(positions, 1_000_000)
        moves: dict[ShardKey, tuple[Head, Head]] = {}
        for record in records:
            key = (record.topic, record.shard)
            source, reached = moves.get(key, (positions.get(key, Head()),) * 2)
            assert follow(reached, [record]) == ([record], None)
            moves[key] = (source, record.head)
        items = [item_of(decode(record.body)) for record in records if namespace in (None, record.namespace)]
        assert await self.state.apply(generation, fold(items, self.groupings), moves)
        return len(records)

    async def whole_state(self, namespace: str | None = None) -> State:
        """The rows of every grouping."""
        found: State = {}
        for name in self.groupings.names():
            found |= await self.state.rows(name, namespace)
        return found


def stamped(verdict: Verdict) -> Stamp:
    assert isinstance(verdict, Stamp), verdict
    return verdict
