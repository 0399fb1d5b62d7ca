"""What the core asks of the outside world. All data-plane calls are batch-shaped: one await a batch.

Implementations are in `adapters`; `adapters/memory` has an in-memory one of each, held to the same
conformance suite as the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol

import msgspec

from omninode_bridge.domain.errors import AttemptFailed, ContentUnavailable, ForeignState
from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.domain.recording import PathKey, Prior, Verdict
from omninode_bridge.domain.reduction import Groupings, State
from omninode_bridge.domain.stamp import Content, Digest, DigestOrigin, FileFacts, Outcome, Stamp, StampRequest
from omninode_bridge.domain.tenancy import EVERYTHING, Token, Visible
from omninode_bridge.domain.windows import Extent, Sight, Window


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


class WorkQueue(Protocol):
    """Accepted workflows that wait for a worker. Time is the storage's own."""

    async def claim(self, worker: str, *, count_max: int, bytes_max: int, lease_s: float) -> list[StampRequest]:
        """Lease what is due, oldest first, and return it as requests that hold their leases.

        A workflow that was still in its first state is moved on, as the plan's start tells, in the same transaction.
        At least one is returned where any is due, whatever its size.
        """
        ...

    async def renew(self, held: Sequence[StampRequest], lease_s: float) -> None:
        """Let the leases that are still held last `lease_s` from now."""
        ...

    async def release(
        self, held: Sequence[StampRequest], *, delay_s: float, error: AttemptFailed | None = None, counts: bool = True
    ) -> None:
        """Give workflows back, to be taken again after `delay_s`; `counts`: the attempt was one of their own.

        The error is kept, for whoever asks why the workflow is where it is.

        Nothing happens where the lease is not held any more.
        """
        ...

    async def size(self) -> tuple[int, int]: ...  # accepted workflows that have not ended, and bytes of their contents
    async def depth(self) -> tuple[int, float]:
        """Return how many accepted workflows have not ended, and for how long the oldest waits, in seconds."""
        ...


class TokenUse(msgspec.Struct, frozen=True):
    """What a token used on a day of UTC: stamps that it asked for, and bytes of content that it sent for them."""

    stamps: int = 0
    content_bytes: int = 0

    def __add__(self, other: TokenUse) -> TokenUse:
        return TokenUse(self.stamps + other.stamps, self.content_bytes + other.content_bytes)


type UseKey = tuple[str, date]
"""A token's id and a day of UTC."""


class Tokens(Protocol):
    """API tokens, without their secrets, and what they used. Whoever changes one leaves a row in the log of acts."""

    async def look(self, secret_hashes: Sequence[bytes]) -> tuple[bool, dict[bytes, Token]]:
        """Return whether any token was ever created, and those with one of the hashes, revoked and expired ones too."""
        ...

    async def use(self, uses: Mapping[UseKey, TokenUse]) -> dict[UseKey, TokenUse]:
        """Add to what tokens used, all at once; return the sums. A token that is not there any more has none."""
        ...

    async def create(self, token: Token, secret_hash: bytes, *, actor: str) -> None:
        """Keep a new token; InvalidInput when its name is taken, also by a revoked one."""
        ...

    async def revoke(self, name: str, *, actor: str) -> tuple[Token, bool]:
        """Revoke a token; return it, and whether it was not revoked before. NotFound when there is none."""
        ...

    async def every(self, day: date) -> list[tuple[Token, TokenUse]]:
        """Return all tokens by name, with what each used on a day."""
        ...


class EventSource(Protocol):
    def seen_by(self, visible: Visible) -> EventSource:
        """Return the same source, limited to the records of namespaces that someone may see."""
        ...

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        """Return records beyond the given heads, each shard's in order; shards not named, from the start.

        At most `limit` records and READ_BYTES_MAX bytes of bodies in all, a fair share of each shard; one record
        at least where there is any.
        """
        ...

    async def heads(self) -> dict[ShardKey, Head]:
        """Return where each shard of each topic ends now."""
        ...

    async def extents(self) -> dict[ShardKey, Extent]:
        """Return from where to where the records of each shard lie now."""
        ...

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        """Return the records in windows of some shards that may be seen, each shard's in order.

        What is looked through is bounded by the windows, however little of it may be seen; what is returned by
        `records_max` and `bytes_max`, but for the first record. Raises EventsExpired when a window begins below its
        shard's floor.
        """
        ...

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        """Return which event each of some positions holds, whoever may see it; nothing for those that hold none now."""
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
        self,
        aggregation_type: str | None,
        namespace: str | None = None,
        *,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
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


class StampFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which stamps of a namespace are wanted; None: any. Times are those of completion, `until` excluded."""

    file_path: str | None = None
    file_hash: str | None = None
    content_type: str | None = None
    stamped_by: str | None = None
    origin: DigestOrigin | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def by_index(self) -> bool:
        """Whether every stamp that an index finds is wanted."""
        others = (self.content_type, self.stamped_by, self.origin, self.since, self.until)
        return others == (None,) * 5 and None in (self.file_path, self.file_hash)


class StampPage(msgspec.Struct, frozen=True):
    """Stamps, newest first; `before` is where the next page begins, None at the end."""

    stamps: list[Stamp]
    before: str | None


class Reads(Protocol):
    """Queries by key over what the ledger has recorded. Lists are newest first."""

    def seen_by(self, visible: Visible) -> Reads:
        """Return the same reads, limited to what someone may see: the rest does not exist."""
        ...

    async def page(
        self, namespace: str, wanted: StampFilter, *, before: str | None = None, limit: int = 100
    ) -> StampPage:
        """Return stamps of a namespace older than the one whose id is `before`.

        A page may have less than `limit` stamps, or none, and still have a next one: what a filter looks through
        for one page is bounded.
        """
        ...

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
