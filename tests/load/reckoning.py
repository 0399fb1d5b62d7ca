"""What callers were told, against what the database says: by plain SQL and plain addition, beside the shipped audit.

The laws: an acknowledged stamp is there once, as it was told; an accepted workflow has ended, once; nothing is there
that nobody asked for, or that somebody was told is not there; the totals are those of the rows.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import asyncpg

from tests.load.fleet import Fleet

QUEUE_S_MAX = 60.0
"""How long accepted workflows may take to end once nobody asks for anything any more."""
FAULTS_SHOWN_MAX, FAULT_CHARACTERS_MAX = 20, 600


class Stamped(NamedTuple):
    """A stamp as a caller was told it."""

    stamp_id: str
    namespace: str
    file_path: str
    version: int
    file_hash: str
    file_size: int


@dataclass
class Told:
    """What all callers asked for, by op id, and what they were told.

    `asked` has everything that was sent; of what is in none of the others nobody knows what became of it.
    """

    asked: set[str] = field(default_factory=set)
    stamped: dict[str, Stamped] = field(default_factory=dict)
    deduplicated: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> set[str]:
        return self.asked - self.stamped.keys() - self.accepted

    def ask(self, *op_ids: str) -> None:
        self.asked.update(op_ids)

    def acknowledge(self, op_id: str, stamp: dict[str, Any]) -> None:
        """Enter a stamp that was answered; a second answer has to be the first one."""
        told = Stamped(*(stamp[name] for name in Stamped._fields))
        if stamp["op_id"] != op_id and not stamp["deduplicated"]:
            self.faults.append(f"{op_id} was answered the stamp of {stamp['op_id']}")
        if (first := self.stamped.setdefault(op_id, told)) != told:
            self.faults.append(f"{op_id} was answered {first}, and then {told}")
        if stamp["deduplicated"]:
            self.deduplicated.add(op_id)

    def accept(self, op_id: str) -> None:
        self.accepted.add(op_id)

    def fault(self, what: str) -> None:
        self.faults.append(what)

    @classmethod
    def written(cls, paths: Iterable[Path]) -> Self:
        """Read what callers in other processes wrote, a line an act: its name, and what it is called with."""
        told = cls()
        for path in paths:
            for line in path.read_bytes().splitlines():
                act, *what = json.loads(line)
                getattr(told, act)(*what)
        return told


async def reckon(fleet: Fleet, told: Told) -> dict[str, Any]:
    """Fail unless the database, the audit and the totals agree with what callers were told; return what was counted."""
    connection = await asyncpg.connect(fleet.postgres.url)
    try:
        await _until_idle(connection)
        faults = [*told.faults, *await _differences(connection, told), *await _failures(connection)]
        counted = await _totals(connection)
    finally:
        await connection.close()
    state = {
        row["namespace"]: (row["total_stamps"], row["total_size_bytes"], row["failed"])
        for row in map(json.loads, (await fleet.command("state", "--json")).splitlines())
    }
    faults += [
        f"{namespace}: the state says {state.get(namespace)}, the rows {counted.get(namespace)}"
        for namespace in sorted(state | counted)
        if state.get(namespace) != counted.get(namespace)
    ]
    for finding in map(json.loads, (await fleet.command("audit", "--json", codes=(0, 1))).splitlines()):
        faults += [] if finding["holds"] else [f"audit: {finding}"]
    shown = [fault[:FAULT_CHARACTERS_MAX] for fault in faults[:FAULTS_SHOWN_MAX]]
    assert not faults, "\n".join([f"{len(faults)} faults:", *shown])
    return {
        "asked": len(told.asked),
        "stamps": sum(stamps for stamps, _, _ in counted.values()),
        "deduplicated": len(told.deduplicated),
        "accepted": len(told.accepted),
        "failed": sum(count for _, _, count in counted.values()),
        "unanswered": len(told.unanswered),
    }


async def _until_idle(connection: asyncpg.Connection) -> None:
    """Wait until every accepted workflow has ended."""
    async with asyncio.timeout(QUEUE_S_MAX):
        # A database has no events to wait for.
        while await connection.fetchval("SELECT count(*) FROM workflow_inputs"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _totals(connection: asyncpg.Connection) -> dict[str, tuple[int, int, int]]:
    """Return stamps, bytes and failed workflows of each namespace."""
    totals = {
        namespace: (stamps, octets, 0)
        for namespace, stamps, octets in await connection.fetch(
            "SELECT namespace, count(*), sum(file_size)::bigint FROM metadata_stamps GROUP BY 1"
        )
    }
    for namespace, failed in await connection.fetch(
        "SELECT namespace, count(*) FROM fsm_states WHERE state = 'failed' GROUP BY 1"
    ):
        stamps, octets, _ = totals.get(namespace, (0, 0, 0))
        totals[namespace] = (stamps, octets, failed)
    return totals


async def _failures(connection: asyncpg.Connection) -> list[str]:
    """Tell what failed that may not: a dead worker's attempts may be used up, and that is all."""
    reasons = await connection.fetch("SELECT DISTINCT error_code FROM fsm_states WHERE error_code IS NOT NULL")
    letters = await connection.fetchval("SELECT count(*) FROM dead_letters")
    return [
        *(f"a workflow failed: {reason}" for (reason,) in reasons if reason != "attempts_exhausted"),
        *([f"{letters} dead letters"] if letters else []),
    ]


