"""Group commit: outcomes that arrive while a commit is under way form the next one.

`Ingest` is a Ledger made of ledger sessions, each the owner of a shard with one task of its own. A caller
hands in a batch and waits for it once. A batch is one transaction, unless it alone is over a group's bytes: then
it is several, and what one of them fails with is the answer of its own items.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import msgspec

from omninode_bridge.domain.errors import BridgeError, OutcomeUnknown, Overloaded, ServiceUnavailable
from omninode_bridge.domain.names import canonical_json
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Draft, Inline, Outcome
from omninode_bridge.ports import LedgerSession

GROUP_OUTCOMES_MAX = 1000
"""Larger groups gain nothing (the floor's INSERT is flat from 100 rows on) and delay their first answer."""
QUEUE_OUTCOMES_MAX = 20_000
"""About half a second of work; beyond it a caller is told to come back."""
GROUP_BYTES_MAX = 16 * 1024**2
"""PostgreSQL takes a message of 1 GiB, and needs several times its size to read it."""
QUEUE_BYTES_MAX = 128 * 1024**2
OUTCOME_BYTES = 1024
"""What an outcome is taken for besides its metadata, intelligence and content: rows, event, paths and ids."""


class CommitMeter(Protocol):
    """What counts commits and their answers."""

    def committed(self, verdicts: Sequence[Verdict], took_s: float) -> None: ...

    def refused(self, error: BaseException, outcomes: int) -> None: ...


class _NoMeter:
    def committed(self, verdicts: Sequence[Verdict], took_s: float) -> None: ...

    def refused(self, error: BaseException, outcomes: int) -> None: ...


class _Batch(msgspec.Struct, eq=False, gc=False):
    """Outcomes of one caller that wait for their commit, and their sizes in bytes."""

    outcomes: Sequence[Outcome]
    sizes: list[int]
    answer: asyncio.Future[list[Verdict]]
    total: int

    def refuse(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(_own(error, self.outcomes))


class Ingest:
    """ports.Ledger with group commit. `committed` is called after each commit (a hint for the reducer)."""

    def __init__(
        self,
        sessions: Sequence[LedgerSession],
        *,
        group_max: int = GROUP_OUTCOMES_MAX,
        queue_max: int = QUEUE_OUTCOMES_MAX,
        group_bytes_max: int = GROUP_BYTES_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        committed: Callable[[], None] = lambda: None,
        meter: CommitMeter | None = None,
    ) -> None:
        self._sessions = sessions
        self._group_max = group_max
        self._queue_max = queue_max
        self._group_bytes_max = group_bytes_max
        self._queue_bytes_max = queue_bytes_max
        self._committed = committed
        self._meter = meter or _NoMeter()
        self._queue: deque[_Batch] = deque()
        self._queued = 0
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._writers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._writers = [asyncio.create_task(self._write(s), name=f"ledger-{i}") for i, s in enumerate(self._sessions)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what was taken, refuse what comes after, end the sessions.

        Cancelled meanwhile, it commits no more, and still everybody who waits is answered.
        """
        self._closing = True
        self._arrived.set()
        try:
            await asyncio.gather(*self._writers)
        finally:
            while self._queue:
                self._queue.popleft().refuse(_shutting_down())
            await asyncio.gather(*(session.close() for session in self._sessions))

    @property
    def queued(self) -> int:
        """Outcomes that wait for a commit."""
        return self._queued

    @property
    def queued_bytes(self) -> int:
        """What they hold, about."""
        return self._queued_bytes

    @property
    def limits(self) -> tuple[int, int]:
        """How many outcomes may wait, and how many bytes: what would be more is refused."""
        return self._queue_max, self._queue_bytes_max

    @property
    def closing(self) -> bool:
        """Whether the end has begun: what comes now is refused."""
        return self._closing

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """Record a batch; returns after its commit. Overloaded when the queue is full."""
        if not outcomes:
            return []
        sizes = _sizes(outcomes)
        total = sum(sizes)
        if (refusal := self._refusal(len(outcomes), total)) is not None:
            self._meter.refused(refusal, len(outcomes))
            raise refusal
        answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Batch(outcomes, sizes, answer, total))
        self._queued += len(outcomes)
        self._queued_bytes += total
        self._arrived.set()
        return await answer

    def _refusal(self, count: int, total: int) -> ServiceUnavailable | None:
        """Return why a batch can't be taken now, if so."""
        if self._closing:
            return _shutting_down()
        if self._queued and self._queued + count > self._queue_max:
            return Overloaded(f"{self._queued} stamps wait to be committed, {self._queue_max} is the limit: try again")
        if self._queued and self._queued_bytes + total > self._queue_bytes_max:
            return Overloaded(
                f"stamps of {self._queued_bytes} bytes wait to be committed, {self._queue_bytes_max} is the limit: "
                "try again"
            )
        return None

    async def _write(self, session: LedgerSession) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batches = self._take()
            try:
                verdicts = await self._commit(session, batches)
            except asyncio.CancelledError:
                cut_off = OutcomeUnknown(
                    "the bridge was stopped during a commit: try again with the same op_id, which is safe"
                )
                for batch in batches:
                    batch.refuse(cut_off)
                raise
            except Exception as error:  # each waiting caller gets it; the writer goes on
                for batch in batches:
                    batch.refuse(error)
                    self._meter.refused(error, len(batch.outcomes))
                continue
            self._committed()
            at = 0
            for batch in batches:
                if not batch.answer.done():
                    batch.answer.set_result(verdicts[at : at + len(batch.outcomes)])
                at += len(batch.outcomes)

    async def _commit(self, session: LedgerSession, batches: Sequence[_Batch]) -> list[Verdict]:
        """Commit batches as one group, or a batch that is too large as several."""
        verdicts: list[Verdict] = []
        for group in self._groups(batches):
            began_s = time.perf_counter()
            try:
                answered = await session.commit(group)
            except Exception as error:
                if not verdicts:
                    raise
                # What is recorded is answered: this is the answer of the rest.
                down = error if isinstance(error, BridgeError) else ServiceUnavailable(f"the ledger failed: {error}")
                rest = [outcome for batch in batches for outcome in batch.outcomes][len(verdicts) :]
                self._meter.refused(down, len(rest))
                return verdicts + [_own(down, [outcome]) for outcome in rest]
            self._meter.committed(answered, time.perf_counter() - began_s)
            verdicts += answered
        return verdicts

    def _groups(self, batches: Sequence[_Batch]) -> Iterator[list[Outcome]]:
        group: list[Outcome] = []
        left = self._group_bytes_max
        for batch in batches:
            if batch.total <= left:  # always, but for a batch that is too large by itself
                group += batch.outcomes
                left -= batch.total
                continue
            for outcome, size in zip(batch.outcomes, batch.sizes, strict=True):
                if group and size > left:
                    yield group
                    group, left = [], self._group_bytes_max
                group.append(outcome)
                left -= size
        yield group

    def _take(self) -> list[_Batch]:
        batches = [self._queue.popleft()]
        count, total = len(batches[0].outcomes), batches[0].total
        while self._queue:
            following = self._queue[0]
            count += len(following.outcomes)
            total += following.total
            if count > self._group_max or total > self._group_bytes_max:
                break
            batches.append(self._queue.popleft())
        self._queued -= sum(len(batch.outcomes) for batch in batches)
        self._queued_bytes -= sum(batch.total for batch in batches)
        return batches


def _sizes(outcomes: Sequence[Outcome]) -> list[int]:
    """Return about how many bytes each outcome holds, and will take to write."""
    # The files of a tree share their metadata: it is measured once.
    measured: dict[int, int] = {}
    sizes = []
    for outcome in outcomes:
        request = outcome.request
        metadata = measured.get(id(request.metadata))
        if metadata is None:
            metadata = measured[id(request.metadata)] = len(canonical_json(request.metadata))
        size = OUTCOME_BYTES + metadata
        if isinstance(outcome, Draft) and outcome.intelligence:
            size += len(canonical_json(outcome.intelligence))
        if isinstance(request.content, Inline):
            size += len(request.content.data)
        sizes.append(size)
    return sizes


def _own[Failed: BaseException](error: Failed, outcomes: Iterable[Outcome]) -> Failed | OutcomeUnknown:
    """Return a group's error as one of its callers is told it: with the op ids of that caller only."""
    if not isinstance(error, OutcomeUnknown):
        return error
    own = OutcomeUnknown(error.message, op_ids=[outcome.request.workflow_id for outcome in outcomes])
    own.__cause__ = error.__cause__
    return own


def _shutting_down() -> ServiceUnavailable:
    return ServiceUnavailable("the bridge is shutting down: try again with the same op_id")
