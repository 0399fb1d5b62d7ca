"""Laws of the feed: whatever a transport loses, repeats, mixes up or makes up, each record is folded once."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters.memory import MemoryStore
from omninode_bridge.adapters.memory.source import MemoryEventSource
from omninode_bridge.app.feed import LATE_S, Feed
from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.ports import READ_BYTES_MAX
from omninode_bridge.ports.transport import Arrived
from tests.making import COMPLETED, chain

SHARDS = 3
LENGTH = 8
PARTITIONS = 2
OURS = {(COMPLETED, shard): chain(LENGTH, shard=shard) for shard in range(SHARDS)}
# Another log that was on the topics before: it begins where ours begins, and goes on beyond it.
FOREIGN = {(COMPLETED, shard): chain(LENGTH + 3, shard=shard) for shard in range(SHARDS + 1)}
# One whose records name ours as their predecessors.
FORGED = [
    record for records in OURS.values() for head in records for record in chain(1, after=head.head, shard=head.shard)
]

ALL = [record for records in OURS.values() for record in records]
ARRIVALS = st.lists(st.sampled_from(ALL), max_size=80)
ANYTHING = st.lists(
    st.sampled_from([*ALL, *FORGED, *(one for records in FOREIGN.values() for one in records)]), max_size=80
)
LIMITS = st.integers(1, 30)


@dataclass
class Scripted:
    """A transport that brings what the script says. `ours`: whether the shards are said to be this reader's."""

    arriving: deque[Arrived]
    ours: bool = True
    told: Counter[tuple[str, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Sequence[Record], *, ours: bool = True) -> Scripted:
        offsets = [0] * PARTITIONS
        arriving: deque[Arrived] = deque()
        for record in records:
            partition = record.shard % PARTITIONS
            arriving.append(Arrived(record, partition, offsets[partition]))
            offsets[partition] += 1
        return cls(arriving, ours)

    def take(self, limit: int) -> list[Arrived]:
        return [self.arriving.popleft() for _ in range(min(limit, len(self.arriving)))]

    def owns(self, key: ShardKey) -> bool:
        return self.ours

    def done(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self.told = Counter(offsets)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when it is told to."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class Reader:
    """Folds what a feed returns, and fails at anything but a direct successor."""

    def __init__(self, feed: Feed, limit: int) -> None:
        self.feed = feed
        self.limit = limit
        self.positions: dict[ShardKey, Head] = {}
        self.folded: dict[ShardKey, list[Record]] = {}

    async def step(self) -> int:
        found = await self.feed.read(self.positions, self.limit)
        assert len(found) <= self.limit
        for record in found:
            key = record.topic, record.shard
            accepted, _ = follow(self.positions.get(key, START), [record])
            assert accepted == [record], (self.positions.get(key), record)
            self.positions[key] = record.head
            self.folded.setdefault(key, []).append(record)
        return len(found)


def log_of(records: Mapping[ShardKey, list[Record]]) -> MemoryEventSource:
    store = MemoryStore()
    store.log.update({key: list(chain) for key, chain in records.items()})
    return MemoryEventSource(store)


def run(
    arriving: Scripted,
    limit: int,
    steps: int | None = None,
    *,
    log: Mapping[ShardKey, list[Record]] = OURS,
    step_s: float = 0.0,
) -> tuple[Reader, Feed]:
    """Read until everything is folded and nothing arrives any more, in few steps; `steps`: so many of that time."""
    feed = Feed(log_of(log), arriving)
    reader = Reader(feed, limit)

    async def read() -> None:
        if steps is not None:
            for _ in range(steps):
                await reader.step()
                loop.now_s += step_s
            return
        for _ in range(10 * (len(ALL) + len(arriving.arriving)) + 10):
            if not await reader.step() and not arriving.arriving and reader.folded == OURS:
                return
            loop.now_s += LATE_S / 2
        raise AssertionError(f"not all was folded: {reader.positions}")

    loop = Clock()
    try:
        loop.run_until_complete(read())
    finally:
        loop.close()
    return reader, feed


@given(ARRIVALS, LIMITS)
def test_whatever_is_lost_repeated_or_out_of_order_each_record_is_folded_once_in_its_place(
    arrivals: list[Record], limit: int
) -> None:
    reader, _ = run(Scripted.of(arrivals), limit)
    assert reader.folded == OURS


@given(ANYTHING, LIMITS)
def test_records_of_another_log_are_never_folded_wherever_they_seem_to_fit(arrivals: list[Record], limit: int) -> None:
    reader, _ = run(Scripted.of(arrivals), limit)
    assert reader.folded == OURS


@given(LIMITS)
def test_an_older_log_on_the_topics_that_begins_where_ours_begins_is_not_taken_for_ours(limit: int) -> None:
    older = [record for records in FOREIGN.values() for record in records]
    reader, feed = run(Scripted.of([*older, *ALL]), limit)
    assert reader.folded == OURS
    assert feed.strange > 0


@given(st.permutations(range(SHARDS)), LIMITS)
def test_what_arrives_in_order_is_folded_at_once_and_nothing_is_read_from_the_log(order: list[int], limit: int) -> None:
    arrivals = [record for shard in order for record in OURS[COMPLETED, shard]]
    reader, feed = run(Scripted.of(arrivals, ours=False), limit, steps=2 * len(arrivals))
    assert (reader.folded, feed.filled) == (OURS, 0)


@given(ARRIVALS, LIMITS, st.integers(0, 60))
def test_the_transport_is_told_to_be_done_only_with_what_was_folded(
    arrivals: list[Record], limit: int, steps: int
) -> None:
    arriving = Scripted.of(arrivals)
    brought = list(arriving.arriving)
    reader = Reader(Feed(log_of(OURS), arriving), limit)

    async def read() -> None:
        for _ in range(steps):
            folded = dict(reader.positions)
            await reader.step()
            for one in brought:
                record = one.record
                if one.offset < arriving.told[record.topic, one.partition]:
                    assert record.position <= folded[record.topic, record.shard].position
            loop.now_s += LATE_S

    loop = Clock()
    try:
        loop.run_until_complete(read())
    finally:
        loop.close()


@given(LIMITS)
def test_a_shard_whose_last_record_was_lost_is_completed_while_others_never_rest(limit: int) -> None:
    busy, quiet = chain(40 * limit, shard=0), chain(1, shard=1)
    log = {(COMPLETED, 0): busy, (COMPLETED, 1): quiet}
    reader, _ = run(Scripted.of(busy), limit, steps=10, log=log, step_s=LATE_S / 2)
    assert reader.folded[COMPLETED, 1] == quiet
    assert len(reader.folded[COMPLETED, 0]) < len(busy)


@given(LIMITS)
def test_repeats_of_the_past_do_not_keep_what_is_missing_from_being_read(limit: int) -> None:
    past = chain(4, shard=0)
    missing = chain(1, after=past[-1].head, shard=0)
    steps = 20
    repeats = [past[0]] * (steps * limit)
    reader, feed = run(
        Scripted.of([*past, *repeats]), limit, steps, log={(COMPLETED, 0): past + missing}, step_s=LATE_S / 2
    )
    assert reader.folded[COMPLETED, 0] == past + missing
    assert feed.filled >= 1


@given(st.integers(3, 12))
def test_a_reader_that_was_held_up_itself_takes_no_shard_for_late_whose_records_have_arrived(limit: int) -> None:
    arriving = Scripted.of(ALL)
    feed = Feed(log_of(OURS), arriving)
    reader = Reader(feed, limit)

    async def read() -> None:
        await reader.step()
        loop.now_s += 2 * LATE_S  # it waits for a lock, say
        while reader.folded != OURS:
            assert await reader.step()
            loop.now_s += LATE_S / 40

    loop = Clock()
    try:
        loop.run_until_complete(read())
    finally:
        loop.close()
    assert feed.filled == 0


def test_a_batch_is_bounded_in_bytes_too_and_has_one_record_at_least() -> None:
    large = [msgspec.structs.replace(record, body=b" " * (READ_BYTES_MAX // 3 + 1)) for record in chain(8, shard=0)]
    feed = Feed(log_of({(COMPLETED, 0): large}), Scripted.of(large))
    reader = Reader(feed, 100)
    loop = Clock()
    try:
        assert [loop.run_until_complete(reader.step()) for _ in range(3)] == [3, 3, 2]
    finally:
        loop.close()


@given(LIMITS)
def test_a_shard_far_behind_of_which_nothing_arrives_is_read_from_the_log_without_pauses(limit: int) -> None:
    log = {(COMPLETED, 0): chain(10 * limit, shard=0)}
    # It is looked at, then found late; then it takes one step a batch, and not a wait each.
    reader, _ = run(Scripted.of([]), limit, steps=12, log=log, step_s=0.3 * LATE_S)
    assert len(reader.folded[COMPLETED, 0]) >= 7 * limit


def test_shards_that_are_another_readers_are_left_to_it_however_late_they_are() -> None:
    reader, _ = run(Scripted.of([], ours=False), 10, steps=100)
    assert reader.folded == {}
