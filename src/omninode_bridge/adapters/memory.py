"""Storage in memory: the counterpart of every storage port, for tests, simulations and trials without a database.

The rule it keeps: what the real storage does in one transaction happens here between two awaits, so nobody
ever sees half of it. A ledger reads, gives others their turn (as a round trip to a database would), and
writes only if nothing it relied on was written meanwhile; otherwise it starts again from reading.

The conformance suite holds these classes and the real ones to the same behaviour. What is left to the real
ones: durability, tenants kept apart, retention.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest

from omninode_bridge.domain.log import START, Head, Record, ShardKey, shares
from omninode_bridge.domain.names import canonical_json, path_hash, uuid7
from omninode_bridge.domain.recording import (
    Decision,
    FactsRow,
    OpKey,
    PathKey,
    Prior,
    Verdict,
    Workflow,
    decide,
    op_key,
    path_key,
)
from omninode_bridge.domain.reduction import EMPTY, State, merge, merge_states
from omninode_bridge.domain.stamp import Outcome, Stamp
from omninode_bridge.domain.workflow import Plan
from omninode_bridge.ports import (
    READ_BYTES_MAX,
    Clock,
    DeadLetter,
    Finish,
    Generation,
    IdSource,
    KnownFile,
    foreign_state,
)


class FixedClock:
    """A clock that starts at `start` and moves by `step` at each reading."""

    def __init__(
        self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC), step: timedelta = timedelta(milliseconds=1)
    ) -> None:
        self.now = start
        self.step = step

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


class SeededIds:
    """UUIDv7s that depend on the seed alone, each later than the one before."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, count: int) -> list[str]:
        return [self._next() for _ in range(count)]

    def _next(self) -> str:
        self._count += 1
        entropy = hashlib.blake2b(b"%d %d" % (self._seed, self._count), digest_size=10).digest()
        return uuid7(1_767_225_600_000 + self._count, entropy)


class Folding:
    """What `bridge_state`, `consumer_positions` and `dead_letters` hold of one generation."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.state: State = {}
        self.positions: dict[ShardKey, Head] = {}
        self.dead_letters: dict[tuple[str, int, int], DeadLetter] = {}
        """By topic, shard and position."""


class MemoryStore:
    """The tables. Ledgers, sources, state stores and reads made over the same store see the same data."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}
        """By stamp id."""
        self.versions: dict[PathKey, list[Stamp]] = {}
        """Version n of a path is at index n - 1."""
        self.workflows: dict[OpKey, Workflow] = {}
        self.facts: dict[PathKey, FactsRow] = {}
        self.log: dict[ShardKey, list[Record]] = {}
        """Position n of a shard is at index n - 1."""
        self.foldings: dict[int, Folding] = {}
        """The live generation and those being built, by number."""
        self.generations = 0
        self.live: int | None = None

    @property
    def dead_letters(self) -> dict[tuple[str, int, int], DeadLetter]:
        """What the live generation lacks, by topic, shard and position."""
        return {} if self.live is None else self.foldings[self.live].dead_letters

    def head(self, key: ShardKey) -> Head:
        records = self.log.get(key)
        return records[-1].head if records else START

    def prior(self, workflow: Workflow) -> Prior:
        return Prior(workflow, self.stamps[workflow.stamp_id] if workflow.stamp_id else None)

    def latest(self, key: PathKey) -> Stamp | None:
        versions = self.versions.get(key)
        return versions[-1] if versions else None

    def write(self, decision: Decision, heads: Mapping[str, Head]) -> bool:
        """Write a decision that was made from `heads`; False, and nothing written, when a race was lost."""
        moved = any(self.head(key) != heads[key[0]] for key in decision.heads)
        known = any((row.namespace, row.workflow_id) in self.workflows for row in decision.workflows)
        if moved or known or not self._fits(decision.stamps):
            return False
        for stamp in decision.stamps:
            self.stamps[stamp.stamp_id] = stamp
            self.versions.setdefault(_path(stamp), []).append(stamp)
        for workflow in decision.workflows:
            self.workflows[workflow.namespace, workflow.workflow_id] = workflow
        for record in decision.records:
            self.log.setdefault((record.topic, record.shard), []).append(record)
        for row in decision.facts:
            path = row.path_hash
            if path not in self.facts or self.facts[path].version <= row.version:
                self.facts[path] = row
        return True

    def _fits(self, stamps: Iterable[Stamp]) -> bool:
        """Tell whether each stamp is the next version of its path."""
        added: dict[PathKey, int] = {}
        for stamp in stamps:
            path = _path(stamp)
            if path not in added:
                added[path] = len(self.versions.get(path, ()))
            added[path] += 1
            if stamp.version != added[path]:
                return False
        return True


