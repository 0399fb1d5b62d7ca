"""Laws of the aggregate algebra, against a fold written a second time and as simply as possible."""

import hashlib
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.reduction import (
    EMPTY,
    Groupings,
    Item,
    State,
    Totals,
    bounded_key,
    fold,
    merge,
    merge_states,
)
from tests.property.strategies import GROUPINGS, MICROSECONDS, SIZES, TIMES, items

ITEMS = st.lists(items(), max_size=12)
EVENT_IDS = st.sampled_from(["a", "b", "c", "é"])
TOTALS = st.builds(
    Totals,
    total_stamps=st.integers(0, 2**62),
    failed=st.integers(0, 2**62),
    total_size_bytes=SIZES,
    processing_time_us_sum=MICROSECONDS,
    processing_time_us_min=st.none() | MICROSECONDS,
    processing_time_us_max=st.none() | MICROSECONDS,
    first=st.none() | st.tuples(TIMES, EVENT_IDS),
    last=st.none() | st.tuples(TIMES, EVENT_IDS),
)


def naive(found: list[Item], groupings: Groupings) -> State:
    """All items of each group collected, then summed: no running totals, no roll-up."""
    groups: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
    for item in found:
        for aggregation_type, key in naive_keys(item, groupings):
            groups[item.namespace, aggregation_type, key].append(item)
    return {group: naive_totals(members) for group, members in groups.items()}


def naive_keys(item: Item, groupings: Groupings) -> list[tuple[str, str]]:
    keys = [("namespace", item.namespace)]
    if groupings.time_window:
        since = item.at - datetime(1970, 1, 1, tzinfo=UTC)
        ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
        start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms - ms % groupings.window_ms)
        text = start.strftime("%m-%dT%H:%M:%S")
        fraction = f".{start.microsecond // 1000:03d}" if start.microsecond else ""
        keys.append(("time_window", f"{start.year:04d}-{text}{fraction}Z"))
    if not item.completed:
        return keys
    if groupings.content_type:
        keys.append(("content_type", naive_bound(item.content_type)))
    if groupings.size_bucket:
        keys.append(("size_bucket", naive_bucket(item.size, list(groupings.size_bounds))))
    for name in groupings.metadata_fields:
        if name in item.metadata:
            value = item.metadata[name]
            keys.append((f"metadata.{name}", naive_bound(value if isinstance(value, str) else naive_json(value))))
    return keys


def naive_json(value: Any) -> str:
    """JSON with sorted keys; numbers as the bridge's encoder writes them, whose digits are no law of grouping."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{naive_json(key)}:{naive_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(naive_json(each) for each in value) + "]"
    if isinstance(value, float):
        return msgspec.json.encode(value).decode()
    return json.dumps(value, ensure_ascii=False)


def naive_bucket(size: int, bounds: list[int]) -> str:
    low = 0
    for bound in bounds:
        if size < bound:
            return f"{low}..{bound - 1}"
        low = bound
    return f"{low}.."


def naive_bound(key: str) -> str:
    key = "".join("\ufffd" if letter == "\0" else letter for letter in key)
    data = key.encode()
    if len(data) <= 256:
        return key
    cut = 184
    while data[cut] & 0b1100_0000 == 0b1000_0000:
        cut -= 1
    return "sha256:" + hashlib.sha256(data).hexdigest() + ":" + data[:cut].decode()


def naive_totals(members: list[Item]) -> Totals:
    done = [item for item in members if item.completed]
    times = sorted((item.at, item.event_id) for item in members)
    took = sorted(item.processing_us for item in done)
    return Totals(
        total_stamps=len(done),
        failed=len(members) - len(done),
        total_size_bytes=sum(item.size for item in done),
        processing_time_us_sum=sum(took),
        processing_time_us_min=took[0] if took else None,
        processing_time_us_max=took[-1] if took else None,
        first=times[0],
        last=times[-1],
    )


@given(ITEMS, GROUPINGS)
def test_the_fold_equals_the_naive_fold(found: list[Item], groupings: Groupings) -> None:
    assert fold(found, groupings) == naive(found, groupings)


@given(TOTALS, TOTALS, TOTALS)
def test_merge_is_associative(a: Totals, b: Totals, c: Totals) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(TOTALS, TOTALS)
def test_merge_is_commutative(a: Totals, b: Totals) -> None:
    assert merge(a, b) == merge(b, a)


@given(TOTALS)
def test_empty_is_the_unit_of_merge(a: Totals) -> None:
    assert merge(EMPTY, a) == a == merge(a, EMPTY)


@given(ITEMS, ITEMS, GROUPINGS)
def test_the_fold_of_both_is_the_merge_of_the_folds(a: list[Item], b: list[Item], groupings: Groupings) -> None:
    assert fold(a + b, groupings) == merge_states(fold(a, groupings), fold(b, groupings))


@given(ITEMS, GROUPINGS, st.randoms(use_true_random=False))
def test_any_order_of_the_items_gives_the_same_state(found: list[Item], groupings: Groupings, random: Any) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert fold(shuffled, groupings) == fold(found, groupings)


@given(ITEMS, GROUPINGS, st.lists(st.integers(1, 5), max_size=12), st.randoms(use_true_random=False))
def test_any_batching_in_any_order_of_the_batches_gives_the_same_state(
    found: list[Item], groupings: Groupings, sizes: list[int], random: Any
) -> None:
    batches: list[list[Item]] = []
    rest = list(found)
    for size in [*sizes, len(found)]:
        batches.append(rest[:size])
        rest = rest[size:]
    random.shuffle(batches)
    state: State = {}
    for batch in batches:
        state = merge_states(state, fold(batch, groupings))
    assert state == fold(found, groupings)


@given(ITEMS, ITEMS, GROUPINGS)
def test_merging_states_changes_neither(a: list[Item], b: list[Item], groupings: Groupings) -> None:
    one, other = fold(a, groupings), fold(b, groupings)
    before = dict(one), dict(other)
    merge_states(one, other)
    assert (one, other) == before


@given(ITEMS, GROUPINGS)
def test_every_grouping_of_all_stamps_counts_each_stamp_once(found: list[Item], groupings: Groupings) -> None:
    state = fold(found, groupings)
    stamps = sum(item.completed for item in found)
    whole = {"namespace"} | {
        name for name in ("content_type", "size_bucket", "time_window") if getattr(groupings, name)
    }
    for aggregation_type in whole:
        members = [totals for group, totals in state.items() if group[1] == aggregation_type]
        assert sum(totals.total_stamps for totals in members) == stamps
        assert sum(totals.total_size_bytes for totals in members) == sum(item.size for item in found if item.completed)


@given(ITEMS, GROUPINGS)
def test_the_state_holds_only_what_the_groupings_name(found: list[Item], groupings: Groupings) -> None:
    assert {group[1] for group in fold(found, groupings)} <= set(groupings.names())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.text("a🙂é", min_size=50, max_size=400))
def test_a_group_key_never_exceeds_256_bytes_and_short_ones_are_kept(key: str) -> None:
    bounded = bounded_key(key)
    assert len(bounded.encode()) <= 256
    assert "\0" not in bounded  # PostgreSQL holds no NUL
    assert (bounded == key) == (len(key.encode()) <= 256 and "\0" not in key)
    assert bounded == naive_bound(key)
