"""The aggregate algebra by example: which item counts where, and under which key."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from omninode_bridge.domain.errors import CorruptEvent, NotFound
from omninode_bridge.domain.events import Event, encode, record_of
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import (
    EMPTY,
    SLIGHT_FIELDS_MAX,
    Groupings,
    Item,
    ReadRecord,
    Totals,
    bounded_key,
    bucket_key,
    fold,
    item_of,
    merge,
    read_item,
    read_record,
    window_key,
)
from tests.making import NAMESPACE, NOW, completed, failed, stamp

ALL = Groupings(metadata_fields=("project",))


def item(name: str = "e1", at: datetime = NOW, **fields: object) -> Item:
    return Item(name, at, NAMESPACE, **{"completed": True, **fields})  # type: ignore[arg-type]


def test_a_completed_stamp_counts_once_in_each_grouping() -> None:
    one = item(content_type="text/plain", size=2048, processing_us=5, metadata={"project": "x", "other": 1})
    totals = Totals(1, 0, 2048, 5, 5, 5, (NOW, "e1"), (NOW, "e1"))
    assert fold([one], ALL) == {
        (NAMESPACE, "namespace", NAMESPACE): totals,
        (NAMESPACE, "content_type", "text/plain"): totals,
        (NAMESPACE, "size_bucket", "1024..1048575"): totals,
        (NAMESPACE, "time_window", "2026-03-01T12:00:00Z"): totals,
        (NAMESPACE, "metadata.project", "x"): totals,
    }


def test_a_failed_workflow_counts_by_namespace_and_time_window_only() -> None:
    totals = Totals(0, 1, first=(NOW, "e1"), last=(NOW, "e1"))
    assert fold([item(completed=False)], ALL) == {
        (NAMESPACE, "namespace", NAMESPACE): totals,
        (NAMESPACE, "time_window", "2026-03-01T12:00:00Z"): totals,
    }


def test_a_grouping_that_the_contract_dropped_is_not_counted() -> None:
    bare = Groupings(content_type=False, size_bucket=False, time_window=False)
    assert set(fold([item(metadata={"project": "x"})], bare)) == {(NAMESPACE, "namespace", NAMESPACE)}


def test_a_stamp_without_the_field_is_in_no_group_of_it() -> None:
    state = fold([item(), item("e2", metadata={"other": "x"})], ALL)
    assert not [key for key in state if key[1] == "metadata.project"]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("x", "x"),
        ("", ""),
        (7, "7"),
        (True, "true"),
        (None, "null"),
        ([1, "a"], '[1,"a"]'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
    ],
)
def test_a_metadata_value_that_is_no_text_is_grouped_by_its_json(value: object, key: str) -> None:
    assert (NAMESPACE, "metadata.project", key) in fold([item(metadata={"project": value})], ALL)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        (0, "0..1023"),
        (1023, "0..1023"),
        (1024, "1024..1048575"),
        (1024**3 - 1, "1048576..1073741823"),
        (1024**3, "1073741824.."),
    ],
)
def test_a_size_falls_into_the_bucket_whose_bounds_hold_it(size: int, bucket: str) -> None:
    assert (NAMESPACE, "size_bucket", bucket) in fold([item(size=size)], ALL)


def test_without_bounds_there_is_one_bucket() -> None:
    assert bucket_key(0, ()) == "0.."


@pytest.mark.parametrize(
    ("at", "window_ms", "key"),
    [
        (datetime(2026, 3, 1, 12, 0, 59, 999_999, UTC), 60_000, "2026-03-01T12:00:00Z"),
        (datetime(2026, 3, 1, 12, 1, tzinfo=UTC), 60_000, "2026-03-01T12:01:00Z"),
        (datetime(2026, 3, 1, 12, 0, 1, 999_999, UTC), 1_500, "2026-03-01T12:00:01.500Z"),
        (datetime(1970, 1, 1, tzinfo=UTC), 86_400_000, "1970-01-01T00:00:00Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC), 7 * 86_400_000, "9999-12-30T00:00:00Z"),
    ],
)
def test_a_time_falls_into_the_window_that_began_last(at: datetime, window_ms: int, key: str) -> None:
    assert (NAMESPACE, "time_window", key) in fold([item(at=at)], Groupings(window_ms=window_ms))


def test_windows_are_named_by_their_start() -> None:
    assert window_key(1, 1) == "1970-01-01T00:00:00.001Z"


def test_first_and_last_go_by_time_then_event_id() -> None:
    early, late = NOW - timedelta(microseconds=1), NOW + timedelta(microseconds=1)
    totals = fold([item("b"), item("a"), item("c", late), item("d", late), item("z", early)], ALL)
    whole = totals[NAMESPACE, "namespace", NAMESPACE]
    assert (whole.first, whole.last) == ((early, "z"), (late, "d"))
    tied = fold([item("b"), item("c"), item("a")], ALL)[NAMESPACE, "namespace", NAMESPACE]
    assert (tied.first, tied.last) == ((NOW, "a"), (NOW, "c"))


def test_processing_times_are_of_completed_workflows_only() -> None:
    failed_only = fold([item(completed=False)], ALL)[NAMESPACE, "namespace", NAMESPACE]
    assert (failed_only.processing_time_us_min, failed_only.processing_time_us_max) == (None, None)
    mixed = merge(failed_only, Totals(1, 0, 0, 4, 4, 4))
    assert (mixed.processing_time_us_min, mixed.processing_time_us_max) == (4, 4)


def test_a_processing_time_of_zero_is_a_minimum() -> None:
    whole = fold([item(processing_us=0), item("e2", processing_us=3)], ALL)[NAMESPACE, "namespace", NAMESPACE]
    assert (whole.processing_time_us_min, whole.processing_time_us_max) == (0, 3)


def test_namespaces_are_apart() -> None:
    other = Item("e2", NOW, "other", True)
    assert {key[0] for key in fold([item(), other], ALL)} == {NAMESPACE, "other"}


def test_nothing_folds_to_nothing() -> None:
    assert fold([], ALL) == {}
    assert merge(EMPTY, EMPTY) == EMPTY


def test_an_event_gives_its_item() -> None:
    done = completed(stamp(file_size=9, processing_time_ms=0.123, metadata={"project": "x"}))
    assert item_of(done) == Item(done.id, NOW, NAMESPACE, True, "text/plain", 9, 123, {"project": "x"})
    gone = failed()
    assert item_of(gone) == Item(gone.id, NOW, NAMESPACE, False)


def test_a_group_key_at_the_limit_is_kept_and_one_beyond_is_shortened() -> None:
    assert bounded_key("x" * 256) == "x" * 256
    short = bounded_key("x" * 257)
    assert short.startswith("sha256:")
    assert len(short.encode()) == 256
    assert short.endswith("x" * 184)


def test_a_shortened_key_does_not_break_a_character() -> None:
    assert len(bounded_key("a" + "🙂" * 100).encode()) <= 256


def test_long_keys_that_differ_at_their_end_stay_apart() -> None:
    assert bounded_key("x" * 300 + "a") != bounded_key("x" * 300 + "b")


def test_groupings_name_what_is_stored_and_refuse_what_is_not() -> None:
    assert ALL.names() == ("namespace", "content_type", "size_bucket", "time_window", "metadata.project")
    assert ALL.check("metadata.project") == "metadata.project"
    with pytest.raises(NotFound, match=r"'metadata\.team' is not aggregated"):
        ALL.check("metadata.team")
    with pytest.raises(NotFound):
        Groupings(time_window=False).check("time_window")


@pytest.mark.parametrize(
    "event",
    [
        completed(),
        completed(stamp(metadata={"project": "x", "n": 1, "none": None})),
        completed(stamp(metadata={"nested": [[], []]})),
        completed(stamp(metadata={f"k{n}": "v" for n in range(SLIGHT_FIELDS_MAX + 1)})),
        failed(),
    ],
    ids=["plain", "flat metadata", "nested metadata", "much metadata", "failed"],
)
def test_a_record_that_was_read_where_it_arrived_is_the_one_that_is_read_later(event: Event) -> None:
    body = encode(event)
    early, late = read_record(body), record_of(body)
    assert [getattr(early, name) for name in Record.__struct_fields__] == list(msgspec.structs.astuple(late))
    assert read_item(early) == read_item(late) == item_of(event)


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [({"a": "b", "n": 1, "t": True, "z": None}, True), ({"a": [[]] * 9}, False), ({"a": {}}, False)],
    ids=["flat", "a list", "an object"],
)
def test_what_takes_far_more_room_than_its_text_is_not_kept_read(metadata: dict[str, object], kept: bool) -> None:
    assert isinstance(read_record(encode(completed(stamp(metadata=metadata)))), ReadRecord) is kept


def test_a_record_with_a_place_that_can_not_be_read_arrives_and_is_told_of_when_it_is_folded() -> None:
    body = encode(completed()).replace(b'"version":1', b'"version":"one"')
    with pytest.raises(CorruptEvent, match="version"):
        read_item(read_record(body))


def test_an_id_that_is_none_is_no_place_however_well_the_rest_is_read() -> None:
    with pytest.raises(CorruptEvent, match="UUID"):
        read_record(encode(completed(id="x")))