class MemoryLedger:
    """Ledger and LedgerSession in one: the owner of one shard, or one of several that believe they are."""

    def __init__(self, store: MemoryStore, plan: Plan, clock: Clock, ids: IdSource, shard: int = 0) -> None:
        self._store = store
        self._plan = plan
        self._clock = clock
        self._ids = ids
        self._shard = shard

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        return await self.commit(outcomes)

    async def commit(self, group: Sequence[Outcome]) -> list[Verdict]:
        store, plan = self._store, self._plan
        while True:
            heads = {topic: store.head((topic, self._shard)) for topic in (plan.completed_topic, plan.failed_topic)}
            workflows = {key: store.workflows.get(key) for key in map(op_key, group)}
            latest = {key: store.latest(key) for key in map(path_key, group)}
            await asyncio.sleep(0)  # a turn for the others, as between reading and writing in a database
            decision = decide(
                plan,
                group,
                priors={key: store.prior(workflow) for key, workflow in workflows.items() if workflow},
                latest={key: stamp for key, stamp in latest.items() if stamp},
                heads=heads,
                shard=self._shard,
                ids=iter(self._ids(2 * len(group))),
                now=self._clock(),
            )
            if store.write(decision, heads):
                return decision.verdicts

    async def close(self) -> None:
        """Nothing is held."""


class MemoryEventSource:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        news = [(records, after.get(key, START).position) for key, records in self._store.log.items()]
        taken = shares([max(0, len(records) - start) for records, start in news], limit)
        turns = zip_longest(
            *(records[start : start + share] for (records, start), share in zip(news, taken, strict=True))
        )
        found: list[Record] = []
        size = 0
        for record in chain.from_iterable(turns):
            if record is None:
                continue
            size += len(record.body)
            if found and size > READ_BYTES_MAX:
                break
            found.append(record)
        return found

    async def heads(self) -> dict[ShardKey, Head]:
        return {key: self._store.head(key) for key in self._store.log}


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
        self, aggregation_type: str | None, namespace: str | None = None, *, fingerprint: str | None = None
    ) -> State:
        folding = self._live()
        if folding and fingerprint not in (None, folding.generation.fingerprint):
            raise foreign_state(folding.generation.number)
        return {
            group: totals
            for group, totals in (folding.state.items() if folding else ())
            if aggregation_type in (None, group[1]) and namespace in (None, group[0])
        }

    def _live(self) -> Folding | None:
        return None if self._store.live is None else self._store.foldings[self._store.live]


class MemoryReads:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def by_hash(self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100) -> list[Stamp]:
        found = [
            stamp
            for stamp in self._store.stamps.values()
            if stamp.file_hash == file_hash and (namespaces is None or stamp.namespace in namespaces)
        ]
        return sorted(found, key=lambda stamp: stamp.stamp_id, reverse=True)[:limit]

    async def by_id(self, stamp_id: str) -> Stamp | None:
        return self._store.stamps.get(stamp_id)

    async def history(self, namespace: str, file_path: str) -> list[Stamp]:
        return self._store.versions.get(path_hash(namespace, file_path), [])[::-1]

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        latest = ((path, self._store.latest(path_hash(namespace, path))) for path in file_paths)
        return {path: stamp for path, stamp in latest if stamp}

    async def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        below = "" if prefix is None else prefix.rstrip("/") + "/"
        latest = [versions[-1] for versions in self._store.versions.values() if versions[-1].namespace == namespace]
        for stamp in sorted(latest, key=lambda stamp: stamp.file_path):
            if stamp.file_path.startswith(below):
                yield stamp

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]:
        return [
            self._store.prior(workflow)
            for (owner, name), workflow in sorted(self._store.workflows.items(), key=lambda item: item[0])
            if name == workflow_id and namespace in (None, owner)
        ]

    async def workflows(self, namespace: str | None = None) -> AsyncGenerator[Prior]:
        for (owner, _), workflow in sorted(self._store.workflows.items(), key=lambda item: item[0]):
            counts = not workflow.deduplicated and (workflow.stamp_id or workflow.error_code) is not None
            if counts and namespace in (None, owner):
                yield self._store.prior(workflow)

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        known: dict[PathKey, KnownFile] = {}
        for key in keys:
            row, latest = self._store.facts.get(key), self._store.latest(key)
            if row is not None and latest is not None and row.version == latest.version:
                metadata = canonical_json(latest.metadata)
                known[key] = KnownFile(row.facts, row.stamp_id, latest.content_type, metadata)
        return known


def _path(stamp: Stamp) -> PathKey:
    return path_hash(stamp.namespace, stamp.file_path)