async def _differences(connection: asyncpg.Connection, told: Told) -> list[str]:
    stamps: dict[str, Stamped] = {}
    by_op: dict[str, str] = {}
    versions: dict[tuple[str, str], list[int]] = {}
    for row in await connection.fetch(
        "SELECT stamp_id::text, namespace, file_path, version, encode(digest, 'hex') AS file_hash, file_size,"
        " workflow_id::text FROM metadata_stamps"
    ):
        *fields, workflow_id = row.values()
        stamp = stamps[row["stamp_id"]] = Stamped(*fields)
        if workflow_id in by_op:
            return [f"{workflow_id} has two stamps"]
        by_op[workflow_id] = stamp.stamp_id
        versions.setdefault((stamp.namespace, stamp.file_path), []).append(stamp.version)
    faults = [f"{path}: versions {sorted(found)}" for path, found in versions.items() if not _dense(found)]
    for op_id, stamp in told.stamped.items():
        if stamps.get(stamp.stamp_id) != stamp:
            faults.append(f"{op_id}: told {stamp}, kept {stamps.get(stamp.stamp_id)}")
        if (op_id in told.deduplicated) == (by_op.get(op_id) == stamp.stamp_id):
            faults.append(f"{op_id}: deduplicated {op_id in told.deduplicated}, its own stamp {by_op.get(op_id)}")
    faults += [f"{op_id} has a stamp that nobody asked for" for op_id in by_op.keys() - told.asked]
    return faults + await _wrong_ends(connection, told, by_op)


async def _wrong_ends(connection: asyncpg.Connection, told: Told, by_op: dict[str, str]) -> list[str]:
    workflows = {
        row["workflow_id"]: row
        for row in await connection.fetch("SELECT workflow_id::text, state, deduplicated FROM fsm_states")
    }
    events = Counter(row[0] for row in await connection.fetch("SELECT workflow_id::text FROM event_log"))
    faults = [f"{op_id} has a workflow that nobody asked for" for op_id in workflows.keys() - told.asked]
    for op_id in told.stamped.keys() | told.accepted | by_op.keys():
        if (workflow := workflows.get(op_id)) is None:
            faults.append(f"{op_id} was answered, and has no workflow")
        elif workflow["state"] not in ("completed", "failed"):
            faults.append(f"{op_id} has not ended: {workflow['state']}")
        elif events[op_id] != (0 if workflow["deduplicated"] else 1):
            faults.append(f"{op_id} has {events[op_id]} events, deduplicated: {workflow['deduplicated']}")
        elif op_id in told.stamped and workflow["state"] != "completed":
            faults.append(f"{op_id} was told a stamp, and is {workflow['state']}")
    return faults


def _dense(versions: list[int]) -> bool:
    return sorted(versions) == list(range(1, len(versions) + 1))
