"""The worker: runs accepted workflows, which wait in the database with their inputs.

    take what is due ─▶ run it as one batch ─▶ the ledger ends it, under its lease
          ▲                  │  (renewed meanwhile)
          └─── give back ◀───┴── a step failed: after a pause, until the contract's attempts are used up

The rules it keeps:

1. Nothing is remembered here: a worker that dies leaves leases, which run out, and others take over.
2. The ledger ends a workflow only under the lease that its row still has. A worker that was too slow changes nothing.
3. An attempt that PostgreSQL's absence, or the end of this process, cut short is not counted. Each claim has a name of
   its own: where its answer was lost, what it took is given back as soon as PostgreSQL answers.
4. One item that can't be ended harms no other. What can't be ended otherwise ends as failed; what even that is refused
   for (a changed contract, whose machine has no way to fail from there) is given back for later, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
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
STOP_S_MAX = 5.0
"""For giving back, at the end, what claims took whose answers were lost."""
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
        self._unanswered: dict[str, float] = {}
        """Claims, and until when they may hold what they took."""
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
            with suppress(ServiceUnavailable, TimeoutError):  # then the leases run out
                async with asyncio.timeout(STOP_S_MAX):
                    await self._disown()

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
        requests = await self._claim(room, queue.lease_s)
        if not requests:
            return False
        task = asyncio.create_task(self._run(requests), name="workflows")
        self._running[task] = len(requests)
        task.add_done_callback(self._ended)
        return True

    async def _claim(self, count_max: int, lease_s: float) -> list[StampRequest]:
        await self._disown()
        name = f"{self._name}/{secrets.token_hex(4)}"
        self._unanswered[name] = asyncio.get_running_loop().time() + lease_s
        requests = await self._queue.claim(name, count_max=count_max, bytes_max=BATCH_BYTES_MAX, lease_s=lease_s)
        del self._unanswered[name]
        return requests

    async def _disown(self) -> None:
        """Give back what claims without an answer took; once more each time, for one may be under way still."""
        if self._unanswered:
            await self._queue.disown(self._unanswered)
            now_s = asyncio.get_running_loop().time()
            self._unanswered = {name: until_s for name, until_s in self._unanswered.items() if until_s > now_s}

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Their leases run out, and they are taken again.
            _log.error("accepted workflows were dropped", exc_info=error)

    async def _run(self, requests: Sequence[StampRequest]) -> None:
        renewing = asyncio.create_task(self._renew(requests))
        open_ = {(request.namespace, request.workflow_id): request for request in requests}
        try:
            await self._end(requests, open_)
        except asyncio.CancelledError:
            with suppress(ServiceUnavailable):
                await self._queue.release(list(open_.values()), delay_s=0.0, counts=False)
            raise
        except ServiceUnavailable:
            await self._give_back(list(open_.values()), counts=False)
        except Exception:
            _log.exception("%d accepted workflows are given back", len(open_))
            await self._give_back(list(open_.values()), counts=True)
        finally:
            renewing.cancel()

    async def _end(self, requests: Sequence[StampRequest], open_: dict[tuple[str, str], StampRequest]) -> None:
        """Run what is to be run, end what was run too often; take off `open_` what needs nothing more."""
        attempts_max = self._plan.queue.attempts_max
        exhausted = [request for request in requests if request.lease and request.lease.attempt > attempts_max]
        going = [request for request in requests if request not in exhausted]
        for request, answer in zip(going, await self._runner.run_many(going), strict=True):
            await self._settle(request, answer)
            del open_[request.namespace, request.workflow_id]
        for request in exhausted:
            message = f"{attempts_max} attempts ended without an outcome"
            await self._give_up(request, ATTEMPTS_EXHAUSTED_CODE, message)
            del open_[request.namespace, request.workflow_id]

    async def _settle(self, request: StampRequest, answer: Answer) -> None:
        """Do what is left to be done after an attempt: nothing, where the ledger has ended the workflow."""
        assert request.lease is not None
        if isinstance(answer, Stamp | WorkflowFailed | LeaseLost):
            return
        if isinstance(answer, ServiceUnavailable):
            await self._queue.release([request], delay_s=self._pause_s(1), counts=False)
        elif isinstance(answer, AttemptFailed):
            await self._queue.release([request], delay_s=self._pause_s(request.lease.attempt), error=answer)
        elif request.lease.last:
            await self._give_up(request, answer.code, answer.message)
        else:  # the ledger refused it for its content
            failed = _refused(self._plan, answer)
            await self._queue.release([request], delay_s=self._pause_s(request.lease.attempt), error=failed)

    async def _give_up(self, request: StampRequest, code: str, message: str) -> None:
        answer = await self._runner.give_up(request, code=code, message=message)
        if isinstance(answer, ServiceUnavailable):
            await self._queue.release([request], delay_s=self._pause_s(1), counts=False)
        elif isinstance(answer, BridgeError) and not isinstance(answer, WorkflowFailed | LeaseLost):
            _log.error("workflow %s can't be ended: %s", request.workflow_id, answer.message)
            late_s = self._plan.queue.lease_s
            await self._queue.release([request], delay_s=late_s, error=_refused(self._plan, answer))

    async def _give_back(self, requests: Sequence[StampRequest], *, counts: bool) -> None:
        """Give workflows back, as soon as PostgreSQL is there. When their leases are over, that is not needed."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._plan.queue.lease_s, POLL_S
        while loop.time() < deadline:
            try:
                await self._queue.release(requests, delay_s=self._pause_s(1), counts=counts)
            except ServiceUnavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, TROUBLE_S_MAX)
            else:
                return

    async def _renew(self, requests: Sequence[StampRequest]) -> None:
        """Keep the leases while the batch runs; a renewal that fails is tried again at the next turn."""
        lease_s = self._plan.queue.lease_s
        while True:
            await asyncio.sleep(lease_s / 3)
            try:
                await self._queue.renew(requests, lease_s)
            except ServiceUnavailable:
                pass  # those who run the batch meet the same
            except Exception:
                _log.exception("leases could not be renewed")

    def _pause_s(self, attempt: int) -> float:
        queue = self._plan.queue
        # Half of it is chance: those who failed together do not come back together, nor at once.
        return min(queue.pause_max_s, queue.pause_base_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)  # noqa: S311 - no secret


def _refused(plan: Plan, answer: BridgeError) -> AttemptFailed:
    return AttemptFailed(answer.message, step=plan.steps[-1].name, error_code=answer.code)
