"""What every event source shows through windows: what may be seen of some positions, and how far one has looked."""

from omninode_bridge.domain.log import Record, ShardKey
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.domain.windows import Extent, Sight, Window
from omninode_bridge.ports import EventSource
from tests.conformance.storage import Storage
from tests.making import draft, failure

MUCH = {"records_max": 1000, "bytes_max": 1_000_000}


async def test_an_empty_log_has_no_extents_and_shows_nothing(storage: Storage) -> None:
    assert await storage.source.extents() == {}
    assert await storage.source.look({}, **MUCH) == Sight([], {})
    assert await storage.source.event_ids({}) == {}


async def test_extents_are_from_the_floor_to_the_head(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), failure("b"), draft("c")])
    heads = await storage.source.heads()
    assert await storage.source.extents() == {key: Extent(0, head) for key, head in heads.items()}


async def test_a_window_shows_what_lies_beyond_its_first_position_up_to_its_last(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(6)])
    ((key, whole),) = (await storage.whole_log()).items()
    for after in range(7):
        for until in range(after, 7):
            sight = await storage.source.look({key: (after, until)}, **MUCH)
            assert sight == Sight(whole[after:until], {key: until})


async def test_several_shards_are_seen_at_once_each_in_order(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), failure("b"), draft("c"), failure("d"), failure("e")])
    log = await storage.whole_log()
    sight = await storage.source.look({key: (1, len(records)) for key, records in log.items()}, **MUCH)
    assert by_shard(sight.records) == {key: records[1:] for key, records in log.items()}
    assert sight.reached == {key: len(records) for key, records in log.items()}


async def test_what_may_not_be_seen_is_looked_through(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}", namespace=f"{'abc'[n % 3]}.x") for n in range(9)])
    ((key, whole),) = (await storage.whole_log()).items()
    for patterns, seen in {
        ("b.x",): "b",
        ("b.*", "c.x"): "bc",
        ("d.x",): "",
        (): "",
        ("*",): "abc",
    }.items():
        sight = await storage.source.seen_by(Visible(patterns)).look({key: (2, 8)}, **MUCH)
        assert sight.records == [record for record in whole[2:8] if record.namespace[0] in seen]
        assert sight.reached == {key: 8}


async def test_looks_that_are_cut_short_skip_nothing(storage: Storage) -> None:
    for ledger in (storage.ledger, storage.rival):
        await ledger.record([draft(f"{n}", namespace=f"{'ab'[n % 2]}.x") for n in range(7)] + [failure("f")])
    log = await storage.whole_log()
    source = storage.source.seen_by(Visible(("a.x", "legal.contracts")))
    wanted = {key: [r for r in records if r.namespace != "b.x"] for key, records in log.items()}
    for limits in (
        {"records_max": 1, "bytes_max": 10**6},
        {"records_max": 3, "bytes_max": 10**6},
        {"records_max": 9, "bytes_max": 1},
    ):
        assert by_shard(await everything(source, {key: len(r) for key, r in log.items()}, limits)) == wanted


async def test_the_first_record_comes_whatever_its_size(storage: Storage) -> None:
    await storage.ledger.record([draft("a", metadata={"k": "v" * 5000}), draft("b")])
    ((key, whole),) = (await storage.whole_log()).items()
    sight = await storage.source.look({key: (0, 2)}, records_max=10, bytes_max=100)
    assert sight == Sight(whole[:1], {key: 1})


async def test_the_event_at_a_position_is_known_whoever_may_see_it(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), draft("b"), failure("c")])
    log = await storage.whole_log()
    source = storage.source.seen_by(Visible(("nobody.here",)))
    for key, records in log.items():
        for record in records:
            assert await source.event_ids({key: record.position}) == {key: record.event_id}
        assert await source.event_ids({key: len(records) + 1, ("no.such.topic", 0): 1}) == {}


async def everything(source: EventSource, ends: dict[ShardKey, int], limits: dict[str, int]) -> list[Record]:
    """Look until the ends are reached; each look comes nearer."""
    found: list[Record] = []
    at = dict.fromkeys(ends, 0)
    while at != ends:
        windows: dict[ShardKey, Window] = {key: (at[key], end) for key, end in ends.items() if at[key] < end}
        sight = await source.look(windows, **limits)
        assert sum(sight.reached.values()) > sum(start for start, _ in windows.values())
        found += sight.records
        at |= sight.reached
    return found


def by_shard(records: list[Record]) -> dict[ShardKey, list[Record]]:
    found: dict[ShardKey, list[Record]] = {}
    for record in records:
        found.setdefault((record.topic, record.shard), []).append(record)
    return found
