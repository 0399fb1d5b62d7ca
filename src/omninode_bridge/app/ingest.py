"""Group commit: outcomes that arrive while a commit is under way form the next one.

`Ingest` is a Ledger made of ledger sessions, each the owner of a shard with one task of its own. A caller
hands in a batch and waits for it once; batches are never split, so a batch is one transaction at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from omninode_bridge.domain.errors import Overloaded, ServiceUnavailable
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Outcome
from omninode_bridge.ports import LedgerSession

GROUP_OUTCOMES_MAX = 1000
"""Larger groups gain nothing (the floor's INSERT is flat from 100 rows on) and delay their first answer."""
QUEUE_OUTCOMES_MAX = 20_000
"""About half a second of work; beyond it a caller is told to come back."""

type _Waiting = tuple[Sequence[Outcome], asyncio.Future[list[Verdict]]]


class Ingest:
    """ports.Ledger with group commit. `committed` is called after each commit (a hint for the reducer)."""

    def __init__(
        self,
        sessions: Sequence[LedgerSession],
        *,
        group_max: int = GROUP_OUTCOMES_MAX,
        queue_max: int = QUEUE_OUTCOMES_MAX,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._group_max = group_max
        self._queue_max = queue_max
        self._committed = committed
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._writers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._writers = [asyncio.create_task(self._write(s), name=f"ledger-{i}") for i, s in enumerate(self._sessions)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what was taken, refuse what comes after, end the sessions."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._writers)
        for session in self._sessions:
            await session.close()

    @property
    def queued(self) -> int:
        """Outcomes that wait for a commit."""
        return self._queued

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """Record a batch; returns after its commit. Overloaded when the queue is full."""
        if not outcomes:
            return []
        if self._closing:
            raise ServiceUnavailable("the bridge is shutting down: try again with the same op_id")
        if self._queued and self._queued + len(outcomes) > self._queue_max:
            raise Overloaded(f"{self._queued} stamps wait to be committed, {self._queue_max} is the limit: try again")
        answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
        self._queue.append((outcomes, answer))
        self._queued += len(outcomes)
        self._arrived.set()
        return await answer

    async def _write(self, session: LedgerSession) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batches = self._take()
            group = [outcome for outcomes, _ in batches for outcome in outcomes]
            try:
                verdicts = await session.commit(group)
            except Exception as error:  # each waiting caller gets it; the writer goes on
                for _, answer in batches:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self._committed()
            at = 0
            for outcomes, answer in batches:
                if not answer.done():
                    answer.set_result(verdicts[at : at + len(outcomes)])
                at += len(outcomes)

    def _take(self) -> list[_Waiting]:
        batches = [self._queue.popleft()]
        size = len(batches[0][0])
        while self._queue and size + len(self._queue[0][0]) <= self._group_max:
            batches.append(self._queue.popleft())
            size += len(batches[-1][0])
        self._queued -= size
        return batches
