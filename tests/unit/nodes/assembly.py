"""Contracts edited by path, ports that do as told, and assembled nodes: what the tests of the nodes are made with."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import yaml

from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.memory import FixedClock, MemoryLedger, MemoryStore, SeededIds
from omninode_bridge.domain.errors import ContentUnavailable
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Content, Digest, Outcome, StampRequest
from omninode_bridge.nodes.container import build_container
from omninode_bridge.nodes.contracts import OrchestratorContract, load_orchestrator, shipped_text
from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
from omninode_bridge.ports import Hasher, Intelligence, Ledger

REMOVED = object()


def edited(kind: str, edits: dict[str, Any]) -> str:
    """The shipped contract's text with values set, or removed, at paths such as `config.steps[1].timeout_ms`.

    An index one past the end of a list appends.
    """
    contract = yaml.safe_load(shipped_text(kind))
    for path, value in edits.items():
        *way, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]
        place = contract
        for part in way:
            place = place[part]
        if value is REMOVED:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return yaml.safe_dump(contract, sort_keys=False)


V1 = {"major": 1, "minor": 0, "patch": 0}


def state(name: str, kind: str = "operational", **more: Any) -> dict[str, Any]:
    return {"version": V1, "state_name": name, "state_type": kind, "description": name, **more}


def move(name: str, origin: str, target: str, trigger: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "version": V1,
        "transition_name": name,
        "from_state": origin,
        "to_state": target,
        "trigger": trigger or name,
        **more,
    }


class ScriptedHasher:
    """A real hasher that first does what it is told to, one instruction a call: raise an error, or run a coroutine."""

    def __init__(self, *script: Exception | Callable[[], Awaitable[None]]) -> None:
        self._script = list(script)
        self._real = Blake3Hasher()
        self.calls: list[list[Content]] = []

    async def digest_many(self, contents: Sequence[Content]) -> list[Digest | ContentUnavailable]:
        self.calls.append(list(contents))
        await follow(self._script)
        return await self._real.digest_many(contents)


class ScriptedLedger:
    """A memory ledger that first does what it is told to."""

    def __init__(self, real: Ledger, *script: Exception | Callable[[], Awaitable[None]]) -> None:
        self._real = real
        self._script = list(script)
        self.calls: list[list[Outcome]] = []

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        self.calls.append(list(outcomes))
        await follow(self._script)
        return await self._real.record(outcomes)


class ScriptedIntelligence:
    """Knows of every content how it is called; first does what it is told to."""

    def __init__(self, *script: Exception | Callable[[], Awaitable[None]], answer: Any = None) -> None:
        self._script = list(script)
        self._answer = answer
        self.asked: list[str] = []

    async def analyse_many(self, requests: Sequence[StampRequest]) -> list[dict[str, Any] | None]:
        self.asked += [request.file_path for request in requests]
        await follow(self._script)
        return [self._answer or {"named": request.file_path} for request in requests]


async def follow(script: list[Exception | Callable[[], Awaitable[None]]]) -> None:
    if script:
        instruction = script.pop(0)
        if isinstance(instruction, Exception):
            raise instruction
        await instruction()


async def never() -> None:
    """Hang until cancelled."""
    await asyncio.Event().wait()


class Bench:
    """An orchestrator on memory adapters, with everything it is made of at hand."""

    def __init__(self, contract: OrchestratorContract | None = None) -> None:
        self.contract = contract or load_orchestrator()
        self.store = MemoryStore()
        self.clock = FixedClock()
        self.ids = SeededIds(1)
        self.memory_ledger = MemoryLedger(self.store, self.contract.plan, self.clock, self.ids)

    async def node(
        self,
        *,
        hasher: Hasher | None = None,
        ledger: Ledger | None = None,
        intelligence: Intelligence | None = None,
    ) -> NodeBridgeOrchestrator:
        container = await build_container(
            ledger=ledger or self.memory_ledger,
            hasher=hasher or ScriptedHasher(),
            intelligence=intelligence,
            clock=self.clock,
            ids=self.ids,
        )
        return NodeBridgeOrchestrator(container, self.contract)

    def topics(self) -> dict[str, int]:
        """How many events each topic has."""
        return {topic: len(records) for (topic, _), records in self.store.log.items() if records}

    def states(self, workflow_id: str) -> list[str]:
        """The states a recorded workflow went through."""
        (workflow,) = [workflow for (_, name), workflow in self.store.workflows.items() if name == workflow_id]
        return [visit.state for visit in workflow.visits]


# Shortest times the contract allows, for tests of what happens when they run out.
QUICK = {
    "config.steps[0].timeout_ms": 100,
    "config.steps[1].timeout_ms": 100,
    "config.steps[2].timeout_ms": 100,
    "config.stamping.request_timeout_ms": 100,
    "config.retry.base_delay_seconds": 0.1,
}
