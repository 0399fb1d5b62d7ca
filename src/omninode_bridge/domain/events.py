"""Events: CloudEvents 1.0 in JSON, structured mode (https://github.com/cloudevents/spec, v1.0.2).

One event ends each workflow that made a stamp or failed. `dataschema` names the shape and version of `data`
and is what a reader goes by: `type` is the topic, which the contract may rename. A reader accepts every
schema ever written: a new version is a new class with a new tag, added to `Event`; none is ever removed.
Where a namespace was erased a tombstone stands in each of its events' places: no data, no namespace, no workflow.

`shard`, `position` and `previousid` are extension attributes: each event names the one before it in its
shard of its topic, so that a reader can prove that it skipped nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b

import msgspec

from omninode_bridge.domain.errors import BridgeError, CorruptEvent
from omninode_bridge.domain.log import NIL_ID, SHARDS_MAX, Record
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.domain.stamp import Stamp

CONTENT_TYPE = "application/cloudevents+json"
SEAL_HEADER = "omninode-mac"
SOURCE = "/omninode-bridge/orchestrator"
COMPLETED_SCHEMA = "urn:omninode-bridge:stamping-completed:1"
FAILED_SCHEMA = "urn:omninode-bridge:stamping-failed:1"
ERASED_SCHEMA = "urn:omninode-bridge:erased:1"


class FailureData(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a failed event says: the workflow, the step that failed, why."""

    workflow_id: str
    namespace: str
    file_path: str
    step: str
    error_code: str
    error_message: str


class _CloudEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="dataschema", omit_defaults=True, gc=False):
    # specversion and datacontenttype have no default on purpose: they are required on the wire.
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    datacontenttype: str
    namespace: str
    shard: int
    position: int
    previousid: str
    traceparent: str | None = None


class StampingCompleted(_CloudEvent, frozen=True, kw_only=True, tag=COMPLETED_SCHEMA, gc=False):
    """A new stamp was recorded; `data` is the stamp."""

    data: Stamp


class StampingFailed(_CloudEvent, frozen=True, kw_only=True, tag=FAILED_SCHEMA, gc=False):
    """A workflow failed for good."""

    data: FailureData


class Erased(_CloudEvent, frozen=True, kw_only=True, tag=ERASED_SCHEMA, gc=False):
    """A tombstone: what is left of an event whose namespace was erased, at `time`. It counts nowhere."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """What tells where an event stands in the log; the rest is passed over."""

    id: str
    type: str
    subject: str
    namespace: str
    shard: int
    position: int
    previousid: str


type Event = StampingCompleted | StampingFailed | Erased

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder()
_is_id = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_placer = msgspec.json.Decoder(Place)
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(StampingCompleted | StampingFailed | Erased)


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON."""
    return _encoder.encode(event)


def erased(topic: str, shard: int, position: int, event_id: str, previous_id: str, at: datetime) -> Erased:
    """Return the tombstone of the event in a place of the log: it keeps the chain, and does not tell whose it was."""
    return Erased(
        specversion="1.0",
        id=event_id,
        source=SOURCE,
        type=topic,
        subject=NIL_ID,
        time=at,
        datacontenttype="application/json",
        namespace="",
        shard=shard,
        position=position,
        previousid=previous_id,
    )


def decode(body: bytes) -> Event:
    """Return the event in `body`; CorruptEvent for bytes that are no event of any known schema."""
    try:
        event = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise CorruptEvent(f"not an event of a known schema: {error}") from error
    if event.specversion != "1.0":
        raise CorruptEvent(f"CloudEvents specversion {event.specversion!r} is not 1.0")
    if event.time.tzinfo is not UTC or event.time < _EPOCH:
        raise CorruptEvent(f"time {event.time.isoformat()} is not UTC, or before 1970: no event was ever written so")
    if isinstance(event, Erased):
        if event.namespace or event.subject != NIL_ID:
            raise CorruptEvent(f"event {event.id} is a tombstone and still tells whose it was")
        return event
    if event.namespace != event.data.namespace or event.subject != event.data.workflow_id:
        raise CorruptEvent(f"event {event.id} disagrees with its own data about namespace or workflow")
    return event


def record_of(body: bytes) -> Record:
    """Return the place in the log that an event names, with the event; CorruptEvent where it names none."""
    try:
        place = _placer.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise CorruptEvent(f"not an event with a place in the log: {error}") from error
    check_place(place)
    if not (_is_id(place.previousid) and _is_id(place.subject)):
        raise CorruptEvent("its ids are no UUIDs")
    return Record(
        place.type, place.shard, place.position, place.id, place.previousid, place.namespace, place.subject, body
    )


def check_place(place: Place | Event) -> None:
    """Raise CorruptEvent where an event has an id, a namespace or a position that none in a log has."""
    if not _is_id(place.id):
        raise CorruptEvent("its ids are no UUIDs")
    if place.namespace and not _is_namespace(place.namespace):  # a tombstone has none
        raise CorruptEvent(f"{place.namespace!r:.80} is no namespace")
    if place.position < 1 or not 0 <= place.shard < SHARDS_MAX:
        raise CorruptEvent(f"shard {place.shard} position {place.position} is no place in a log")


@lru_cache(4096)
def _is_namespace(text: str) -> bool:
    try:
        return check_namespace(text) == text
    except BridgeError:
        return False


def seal(key: bytes, body: bytes) -> bytes:
    """Return the keyed digest of an encoded event, as hexadecimal digits: whoever has not the key can't make it."""
    return sealer(key)(body)


@lru_cache(8)
def sealer(key: bytes) -> Callable[[bytes], bytes]:
    """Return `seal` for a key, which is taken in already: it is a block of its own."""
    keyed = blake2b(key=key, digest_size=16).copy

    def sealed(body: bytes) -> bytes:
        digest = keyed()
        digest.update(body)
        return digest.hexdigest().encode()

    return sealed
