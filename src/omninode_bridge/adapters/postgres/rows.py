"""Domain values to columns, and rows back to domain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from omninode_bridge.domain.log import Head, Record
from omninode_bridge.domain.names import canonical_json, path_hash
from omninode_bridge.domain.recording import FactsRow, Workflow
from omninode_bridge.domain.reduction import State, Totals
from omninode_bridge.domain.stamp import FileFacts, Stamp, microseconds
from omninode_bridge.domain.workflow import Visit

type Row = Mapping[str, Any]
type Columns = list[Sequence[Any]]
"""One array a column: the arguments of an `unnest`."""

_visits = msgspec.json.Decoder(tuple[Visit, ...])


def stamp_columns(stamps: Sequence[Stamp]) -> Columns:
    return [
        [s.stamp_id for s in stamps],
        [s.namespace for s in stamps],
        [s.file_path for s in stamps],
        [path_hash(s.namespace, s.file_path) for s in stamps],
        [s.version for s in stamps],
        [bytes.fromhex(s.file_hash) for s in stamps],
        [s.digest_origin for s in stamps],
        [s.file_size for s in stamps],
        [s.content_type for s in stamps],
        [canonical_json(s.metadata).decode() for s in stamps],
        [None if s.intelligence is None else canonical_json(s.intelligence).decode() for s in stamps],
        [s.workflow_id for s in stamps],
        [s.workflow_state for s in stamps],
        [s.stamped_by for s in stamps],
        [s.workflow_steps_executed for s in stamps],
        [s.created_at for s in stamps],
        [s.completed_at for s in stamps],
        [microseconds(s.processing_time_ms) for s in stamps],
        [microseconds(s.hash_generation_time_ms) for s in stamps],
    ]


def stamp_of(row: Row) -> Stamp:
    """Return the stamp as it was first answered; `op_id` is its own workflow's."""
    workflow_id = str(row["workflow_id"])
    intelligence = row["intelligence"]
    return Stamp(
        stamp_id=str(row["stamp_id"]),
        stamped_by=row["stamped_by"],
        workflow_id=workflow_id,
        op_id=workflow_id,
        namespace=row["namespace"],
        file_path=row["file_path"],
        file_hash=row["digest"].hex(),
        digest_origin=row["digest_origin"],
        file_size=row["file_size"],
        content_type=row["content_type"],
        version=row["version"],
        metadata=msgspec.json.decode(row["metadata"]),
        intelligence=None if intelligence is None else msgspec.json.decode(intelligence),
        workflow_state=row["workflow_state"],
        created_at=row["created_at"],
        completed_at=row["completed_at"],
        processing_time_ms=row["processing_us"] / 1000,
        hash_generation_time_ms=row["hash_us"] / 1000,
        workflow_steps_executed=row["steps_executed"],
    )


def workflow_columns(workflows: Sequence[Workflow]) -> Columns:
    # The workflows of a batch share their history: it is encoded once.
    encoded: dict[int, str] = {}
    for w in workflows:
        if id(w.visits) not in encoded:
            encoded[id(w.visits)] = msgspec.json.encode(w.visits).decode()
    return [
        [w.workflow_id for w in workflows],
        [w.namespace for w in workflows],
        [w.file_path for w in workflows],
        [w.state for w in workflows],
        [encoded[id(w.visits)] for w in workflows],
        [w.request_digest for w in workflows],
        [w.stamp_id for w in workflows],
        [w.deduplicated for w in workflows],
        [w.step for w in workflows],
        [w.error_code for w in workflows],
        [w.error_message for w in workflows],
    ]


def workflow_of(row: Row) -> Workflow:
    return Workflow(
        namespace=row["namespace"],
        workflow_id=str(row["workflow_id"]),
        file_path=row["file_path"],
        request_digest=row["request_digest"],
        state=row["state"],
        visits=_visits.decode(row["history"]),
        stamp_id=None if row["stamp_id"] is None else str(row["stamp_id"]),
        deduplicated=row["deduplicated"],
        step=row["step"],
        error_code=row["error_code"],
        error_message=row["error_message"],
    )


def record_columns(records: Sequence[Record]) -> Columns:
    return [
        [r.topic for r in records],
        [r.shard for r in records],
        [r.position for r in records],
        [r.event_id for r in records],
        [r.previous_id for r in records],
        [r.namespace for r in records],
        [r.workflow_id for r in records],
        [r.body for r in records],
    ]


def record_of(row: Row) -> Record:
    return Record(
        row["topic"],
        row["shard"],
        row["position"],
        str(row["event_id"]),
        str(row["previous_id"]),
        row["namespace"],
        str(row["workflow_id"]),
        row["body"],
    )


def head_of(row: Row) -> Head:
    return Head(row["position"], str(row["event_id"]))


def facts_columns(rows: Sequence[FactsRow]) -> Columns:
    return [
        [r.namespace for r in rows],
        [r.path_hash for r in rows],
        [r.facts.size for r in rows],
        [r.facts.mtime_ns for r in rows],
        [r.facts.ctime_ns for r in rows],
        [_signed(r.facts.inode) for r in rows],
        [_signed(r.facts.device) for r in rows],
        [r.stamp_id for r in rows],
        [r.version for r in rows],
    ]


def facts_of(row: Row) -> FileFacts:
    return FileFacts(row["size"], row["mtime_ns"], row["ctime_ns"], _unsigned(row["inode"]), _unsigned(row["device"]))


def state_columns(state: State) -> Columns:
    """Return the groups sorted by key: every writer locks the rows in the same order."""
    groups = sorted(state.items())
    totals = [t for _, t in groups]
    return [
        [key[0] for key, _ in groups],
        [key[1] for key, _ in groups],
        [key[2] for key, _ in groups],
        [t.total_stamps for t in totals],
        [t.failed for t in totals],
        [t.total_size_bytes for t in totals],
        [t.processing_time_us_sum for t in totals],
        [t.processing_time_us_min for t in totals],
        [t.processing_time_us_max for t in totals],
        [t.first[0] if t.first else None for t in totals],
        [t.first[1] if t.first else None for t in totals],
        [t.last[0] if t.last else None for t in totals],
        [t.last[1] if t.last else None for t in totals],
    ]


def totals_of(row: Row) -> Totals:
    return Totals(
        row["total_stamps"],
        row["failed"],
        int(row["total_size_bytes"]),
        int(row["processing_time_us_sum"]),
        row["processing_time_us_min"],
        row["processing_time_us_max"],
        None if row["first_at"] is None else (row["first_at"], str(row["first_event_id"])),
        None if row["last_at"] is None else (row["last_at"], str(row["last_event_id"])),
    )


def _signed(bits: int) -> int:
    return bits if bits < 2**63 else bits - 2**64


def _unsigned(number: int) -> int:
    return number if number >= 0 else number + 2**64
