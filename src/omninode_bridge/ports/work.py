"""The work of a stamping: time, ids, hashing, intelligence, recording, and the queue of accepted workflows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Protocol

from omninode_bridge.domain.errors import AttemptFailed, ContentUnavailable
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Content, Digest, Outcome, StampRequest


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

    async def disown(self, workers: Collection[str]) -> None:
        """Give back at once what is leased under these names: the answers to their claims were lost.

        None of the attempts counts.
        """
        ...

    async def size(self) -> tuple[int, int]: ...  # accepted workflows that have not ended, and bytes of their contents
    async def depth(self) -> tuple[int, float]:
        """Return how many accepted workflows have not ended, and for how long the oldest waits, in seconds."""
        ...
