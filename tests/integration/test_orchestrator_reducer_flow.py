"""Orchestrator → reducer, end to end: six suites on real services, each on the embedded and on the distributed backend.

Embedded is PostgreSQL and its event log; distributed is PostgreSQL and a real Kafka broker between log and reducer.
The services come up by themselves; BRIDGE_TEST_DATABASE_URL and BRIDGE_TEST_KAFKA_BOOTSTRAP_SERVERS name running ones.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from blake3 import blake3
from omnibase_core.models.errors.model_onex_error import ModelOnexError

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.domain.errors import StampingUnavailable
from omninode_bridge.domain.stamp import Digest, Inline
from omninode_bridge.nodes.orchestrator.v1_0_0.models import EnumWorkflowState, ModelStampRequestInput
from omninode_bridge.nodes.reducer.v1_0_0.models import ModelStampMetadataInput
from tests import services
from tests.conftest import Server
from tests.integration.books import eventually
from tests.integration.flow import (
    BREAKER_FAILURES,
    Flow,
    as_input,
    filled,
    filled_by,
    folded_by,
    metric,
    moves_ms,
    only_by_kafka,
    p95,
    reduce,
    remote_hasher,
    sees_only_its_own,
    stamp,
    timed_ms,
)
from tests.integration.serving import served, token
from tests.load.fleet import Process

PERFORMANCE_THRESHOLDS = {
    "workflow_ms": 300.0,  # from the request to the durable stamp
    "batch_items": 1000,  # that the reducer takes at once
    "batch_items_per_s": 1000.0,
    "fsm_transition_ms": 50.0,
    "hash_ms": 2.0,
}
NAMESPACE = "acme.docs"
TENANTS = [f"{tenant}.docs" for tenant in ("acme", "globex", "initech", "umbrella")]
SHARED = "what all of them have"
PENDING, PROCESSING, COMPLETED, FAILED = EnumWorkflowState

type MakeRequest = Callable[..., ModelStampRequestInput]
type MakeMetadata = Callable[..., ModelStampMetadataInput]


@pytest.fixture
def stamp_request_factory() -> MakeRequest:
    """Make requests, no two of one content or path; a test names what it is about."""
    numbers = count(1)

    def make(**fields: Any) -> ModelStampRequestInput:
        number = next(numbers)
        given = {
            "file_path": f"docs/{number:04}.txt",
            "file_content": f"the text of {number}".encode() * (1 + number % 7),
            "content_type": "text/plain",
            "namespace": NAMESPACE,
            "op_id": uuid4(),
            "enable_onextree_intelligence": False,
            "intelligence_context": {},
            "metadata": {"project": f"p{number % 3}"},
        }
        return ModelStampRequestInput.model_validate({**given, **fields})

    return make


@pytest.fixture
def stamp_metadata_factory() -> MakeMetadata:
    """Make what the reducer's ONEX door takes, no two of one stamp; a test names what it is about."""
    numbers = count(1)

    def make(**fields: Any) -> ModelStampMetadataInput:
        number = next(numbers)
        given = {
            "stamp_id": str(uuid4()),
            "file_hash": blake3(b"%d" % number).hexdigest(),
            "file_path": f"docs/{number:04}.txt",
            "file_size": 100 * number,
            "namespace": NAMESPACE,
            "content_type": "text/plain",
            "workflow_id": uuid4(),
            "workflow_state": COMPLETED,
            "created_at": "2026-03-01T12:00:00Z",
            "processing_time_ms": 1.5,
        }
        return ModelStampMetadataInput.model_validate({**given, **fields})

    return make


@pytest.fixture(params=["embedded", "distributed"])
def kafka(request: pytest.FixtureRequest) -> str | None:
    """The backend: the bootstrap servers of its Kafka, or None where there is none."""
    return request.getfixturevalue("bootstrap_servers") if request.param == "distributed" else None


@pytest_asyncio.fixture
async def flow(one_server: Server, kafka: str | None, tmp_path: Path) -> AsyncIterator[Flow]:
    url = await one_server.create()
    try:
        async with pool(url) as sql:
            opened = Flow(url, kafka, tmp_path, sql)
            yield opened
            await opened.clear()
    finally:
        await one_server.drop(url)


