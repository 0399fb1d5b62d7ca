"""The stamp, and what it is made from.

    StampRequest ──hash──▶ Digest ─┐
         │                         ├─▶ Draft ──(version, id, time)──▶ Stamp
         └──analyse─▶ intelligence ┘     or Failure, when a step failed

A Stamp is what callers get, what `metadata_stamps` holds and what the completed event carries: one shape
with the names of the HTTP answer. Ids are canonical UUID strings, times aware UTC datetimes, sizes bytes.

The structs are `gc=False`: they hold JSON values and each other, never a cycle, and a batch of a thousand of
them need not be walked by the garbage collector again and again (it was half of the time of decoding).
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from omninode_bridge.domain.names import DEFAULT_CONTENT_TYPE, FILE_SIZE_BYTES_MAX, canonical_json
from omninode_bridge.domain.workflow import Visit

type DigestOrigin = Literal["computed", "claimed"]

# Checked where a stamp is decoded, so that whatever decodes can be counted and stored.
type Size = Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_BYTES_MAX)]
type Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=2**41)]
type Time = Annotated[datetime, msgspec.Meta(tz=True)]

METADATA_VERSION = "0.1"
HASH_ALGORITHM = "blake3"


class FileFacts(msgspec.Struct, frozen=True, gc=False):
    """What the file system says of a file; equal facts mean that its bytes need not be read again."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class Inline(msgspec.Struct, frozen=True, gc=False):
    """Content held in memory."""

    data: bytes


class LocalFile(msgspec.Struct, frozen=True, gc=False):
    """Content in a file of this machine, with the facts as they stood when it was found."""

    path: str
    facts: FileFacts


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """Content the bridge never sees: the caller computed its BLAKE3 digest (hex) and size (bytes)."""

    file_hash: str
    file_size: int


type Content = Inline | LocalFile | Claimed | Streamed


class Digest(msgspec.Struct, frozen=True, gc=False):
    """The BLAKE3 digest of a content. `facts` are set when they may vouch for it at the next run."""

    file_hash: str
    file_size: int
    origin: DigestOrigin = "computed"
    hash_time_us: int = 0
    facts: FileFacts | None = None


class Streamed(msgspec.Struct, frozen=True, gc=False):
    """Content that was hashed while it arrived and not kept, but for its first bytes where intelligence is wanted."""

    digest: Digest
    head: bytes = b""


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A worker's hold of an accepted workflow. `fence` grows with each lease, so that an old one proves nothing.

    `visits` is the workflow's history as the lease found it; after the `last` attempt a failure is final.
    """

    fence: int
    attempt: int
    last: bool
    visits: tuple[Visit, ...]


class StampRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A checked request for one stamp. `op_id_given`: the caller chose the workflow id, so it may be known.

    `lease`: the workflow was accepted before, and is run by a worker now.
    """

    workflow_id: str
    namespace: str
    file_path: str
    content: Content
    created_at: datetime
    content_type: str = DEFAULT_CONTENT_TYPE
    metadata: dict[str, Any] = {}
    stamped_by: str = "local"
    op_id_given: bool = False
    enable_intelligence: bool = False
    intelligence_context: dict[str, Any] = {}
    traceparent: str | None = None
    lease: Lease | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A workflow whose steps before the ledger succeeded: all of a stamp but its id, version and end."""

    request: StampRequest
    digest: Digest
    visits: tuple[Visit, ...]
    intelligence: dict[str, Any] | None = None
    steps_executed: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A workflow that a step failed for good."""

    request: StampRequest
    visits: tuple[Visit, ...]
    step: str
    error_code: str
    error_message: str
    digest: Digest | None = None


class Acceptance(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A workflow that is to be run later. Its content, in memory, is kept with the request until its end."""

    request: StampRequest
    visits: tuple[Visit, ...]
    digest: Digest
    """Of the content: it tells one request from another under the same op id."""


type Outcome = Draft | Failure | Acceptance


class Stamp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who stamped which bytes, when, under which namespace. Fields as in the HTTP answer.

    Times in `*_ms` are milliseconds with microsecond resolution: `microseconds()` gives the exact integer.
    """

    stamp_id: str
    stamped_by: str
    workflow_id: str
    op_id: str
    namespace: str
    file_path: str
    file_hash: str
    hash_algorithm: str = HASH_ALGORITHM
    digest_origin: DigestOrigin = "computed"
    file_size: Size
    content_type: str
    version: int
    metadata_version: str = METADATA_VERSION
    metadata: dict[str, Any] = {}
    intelligence: dict[str, Any] | None = None
    workflow_state: str
    deduplicated: bool = False
    created_at: Time
    completed_at: Time
    processing_time_ms: Milliseconds
    hash_generation_time_ms: Milliseconds
    workflow_steps_executed: int


def microseconds(milliseconds: float) -> int:
    """Return the exact integer microseconds of a `*_ms` value (exact up to 2**41 ms, 69 years)."""
    return round(milliseconds * 1000)


def same_content(stamp: Stamp, draft: Draft) -> bool:
    """Tell whether a draft repeats a path's latest stamp: same bytes, content type and metadata.

    A computed digest never counts as the repetition of a claimed one: it says more.
    """
    request, digest = draft.request, draft.digest
    return (
        stamp.file_hash == digest.file_hash
        and stamp.file_size == digest.file_size
        and stamp.content_type == request.content_type
        and not (stamp.digest_origin == "claimed" and digest.origin == "computed")
        and canonical_json(stamp.metadata) == canonical_json(request.metadata)
    )


CONTENT_UNSEEN = bytes(16)
"""The second half of a fingerprint whose content was not seen, because the workflow failed before."""


def fingerprint(request: StampRequest, digest: Digest | None) -> bytes:
    """Return the 32 bytes that tell one request from another under the same op id.

    Two halves: of the SHA-256 of all that was asked but the content; and of the content's BLAKE3 digest. The
    parts are joined by NUL, which none of them contains; the metadata, as JSON, comes last.
    """
    content = request.content
    claimed = f"{content.file_hash}{content.file_size}" if isinstance(content, Claimed) else ""
    intelligence = int(request.enable_intelligence)
    asked = f"{request.namespace}\0{request.file_path}\0{request.content_type}\0{intelligence}\0{claimed}\0"
    seen = CONTENT_UNSEEN if digest is None else bytes.fromhex(digest.file_hash)[:16]
    return hashlib.sha256(asked.encode() + canonical_json(request.metadata)).digest()[:16] + seen
