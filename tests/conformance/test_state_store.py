"""What every state store does: state and positions move together or not at all, and generations never mix."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest

from omninode_bridge.domain.errors import ForeignState
from omninode_bridge.domain.log import START, Head, Record, ShardKey
from omninode_bridge.domain.reduction import State, Totals, merge, merge_states
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.ports import DeadLetter, Generation
from tests.conformance.storage import Storage
from tests.making import COMPLETED, FAILED, NOW, chain, draft, failure, new_id

PRINT = "one contract"
DONE: ShardKey = (COMPLETED, 0)
GONE: ShardKey = (FAILED, 3)


def totals(size: int = 10, took: int = 5, name: str | None = None) -> Totals:
    moment = (NOW, name or new_id())
    return Totals(1, 0, size, took, took, took, moment, moment)


def state(namespace: str = "a", **groups: Totals) -> State:
    """Totals by content type."""
    return {(namespace, "content_type", key): each for key, each in groups.items()}


def head(position: int) -> Head:
    return Head(position, new_id())


THIRD = head(3)


async def all_rows(storage: Storage) -> State:
    return await storage.state.rows(None)


async def paged(ask: Callable[[str | None], Awaitable[State]]) -> list[State]:
    """Every page of a list, each asked for by the last key of the one before."""
    pages = [await ask(None)]
    while pages[-1]:
        after = max(group[2] for group in pages[-1])
        pages.append(await ask(after))
        assert all(group[2] > after for group in pages[-1])
    return pages[:-1]


async def started(storage: Storage) -> tuple[Generation, Head]:
    """A live generation that stands at position 2 of one shard and has one group."""
    generation, reached = await storage.state.begin(PRINT), head(2)
    assert await storage.state.apply(generation, state(text=totals()), {DONE: (START, reached)})
    return generation, reached


# Beginning


async def test_a_new_storage_has_no_generation_and_no_rows(storage: Storage) -> None:
    assert await storage.state.live() is None
    assert await all_rows(storage) == {}


async def test_the_first_generation_is_live_at_once_at_the_start_of_the_log(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    assert await storage.state.live() == generation
    assert (generation.fingerprint, generation.namespace) == (PRINT, None)
    assert await storage.state.positions(generation) == {}


async def test_a_second_generation_is_built_beside_the_live_one(storage: Storage) -> None:
    live, reached = await started(storage)
    building = await storage.state.begin("another contract")
    assert building.number != live.number
    assert await storage.state.live() == live
    assert await storage.state.positions(building) == {}
    assert await storage.state.positions(live) == {DONE: reached}


async def test_the_first_generation_holds_every_namespace_even_when_one_was_asked_for(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT, "a")
    assert generation.namespace is None
    assert await storage.state.live() == generation


async def test_of_many_that_begin_at_once_one_is_live(storage: Storage) -> None:
    found = await asyncio.gather(*(storage.state.begin(PRINT) for _ in range(8)))
    assert len({generation.number for generation in found}) == 8
    assert await storage.state.live() in found


# Applying


async def test_applying_merges_the_state_and_moves_the_positions(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    first, second = head(2), head(5)
    one, two = totals(10, 5), totals(20, 3)
    assert await storage.state.apply(generation, state(text=one, html=two), {DONE: (START, first)})
    assert await storage.state.apply(generation, state(text=two), {DONE: (first, second), GONE: (START, first)})
    assert await all_rows(storage) == state(text=merge(one, two), html=two)
    assert await storage.state.positions(generation) == {DONE: second, GONE: first}


async def test_merged_rows_are_to_the_last_bit_what_the_algebra_says(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    early, late = NOW.replace(microsecond=1), NOW.replace(microsecond=2)
    ids = sorted(new_id() for _ in range(4))
    deltas = [
        Totals(0, 1, first=(late, ids[2]), last=(late, ids[2])),
        Totals(1, 0, 2**62, 2**50, 7, 7, (early, ids[1]), (early, ids[1])),
        Totals(2**31, 3, 2**62, 2**62, 0, 2**51, (early, ids[0]), (late, ids[3])),
        Totals(0, 1, first=(late, ids[0]), last=(late, ids[0])),
    ]
    before, expected = START, Totals()
    for position, delta in enumerate(deltas, 1):
        after = head(position)
        assert await storage.state.apply(generation, state(text=delta), {DONE: (before, after)})
        before, expected = after, merge(expected, delta)
        assert await all_rows(storage) == state(text=expected)


async def test_odd_group_keys_are_kept_as_they_are(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    keys = ["", " ", "ä", "a\u0308", "漢🙂", "x" * 256, "%_\\'\"", "A", "a"]
    delta = {("a", "metadata.project", key): totals() for key in keys}
    assert await storage.state.apply(generation, delta, {DONE: (START, head(1))})
    assert await storage.state.rows("metadata.project") == delta


async def test_positions_move_without_state_too(storage: Storage) -> None:
    generation, reached = await started(storage)
    before = await all_rows(storage)
    after = head(3)
    assert await storage.state.apply(generation, {}, {DONE: (reached, after)})
    assert await storage.state.positions(generation) == {DONE: after}
    assert await all_rows(storage) == before


@pytest.mark.parametrize("stale", ["start", "another event", "another position", "ahead"])
async def test_a_move_from_elsewhere_is_refused_and_changes_nothing(storage: Storage, stale: str) -> None:
    generation, reached = await started(storage)
    source = {
        "start": START,
        "another event": head(2),
        "another position": Head(1, reached.event_id),
        "ahead": head(7),
    }[stale]
    before, (record,) = await all_rows(storage), chain(1)
    letter = DeadLetter(record=record, reason="never kept")
    moves = {DONE: (source, head(9)), GONE: (START, head(1))}
    assert not await storage.state.apply(generation, state(text=totals(), new=totals()), moves, [letter])
    assert await all_rows(storage) == before
    assert await storage.state.positions(generation) == {DONE: reached}
    assert await storage.dead_letters() == []


async def test_one_stale_shard_refuses_the_moves_of_all(storage: Storage) -> None:
    generation, reached = await started(storage)
    moves = {DONE: (reached, head(3)), GONE: (head(1), head(2))}
    assert not await storage.state.apply(generation, state(text=totals()), moves)
    assert await storage.state.positions(generation) == {DONE: reached}


async def test_the_same_batch_applied_twice_counts_once(storage: Storage) -> None:
    generation, reached = await started(storage)
    delta, moves = state(text=totals()), {DONE: (reached, head(4))}
    assert await storage.state.apply(generation, delta, moves)
    after = await all_rows(storage)
    assert not await storage.state.apply(generation, delta, moves)
    assert await all_rows(storage) == after


async def test_of_many_that_fold_the_same_records_one_succeeds(storage: Storage) -> None:
    generation, reached = await started(storage)
    before = await all_rows(storage)
    delta = state(text=totals(), html=totals())
    after = head(4)
    won = await asyncio.gather(
        *(storage.state.apply(generation, delta, {DONE: (reached, after)}) for _ in range(8)),
    )
    assert sorted(won) == [False] * 7 + [True]
    assert await all_rows(storage) == merge_states(before, delta)
    assert await storage.state.positions(generation) == {DONE: after}


async def test_of_many_that_fold_the_first_records_of_a_shard_one_succeeds(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    delta, after = state(text=totals()), head(4)
    won = await asyncio.gather(*(storage.state.apply(generation, delta, {DONE: (START, after)}) for _ in range(8)))
    assert sorted(won) == [False] * 7 + [True]
    assert await all_rows(storage) == delta


async def test_projectors_of_different_shards_do_not_refuse_each_other(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)

    async def project(shard: int) -> list[Totals]:
        before, sent = START, []
        for position in range(1, 6):
            after, delta = head(position), totals(shard, position)
            # A storage may refuse for a moment (a deadlock); then the same batch is applied again.
            while not await storage.state.apply(generation, state(text=delta), {(COMPLETED, shard): (before, after)}):
                assert (await storage.state.positions(generation)).get((COMPLETED, shard), START) == before
            before = after
            sent.append(delta)
        return sent

    sent = [each for batch in await asyncio.gather(*map(project, range(6))) for each in batch]
    expected = Totals()
    for each in sent:
        expected = merge(expected, each)
    assert await all_rows(storage) == state(text=expected)


# Dead letters


async def test_dead_letters_are_kept_with_their_record_and_reason(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    await storage.ledger.record([draft("a"), draft("b")])
    ((key, (first, second)),) = (await storage.whole_log()).items()
    await storage.corrupt(first, b"\xff\x00")
    ((bad, _),) = (await storage.whole_log()).values()
    letter = DeadLetter(record=bad, reason="not an event")
    assert await storage.state.apply(generation, {}, {key: (START, second.head)}, [letter])
    assert await storage.dead_letters() == [(bad, "not an event")]


async def undelivered(storage: Storage, *records: Record, by: str = PRINT, namespace: str | None = None) -> Generation:
    """A generation that could not read these records, at position 3 of one shard."""
    generation = await storage.state.begin(by, namespace)
    letters = [DeadLetter(record=record, reason=f"not an event in {generation.number}") for record in records]
    assert await storage.state.apply(generation, {}, {DONE: (START, THIRD)}, letters)
    return generation


async def test_a_rebuild_that_meets_the_same_record_keeps_one_letter(storage: Storage) -> None:
    (record,) = chain(1)
    await undelivered(storage, record)
    building = await undelivered(storage, record)
    assert await storage.state.swap(building)
    assert await storage.dead_letters() == [(record, f"not an event in {building.number}")]


async def test_dead_letters_of_a_state_that_is_being_built_are_not_seen(storage: Storage) -> None:
    one, other = chain(2)
    live = await undelivered(storage, one)
    building = await undelivered(storage, one, other)
    assert await storage.dead_letters() == [(one, f"not an event in {live.number}")]
    await storage.state.discard(building)
    assert await storage.dead_letters() == [(one, f"not an event in {live.number}")]


async def test_a_swap_brings_the_new_letters_and_closes_those_of_records_that_are_folded_now(storage: Storage) -> None:
    recovered, same, new = chain(3)
    await undelivered(storage, recovered, same)
    building = await undelivered(storage, same, new)
    assert await storage.state.swap(building)
    reason = f"not an event in {building.number}"
    assert await storage.dead_letters() == [(same, reason), (new, reason)]
    again = await undelivered(storage, recovered)
    assert await storage.state.swap(again)
    assert await storage.dead_letters() == [(recovered, f"not an event in {again.number}")]


async def test_a_partial_rebuild_settles_the_letters_of_its_namespace_alone(storage: Storage) -> None:
    one, other, new = chain(3)
    other = msgspec.structs.replace(other, namespace="b")
    live = await undelivered(storage, one, other)
    building = await undelivered(storage, new, namespace=one.namespace)
    assert await storage.state.swap(building)
    assert await storage.dead_letters() == [
        (other, f"not an event in {live.number}"), (new, f"not an event in {building.number}"),
    ]  # fmt: skip
    mended = await undelivered(storage, namespace="b")
    assert await storage.state.swap(mended)
    assert await storage.dead_letters() == [(new, f"not an event in {building.number}")]


# Swapping


async def build(
    storage: Storage, delta: State, positions: Mapping[ShardKey, Head], namespace: str | None = None, by: str = PRINT
) -> Generation:
    building = await storage.state.begin(by, namespace)
    moves = {key: (START, reached) for key, reached in positions.items()}
    assert await storage.state.apply(building, delta, moves)
    return building


async def test_what_is_being_built_is_not_seen(storage: Storage) -> None:
    _, reached = await started(storage)
    before = await all_rows(storage)
    await build(storage, state(other=totals()), {DONE: reached})
    assert await all_rows(storage) == before


async def test_a_swap_at_equal_positions_makes_the_new_state_the_one_that_is_read(storage: Storage) -> None:
    live, reached = await started(storage)
    delta = state(other=totals())
    building = await build(storage, delta, {DONE: reached}, by="another contract")
    assert await storage.state.swap(building)
    assert await storage.state.live() == building
    assert await all_rows(storage) == delta
    assert await storage.state.positions(building) == {DONE: reached}
    assert not await storage.state.apply(live, state(text=totals()), {DONE: (reached, head(3))})
    assert await all_rows(storage) == delta
    assert await storage.state.apply(building, {}, {DONE: (reached, head(3))})


@pytest.mark.parametrize("where", ["behind", "ahead", "another event", "a shard more", "nowhere"])
async def test_a_swap_at_other_positions_is_refused_and_changes_nothing(storage: Storage, where: str) -> None:
    live, reached = await started(storage)
    before = await all_rows(storage)
    positions: dict[str, dict[ShardKey, Head]] = {
        "behind": {DONE: head(1)},
        "ahead": {DONE: head(3)},
        "another event": {DONE: head(2)},
        "a shard more": {DONE: reached, GONE: head(1)},
        "nowhere": {},
    }
    building = await build(storage, state(other=totals()), positions[where])
    assert not await storage.state.swap(building)
    assert await storage.state.live() == live
    assert await all_rows(storage) == before
    assert await storage.state.positions(building) == positions[where]


async def test_a_refused_swap_succeeds_once_the_positions_meet(storage: Storage) -> None:
    live, reached = await started(storage)
    building = await build(storage, state(other=totals()), {DONE: reached})
    after = head(3)
    assert await storage.state.apply(live, {}, {DONE: (reached, after)})
    assert not await storage.state.swap(building)
    assert await storage.state.apply(building, {}, {DONE: (reached, after)})
    assert await storage.state.swap(building)
    assert await storage.state.live() == building


async def test_a_swap_without_a_live_generation_or_of_the_live_one_is_refused(storage: Storage) -> None:
    assert not await storage.state.swap(Generation(99, PRINT))
    live, _ = await started(storage)
    before = await all_rows(storage)
    assert not await storage.state.swap(Generation(99, PRINT))
    assert not await storage.state.swap(live)
    assert await storage.state.live() == live
    assert await all_rows(storage) == before


async def test_a_generation_is_swapped_in_once(storage: Storage) -> None:
    _, reached = await started(storage)
    one = await build(storage, state(one=totals()), {DONE: reached})
    two = await build(storage, state(two=totals()), {DONE: reached})
    won = await asyncio.gather(storage.state.swap(one), storage.state.swap(two), storage.state.swap(one))
    assert won.count(True) == 2
    assert await storage.state.live() in (one, two)
    assert len(await all_rows(storage)) == 1


async def test_beside_a_swap_no_batch_is_lost_or_counted_twice(storage: Storage) -> None:
    live, reached = await started(storage)
    building = await build(storage, state(text=totals()), {DONE: reached})
    after, delta = head(3), totals()
    applied, swapped = await asyncio.gather(
        storage.state.apply(live, state(text=delta), {DONE: (reached, after)}), storage.state.swap(building)
    )
    assert applied is not swapped
    found = await storage.state.live()
    assert found == (building if swapped else live)
    assert (await all_rows(storage))["a", "content_type", "text"].total_stamps == (1 if swapped else 2)


# Rebuilding one namespace


async def test_a_partial_rebuild_replaces_only_its_namespace(storage: Storage) -> None:
    live, reached = await started(storage)
    after = head(3)
    others = state("b", text=totals(), html=totals())
    assert await storage.state.apply(live, others, {DONE: (reached, after)})
    rebuilt = state("a", other=totals())
    building = await build(storage, rebuilt, {DONE: after}, "a")
    assert building.namespace == "a"
    assert await storage.state.swap(building)
    assert await all_rows(storage) == {**others, **rebuilt}
    assert await storage.state.live() == live
    assert await storage.state.positions(live) == {DONE: after}


async def test_after_a_partial_rebuild_the_live_generation_goes_on(storage: Storage) -> None:
    live, reached = await started(storage)
    rebuilt = totals()
    building = await build(storage, state(text=rebuilt), {DONE: reached}, "a")
    assert await storage.state.swap(building)
    new = totals()
    assert not await storage.state.apply(building, state(text=new), {DONE: (reached, head(3))})
    assert await storage.state.apply(live, state(text=new), {DONE: (reached, head(3))})
    assert await all_rows(storage) == state(text=merge(rebuilt, new))


async def test_a_partial_rebuild_of_a_namespace_without_events_empties_it(storage: Storage) -> None:
    live, reached = await started(storage)
    building = await build(storage, {}, {DONE: reached}, "a")
    assert await storage.state.swap(building)
    assert await all_rows(storage) == {}
    assert await storage.state.live() == live


async def test_a_partial_rebuild_by_another_contract_is_never_mixed_in(storage: Storage) -> None:
    _, reached = await started(storage)
    before = await all_rows(storage)
    building = await build(storage, state(other=totals()), {DONE: reached}, "a", by="another contract")
    assert not await storage.state.swap(building)
    assert await all_rows(storage) == before


# Discarding


async def test_what_was_discarded_is_retired(storage: Storage) -> None:
    live, reached = await started(storage)
    before = await all_rows(storage)
    building = await build(storage, state(other=totals()), {DONE: reached})
    await storage.state.discard(building)
    assert not await storage.state.swap(building)
    assert not await storage.state.apply(building, state(other=totals()), {DONE: (reached, head(3))})
    assert not await storage.state.apply(building, state(other=totals()), {DONE: (START, head(3))})
    assert await storage.state.positions(building) == {}
    assert await storage.state.live() == live
    assert await all_rows(storage) == before
    await storage.state.discard(building)


async def test_the_live_generation_cannot_be_discarded(storage: Storage) -> None:
    """A rebuild that lost its connection during the swap discards what may already be live."""
    live, reached = await started(storage)
    before = await all_rows(storage)
    await storage.state.discard(live)
    assert await storage.state.live() == live
    assert await all_rows(storage) == before
    assert await storage.state.apply(live, {}, {DONE: (reached, head(3))})


# Reading rows


async def test_rows_are_of_one_grouping_or_all_and_of_one_namespace_or_all(storage: Storage) -> None:
    generation = await storage.state.begin(PRINT)
    delta = {
        (namespace, grouping, key): totals()
        for namespace in ("a", "b")
        for grouping, key in (("namespace", namespace), ("content_type", "x"), ("content_type", "y"))
    }
    assert await storage.state.apply(generation, delta, {DONE: (START, head(1))})
    rows = storage.state.rows
    assert await rows(None) == delta
    assert await rows("content_type") == {key: each for key, each in delta.items() if key[1] == "content_type"}
    assert await rows("content_type", "a") == {
        key: each for key, each in delta.items() if key[:2] == ("a", "content_type")
    }
    assert await rows(None, "b") == {key: each for key, each in delta.items() if key[0] == "b"}
    assert await rows("size_bucket") == {}
    assert await rows("namespace", "c") == {}


ODD_KEYS = ["", " ", "A", "Z", "_", "a", "a\u0308", "b", "x" * 256, "%_\\'\"", "ä", "漢🙂", "\uffff", "\U0001f600"]
"""Of which many orders of text exist; the order of code points is asked for."""


@pytest.mark.parametrize("limit", [1, 5, 100])
async def test_pages_of_a_grouping_follow_each_other_by_key(storage: Storage, limit: int) -> None:
    generation = await storage.state.begin(PRINT)
    groups = [("a", "metadata.project", key) for key in ODD_KEYS]
    others = [("a", "content_type", "B"), ("b", "metadata.project", "B"), ("A", "metadata.project", "B")]
    delta = {group: totals() for group in (*groups, *others)}
    assert await storage.state.apply(generation, delta, {DONE: (START, head(1))})
    pages = await paged(lambda after: storage.state.page("metadata.project", "a", after=after, limit=limit))
    assert pages == [{group: delta[group] for group in page} for page in itertools.batched(sorted(groups), limit)]


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_the_overview_has_the_totals_of_namespaces_by_name(storage: Storage, limit: int) -> None:
    generation = await storage.state.begin(PRINT)
    names = ["a", "a-b", "a.b", "a_b", "ab", "b", "b.2", "z"]
    delta = {(name, "namespace", name): totals() for name in names}
    other = {(name, "content_type", "aa"): totals() for name in names}
    assert await storage.state.apply(generation, delta | other, {DONE: (START, head(1))})
    pages = await paged(lambda after: storage.state.overview(after=after, limit=limit))
    assert pages == [{group: delta[group] for group in page} for page in itertools.batched(sorted(delta), limit)]


async def test_pages_have_what_may_be_seen_of_the_live_state(storage: Storage) -> None:
    live = await storage.state.begin(PRINT)
    delta = {(name, "namespace", name): totals() for name in ("a", "b.1", "b.2", "c")}
    reached = head(1)
    assert await storage.state.apply(live, delta, {DONE: (START, reached)})
    await build(storage, {("b.3", "namespace", "b.3"): totals()}, {DONE: reached})
    few = Visible(("b.*", "c"))
    for limit, names in ((2, ["b.1", "b.2"]), (9, ["b.1", "b.2", "c"])):
        seen = await storage.state.overview(after=None, limit=limit, visible=few)
        assert [group[0] for group in seen] == names
    assert await storage.state.page("namespace", "a", after=None, limit=9, visible=few) == {}
    assert len(await storage.state.page("namespace", "c", after=None, limit=9, visible=few)) == 1


async def test_rows_are_refused_to_whoever_groups_otherwise(storage: Storage) -> None:
    assert await storage.state.rows(None, fingerprint="another contract") == {}
    live, reached = await started(storage)
    assert await storage.state.rows(None, fingerprint=PRINT) == await all_rows(storage)
    for asked in ((None,), ("content_type", "a"), ("no such grouping",), (None, "no such namespace")):
        with pytest.raises(ForeignState, match=rf"another reducer contract \(generation {live.number}\)"):
            await storage.state.rows(*asked, fingerprint="another contract")
    for page in (
        storage.state.overview(after=None, limit=1, fingerprint="another contract"),
        storage.state.page("content_type", "no such namespace", after="x", limit=1, fingerprint="another contract"),
    ):
        with pytest.raises(ForeignState, match=rf"another reducer contract \(generation {live.number}\)"):
            await page
    building = await build(storage, state(other=totals()), {DONE: reached}, by="another contract")
    assert await storage.state.rows(None, fingerprint=PRINT) == await all_rows(storage)
    assert await storage.state.swap(building)
    with pytest.raises(ForeignState, match=f"generation {building.number}"):
        await storage.state.rows(None, fingerprint=PRINT)
    assert await storage.state.rows(None, fingerprint="another contract") == await all_rows(storage)


async def test_a_log_folded_through_the_ports_gives_its_totals(storage: Storage) -> None:
    await storage.ledger.record(
        [draft("a", b"123"), draft("a", b"123"), failure("b"), draft("c", metadata={"project": "x"})]
    )
    generation = await storage.state.begin(PRINT)
    assert await storage.fold_all(generation) == 3
    ((_, whole),) = (await storage.state.rows("namespace")).items()
    assert (whole.total_stamps, whole.failed, whole.total_size_bytes) == (2, 1, 4)
    assert await storage.state.positions(generation) == await storage.source.heads()
    assert await storage.fold_all(generation) == 0
    rebuilt = await storage.state.begin(PRINT)
    before = await storage.whole_state()
    await storage.fold_all(rebuilt)
    assert await storage.state.swap(rebuilt)
    assert await storage.whole_state() == before
