"""The queue of accepted workflows: leases on the server's clock.

The rules it keeps:

1. Workers never wait for each other: rows that another one is taking are passed over (`FOR UPDATE SKIP LOCKED`).
2. A lease is a time after which the row may be taken again, and a fence that grows with each taking. The ledger ends
   a workflow only under the fence that its row still has, so a worker that slept through its lease changes nothing.
3. Inputs come before workflows, here and in the ledger: they are locked in one order.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import asyncpg
import msgspec
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.acceptance import unpack
from omninode_bridge.domain.errors import AttemptFailed
from omninode_bridge.domain.recording import Workflow
from omninode_bridge.domain.stamp import Inline, Lease, StampRequest
from omninode_bridge.domain.workflow import Plan, advance
from omninode_bridge.ports import Clock

_SQL = load("queue")
_log = logging.getLogger(__name__)


class PostgresWorkQueue:
    """ports.WorkQueue on a pool of the service's sessions."""

    def __init__(self, pool: Pool, plan: Plan, clock: Clock) -> None:
        self._pool = pool
        self._plan = plan
        self._clock = clock

    async def claim(self, worker: str, *, count_max: int, bytes_max: int, lease_s: float) -> list[StampRequest]:
        with translated("taking accepted workflows"):
            async with self._pool.acquire() as connection:
                try:
                    async with connection.transaction():
                        return await self._claim(connection, worker, count_max, bytes_max, lease_s)
                except asyncpg.DeadlockDetectedError:
                    return []  # with the end of a workflow whose lease had run out: it is looked for again

    async def renew(self, held: Sequence[StampRequest], lease_s: float) -> None:
        with translated("renewing leases"):
            await self._pool.execute(_SQL["renew"], *_keys(held), lease_s)

    async def release(
        self, held: Sequence[StampRequest], *, delay_s: float, error: AttemptFailed | None = None, counts: bool = True
    ) -> None:
        code, message = (None, None) if error is None else (error.context["error_code"], error.message)
        with translated("giving workflows back"):
            await self._pool.execute(_SQL["release"], *_keys(held), delay_s, code, message, 0 if counts else 1)

    async def disown(self, workers: Collection[str]) -> None:
        with translated("giving back workflows that were taken unawares"):
            await self._pool.execute(_SQL["disown"], list(workers))

    async def size(self) -> tuple[int, int]:
        with translated("measuring the queue"):
            row = await self._pool.fetchrow(_SQL["size"])
        return row["waiting"], row["bytes"]

    async def depth(self) -> tuple[int, float]:
        with translated("measuring the queue"):
            row = await self._pool.fetchrow(_SQL["depth"])
        return row["waiting"], row["oldest_s"]

    async def _claim(
        self, connection: Connection, worker: str, count_max: int, bytes_max: int, lease_s: float
    ) -> list[StampRequest]:
        found = await connection.fetch(_SQL["claim"], count_max, bytes_max, lease_s, worker)
        requests, moved = [], []
        for row in found:
            workflow = rows.workflow_of(row)
            if workflow.state == self._plan.machine.initial:
                workflow = self._started(workflow)
                moved.append(workflow)
            last = row["attempts"] >= self._plan.queue.attempts_max
            lease = Lease(row["fence"], row["attempts"], last, workflow.visits)
            request = self._request(row, workflow, lease)
            if request is not None:
                requests.append(request)
        if moved:
            await connection.execute(_SQL["move"], rows.workflow_rows(moved))
        return requests

    def _request(self, row: rows.Row, workflow: Workflow, lease: Lease) -> StampRequest | None:
        """Return what a worker gets. What can't be read keeps its lease and its attempt, and holds up no other."""
        name, namespace = workflow.workflow_id, workflow.namespace
        try:
            return unpack(row["request"], workflow_id=name, namespace=namespace, content=row["content"], lease=lease)
        except (msgspec.MsgspecError, ValueError, TypeError):
            _log.exception("the input of workflow %s can't be read", name)
        if lease.attempt <= self._plan.queue.attempts_max:
            return None
        # It can't be run, but it can be ended: for that its key suffices.
        return StampRequest(
            workflow_id=name,
            namespace=namespace,
            file_path=workflow.file_path,
            content=Inline(b""),
            created_at=workflow.visits[0].at,
            op_id_given=True,
            lease=lease,
        )

    def _started(self, workflow: Workflow) -> Workflow:
        visits = workflow.visits
        for trigger in self._plan.start:
            visits = advance(self._plan.machine, visits, trigger, self._clock())
        return msgspec.structs.replace(workflow, state=visits[-1].state, visits=visits)


def _keys(held: Sequence[StampRequest]) -> tuple[list[str], list[str], list[int]]:
    # In the order in which the ledger takes them: so none waits for the other in a circle.
    leases = sorted((request.workflow_id, request.namespace, request.lease.fence) for request in held if request.lease)
    return [key[0] for key in leases], [key[1] for key in leases], [key[2] for key in leases]
