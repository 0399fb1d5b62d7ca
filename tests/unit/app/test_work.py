"""A worker and its claims, over the queue and the ledger in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from omninode_bridge.adapters.memory import MemoryStore, SeededIds
from omninode_bridge.adapters.memory.ledger import MemoryLedger
from omninode_bridge.adapters.memory.queue import MemoryWorkQueue
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app.work import Worker
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Stamp, StampRequest
from tests.making import PLAN, acceptance, leased_draft

PATIENCE_S = 20.0
"""Less than a lease lasts."""


class Slow(MemoryWorkQueue):
    """A queue whose first claim comes through after its worker has given it up, and given back what it may hold."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, PLAN, utc_now)
        self.names: list[str] = []
        self.taken_late = 0

    async def claim(self, worker: str, *, count_max: int, bytes_max: int, lease_s: float) -> list[StampRequest]:
        self.names.append(worker)
        if len(self.names) == 1:
            raise ServiceUnavailable("no answer to a claim")
        return await super().claim(worker, count_max=count_max, bytes_max=bytes_max, lease_s=lease_s)

    async def disown(self, workers: Collection[str]) -> None:
        await super().disown(workers)
        if not self.taken_late:
            late = await super().claim(self.names[0], count_max=10, bytes_max=10**6, lease_s=PLAN.queue.lease_s)
            self.taken_late = len(late)


class Ending:
    """Ends each workflow as completed."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self.stamps: list[Stamp] = []
        self.ended = asyncio.Event()

    async def run_many(self, requests: Sequence[StampRequest]) -> list[Answer]:
        answers: list[Answer] = []
        for verdict in await self._ledger.record([leased_draft(request) for request in requests]):
            assert isinstance(verdict, Stamp)
            answers.append(verdict)
            self.stamps.append(verdict)
        self.ended.set()
        return answers

    async def give_up(self, request: StampRequest, *, code: str, message: str) -> Answer:
        raise AssertionError(f"{code}: {message}")


async def test_a_claim_that_comes_through_after_it_was_given_back_is_given_back_once_more() -> None:
    assert PLAN.queue.lease_s > PATIENCE_S
    store = MemoryStore()
    ledger = MemoryLedger(store, PLAN, utc_now, SeededIds(1))
    (workflow,) = await ledger.record([acceptance()])
    queue, runner = Slow(store), Ending(ledger)
    async with asyncio.timeout(PATIENCE_S), Worker(queue, runner, PLAN, name="host/1").working():
        await runner.ended.wait()
    assert queue.taken_late == 1
    assert len(set(queue.names)) == len(queue.names) > 1
    assert [stamp.workflow_id for stamp in runner.stamps] == [workflow.workflow_id]
