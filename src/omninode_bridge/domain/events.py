"""Events: CloudEvents 1.0 in JSON, structured mode (https://github.com/cloudevents/spec, v1.0.2).

One event ends each workflow that made a stamp or failed. `dataschema` names the shape and version of `data`
and is what a reader goes by: `type` is the topic, which the contract may rename. A reader accepts every
schema ever written: a new version is a new class with a new tag, added to `Event`; none is ever removed.

`shard`, `position` and `previousid` are extension attributes: each event names the one before it in its
shard of its topic, so that a reader can prove that it skipped nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from omninode_bridge.domain.errors import CorruptEvent
from omninode_bridge.domain.stamp import Stamp

CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "/omninode-bridge/orchestrator"
COMPLETED_SCHEMA = "urn:omninode-bridge:stamping-completed:1"
FAILED_SCHEMA = "urn:omninode-bridge:stamping-failed:1"


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


type Event = StampingCompleted | StampingFailed

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(StampingCompleted | StampingFailed)


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON."""
    return _encoder.encode(event)


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
    if event.namespace != event.data.namespace or event.subject != event.data.workflow_id:
        raise CorruptEvent(f"event {event.id} disagrees with its own data about namespace or workflow")
    return event
