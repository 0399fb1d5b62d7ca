"""What the core asks of the outside world. All data-plane calls are batch-shaped: one await a batch.

Implementations are in `adapters`; `adapters/memory.py` has an in-memory one of each, held to the same
conformance suite as the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from omninode_bridge.domain.errors import ContentUnavailable, ForeignState
from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.domain.recording import PathKey, Prior, Verdict
from omninode_bridge.domain.reduction import Groupings, State
from omninode_bridge.domain.stamp import Content, Digest, FileFacts, Outcome, Stamp, StampRequest


class Clock(Protocol):
    def __call__(self) -> datetime:
        """Return the time, in UTC."""
        ...


class IdSource(Protocol):
    def __call__(self, count: int) -> list[str]:
        """Return `count` fresh UUIDv7 strings."""
        ...


class Hasher(Protocol):
    async def digest_many(self, contents: Sequence[Content]) -> list[Digest | ContentUnavailable]:
        """Return each content's digest, in order, or why its bytes could not be read."""
        ...


class RunningDigest(Protocol):
    def update(self, piece: bytes) -> None:
        """Take the next bytes of a content."""
        ...

    def digest(self) -> Digest:
        """Return the digest of the bytes taken so far."""
        ...


class Intelligence(Protocol):
    async def analyse_many(self, requests: Sequence[StampRequest]) -> list[dict[str, Any] | None]:
        """Return what is known of each request's content, in order; None where nothing is."""
        ...


class Ledger(Protocol):
    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """Record outcomes durably and return the answers, in order.

        Returns only after the commit. A verdict may be an error of that item alone. Raises
        ServiceUnavailable (or a child of it) when nothing is known to be recorded.
        """
        ...


class LedgerSession(Protocol):
    """A ledger's owner of one shard: commits one group at a time."""

    async def commit(self, group: Sequence[Outcome]) -> list[Verdict]: ...

    async def close(self) -> None: ...


READ_BYTES_MAX = 32 * 1024**2
"""Bytes of event bodies in one read of the log: what a reader holds, however large the events and many the shards."""


class EventSource(Protocol):
    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        """Return records beyond the given heads, each shard's in order; shards not named, from the start.

        At most `limit` records and READ_BYTES_MAX bytes of bodies in all, a fair share of each shard; one record
        at least where there is any.
        """
        ...

    async def heads(self) -> dict[ShardKey, Head]:
        """Return where each shard of each topic ends now."""
        ...


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be processed, where it came from, and why."""

    record: Record
    reason: str


class Generation(msgspec.Struct, frozen=True):
    """One folding of the log: `fingerprint` tells by which groupings; `namespace` limits a partial rebuild."""

    number: int
    fingerprint: str
    namespace: str | None = None

    @property
    def consumer(self) -> str:
        return f"reducer/{self.number}"


type Finish = Callable[[Mapping[ShardKey, Head]], Awaitable[None]]
"""Folds a generation up to the given positions."""


class StateStore(Protocol):
    async def live(self) -> Generation | None:
        """Return the generation that queries read, None on a new database."""
        ...

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        """Start a generation, at the start of the log. It is live at once when there was none.

        Whoever begins one that is not live ends it by `swap` or `discard`.
        """
        ...

    async def positions(self, generation: Generation) -> dict[ShardKey, Head]:
        """Return the last record of each shard that the generation has folded."""
        ...

    async def apply(
        self,
        generation: Generation,
        delta: State,
        moves: Mapping[ShardKey, tuple[Head, Head]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> bool:
        """Merge `delta` into the state and move the positions, in one transaction.

        `moves` maps each shard to (from, to). Returns False, and changes nothing, when a position is not
        where the move starts (someone else folded these records) or the generation is retired.
        Dead letters belong to their generation: they are seen once it is live.
        """
        ...

    async def swap(self, building: Generation, finish: Finish | None = None) -> bool:
        """Make a generation the one that queries read, if its positions equal the live one's; else False.

        `finish` is called with the live positions while they are held still: what it folds into the building
        generation then is the last that is missing, however busy the live one is.

        Its dead letters take the place of the live one's, in the same transaction: one that both have stays the
        same letter, one that only the live one had is closed, because its record is folded now.
        """
        ...

    async def discard(self, building: Generation) -> None:
        """Drop a generation that was not swapped in, with its dead letters."""
        ...

    async def rows(
        self, aggregation_type: str | None, namespace: str | None = None, *, fingerprint: str | None = None
    ) -> State:
        """Return the live state's groups of one aggregation type or all, of one namespace or all.

        Raises ForeignState when the live generation, at the very moment that is read, is folded by other
        groupings than `fingerprint` tells of.
        """
        ...


class KnownFile(msgspec.Struct, frozen=True, gc=False):
    """The latest stamp of a path, and the facts of the file when its digest was computed."""

    facts: FileFacts
    stamp_id: str
    content_type: str
    metadata: bytes
    """Canonical JSON."""


class Reads(Protocol):
    """Queries by key over what the ledger has recorded. Lists are newest first."""

    async def by_hash(
        self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100
    ) -> list[Stamp]: ...

    async def by_id(self, stamp_id: str) -> Stamp | None: ...

    async def history(self, namespace: str, file_path: str) -> list[Stamp]: ...

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        """Return the latest stamp of each of the paths that has one."""
        ...

    def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        """Yield the latest stamp of each path in a namespace (or below `prefix/`), by path."""
        ...

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]: ...

    def workflows(self, namespace: str | None = None) -> AsyncGenerator[Prior]:
        """Yield each workflow that made a stamp or failed, by namespace and id."""
        ...

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        """Return what is known of each path whose recorded file facts vouch for its latest version."""
        ...


class HistoryShape(msgspec.Struct, frozen=True):
    """Workflows that went the same way. `shape` is JSON: [[trigger or null, state], …]."""

    shape: str | None
    state: str
    example: str
    workflows: int


class AuditedEvent(msgspec.Struct, frozen=True):
    """A record, what the tables say of its workflow, and whether the live state should include it.

    `kept` has the columns of the workflow's stamp or failure under the names that the event's data has for them:
    digests as hexadecimal digits, JSON as text, times as datetimes, durations (`…_us`) as integer microseconds.
    It is empty where the tables know of neither.
    """

    record: Record
    kept: dict[str, Any]
    folded: bool


class Evidence(Protocol):
    """What an audit looks at, all of one moment. Faults are sentences; none is the good answer."""

    async def chain_faults(self) -> list[str]: ...

    async def count_faults(self) -> list[str]: ...

    async def position_faults(self) -> list[str]: ...

    async def histories(self) -> list[HistoryShape]: ...

    async def live(self) -> Generation | None: ...

    def events(self, live: Generation | None) -> AsyncIterator[AuditedEvent]: ...

    async def state(self) -> State: ...


def fingerprint(groupings: Groupings) -> str:
    """Return the text that tells two foldings apart: equal groupings, and only those, give equal text."""
    return msgspec.json.encode(groupings).decode()


def foreign_state(generation: int) -> ForeignState:
    """Return the refusal to read or fold a state that is grouped otherwise than this process would."""
    return ForeignState(
        f"the state is kept by another reducer contract (generation {generation}): start this process with that "
        "contract, or let `omninode-bridge rebuild` fold the state by this one",
        generation=generation,
    )
