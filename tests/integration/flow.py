"""The flow from a request to the totals on one of two backends, and the test's own look at what went through it.

    embedded      request ─▶ ledger ─▶ event log ─────────────────▶ reducer ─▶ state
    distributed   request ─▶ ledger ─▶ event log ─▶ relay ─▶ Kafka ─▶ reducer ─▶ state

`published` reads every event where others would read it: from the event log, or from the topics by a consumer that
knows nothing of the bridge. `balance` holds the stored totals against a plain count of those.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
import pytest
from blake3 import blake3
from confluent_kafka.admin import AdminClient

from omninode_bridge import Bridge
from omninode_bridge.adapters.postgres.connection import TENANT, Pool, given
from omninode_bridge.adapters.postgres.connection import connect as session_of
from omninode_bridge.adapters.stamping_http import RemoteHasher
from omninode_bridge.app import feed
from omninode_bridge.app.bootstrap import Role, connect
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.log import Record
from omninode_bridge.nodes.container import resolve
from omninode_bridge.nodes.contracts import shipped_text
from omninode_bridge.nodes.orchestrator.v1_0_0.models import (
    EnumWorkflowState,
    ModelStampRequestInput,
    ModelStampResponseOutput,
)
from omninode_bridge.nodes.reducer.v1_0_0.models import ModelReducerOutputState
from omninode_bridge.ports import Hasher
from tests.integration.books import eventually
from tests.integration.catalogue import BY_NAMESPACE
from tests.integration.topics import PARTITIONS, READ_S_MAX, check_chains, read_topics, records_in
from tests.load.fleet import Process

BREAKER_FAILURES = 3
BREAKER_OPEN_S = 2.0
SESSION_MS = 6000
"""How long the group waits for a reader that was killed: the least that brokers allow."""

_CHANGES = {
    "circuit_breaker: {enabled: true, failure_threshold: 5, timeout_ms: 5000": (
        f"circuit_breaker: {{enabled: true, failure_threshold: {BREAKER_FAILURES}, "
        f"timeout_ms: {BREAKER_OPEN_S * 1000:.0f}"
    ),
}
"""What a test would wait for too long."""

type Totals = tuple[int, int, int]
"""Stamps, failed workflows, bytes."""


@dataclass
class Flow:
    """One backend, with topics and a consumer group that nobody else has. `kafka`: its bootstrap servers, if any."""

    url: str
    kafka: str | None
    folder: Path
    sql: Pool
    """The test's own way into the database, in the service's role."""
    prefix: str = field(default_factory=lambda: f"flow-{uuid4().hex}.")

    def __post_init__(self) -> None:
        for kind in ("orchestrator", "reducer"):
            text = shipped_text(kind)
            for old, new in {"workflow.stamping.": self.prefix, **(_CHANGES if kind == "orchestrator" else {})}.items():
                assert old in text, f"the {kind}'s contract has no {old!r} any more"
                text = text.replace(old, new)
            self._contract(kind).write_text(text, encoding="utf-8")

    @property
    def completed(self) -> str:
        return f"{self.prefix}completed"

    @property
    def failed(self) -> str:
        return f"{self.prefix}failed"

    def settings(self, **more: object) -> Settings:
        return Settings.read(
            **{
                "database_url": self.url,
                "kafka_bootstrap_servers": self.kafka,
                "kafka_group": self.prefix,
                "orchestrator_contract": self._contract("orchestrator"),
                "reducer_contract": self._contract("reducer"),
                **more,
            }
        )

    def open(self, **more: object) -> AbstractAsyncContextManager[Bridge]:
        """Open a bridge that does everything: where there is Kafka, it forwards to it and folds what arrives."""
        return Bridge.connect(self.url, kafka=self.kafka, settings=self.settings(**more))

    def open_role(self, role: Role, **more: object) -> AbstractAsyncContextManager[Bridge]:
        """Open a bridge that does what a process of that role does, and no more."""
        return connect(self.url, self.settings(**more), role)

    def process(self, role: Literal["stamping", "reducer"], number: int = 1) -> Process:
        """Return a process of that role, to be started."""
        told = self.settings().model_dump(mode="json", exclude_unset=True, exclude_none=True)
        environment = {f"BRIDGE_{name.upper()}": str(value) for name, value in told.items()}
        environment["BRIDGE_KAFKA_CLIENT"] = json.dumps({"session.timeout.ms": SESSION_MS})
        return Process(role, number, self.folder, environment)

    async def folded(self) -> None:
        """Wait until the reducer has folded all that is in the log. Nothing is asked of the bridge: that would fold."""
        await eventually(lambda: self._reached("'reducer/' || live"), "the reducer's positions are the log's heads")

    async def folded_events(self) -> int:
        """Return how many events the reducer's positions stand for."""
        found: int = await self.sql.fetchval(
            "SELECT sum(position)::bigint FROM consumer_positions WHERE consumer LIKE 'reducer/%'"
        )
        return found

    async def reads_topics(self, process: Process) -> None:
        """Where there is Kafka, wait until a process reads all partitions of both topics."""
        if self.kafka is not None:

            async def reads() -> bool:
                return await metric(process, "kafka_partitions") == 2 * PARTITIONS

            await eventually(reads, f"{process.name} reads all partitions")

    async def published(self) -> list[Record]:
        """Return every event that was published, each once, by topic, shard and position."""
        kept = [
            Record(**{**dict(row), **{name: str(row[name]) for name in ("event_id", "previous_id", "workflow_id")}})
            for row in await self.sql.fetch("SELECT * FROM event_log ORDER BY topic, shard, position")
        ]
        check_chains(kept)
        if self.kafka is not None:
            await eventually(lambda: self._reached("'relay'"), "the relay's positions are the log's heads")
            messages = await asyncio.to_thread(read_topics, self.kafka, [self.completed, self.failed])
            assert records_in(messages) == kept, "Kafka has something else than the log"
        return kept

    async def totals(self) -> dict[str, Totals]:
        """Return what is stored as the state, by namespace."""
        found = await self.sql.fetch(
            """SELECT s.namespace, total_stamps, failed, total_size_bytes::bigint AS bytes FROM bridge_state AS s
            JOIN state_generations USING (generation) WHERE status = 'live' AND aggregation_type = 'namespace'"""
        )
        return {row["namespace"]: (row["total_stamps"], row["failed"], row["bytes"]) for row in found}

    async def visits(self, workflow_id: object) -> list[tuple[EnumWorkflowState, datetime]]:
        """Return the stored history of a workflow's machine, after a look whether each move was legal."""
        found: str = await self.sql.fetchval("SELECT history FROM fsm_states WHERE workflow_id = $1", workflow_id)
        visits = [(EnumWorkflowState(one["state"]), datetime.fromisoformat(one["at"])) for one in json.loads(found)]
        for (before, left_at), (after, reached_at) in pairwise(visits):
            assert before.can_transition_to(after)
            assert left_at <= reached_at
        return visits

    async def states(self, workflow_id: object) -> list[EnumWorkflowState]:
        return [state for state, _ in await self.visits(workflow_id)]

    async def moves_ms(self, workflow_id: object) -> list[float]:
        """Return how long each move of a workflow's machine took."""
        return [(to[1] - at[1]).total_seconds() * 1000 for at, to in pairwise(await self.visits(workflow_id))]

    async def visible(self, namespace: str) -> set[str]:
        """Return whose rows SQL in the tenant's role sees, in any of the tables that have rows of tenants."""
        session = await session_of(self.url, role=TENANT)
        try:
            async with session.transaction():
                await session.execute(given([namespace]))
                tables = " UNION ".join(f"SELECT namespace FROM {table}" for table in sorted(BY_NAMESPACE))
                return {row["namespace"] for row in await session.fetch(tables)}
        finally:
            await session.close()

    async def balance(self, bridge: Bridge) -> list[Record]:
        """Check that the totals are the count of what was published, and that every law holds; return the events."""
        await self.folded()
        records = await self.published()
        stamps, failed, octets = Counter[str](), Counter[str](), Counter[str]()
        for record in records:
            event = json.loads(record.body)
            completed = event["type"] == self.completed
            (stamps if completed else failed)[event["namespace"]] += 1
            octets[event["namespace"]] += event["data"]["file_size"] if completed else 0
        counted = {name: (stamps[name], failed[name], octets[name]) for name in stamps | failed}
        assert await self.totals() == counted
        assert [finding for finding in await bridge.audit() if not finding.holds] == []
        return records

    async def clear(self) -> None:
        """Delete the topics: a broker may outlive the tests."""
        if self.kafka is not None:
            admin = AdminClient({"bootstrap.servers": self.kafka})
            there = [name for name in admin.list_topics(timeout=READ_S_MAX).topics if name.startswith(self.prefix)]
            for deleted in admin.delete_topics(there).values() if there else ():
                await asyncio.to_thread(deleted.result, READ_S_MAX)

    async def _reached(self, consumer: str) -> bool:
        done: bool = await self.sql.fetchval(
            f"""SELECT NOT EXISTS (
                SELECT FROM log_heads AS h LEFT JOIN consumer_positions AS p
                ON p.topic = h.topic AND p.shard = h.shard AND p.consumer = {consumer}
                WHERE h.position > coalesce(p.position, 0)
            ) FROM (SELECT max(generation) FILTER (WHERE status = 'live') AS live FROM state_generations) AS g"""
        )
        return done

    def _contract(self, kind: str) -> Path:
        return self.folder / f"{kind}.yaml"


