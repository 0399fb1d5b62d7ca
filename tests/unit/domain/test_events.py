"""Events on the wire: CloudEvents 1.0, schema version 1, and what is refused."""

import json
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from omninode_bridge.domain.errors import CorruptEvent
from omninode_bridge.domain.events import COMPLETED_SCHEMA, FAILED_SCHEMA, Event, decode, encode
from tests.making import COMPLETED, FAILED, NAMESPACE, completed, failed, stamp

# As written by schema version 1, byte for byte. A reader accepts every schema ever written: these never change.
COMPLETED_V1 = (
    '{"dataschema":"urn:omninode-bridge:stamping-completed:1","specversion":"1.0",'
    '"id":"019c0000-0000-7000-8000-000000000002","source":"/omninode-bridge/orchestrator",'
    '"type":"workflow.stamping.completed","subject":"019c0000-0000-7000-8000-000000000001",'
    '"time":"2026-03-01T12:00:00.000001Z","datacontenttype":"application/json","namespace":"legal.contracts",'
    '"shard":3,"position":7,"previousid":"019c0000-0000-7000-8000-000000000000","data":{'
    '"stamp_id":"019c0000-0000-7000-8000-000000000003","stamped_by":"local",'
    '"workflow_id":"019c0000-0000-7000-8000-000000000001","op_id":"019c0000-0000-7000-8000-000000000001",'
    '"namespace":"legal.contracts","file_path":"ä.txt","file_hash":"' + "ab" * 32 + '","hash_algorithm":"blake3",'
    '"digest_origin":"computed","file_size":12,"content_type":"text/plain","version":2,"metadata_version":"0.1",'
    '"metadata":{"project":"x"},"intelligence":null,"workflow_state":"completed","deduplicated":false,'
    '"created_at":"2026-03-01T12:00:00Z","completed_at":"2026-03-01T12:00:00.000001Z","processing_time_ms":0.001,'
    '"hash_generation_time_ms":0.0,"workflow_steps_executed":2}}'
).encode()
FAILED_V1 = (
    b'{"dataschema":"urn:omninode-bridge:stamping-failed:1","specversion":"1.0",'
    b'"id":"019c0000-0000-7000-8000-000000000002","source":"/omninode-bridge/orchestrator",'
    b'"type":"workflow.stamping.failed","subject":"019c0000-0000-7000-8000-000000000001",'
    b'"time":"2026-03-01T12:00:00Z","datacontenttype":"application/json","namespace":"legal.contracts",'
    b'"shard":0,"position":1,"previousid":"00000000-0000-0000-0000-000000000000",'
    b'"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","data":{'
    b'"workflow_id":"019c0000-0000-7000-8000-000000000001","namespace":"legal.contracts","file_path":"a.txt",'
    b'"step":"hash","error_code":"content_unavailable","error_message":"gone"}}'
)


@pytest.mark.parametrize("body", [COMPLETED_V1, FAILED_V1], ids=["completed", "failed"])
def test_what_version_1_wrote_is_read_and_written_byte_for_byte(body: bytes) -> None:
    assert encode(decode(body)) == body


@pytest.mark.parametrize(
    ("event", "topic", "schema"), [(completed(), COMPLETED, COMPLETED_SCHEMA), (failed(), FAILED, FAILED_SCHEMA)]
)
def test_the_cloudevents_sdk_reads_our_events(event: Event, topic: str, schema: str) -> None:
    body = encode(event)
    foreign = JSONFormat().read(CloudEvent, body)
    assert foreign.get_id() == event.id
    assert foreign.get_type() == topic
    assert foreign.get_subject() == event.data.workflow_id
    assert foreign.get_time() == event.time
    assert foreign.get_dataschema() == schema
    assert foreign.get_extension("namespace") == NAMESPACE
    assert foreign.get_extension("previousid") == event.previousid
    assert foreign.get_data() == json.loads(body)["data"]


