"""Workflows that are accepted now and run later: what is kept for the worker, and what can be told meanwhile."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from omninode_bridge.domain.stamp import Inline, Lease, StampRequest

CONTENT_BYTES_MAX = 8 * 1024**2
"""The content of an accepted workflow, at most: it is kept in the database until the workflow's end."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where an accepted workflow stands that has not ended: who holds it, until when, and how the last attempt ended.

    `available_at`: when a worker may take it; while one holds it, when its lease ends.
    """

    fence: int
    attempts: int
    available_at: datetime
    worker: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class Input(msgspec.Struct, frozen=True, gc=False):
    """A row of `workflow_inputs`: what an accepted workflow is run with."""

    request: StampRequest
    content: bytes


def pack(request: StampRequest) -> bytes:
    """Return an accepted request as JSON, all of it but its content and its key."""
    kept = {name: getattr(request, name) for name in _KEPT}
    return msgspec.json.encode(kept)


def unpack(packed: bytes | str, *, workflow_id: str, namespace: str, content: bytes, lease: Lease) -> StampRequest:
    """Return an accepted request for the worker that holds its lease."""
    kept = msgspec.json.decode(packed, type=_Kept)
    fields = msgspec.structs.asdict(kept)
    return StampRequest(
        workflow_id=workflow_id,
        namespace=namespace,
        content=Inline(content),
        # Known it is, since it was accepted: the ledger is to look it up.
        op_id_given=True,
        lease=lease,
        **fields,
    )


class _Kept(msgspec.Struct, frozen=True):
    """A field that is added has a default: what an older program accepted must be read."""

    file_path: str
    created_at: datetime
    content_type: str
    metadata: dict[str, Any]
    stamped_by: str
    enable_intelligence: bool = False
    intelligence_context: dict[str, Any] = {}
    traceparent: str | None = None


_KEPT = _Kept.__struct_fields__