def only_by_kafka(patch: pytest.MonkeyPatch) -> None:
    """Keep a reducer of this process from reading what is late from the log: what it folds has come over Kafka."""
    patch.setattr(feed, "LATE_S", 3600.0)


async def stamp(bridge: Bridge, request: ModelStampRequestInput) -> ModelStampResponseOutput:
    """Stamp through the orchestrator's ONEX door."""
    return await bridge.orchestrator.execute_stamping_workflow(request)


async def reduce(bridge: Bridge, **input_state: Any) -> ModelReducerOutputState:
    """Reduce through the reducer's ONEX door, by its own contract."""
    contract = bridge.reducer.bridge_contract.model.model_copy(update={"input_state": input_state})
    return await bridge.reducer.execute_reduction(contract)


async def timed_ms[T](work: Awaitable[T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = await work
    return (time.perf_counter() - began) * 1000, result


async def moves_ms(bridge: Bridge, times: int) -> list[float]:
    """Let the reducer's node move the contract's machine from end to end; return how long each move took."""
    machine = bridge.reducer.bridge_contract.model.state_machine
    assert machine is not None
    found: list[float] = []
    for _ in range(times):
        state = machine.initial_state
        for trigger in ("start", "complete"):
            took_ms, made = await timed_ms(
                bridge.reducer.execute_fsm_transition(machine, trigger, {"fsm_state": state})
            )
            found.append(took_ms)
            state = made.new_state
        assert state == "completed"
    return found


def p95(figures: Sequence[float]) -> float:
    return statistics.quantiles(figures, n=20)[-1]


async def remote_hasher(bridge: Bridge) -> RemoteHasher:
    """Return what calls the stamping services for a bridge: it has the breakers."""
    found = await resolve(bridge.orchestrator.container, Hasher)  # type: ignore[type-abstract]
    assert isinstance(found, RemoteHasher)
    return found


async def filled(bridge: Bridge) -> float:
    """Return how many events its reducer has read from the log instead of Kafka; 0 where there is no Kafka."""
    return sum(
        value
        for reading in await bridge.monitor.health.gauges()
        if reading.name == "kafka_filled"
        for _, value in reading.values
    )


async def metric(process: Process, name: str, *labels: str, missing: float | None = None) -> float:
    """Return what a process tells of itself: the sum of a metric's samples that have all these labels."""
    async with httpx.AsyncClient(base_url=process.url, timeout=READ_S_MAX) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if line.startswith(f"omninode_bridge_{name}")]
    if not samples and missing is not None:
        return missing
    assert samples, f"no metric {name}"
    return sum(float(value) for sample, value in samples if all(label in sample for label in labels))


async def folded_by(process: Process) -> float:
    """Return how many events a process has folded since it began."""
    return await metric(process, "reducer_events_total")


async def filled_by(process: Process) -> float:
    """Return how many of them it has read from the log instead of Kafka; 0 where there is no Kafka."""
    return await metric(process, "kafka_filled_total", missing=0.0)


def as_input(record: Record) -> dict[str, Any]:
    """Return what a ModelStampMetadataInput has of an event."""
    event = json.loads(record.body)
    data: Mapping[str, Any] = event["data"]
    shared = {"workflow_id": data["workflow_id"], "namespace": data["namespace"], "file_path": data["file_path"]}
    if "stamp_id" not in data:
        nothing = {"stamp_id": event["id"], "file_hash": "", "file_size": 0, "workflow_state": "failed"}
        return {**shared, **nothing, "created_at": event["time"]}
    taken = ("stamp_id", "file_hash", "file_size", "content_type", "workflow_state", "created_at", "processing_time_ms")
    return {**shared, **{name: data[name] for name in taken}}


async def sees_only_its_own(
    client: httpx.AsyncClient, header: dict[str, str], name: str, made: Sequence[dict[str, Any]], shared: bytes
) -> None:
    """Ask, as one tenant, for what everybody has stamped; `shared` is what all have."""

    async def asked(path: str, **parameters: str) -> httpx.Response:
        return await client.get(path, params=parameters, headers=header)

    digest = blake3(shared).hexdigest()
    own = {one["workflow_id"] for one in made if one["namespace"] == name}
    totals = (await asked(f"/namespaces/{name}")).json()
    assert (totals["total_stamps"], totals["failed"]) == (5, 0)
    assert [row["namespace"] for row in (await asked("/namespaces")).json()["namespaces"]] == [name]
    listed = (await asked(f"/namespaces/{name}/stamps")).json()["stamps"]
    assert {stamp["workflow_id"] for stamp in listed} == own
    found = (await asked(f"/stamp/{digest}")).json()["stamps"]
    assert [stamp["namespace"] for stamp in found] == [name]
    told = [line for line in (await asked("/events", limit="5")).text.splitlines() if line.startswith("data:")]
    assert {json.loads(line.removeprefix("data:"))["subject"] for line in told} == own
    for one in made:
        paths = [f"/namespaces/{one['namespace']}/stamps", f"/workflows/{one['workflow_id']}"]
        paths += [f"/stamp/{one['file_hash']}"] if one["file_hash"] != digest else []
        assert {(await asked(path)).status_code for path in paths} == {200 if one["workflow_id"] in own else 404}
    others = next(one["namespace"] for one in made if one["namespace"] != name)
    body = {"namespace": others, "file_path": "x", "content": "x"}
    assert (await client.post("/stamp", json=body, headers=header)).status_code == 403
