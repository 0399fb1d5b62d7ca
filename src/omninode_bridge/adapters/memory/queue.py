"""The queue of accepted workflows, in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from omninode_bridge.adapters.memory.store import MemoryStore
from omninode_bridge.domain.acceptance import Input, Waiting
from omninode_bridge.domain.errors import AttemptFailed
from omninode_bridge.domain.recording import (
    OpKey,
)
from omninode_bridge.domain.stamp import Lease, StampRequest
from omninode_bridge.domain.workflow import Plan, advance
from omninode_bridge.ports import (
    Clock,
)


class MemoryWorkQueue:
    """`clock` takes the place of the server's: a lease ends when it says so."""

    def __init__(self, store: MemoryStore, plan: Plan, clock: Clock) -> None:
        self._store = store
        self._plan = plan
        self._clock = clock

    async def claim(self, worker: str, *, count_max: int, bytes_max: int, lease_s: float) -> list[StampRequest]:
        now = self._clock()
        due = sorted(
            (waiting.available_at, key)
            for key, (_, waiting) in self._store.inputs.items()
            if waiting.available_at <= now
        )
        taken: list[StampRequest] = []
        size = 0
        for _, key in due[:count_max]:
            accepted, waiting = self._store.inputs[key]
            size += len(accepted.content)
            if taken and size > bytes_max:
                break
            taken.append(self._lease(key, accepted, waiting, worker, now + timedelta(seconds=lease_s)))
        return taken

    async def renew(self, held: Sequence[StampRequest], lease_s: float) -> None:
        until = self._clock() + timedelta(seconds=lease_s)
        for request in held:
            self._change(request, available_at=until)

    async def release(
        self, held: Sequence[StampRequest], *, delay_s: float, error: AttemptFailed | None = None, counts: bool = True
    ) -> None:
        for request in held:
            changes: dict[str, Any] = {"available_at": self._clock() + timedelta(seconds=delay_s), "worker": None}
            if error is not None:
                changes |= {"error_code": error.context["error_code"], "error_message": error.message}
            if not counts and request.lease is not None:
                changes["attempts"] = request.lease.attempt - 1
            self._change(request, **changes)

    async def disown(self, workers: Collection[str]) -> None:
        for key, (accepted, waiting) in self._store.inputs.items():
            if waiting.worker in workers:
                given_back = msgspec.structs.replace(
                    waiting, available_at=self._clock(), worker=None, attempts=waiting.attempts - 1
                )
                self._store.inputs[key] = (accepted, given_back)

    async def size(self) -> tuple[int, int]:
        contents = [len(accepted.content) for accepted, _ in self._store.inputs.values()]
        return len(contents), sum(contents)

    async def depth(self) -> tuple[int, float]:
        accepted = [self._store.accepted[key] for key in self._store.inputs]
        return len(accepted), (self._clock() - min(accepted)).total_seconds() if accepted else 0.0

    def _lease(self, key: OpKey, accepted: Input, waiting: Waiting, worker: str, until: datetime) -> StampRequest:
        store, plan = self._store, self._plan
        workflow = store.workflows[key]
        if workflow.state == plan.machine.initial:
            visits = workflow.visits
            for trigger in plan.start:
                visits = advance(plan.machine, visits, trigger, self._clock())
            workflow = store.workflows[key] = msgspec.structs.replace(workflow, state=visits[-1].state, visits=visits)
        leased = msgspec.structs.replace(
            waiting, fence=waiting.fence + 1, attempts=waiting.attempts + 1, available_at=until, worker=worker
        )
        store.inputs[key] = (accepted, leased)
        lease = Lease(leased.fence, leased.attempts, leased.attempts >= plan.queue.attempts_max, workflow.visits)
        return msgspec.structs.replace(accepted.request, op_id_given=True, lease=lease)

    def _change(self, request: StampRequest, **changes: Any) -> None:
        key = (request.namespace, request.workflow_id)
        accepted, waiting = self._store.inputs.get(key, (None, None))
        if accepted is None or waiting is None or waiting.worker is None:
            return
        if request.lease and waiting.fence == request.lease.fence:
            self._store.inputs[key] = (accepted, msgspec.structs.replace(waiting, **changes))
