"""What is left of an event whose namespace was erased: its place, and nothing of whose it was."""

import json
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from omninode_bridge.domain.errors import CorruptEvent
from omninode_bridge.domain.events import ERASED_SCHEMA, Erased, decode, encode, erased
from omninode_bridge.domain.log import NIL_ID
from omninode_bridge.domain.reduction import Groupings, fold, item_of
from tests.making import COMPLETED, NAMESPACE, NOW, completed, failed, new_id

ID, PREVIOUS = new_id(), new_id()
TOMBSTONE = erased(COMPLETED, 3, 7, ID, PREVIOUS, NOW)

# As written by schema version 1, byte for byte. A reader accepts every schema ever written: this never changes.
ERASED_V1 = (
    b'{"dataschema":"urn:omninode-bridge:erased:1","specversion":"1.0","id":"019c0000-0000-7000-8000-000000000002",'
    b'"source":"/omninode-bridge/orchestrator","type":"workflow.stamping.completed",'
    b'"subject":"00000000-0000-0000-0000-000000000000","time":"2026-03-01T12:00:00Z",'
    b'"datacontenttype":"application/json","namespace":"","shard":3,"position":7,'
    b'"previousid":"019c0000-0000-7000-8000-000000000000"}'
)


def test_what_version_1_wrote_is_read_and_written_byte_for_byte() -> None:
    assert isinstance(decode(ERASED_V1), Erased)
    assert encode(decode(ERASED_V1)) == ERASED_V1


def test_a_tombstone_keeps_its_place_and_nothing_else() -> None:
    told = json.loads(encode(TOMBSTONE))
    assert (told["id"], told["previousid"], told["type"], told["shard"], told["position"]) == (
        ID,
        PREVIOUS,
        COMPLETED,
        3,
        7,
    )
    assert (told["namespace"], told["subject"]) == ("", NIL_ID)
    assert told.keys() == json.loads(ERASED_V1).keys()


def test_the_cloudevents_sdk_reads_a_tombstone() -> None:
    foreign = JSONFormat().read(CloudEvent, encode(TOMBSTONE))
    assert (foreign.get_id(), foreign.get_type(), foreign.get_dataschema()) == (ID, COMPLETED, ERASED_SCHEMA)
    assert foreign.get_data() is None


@pytest.mark.parametrize("changed", [{"namespace": NAMESPACE}, {"subject": ID}, {"specversion": "2.0"}])
def test_a_tombstone_that_tells_of_somebody_is_corrupt(changed: dict[str, Any]) -> None:
    with pytest.raises(CorruptEvent):
        decode(json.dumps(json.loads(ERASED_V1) | changed).encode())


def test_a_tombstone_counts_nowhere() -> None:
    groupings = Groupings(metadata_fields=("project",))
    events = [completed(), failed(), completed()]
    items = [item_of(event) for event in events]
    graves = [item_of(msgspec.structs.replace(TOMBSTONE, id=new_id())) for _ in range(3)]
    assert fold(graves, groupings) == {}
    assert fold([graves[0], *items, *graves], groupings) == fold(items, groupings)
