"""Whoever follows the log is told each event that he may see once and in order, wherever he breaks off and goes on."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters.memory import MemoryEventSource, MemoryStore
from omninode_bridge.app import following
from omninode_bridge.app.following import Follower, Tail, Told
from omninode_bridge.domain.errors import EventsExpired, InvalidInput, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, Record, ShardKey
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.domain.windows import Extent, Sight, Window, events_expired
from tests.making import COMPLETED, FAILED, new_id

MINE, OTHERS = "mine.x", "others.x"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "STEP_POSITIONS_MAX", 5)
    monkeypatch.setattr(following, "STEP_RECORDS_MAX", 3)


class Source(MemoryEventSource):
    """The memory's, which has a floor, can fail, and keeps what was looked through at once."""

    def __init__(self, store: MemoryStore, visible: Visible = EVERYTHING) -> None:
        super().__init__(store, visible)
        self.floors: dict[ShardKey, int] = {}
        self.looked_through: list[int] = []
        self.down = False
        self.looks = 0

    async def extents(self) -> dict[ShardKey, Extent]:
        self.looks += 1
        if self.down:
            raise ServiceUnavailable("away")
        return {k: Extent(self.floors.get(k, 0), e.head) for k, e in (await super().extents()).items()}

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        if self.down:
            raise ServiceUnavailable("away")
        if any(after < self.floors.get(key, 0) for key, (after, _) in windows.items()):
            raise events_expired()
        self.looked_through.append(sum(until - after for after, until in windows.values()))
        return await super().look(windows, records_max=records_max, bytes_max=bytes_max)

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        found = await super().event_ids(places)
        return {key: event_id for key, event_id in found.items() if places[key] > self.floors.get(key, 0)}


def write(store: MemoryStore, namespace: str, topic: str = COMPLETED, shard: int = 0, body: bytes = b"{}") -> Record:
    head = store.head((topic, shard))
    record = Record(topic, shard, head.position + 1, new_id(), head.event_id, namespace, new_id(), body)
    store.log.setdefault((topic, shard), []).append(record)
    return record


async def all_of(follower: Follower, source: Source) -> list[Told]:
    found: list[Told] = []
    extents = await source.extents()
    while follower.is_behind(extents):
        found += await follower.step(extents)
    return found


WRITES = st.lists(
    st.tuples(st.sampled_from([MINE, OTHERS]), st.sampled_from([COMPLETED, FAILED]), st.integers(0, 2)), max_size=40
)


@given(WRITES, st.lists(st.integers(0, 60), max_size=12))
def test_whoever_breaks_off_anywhere_and_goes_on_is_told_everything_once_and_in_order(
    writes: list[tuple[str, str, int]], breaks: list[int]
) -> None:
    async def run() -> None:
        store = MemoryStore()
        source = Source(store, Visible((MINE,)))
        told: list[Record] = []
        last_id: str | None = None
        pending: Iterator[tuple[str, str, int]] = iter(writes)
        for broken_off_after in [*breaks, 1000]:
            for namespace, topic, shard in [next(pending, None) or ("", "", 0) for _ in range(7)]:
                if namespace:
                    write(store, namespace, topic, shard)
            if broken_off_after == 1000:
                for namespace, topic, shard in pending:
                    write(store, namespace, topic, shard)
            follower, extents = await Follower.begin(source, last_id)
            left = broken_off_after
            while follower.is_behind(extents) and left > 0:
                for event in await follower.step(extents):
                    if left > 0:
                        told.append(event.record)
                        last_id = event.id
                        left -= 1
                if left > 0:
                    last_id = follower.id
        wanted = {key: [r for r in records if r.namespace == MINE] for key, records in store.log.items()}
        found: dict[ShardKey, list[Record]] = {key: [] for key in store.log}
        for record in told:
            found[record.topic, record.shard].append(record)
        assert found == wanted
        assert max(source.looked_through, default=0) <= following.STEP_POSITIONS_MAX

    asyncio.run(run())


