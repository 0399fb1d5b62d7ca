"""Workflows hashed by services over HTTP: what is recorded when those are down, and how it goes on afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio
from blake3 import blake3

from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.stamping_http import RemoteHasher
from omninode_bridge.domain.errors import ContentUnavailable, StampingUnavailable, WorkflowFailed
from omninode_bridge.domain.events import decode
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.nodes.contracts import load_orchestrator
from omninode_bridge.nodes.orchestrator.v1_0_0.models import EnumWorkflowState
from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
from tests.making import COMPLETED, FAILED, request
from tests.services import Asked, Service, answer, hang, honest
from tests.unit.nodes.assembly import Bench, edited

OPEN_S = 5.0
EDITS: dict[str, Any] = {
    "config.stamping.circuit_breaker.failure_threshold": 2,
    "config.stamping.circuit_breaker.timeout_ms": int(OPEN_S * 1000),
}


class Remote:
    """An orchestrator on memory adapters that hashes at two services, on a clock for breakers that moves by hand."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.services = (Service(), Service())
        self.now_s = 0.0

    async def node(self, **edits: Any) -> NodeBridgeOrchestrator:
        """The node, by the shipped contract with EDITS and these settings of `config.stamping`."""
        more = {f"config.stamping.{name}": value for name, value in edits.items()}
        self.bench = Bench(load_orchestrator(edited("orchestrator", EDITS | more)))
        for service in self.services:
            await self._stack.enter_async_context(service)
        self.hasher = await self._stack.enter_async_context(
            RemoteHasher(
                [service.url for service in self.services],
                self.bench.contract.stamping,
                local=Blake3Hasher(),
                now_s=lambda: self.now_s,
            )
        )
        return await self.bench.node(hasher=self.hasher)

    def states(self) -> list[str]:
        return [health.state for health in self.hasher.breakers()]


@pytest_asyncio.fixture
async def remote() -> AsyncIterator[Remote]:
    async with AsyncExitStack() as stack:
        yield Remote(stack)


async def test_stamps_are_made_with_the_services_digests(remote: Remote) -> None:
    node = await remote.node()
    asked = [request(f"{number}.txt", b"%d" % number) for number in range(100)]
    stamps = await node.run_many(asked)
    assert [stamp.file_hash for stamp in stamps if isinstance(stamp, Stamp)] == [
        blake3(b"%d" % number).hexdigest() for number in range(100)
    ]
    assert all(service.asked for service in remote.services)
    assert remote.bench.topics() == {COMPLETED: 100}


async def test_with_one_service_down_no_workflow_fails(remote: Remote) -> None:
    node = await remote.node()
    await remote.services[0].stop()
    stamps = await asyncio.gather(*(node.run(request(f"{number}.txt")) for number in range(100)))
    assert len(stamps) == 100
    assert remote.states() == ["open", "closed"]
    assert node.get_stamping_metrics()["retries"] == 0
    await remote.services[0].start()


async def test_with_all_down_a_workflow_fails_is_published_and_stamping_goes_on_when_one_is_back(
    remote: Remote,
) -> None:
    node = await remote.node()
    for service in remote.services:
        await service.stop()
    asked = request("a.txt")
    (failed,) = await node.run_many([asked])
    assert isinstance(failed, WorkflowFailed)
    assert isinstance(failed.__cause__, StampingUnavailable)
    assert failed.context["error_code"] == "stamping_unavailable"
    assert node.get_stamping_metrics()["retries"] == remote.bench.contract.plan.steps[0].retries
    assert remote.bench.states(asked.workflow_id) == ["pending", "processing", "failed"]
    assert node.get_workflow_state(asked.workflow_id) is EnumWorkflowState.FAILED
    assert remote.bench.topics() == {FAILED: 1}
    (record,) = next(records for (topic, _), records in remote.bench.store.log.items() if topic == FAILED)
    data = decode(record.body).data
    assert (data.workflow_id, data.step, data.error_code) == (asked.workflow_id, "hash", "stamping_unavailable")
    assert all(f"service {number}: " in data.error_message for number in range(len(remote.services)))
    assert not any(service.url in data.error_message for service in remote.services)

    # One is back: it is left alone at first, then the next workflow's own call finds it.
    back = remote.services[1]
    await back.start()
    assert remote.states() == ["open", "open"]
    assert isinstance((await node.run_many([request("b.txt")]))[0], WorkflowFailed)
    assert back.asked == []
    remote.now_s += OPEN_S
    assert isinstance(await node.run(request("c.txt")), Stamp)
    assert remote.states() == ["open", "closed"]
    assert remote.bench.topics() == {FAILED: 2, COMPLETED: 1}
    await remote.services[0].start()


async def test_services_that_hang_fail_the_workflow_in_the_time_of_their_calls(remote: Remote) -> None:
    node = await remote.node(request_timeout_ms=100)
    for service in remote.services:
        service.behaviour = hang
    (failed,) = await node.run_many([request()])
    assert isinstance(failed, WorkflowFailed)
    assert failed.context["error_code"] == "stamping_unavailable"
    assert "no answer within 0.1 s" in failed.message


async def test_a_service_that_comes_back_while_the_step_is_tried_again_saves_the_workflow(remote: Remote) -> None:
    node = await remote.node()
    for service in remote.services:
        service.behaviour = answer("", 503)
    running = asyncio.create_task(node.run(request()))
    await remote.services[0].until_asked(1)
    await remote.services[1].until_asked(1)
    for service in remote.services:
        service.behaviour = honest
    assert isinstance(await running, Stamp)
    assert node.get_stamping_metrics()["retries"] == 1


async def test_a_content_that_the_services_refuse_harms_no_other_of_its_batch(remote: Remote) -> None:
    async def refuse_large(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (answer('{"code": "limit_exceeded"}', 413) if len(asked.body) > 1 else honest)(asked, writer)

    node = await remote.node()
    for service in remote.services:
        service.behaviour = refuse_large
    first, refused, last = await node.run_many([request("a"), request("b", b"too large"), request("c")])
    assert isinstance(refused, ContentUnavailable)
    assert [stamp.file_path for stamp in (first, last) if isinstance(stamp, Stamp)] == ["a", "c"]
    assert remote.states() == ["closed", "closed"]
    assert remote.bench.topics() == {COMPLETED: 2}
