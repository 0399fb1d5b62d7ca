"""Whether a content is what was stamped, and whether the stamps written into it are true.

The rules it keeps:

1. The digest is that of the content less its embedded stamps: content is as valid with them as without.
2. With a path, a content is valid if its digest is that of the path's latest stamp; without one, if any stamp of the
   namespace has it. An expected digest that is another one makes it invalid.
3. An embedded stamp is true if it exists among those that the caller may see, and its digest is both the line's and
   the content's. A stamp that the caller may not see is one that does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from omninode_bridge.domain.embedding import Embedded, find
from omninode_bridge.domain.errors import LimitExceeded
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.ports import Reads, RunningDigest, StampFilter

__all__ = ["FoundStamp", "Validation", "validate"]

AT_ONCE_BYTES_MAX = 256 * 1024
"""Content up to this much is searched and hashed where it is asked for; more of it in a thread."""
EMBEDDED_MAX = 100
"""Stamps embedded in one content: each is looked up."""
STAMPS_MAX = 100


class FoundStamp(msgspec.Struct, frozen=True, kw_only=True):
    """A stamp line of the content, what it says, and whether that is true; if not, why."""

    stamp_id: str
    namespace: str
    file_hash: str
    line: int
    is_valid: bool
    reason: str | None


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The digest of a content less its embedded stamps, and what the ledger says of it.

    `stamps` are those with this digest, of the path or else of the namespace, newest first; at most 100.
    """

    is_valid: bool
    file_hash: str
    stamps: list[Stamp]
    embedded: list[FoundStamp]


async def validate(
    reads: Reads,
    running: RunningDigest,
    content: bytes,
    *,
    namespace: str,
    file_path: str | None = None,
    expected_hash: str | None = None,
) -> Validation:
    """Return whether a content is what was stamped, as far as `reads` may see. LimitExceeded for too many stamps."""
    latest = None
    if file_path is not None:
        latest = (await reads.latest_many(namespace, [file_path])).get(file_path)

    def look() -> tuple[list[Embedded], str]:
        # The stamp knows the language where the path does not tell it.
        bare, lines = find(content, file_path, None if latest is None else latest.content_type)
        running.update(bare)
        return lines, running.digest().file_hash

    lines, file_hash = await _off_the_loop(look, len(content))
    if len(lines) > EMBEDDED_MAX:
        raise LimitExceeded(
            f"the content has {len(lines)} embedded stamps; {EMBEDDED_MAX} is the limit: take old ones out",
            field="content",
        )
    if file_path is None:
        stamps = await reads.by_hash(file_hash, [namespace], STAMPS_MAX)
        known = bool(stamps)
    else:
        wanted = StampFilter(file_path=file_path, file_hash=file_hash)
        stamps = (await reads.page(namespace, wanted, limit=STAMPS_MAX)).stamps
        known = latest is not None and latest.file_hash == file_hash
    cited = {stamp_id: await reads.by_id(stamp_id) for stamp_id in {line.stamp_id for line in lines}}
    return Validation(
        is_valid=known and expected_hash in (None, file_hash),
        file_hash=file_hash,
        stamps=stamps,
        embedded=[_judged(line, cited[line.stamp_id], file_hash) for line in lines],
    )


def _judged(line: Embedded, stamp: Stamp | None, file_hash: str) -> FoundStamp:
    reason = None
    if stamp is None or stamp.namespace != line.namespace:
        reason = "there is no such stamp in this namespace"
    elif stamp.file_hash != line.file_hash:
        reason = "the line's digest is not the stamp's"
    elif line.file_hash != file_hash:
        reason = "the content is not what was stamped"
    return FoundStamp(
        stamp_id=line.stamp_id,
        namespace=line.namespace,
        file_hash=line.file_hash,
        line=line.line,
        is_valid=reason is None,
        reason=reason,
    )


async def _off_the_loop[T](work: Callable[[], T], octets: int) -> T:
    return work() if octets <= AT_ONCE_BYTES_MAX else await asyncio.to_thread(work)