@given(st.dictionaries(st.tuples(st.sampled_from([COMPLETED, FAILED]), st.integers(0, 255)), st.integers(1, 2**40)))
def test_an_id_says_where_one_stands(positions: dict[ShardKey, int]) -> None:
    extents = {key: Extent(0, Head(position, new_id())) for key, position in positions.items()}
    places = {key: following.Place(position, b"abc") for key, position in positions.items()}
    follower = Follower(MemoryEventSource(MemoryStore()), places)
    assert following._decode(follower.id, extents) == places
    assert not follower.is_behind(extents)


async def test_what_may_not_be_seen_is_gone_through_in_bounded_steps() -> None:
    store = MemoryStore()
    for _ in range(23):
        write(store, OTHERS)
    mine = write(store, MINE)
    source = Source(store, Visible((MINE,)))
    follower, _ = await Follower.begin(source, None)
    assert [event.record for event in await all_of(follower, source)] == [mine]
    assert source.looked_through == [5, 5, 5, 5, 4]


async def test_in_the_midst_of_what_may_not_be_seen_one_can_break_off_too() -> None:
    store = MemoryStore()
    for _ in range(12):
        write(store, OTHERS)
    mine = write(store, MINE)
    source = Source(store, Visible((MINE,)))
    follower, extents = await Follower.begin(source, None)
    assert await follower.step(extents) == []
    again, extents = await Follower.begin(source, follower.id)
    assert [event.record for event in await all_of(again, source)] == [mine]
    assert source.looked_through == [5, 5, 3]


async def test_a_step_that_fails_leaves_the_reader_where_he_was() -> None:
    store = MemoryStore()
    records = [write(store, MINE) for _ in range(3)]
    source = Source(store)
    follower, extents = await Follower.begin(source, None)
    before, source.down = follower.id, True
    with pytest.raises(ServiceUnavailable):
        await follower.step(extents)
    assert follower.id == before
    source.down = False
    assert [event.record for event in await all_of(follower, source)] == records


async def test_from_the_start_means_from_the_floor() -> None:
    store = MemoryStore()
    records = [write(store, MINE) for _ in range(6)]
    source = Source(store)
    source.floors[COMPLETED, 0] = 4
    follower, _ = await Follower.begin(source, None)
    again, _ = await Follower.begin(source, follower.id)
    assert [event.record for event in await all_of(follower, source)] == records[4:]
    assert [event.record for event in await all_of(again, source)] == records[4:]


async def test_an_id_from_below_the_floor_has_expired() -> None:
    store = MemoryStore()
    for _ in range(6):
        write(store, MINE)
    source = Source(store)
    follower, extents = await Follower.begin(source, None)
    told = await follower.step(extents)
    source.floors[COMPLETED, 0] = 3
    assert (await Follower.begin(source, told[2].id))[0].id == told[2].id  # nothing is lost up to the floor itself
    with pytest.raises(EventsExpired, match="begin without Last-Event-ID"):
        await Follower.begin(source, told[1].id)


async def test_a_shard_that_came_and_was_cut_meanwhile_makes_an_id_expire() -> None:
    store = MemoryStore()
    write(store, MINE)
    source = Source(store)
    follower, _ = await Follower.begin(source, None)
    (told,) = await all_of(follower, source)
    for _ in range(3):
        write(store, MINE, FAILED)
    assert len(await all_of((await Follower.begin(source, told.id))[0], source)) == 3
    source.floors[FAILED, 0] = 1
    with pytest.raises(EventsExpired):
        await Follower.begin(source, told.id)


async def test_a_reader_that_retention_overtakes_is_told() -> None:
    store = MemoryStore()
    for _ in range(6):
        write(store, MINE)
    source = Source(store)
    follower, extents = await Follower.begin(source, None)
    await follower.step(extents)
    source.floors[COMPLETED, 0] = 5
    with pytest.raises(EventsExpired):
        await follower.step(extents)