async def test_complete_stamping_workflow_end_to_end(
    flow: Flow, stamp_request_factory: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_by_kafka(monkeypatch)
    async with flow.open() as bridge:
        requests = [stamp_request_factory(content_type=kind) for kind in ["text/plain"] * 3 + ["image/png"] * 2]
        took_ms, answers = zip(*[await timed_ms(stamp(bridge, request)) for request in requests], strict=True)
        for request, answer in zip(requests, answers, strict=True):
            assert answer.workflow_id == answer.op_id == request.op_id
            assert answer.workflow_state is COMPLETED
            assert bridge.orchestrator.get_workflow_state(answer.workflow_id) is COMPLETED
            assert (answer.file_hash, answer.file_size) == (
                blake3(request.file_content).hexdigest(), len(request.file_content),
            )  # fmt: skip
            assert (answer.namespace, answer.file_path, answer.content_type, answer.metadata) == (
                request.namespace, request.file_path, request.content_type, request.metadata,
            )  # fmt: skip
            assert (answer.version, answer.deduplicated, answer.digest_origin) == (1, False, "computed")
            assert await flow.states(answer.workflow_id) == [PENDING, PROCESSING, COMPLETED]

        # The reducer has folded them before anybody asks for totals; where there is Kafka, from there.
        await flow.folded()
        assert await filled(bridge) == 0
        size = sum(len(request.file_content) for request in requests)
        assert await flow.totals() == {NAMESPACE: (5, 0, size)}
        state = await bridge.state(NAMESPACE)
        assert (state.total_stamps, state.failed, state.total_size_bytes) == (5, 0, size)
        assert {row.group_key: row.total_stamps for row in state.by("content_type")} == {
            "text/plain": 3, "image/png": 2,
        }  # fmt: skip

        records = await flow.balance(bridge)
        events = {record.workflow_id: json.loads(record.body) for record in records}
        assert events.keys() == {str(answer.workflow_id) for answer in answers}
        told = {"stamp_id", "workflow_id", "file_hash", "file_size", "file_path", "metadata", "version"}
        for answer in answers:
            event = events[str(answer.workflow_id)]
            assert (event["type"], event["specversion"], event["namespace"]) == (flow.completed, "1.0", NAMESPACE)
            assert answer.model_dump(mode="json", include=told).items() <= event["data"].items()
        print(f"workflow {statistics.median(took_ms):.1f} ms (median of 5)")
        assert statistics.median(took_ms) < PERFORMANCE_THRESHOLDS["workflow_ms"]


async def test_multi_namespace_operations_with_isolation(
    flow: Flow, stamp_metadata_factory: MakeMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_by_kafka(monkeypatch)
    tokens = {name: await token(flow.url, name, name) for name in TENANTS}
    async with flow.open() as bridge, served(bridge) as client:

        async def stamped(namespace: str, number: int) -> dict[str, Any]:
            # The same paths everywhere, and of the first one the same bytes too.
            content = SHARED if number == 0 else f"{number} of {namespace}"
            body = {"namespace": namespace, "file_path": f"{number}.txt", "content": content}
            answer = await client.post("/stamp", json=body, headers=tokens[namespace])
            assert answer.status_code == 201, answer.text
            made: dict[str, Any] = answer.json()
            assert (made["stamped_by"], made["version"], made["deduplicated"]) == (namespace, 1, False)
            return made

        made = await asyncio.gather(*(stamped(name, number) for number in range(5) for name in TENANTS))
        await flow.folded()
        assert await filled(bridge) == 0
        sizes = {name: sum(one["file_size"] for one in made if one["namespace"] == name) for name in TENANTS}
        assert await flow.totals() == {name: (5, 0, sizes[name]) for name in TENANTS}

        records = await flow.balance(bridge)
        workflows = {name: {one.workflow_id for one in records if one.namespace == name} for name in TENANTS}
        assert [len(workflows[name]) for name in TENANTS] == [5, 5, 5, 5]
        assert len(set().union(*workflows.values())) == len(records) == 20
        reduced = await reduce(bridge, items=[stamp_metadata_factory(**as_input(record)) for record in records])
        assert reduced.namespaces == TENANTS
        for name in TENANTS:
            assert reduced.aggregations[name]["total_stamps"] == 5
            assert set(reduced.aggregations[name]["workflow_ids"]) == workflows[name]

        for name in TENANTS:
            await sees_only_its_own(client, tokens[name], name, made, SHARED.encode())
            assert await flow.visible(name) == {name}
        assert await flow.balance(bridge) == records


async def test_concurrent_workflow_execution_100_plus_workflows(
    flow: Flow, stamp_request_factory: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_by_kafka(monkeypatch)
    endpoints = [flow.process("stamping", number) for number in (1, 2)]
    try:
        await asyncio.gather(*(endpoint.start() for endpoint in endpoints))
        async with flow.open(stamping_urls=[endpoint.url for endpoint in endpoints]) as bridge:
            requests = [stamp_request_factory(namespace=f"team.n{number % 3}") for number in range(120)]
            # Some of them come twice at the same time, as from a client that lost its patience.
            answers = await asyncio.gather(*(stamp(bridge, request) for request in requests + requests[:20]))
            assert [answer.workflow_state for answer in answers] == [COMPLETED] * 140
            assert [answer.file_hash for answer in answers[:120]] == [
                blake3(request.file_content).hexdigest() for request in requests
            ]
            assert [one.stamp_id for one in answers[120:]] == [one.stamp_id for one in answers[:20]]
            assert len({answer.stamp_id for answer in answers}) == 120

            await flow.folded()
            assert await filled(bridge) == 0
            records = await flow.balance(bridge)
            assert sorted(record.workflow_id for record in records) == sorted(str(one.op_id) for one in requests)
            assert {name: found[:2] for name, found in (await flow.totals()).items()} == {
                f"team.n{number}": (40, 0) for number in range(3)
            }

            loads = [await metric(one, "http_requests_total", 'route="/hash"', missing=0.0) for one in endpoints]
            print(f"contents hashed by each endpoint: {loads}")
            assert sum(loads) == 140 and min(loads) >= 140 / 4
            assert [one.state for one in (await remote_hasher(bridge)).breakers()] == ["closed", "closed"]
        assert [line for endpoint in endpoints for line in endpoint.complaints()] == []
    finally:
        await asyncio.gather(*(endpoint.stop() for endpoint in endpoints))


async def test_error_handling_with_circuit_breaker(
    flow: Flow,
    stamp_request_factory: MakeRequest,
    stamp_metadata_factory: MakeMetadata,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_by_kafka(monkeypatch)
    refused: list[ModelStampRequestInput] = []
    async with (
        services.Service(services.answer("out of order", 500)) as service,
        flow.open(stamping_urls=[service.url]) as bridge,
    ):
        hasher = await remote_hasher(bridge)

        async def fails(why: str) -> None:
            request = stamp_request_factory()
            with pytest.raises(ModelOnexError, match=why):
                await stamp(bridge, request)
            refused.append(request)
            assert bridge.orchestrator.get_workflow_state(str(request.op_id)) is FAILED
            assert await flow.states(request.op_id) == [PENDING, PROCESSING, FAILED]

        # The step is tried three times, and three failures in a row open the breaker.
        assert hasher.breakers()[0].state == "closed"
        await fails("HTTP 500")
        assert len(service.asked) == BREAKER_FAILURES
        assert hasher.breakers()[0].state == "open"

        # Open: refused at once, and the service is left alone.
        took_ms, _ = await timed_ms(fails("not asked again yet"))
        print(f"refused in {took_ms:.1f} ms while the breaker is open")
        assert len(service.asked) == BREAKER_FAILURES
        assert took_ms < bridge.orchestrator.bridge_contract.stamping.request_timeout_ms

        # Half-open: one call tries the service, and nobody else is let through beside it.
        gate = asyncio.Event()
        service.behaviour = services.hold(gate)

        async def probe() -> Digest:
            while True:
                try:
                    (found,) = await hasher.digest_many([Inline(b"is it back?")])
                except StampingUnavailable:
                    await asyncio.sleep(0.01)  # there is nothing to wait for but the time
                else:
                    assert isinstance(found, Digest)
                    return found

        probing = asyncio.create_task(probe())
        await service.until_asked(BREAKER_FAILURES + 1)
        assert hasher.breakers()[0].state == "half_open"
        await fails("being tried again after HTTP 500")
        assert len(service.asked) == BREAKER_FAILURES + 1

        # Recovery: the probe's success closes the breaker.
        gate.set()
        assert (await probing).file_hash == blake3(b"is it back?").hexdigest()
        assert hasher.breakers()[0].state == "closed"
        good = [await stamp(bridge, stamp_request_factory()) for _ in range(5)]
        assert [answer.workflow_state for answer in good] == [COMPLETED] * 5
        assert len(service.asked) == BREAKER_FAILURES + 1 + 5

        await flow.folded()
        assert await filled(bridge) == 0
        assert await flow.totals() == {NAMESPACE: (5, 3, sum(answer.file_size for answer in good))}
        records = await flow.balance(bridge)
        failures = {record.workflow_id: json.loads(record.body) for record in records if record.topic == flow.failed}
        assert failures.keys() == {str(request.op_id) for request in refused}
        for event in failures.values():
            told = event["type"], event["data"]["step"], event["data"]["error_code"]
            assert told == (flow.failed, "hash", "stamping_unavailable")
        assert await flow.sql.fetchval("SELECT count(*) FROM metadata_stamps") == 5

        reduced = await reduce(bridge, items=[stamp_metadata_factory(**as_input(record)) for record in records])
        assert reduced.total_items == 8
        totals = reduced.aggregations[NAMESPACE]
        assert (totals["total_stamps"], totals["failed"]) == (5, 3)
        assert Counter(reduced.fsm_states.values()) == {"completed": 5, "failed": 3}
        assert reduced.total_size_bytes == sum(answer.file_size for answer in good)


async def test_performance_validation_against_thresholds(
    flow: Flow, stamp_request_factory: MakeRequest, stamp_metadata_factory: MakeMetadata
) -> None:
    items = 1500
    figures: dict[str, float] = {}
    # Nobody folds by himself here: the reducer's part is measured, at its ONEX door.
    async with flow.open_role("api") as bridge, flow.open_role("relay"):
        await stamp(bridge, stamp_request_factory())
        timings = [await timed_ms(stamp(bridge, stamp_request_factory(file_content=b"x" * 1024))) for _ in range(50)]
        figures["workflow_ms"] = p95([took_ms for took_ms, _ in timings])
        figures["hash_ms"] = p95([answer.hash_generation_time_ms for _, answer in timings])

        stored_ms = [took_ms for _, answer in timings for took_ms in await flow.moves_ms(answer.workflow_id)]
        figures["fsm_transition_ms"] = max(p95(stored_ms), p95(await moves_ms(bridge, len(timings))))

        rest = [stamp_request_factory(namespace="bulk.docs") for _ in range(items - 51)]
        await asyncio.gather(*(stamp(bridge, request) for request in rest))
        assert await flow.totals() == {}
        records = await flow.published()
        assert len(records) == items > PERFORMANCE_THRESHOLDS["batch_items"]
        stored = await reduce(bridge, records=records)
        assert (stored.total_items, stored.intents) == (items, [])
        assert {name: found[:2] for name, found in (await flow.totals()).items()} == {
            NAMESPACE: (51, 0), "bulk.docs": (items - 51, 0),
        }  # fmt: skip
        await flow.balance(bridge)
        figures["batch_items_per_s"] = stored.items_per_second
        given_items = await reduce(bridge, items=[stamp_metadata_factory(**as_input(record)) for record in records])
        assert given_items.total_items == items
        assert given_items.total_size_bytes == stored.total_size_bytes

    for name, figure in figures.items():
        print(f"{name}: {figure:.3f}, threshold {PERFORMANCE_THRESHOLDS[name]:g}")
    assert figures["batch_items_per_s"] > PERFORMANCE_THRESHOLDS["batch_items_per_s"]
    assert given_items.items_per_second > PERFORMANCE_THRESHOLDS["batch_items_per_s"]
    for name in ("workflow_ms", "fsm_transition_ms", "hash_ms"):
        assert figures[name] < PERFORMANCE_THRESHOLDS[name]


async def test_state_persistence_and_recovery(flow: Flow, stamp_request_factory: MakeRequest) -> None:
    first, second = flow.process("reducer", 1), flow.process("reducer", 2)
    made = 0
    # These two fold nothing: the totals are made by the processes alone.
    async with flow.open_role("api") as bridge, flow.open_role("relay"):

        async def batch(number: int) -> None:
            nonlocal made
            made += number
            await asyncio.gather(*(stamp(bridge, stamp_request_factory()) for _ in range(number)))

        async def stamps() -> int:
            total, failed, _ = (await flow.totals())[NAMESPACE]
            assert failed == 0
            return total

        async def folds_more(process: Process) -> None:
            """Where there is Kafka: until some of it has come from there."""
            await flow.reads_topics(process)
            for _ in range(10):  # on a machine that is busy the log may be quicker once
                before = await filled_by(process)
                await batch(100)
                await flow.folded()
                assert await stamps() == made
                if await filled_by(process) < before + 100:
                    return
            raise AssertionError(f"nothing came over Kafka to {process.name}")

        async def has_folded(process: Process, events: int) -> None:
            """Wait until a process has counted so many, and fail if they are more: others may see it fold before."""

            async def counts() -> bool:
                return await folded_by(process) >= events

            await eventually(counts, f"{process.name} has counted what it folded")
            assert await folded_by(process) == events

        async def moved_on() -> bool:
            return await stamps() > kept

        try:
            await first.start()
            await folds_more(first)
            kept = made
            await has_folded(first, kept)

            # It dies in the middle of its work; what it had done is kept, and nobody goes on with it.
            stamping = asyncio.create_task(batch(200))
            await eventually(moved_on, "the next batch is being folded")
            await first.kill()
            await stamping
            await batch(50)
            left = await stamps()
            assert kept < left <= made - 50
            assert await flow.folded_events() == left

            # A new process goes on where the dead one was, and takes no more than what was left.
            await second.start()
            await flow.folded()
            assert await stamps() == made
            await has_folded(second, made - left)
            await folds_more(second)
            await has_folded(second, made - left)

            assert len(await flow.balance(bridge)) == made
            state = await bridge.state(NAMESPACE)
            assert (state.total_stamps, state.failed) == (made, 0)
            assert first.complaints() + second.complaints() == []
        finally:
            for process in (first, second):
                if process.log.exists():
                    await process.stop()
