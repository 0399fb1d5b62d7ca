"""Domain values to rows, and rows back to domain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from omninode_bridge.domain.acceptance import Input, Waiting, pack
from omninode_bridge.domain.log import Head, Record
from omninode_bridge.domain.names import canonical_json, path_hash
from omninode_bridge.domain.recording import FactsRow, Workflow
from omninode_bridge.domain.reduction import State, Totals
from omninode_bridge.domain.stamp import FileFacts, Stamp, microseconds
from omninode_bridge.domain.workflow import Visit

type Row = Mapping[str, Any]
type Rows = list[tuple[Any, ...]]
"""Rows in the order of their table's columns: the argument of `unnest($1::the_table[])`.

One array of rows, and not one a column: asyncpg asks of each element of an array whether it is an array too,
which for 40 columns cost more than encoding them (13 µs a stamp against 20, measured beside each other).
"""

_UNSET_INPUT_COLUMNS = (None,) * 7

_visits = msgspec.json.Decoder(tuple[Visit, ...])


def stamp_rows(stamps: Sequence[Stamp]) -> Rows:
    return [
        (
            s.stamp_id,
            s.namespace,
            s.file_path,
            path_hash(s.namespace, s.file_path),
            s.version,
            bytes.fromhex(s.file_hash),
            s.digest_origin,
            s.file_size,
            s.content_type,
            canonical_json(s.metadata).decode(),
            None if s.intelligence is None else canonical_json(s.intelligence).decode(),
            s.workflow_id,
            s.workflow_state,
            s.stamped_by,
            s.workflow_steps_executed,
            s.created_at,
            s.completed_at,
            microseconds(s.processing_time_ms),
            microseconds(s.hash_generation_time_ms),
        )
        for s in stamps
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


def workflow_rows(workflows: Sequence[Workflow]) -> Rows:
    # The workflows of a batch share their history: it is encoded once.
    encoded: dict[int, str] = {}
    for w in workflows:
        if id(w.visits) not in encoded:
            encoded[id(w.visits)] = msgspec.json.encode(w.visits).decode()
    return [
        (
            w.workflow_id,
            w.namespace,
            w.file_path,
            w.state,
            encoded[id(w.visits)],
            w.request_digest,
            w.stamp_id,
            w.deduplicated,
            w.step,
            w.error_code,
            w.error_message,
        )
        for w in workflows
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


def input_rows(inputs: Sequence[Input]) -> Rows:
    """Return the rows' first four columns; the others begin with the server's defaults."""
    return [
        (i.request.workflow_id, i.request.namespace, pack(i.request).decode(), i.content, *_UNSET_INPUT_COLUMNS)
        for i in inputs
    ]


def waiting_of(row: Row) -> Waiting | None:
    """Return what a workflow waits for, from the columns of its input; None where it has none."""
    if row["fence"] is None:
        return None
    return Waiting(
        fence=row["fence"],
        attempts=row["attempts"],
        available_at=row["available_at"],
        worker=row["worker"],
        error_code=row["attempt_error_code"],
        error_message=row["attempt_error_message"],
    )


def record_rows(records: Sequence[Record]) -> Rows:
    return [
        (r.topic, r.shard, r.position, r.event_id, r.previous_id, r.namespace, r.workflow_id, r.body) for r in records
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


def facts_rows(rows: Sequence[FactsRow]) -> Rows:
    return [
        (
            r.namespace,
            r.path_hash,
            r.facts.size,
            r.facts.mtime_ns,
            r.facts.ctime_ns,
            _signed(r.facts.inode),
            _signed(r.facts.device),
            r.stamp_id,
            r.version,
        )
        for r in rows
    ]


def facts_of(row: Row) -> FileFacts:
    return FileFacts(row["size"], row["mtime_ns"], row["ctime_ns"], _unsigned(row["inode"]), _unsigned(row["device"]))


def state_rows(generation: int, state: State) -> Rows:
    """Return the groups sorted by key: every writer locks the rows in the same order."""
    return [
        (
            generation,
            *key,
            t.total_stamps,
            t.failed,
            t.total_size_bytes,
            t.processing_time_us_sum,
            t.processing_time_us_min,
            t.processing_time_us_max,
            *(t.first or (None, None)),
            *(t.last or (None, None)),
        )
        for key, t in sorted(state.items())
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