async def an_id(store: MemoryStore | None = None) -> str:
    store = store or MemoryStore()
    for _ in range(3):
        write(store, MINE)
        write(store, MINE, FAILED, 7)
    source = Source(store)
    follower, _ = await Follower.begin(source, None)
    await all_of(follower, source)
    return follower.id


def packed(*parts: bytes) -> str:
    data = b"".join(parts)
    return base64.urlsafe_b64encode(data + zlib.crc32(data).to_bytes(4)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "nonsense!", "ünï", "AAAA", "A", "=", " ", "0", "\x00", "x" * 20_000,
        packed(b"\x02"), packed(b""),
        packed(b"\x01", following._tag(COMPLETED)),
        packed(b"\x01", following._tag(COMPLETED), b"\x00\x01"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00", b"\xff" * 12, b"abc"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00\x01abc" * 2),
        packed(b"\x01", following._tag(COMPLETED), b"\x09\x01abc"),
        packed(b"\x01", following._tag("some.other.topic"), b"\x00\x01abc"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00\x01abc", following._tag(COMPLETED), b"\x00\x01abc"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00\x7fabc"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00", b"\xff" * 8 + b"\x7f", b"abc"),
        packed(b"\x01", following._tag(COMPLETED), b"\x00\x02abc"),
    ],
)  # fmt: skip
async def test_what_is_no_id_of_this_log_is_refused(text: str) -> None:
    store = MemoryStore()
    for _ in range(3):
        write(store, MINE)
    with pytest.raises(InvalidInput) as refused:
        await Follower.begin(Source(store), text)
    assert refused.value.field == "Last-Event-ID"
    assert len(refused.value.message) < 300


async def test_an_id_that_was_changed_in_any_character_is_refused() -> None:
    store = MemoryStore()
    whole, source = await an_id(store), Source(store)
    assert (await Follower.begin(source, whole))[0].id == whole
    for at in range(len(whole)):
        # The last character has bits that mean nothing.
        other = chr(ord(whole[at]) ^ 0x20) if whole[at].isalpha() else "x"
        if at < len(whole) - 1:
            with pytest.raises(InvalidInput):
                await Follower.begin(source, whole[:at] + other + whole[at + 1 :])
        if at:
            with pytest.raises(InvalidInput):
                await Follower.begin(source, whole[:at])


async def test_an_id_of_another_log_is_refused_also_where_its_positions_fit() -> None:
    store = MemoryStore()
    for _ in range(5):
        write(store, MINE)
        write(store, MINE, FAILED, 7)
    with pytest.raises(InvalidInput, match="this log has other events there"):
        await Follower.begin(Source(store), await an_id())


async def test_an_id_stays_short() -> None:
    assert len(await an_id()) < 40
    store = MemoryStore()
    for shard in range(256):
        for topic in (COMPLETED, FAILED):
            store.log[topic, shard] = [Record(topic, shard, 1, new_id(), START.event_id, MINE, new_id(), b"{}")]
    follower, extents = await Follower.begin(source := Source(store), None)
    await all_of(follower, source)
    assert len(follower.id) < following.ID_CHARACTERS_MAX
    assert (await Follower.begin(source, follower.id))[0].is_behind(extents) is False


async def test_a_hint_wakes_all_followers_and_nobody_looks_when_there_is_none() -> None:
    store = MemoryStore()
    source = Source(store)
    tail = Tail(source)
    assert source.looks == 0
    async with tail.followed() as one, tail.followed() as other:
        write(store, MINE)
        tail.hint()
        async with asyncio.timeout(10):
            await one.wait()
            await other.wait()
        assert tail.extents[COMPLETED, 0].head.position == 1
        one.clear()
        source.down = True
        write(store, MINE)
        looks = source.looks
        async with asyncio.timeout(10):
            while source.looks < looks + 2:  # noqa: ASYNC110 - a look that fails tells nobody
                await asyncio.sleep(0.01)
        assert not one.is_set()
        source.down = False
        async with asyncio.timeout(10):
            await one.wait()  # by the poll
    looks = source.looks
    tail.hint()
    await asyncio.sleep(0)
    assert source.looks == looks