def test_what_the_cloudevents_sdk_writes_again_is_the_same_event() -> None:
    event = completed(stamp(metadata={"project": "x"}), traceparent="00-" + "0" * 32 + "-" + "0" * 16 + "-00")
    again = JSONFormat().write(JSONFormat().read(CloudEvent, encode(event)))
    assert decode(again) == event


def test_an_event_is_one_line() -> None:
    assert b"\n" not in encode(completed(stamp(file_path="a\nb", metadata={"x": "\r\n\u2028"})))


def test_a_renamed_topic_is_read_by_its_schema() -> None:
    event = completed(type="renamed.by.the.contract")
    assert decode(encode(event)) == event


def changed(body: bytes, **fields: Any) -> bytes:
    """The event with attributes replaced; None removes one. Keys `data_*` reach into the data."""
    event = json.loads(body)
    for name, value in fields.items():
        target, key = (event["data"], name[5:]) if name.startswith("data_") else (event, name)
        if value is None:
            del target[key]
        else:
            target[key] = value
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"specversion": "0.3"},
        {"specversion": None},
        {"datacontenttype": None},
        {"dataschema": "urn:omninode-bridge:stamping-completed:2"},
        {"dataschema": FAILED_SCHEMA},
        {"dataschema": None},
        {"id": None},
        {"id": 7},
        {"time": "yesterday"},
        {"time": "2026-03-01T12:00:00"},
        {"time": "2026-03-01T12:00:00+02:00"},
        {"time": "1969-12-31T23:59:59Z"},
        {"position": "1"},
        {"position": 1.5},
        {"namespace": "another"},
        {"subject": "another"},
        {"data_namespace": "another"},
        {"data_workflow_id": "another"},
        {"data_file_size": -1},
        {"data_file_size": 2**62 + 1},
        {"data_file_size": 10**30},
        {"data_processing_time_ms": -0.5},
        {"data_processing_time_ms": 1e300},
        {"data_completed_at": "2026-03-01T12:00:00"},
        {"data_metadata": []},
        {"data_digest_origin": "guessed"},
        {"data_file_hash": None},
        {"data": []},
        {"data": "text"},
    ],
    ids=str,
)
def test_an_event_that_breaks_a_rule_of_its_schema_is_corrupt(fields: dict[str, Any]) -> None:
    assert decode(changed(COMPLETED_V1)) == decode(COMPLETED_V1)
    if "data" in fields:
        body = json.dumps({**json.loads(COMPLETED_V1), **fields}).encode()
    else:
        body = changed(COMPLETED_V1, **fields)
    with pytest.raises(CorruptEvent):
        decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"\xff",
        b'"\xed\xa0\x80"',
        COMPLETED_V1[:-1],
        COMPLETED_V1 + b"}",
        b"[" * 100_000,
        b'{"data":' * 100_000,
        b"9" * 10_000,
        COMPLETED_V1.replace(b'"project":"x"', b'"project":"\\ud800"'),
        COMPLETED_V1.replace(b'"project":"x"', b'"project":' + b"[" * 100_000 + b"]" * 100_000),
        COMPLETED_V1.replace(b'"file_size":12', b'"file_size":' + b"9" * 10_000),
        COMPLETED_V1.replace(b'"processing_time_ms":0.001', b'"processing_time_ms":1e999'),
        COMPLETED_V1.decode().encode("utf-16"),
    ],
    ids=range(16),
)
def test_bytes_that_are_no_event_raise_corrupt_event_and_nothing_else(body: bytes) -> None:
    with pytest.raises(CorruptEvent):
        decode(body)


def test_attributes_we_do_not_know_are_ignored() -> None:
    assert decode(changed(COMPLETED_V1, tracestate="x", data_new_field=1)) == decode(COMPLETED_V1)


def test_numbers_at_their_bounds_are_read() -> None:
    event = decode(changed(COMPLETED_V1, data_file_size=2**62, data_processing_time_ms=0.0))
    assert msgspec.to_builtins(event.data)["file_size"] == 2**62
