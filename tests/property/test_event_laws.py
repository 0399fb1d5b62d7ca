"""Laws of events: they survive the wire, other CloudEvents readers accept them, damage raises CorruptEvent only."""

import json

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.errors import CorruptEvent
from omninode_bridge.domain.events import Event, decode, encode
from omninode_bridge.domain.reduction import Groupings, fold, item_of
from omninode_bridge.domain.stamp import microseconds
from tests.property.strategies import EVENTS, GROUPINGS, MICROSECONDS


def decoded_or_corrupt(body: bytes) -> Event | None:
    try:
        return decode(body)
    except CorruptEvent:
        return None


@given(EVENTS)
def test_an_event_survives_encoding_and_decoding(event: Event) -> None:
    assert decode(encode(event)) == event


@given(EVENTS)
def test_encoding_what_was_decoded_gives_the_same_bytes(event: Event) -> None:
    assert encode(decode(encode(event))) == encode(event)


@given(EVENTS)
def test_an_event_is_one_line_of_utf8_that_any_json_reader_takes(event: Event) -> None:
    body = encode(event)
    assert b"\n" not in body
    assert b"\r" not in body
    parsed = json.loads(body.decode())
    assert parsed["data"]["file_path"] == event.data.file_path


@given(EVENTS)
def test_the_cloudevents_sdk_accepts_every_event_and_says_the_same_of_it(event: Event) -> None:
    foreign = JSONFormat().read(CloudEvent, encode(event))
    attributes = foreign.get_attributes()
    assert attributes["specversion"] == "1.0"
    assert (attributes["id"], attributes["type"], attributes["subject"]) == (event.id, event.type, event.subject)
    assert (attributes["time"], attributes["position"], attributes["shard"]) == (
        event.time,
        event.position,
        event.shard,
    )
    assert attributes.get("traceparent") == event.traceparent
    data = foreign.get_data()
    assert isinstance(data, dict)
    assert data["namespace"] == event.namespace


@given(EVENTS)
def test_an_event_that_the_cloudevents_sdk_wrote_again_is_the_same(event: Event) -> None:
    assert decode(JSONFormat().write(JSONFormat().read(CloudEvent, encode(event)))) == event


@given(EVENTS, st.data())
def test_a_truncated_event_is_corrupt(event: Event, data: st.DataObject) -> None:
    body = encode(event)
    assert decoded_or_corrupt(body[: data.draw(st.integers(0, len(body) - 1))]) is None


@given(EVENTS, st.data())
def test_a_mutated_event_decodes_or_is_corrupt_and_nothing_else(event: Event, data: st.DataObject) -> None:
    body = bytearray(encode(event))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        kind = data.draw(st.sampled_from(["replace", "insert", "remove"]))
        if kind == "replace":
            body[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            body[place:place] = data.draw(st.binary(max_size=6) | st.sampled_from([b"9" * 400, b"-", b"[", b"null"]))
        elif len(body) > 1:
            del body[place]
    decoded_or_corrupt(bytes(body))


@given(st.binary(max_size=200))
def test_random_bytes_are_corrupt(body: bytes) -> None:
    assert decoded_or_corrupt(body) is None


JSON_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


@given(JSON_DOCUMENTS)
def test_other_json_is_corrupt(document: object) -> None:
    assert decoded_or_corrupt(json.dumps(document).encode()) is None


@given(EVENTS, st.data())
def test_an_event_with_any_member_replaced_decodes_or_is_corrupt(event: Event, data: st.DataObject) -> None:
    parsed = json.loads(encode(event))
    target = parsed["data"] if data.draw(st.booleans()) else parsed
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON_DOCUMENTS)
    found = decoded_or_corrupt(json.dumps(parsed).encode())
    if found is not None:
        assert decode(encode(found)) == found


@given(EVENTS, GROUPINGS, st.data())
def test_whatever_decodes_can_be_folded(event: Event, groupings: Groupings, data: st.DataObject) -> None:
    parsed = json.loads(encode(event))
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    years = st.integers(1, 9999).map(lambda year: f"{year:04d}-01-01T00:00:00Z")
    parsed["time"] = data.draw(years | st.just(parsed["time"]))
    if "file_size" in parsed["data"]:
        parsed["data"]["file_size"] = data.draw(numbers | st.just(1))
        parsed["data"]["processing_time_ms"] = data.draw(numbers | st.just(1))
    found = decoded_or_corrupt(json.dumps(parsed).encode())
    if found is not None:
        for totals in fold([item_of(found)], groupings).values():
            assert 0 <= totals.total_size_bytes < 2**63
            assert 0 <= totals.processing_time_us_sum < 2**63


@given(MICROSECONDS)
def test_milliseconds_give_back_the_exact_microseconds(exact: int) -> None:
    assert microseconds(exact / 1000) == exact


@given(MICROSECONDS)
def test_milliseconds_give_back_the_exact_microseconds_after_the_wire(exact: int) -> None:
    assert microseconds(json.loads(json.dumps(exact / 1000))) == exact
