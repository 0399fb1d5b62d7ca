"""Makers of domain values for tests: every argument has a sensible default, so a test names only what it is about."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from omninode_bridge.adapters.memory import SeededIds
from omninode_bridge.domain.events import SOURCE, FailureData, StampingCompleted, StampingFailed, encode
from omninode_bridge.domain.log import NIL_ID, START, Head, Record
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.domain.stamp import (
    Acceptance,
    Digest,
    DigestOrigin,
    Draft,
    Failure,
    FileFacts,
    Inline,
    Stamp,
    StampRequest,
)
from omninode_bridge.domain.workflow import Machine, Plan, Retry, Step, advance, begin

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NAMESPACE = "legal.contracts"
COMPLETED = "workflow.stamping.completed"
FAILED = "workflow.stamping.failed"

MACHINE = Machine(
    initial="pending",
    terminal=frozenset({"completed", "failed"}),
    table={
        ("pending", "start"): "processing",
        ("processing", "complete"): "completed",
        ("processing", "fail"): "failed",
    },
)
PLAN = Plan(
    machine=MACHINE,
    steps=(Step("hash", "compute", 30_000, 0), Step("stamp", "effect", 10_000, 5, ("hash",))),
    retry=Retry(0.1, 5.0),
    completed_topic=COMPLETED,
    failed_topic=FAILED,
)
GROUPINGS = Groupings(metadata_fields=("project",))
FACTS = FileFacts(size=1, mtime_ns=2, ctime_ns=3, inode=4, device=5)

_op_ids = SeededIds(7_777_777)


def new_id() -> str:
    """A UUID nobody had before."""
    return _op_ids(1)[0]


def hash_of(content: bytes) -> str:
    """64 hexadecimal digits that stand for a content; which hash function made them is no concern of storage."""
    return hashlib.sha256(content).hexdigest()


def digest(
    content: bytes = b"a", origin: DigestOrigin = "computed", facts: FileFacts | None = None, hash_time_us: int = 7
) -> Digest:
    return Digest(hash_of(content), len(content), origin, hash_time_us, facts)


def request(
    path: str = "a.txt",
    content: bytes = b"a",
    *,
    op: str | None = None,
    namespace: str = NAMESPACE,
    content_type: str = "text/plain",
    metadata: dict[str, Any] | None = None,
    at: datetime = NOW,
    **more: Any,
) -> StampRequest:
    return StampRequest(
        workflow_id=op or new_id(),
        namespace=namespace,
        file_path=path,
        content=Inline(content),
        created_at=at,
        content_type=content_type,
        metadata=metadata or {},
        op_id_given=op is not None,
        **more,
    )


def draft(
    path: str = "a.txt",
    content: bytes = b"a",
    *,
    origin: DigestOrigin = "computed",
    facts: FileFacts | None = None,
    intelligence: dict[str, Any] | None = None,
    **asked: Any,
) -> Draft:
    """A workflow that reached the ledger's step. `asked` is what `request` takes."""
    asking = request(path, content, **asked)
    return Draft(
        request=asking,
        digest=digest(content, origin, facts),
        visits=advance(MACHINE, begin(MACHINE, asking.created_at), "start", asking.created_at),
        intelligence=intelligence,
        steps_executed=2,
    )


def failure(
    path: str = "a.txt", *, step: str = "hash", message: str = "the bytes could not be read", **asked: Any
) -> Failure:
    """A workflow that a step failed for good. `asked` is what `request` takes."""
    asking = request(path, **asked)
    return Failure(
        request=asking,
        visits=advance(MACHINE, begin(MACHINE, asking.created_at), "start", asking.created_at),
        step=step,
        error_code="content_unavailable",
        error_message=message,
    )


def acceptance(path: str = "a.txt", content: bytes = b"a", **asked: Any) -> Acceptance:
    """A workflow that is to be run later. `asked` is what `request` takes."""
    asking = request(path, content, **asked)
    return Acceptance(request=asking, visits=begin(MACHINE, asking.created_at), digest=digest(content))


def leased_draft(held: StampRequest) -> Draft:
    """What a worker brings to the ledger when the steps of a workflow that it holds succeeded."""
    assert held.lease is not None and isinstance(held.content, Inline)
    return Draft(request=held, digest=digest(held.content.data), visits=held.lease.visits, steps_executed=2)


def leased_failure(held: StampRequest, message: str = "the service was away") -> Failure:
    """What a worker brings to the ledger when a step of a workflow that it holds failed for good."""
    assert held.lease is not None
    return Failure(
        request=held, visits=held.lease.visits, step="hash", error_code="stamping_unavailable", error_message=message
    )


def stamp(**fields: Any) -> Stamp:
    workflow_id = fields.pop("workflow_id", None) or new_id()
    defaults: dict[str, Any] = {
        "stamp_id": new_id(),
        "stamped_by": "local",
        "op_id": workflow_id,
        "namespace": NAMESPACE,
        "file_path": "a.txt",
        "file_hash": hash_of(b"a"),
        "file_size": 1,
        "content_type": "text/plain",
        "version": 1,
        "workflow_state": "completed",
        "created_at": NOW,
        "completed_at": NOW,
        "processing_time_ms": 1.5,
        "hash_generation_time_ms": 0.25,
        "workflow_steps_executed": 2,
    }
    return Stamp(workflow_id=workflow_id, **{**defaults, **fields})


def completed(of: Stamp | None = None, **fields: Any) -> StampingCompleted:
    data = of or stamp()
    return StampingCompleted(**_envelope(COMPLETED, data, fields), data=data)


def failed(of: FailureData | None = None, **fields: Any) -> StampingFailed:
    data = of or FailureData(
        workflow_id=new_id(),
        namespace=NAMESPACE,
        file_path="a.txt",
        step="hash",
        error_code="content_unavailable",
        error_message="the bytes could not be read",
    )
    return StampingFailed(**_envelope(FAILED, data, fields), data=data)


def chain(length: int, *, after: Head = START, topic: str = COMPLETED, shard: int = 0) -> list[Record]:
    """Records that follow `after`, one after another, each with a real event in it."""
    records: list[Record] = []
    for _ in range(length):
        event = completed(id=new_id(), position=after.position + 1, previousid=after.event_id, shard=shard, type=topic)
        records.append(
            Record(topic, shard, event.position, event.id, event.previousid, NAMESPACE, event.subject, encode(event))
        )
        after = records[-1].head
    return records


def paths(stamps: Sequence[Stamp]) -> list[str]:
    return [each.file_path for each in stamps]


def _envelope(topic: str, data: Stamp | FailureData, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": new_id(),
        "source": SOURCE,
        "type": topic,
        "subject": data.workflow_id,
        "time": NOW,
        "datacontenttype": "application/json",
        "namespace": data.namespace,
        "shard": 0,
        "position": 1,
        "previousid": NIL_ID,
        **fields,
    }
