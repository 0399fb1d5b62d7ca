"""The worker: runs accepted workflows, which wait in the database with their inputs.

    take what is due ─▶ run it as one batch ─▶ the ledger ends it, under its lease
          ▲                  │  (renewed meanwhile)
          └─── give back ◀───┴── a step failed: after a pause, until the contract's attempts are used up

The rules it keeps:

1. Nothing is remembered here: a worker that dies leaves leases, which run out, and others take over.
2. The ledger ends a workflow only under the lease that its row still has. A worker that was too slow changes nothing.
3. An attempt that PostgreSQL's absence, or the end of this process, cut short is not counted.
4. What can't be ended otherwise ends as failed, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from omninode_bridge.domain.errors import (
    AttemptFailed,
    BridgeError,
    LeaseLost,
    ServiceUnavailable,
    WorkflowFailed,
)
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Stamp, StampRequest
from omninode_bridge.domain.workflow import Plan
from omninode_bridge.ports import WorkQueue

BATCH_BYTES_MAX = 32 * 1024**2
"""Contents in memory of one batch; one larger than that comes alone."""
POLL_S = 0.25
"""How long to wait for a hint before looking anyway: what other processes accepted comes without one."""
TROUBLE_S_MAX = 5.0
ATTEMPTS_EXHAUSTED_CODE = "attempts_exhausted"

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs workflows: the orchestrator."""

    async def run_many(self, requests: Sequence[StampRequest]) -> list[Answer]: ...

    async def give_up(self, request: StampRequest, *, code: str, message: str) -> Answer: ...


class Worker:
    """Takes as many workflows as the contract lets a process have under way, batch after batch."""

    def __init__(self, queue: WorkQueue, runner: Runner, plan: Plan, *, name: str) -> None:
        self._queue = queue
        self._runner = runner
        self._plan = plan
        self._name = name
        self._running: dict[asyncio.Task[None], int] = {}
        self.wake = asyncio.Event()
        """Set it as a hint that there is work."""

    @property
    def in_flight(self) -> int:
        """Workflows under way."""
        return sum(self._running.values())

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work until the end of the block; what is under way then is given back, to be taken by others at once."""
        loop = asyncio.create_task(self._work(), name="worker")
        try:
            yield
        finally:
            tasks = [loop, *self._running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        pause = POLL_S
        while True:
            self.wake.clear()
            try:
                taken = await self._take()
                pause = POLL_S
            except ServiceUnavailable as error:
                _log.warning("accepted workflows can't be taken: %s", error.message)
                taken, pause = False, min(pause * 2, TROUBLE_S_MAX)
            except Exception:
                _log.exception("taking accepted workflows failed")
                taken, pause = False, min(pause * 2, TROUBLE_S_MAX)
            if not taken:
                with suppress(TimeoutError):  # that is the poll
                    await asyncio.wait_for(self.wake.wait(), pause)

    async def _take(self) -> bool:
        """Take what is due and there is room for; tell whether there was any."""
        queue = self._plan.queue
        room = queue.in_flight_max - self.in_flight
        if room <= 0:
            return False
        requests = await self._queue.claim(self._name, count_max=room, bytes_max=BATCH_BYTES_MAX, lease_s=queue.lease_s)
        if not requests:
            return False
        task = asyncio.create_task(self._run(requests), name="workflows")
        self._running[task] = len(requests)
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Their leases run out, and they are taken again.
            _log.error("accepted workflows were dropped", exc_info=error)

    async def _run(self, requests: Sequence[StampRequest]) -> None:
        renewing = asyncio.create_task(self._renew(requests))
        queue = self._plan.queue
        try:
            exhausted = [r for r in requests if r.lease and r.lease.attempt > queue.attempts_max]
            for request in exhausted:
                await self._give_up(
                    request,
                    ATTEMPTS_EXHAUSTED_CODE,
                    f"{queue.attempts_max} attempts ended without an outcome: their workers died",
                )
            going = [request for request in requests if request not in exhausted]
            for request, answer in zip(going, await self._runner.run_many(going), strict=True):
                await self._settle(request, answer)
        except (ServiceUnavailable, asyncio.CancelledError) as error:
            pause = self._pause_s(1) if isinstance(error, ServiceUnavailable) else 0.0
            with suppress(ServiceUnavailable):
                for request in requests:
                    await self._queue.release(request, delay_s=pause, counts=False)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            renewing.cancel()

    async def _settle(self, request: StampRequest, answer: Answer) -> None:
        """Do what is left to be done after an attempt: nothing, where the ledger has ended the workflow."""
        assert request.lease is not None
        if isinstance(answer, Stamp | WorkflowFailed | LeaseLost):
            return
        if isinstance(answer, AttemptFailed):
            failed = answer
        else:  # the ledger refused it for its content
            failed = AttemptFailed(answer.message, step=self._plan.steps[-1].name, error_code=answer.code)
            if request.lease.last:
                await self._give_up(request, answer.code, answer.message)
                return
        await self._queue.release(request, delay_s=self._pause_s(request.lease.attempt), error=failed)

    async def _give_up(self, request: StampRequest, code: str, message: str) -> None:
        answer = await self._runner.give_up(request, code=code, message=message)
        if isinstance(answer, BridgeError) and not isinstance(answer, WorkflowFailed | LeaseLost):
            raise answer

    async def _renew(self, requests: Sequence[StampRequest]) -> None:
        """Keep the leases while the batch runs; a renewal that fails is tried again at the next turn."""
        lease_s = self._plan.queue.lease_s
        while True:
            await asyncio.sleep(lease_s / 3)
            with suppress(ServiceUnavailable):
                await self._queue.renew(requests, lease_s)

    def _pause_s(self, attempt: int) -> float:
        retry = self._plan.retry
        # Full jitter: those who failed together do not come back together.
        return random.uniform(0, min(retry.max_delay_s, retry.base_delay_s * 2 ** (attempt - 1)))  # noqa: S311 - no secret
