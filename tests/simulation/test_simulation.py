"""Seeded runs of everything between ledger and state, with death at every step, and an independent audit at the end.

A failure names its seed; `pytest "tests/simulation/test_simulation.py::test_…[SEED]"` repeats it exactly.
SIMULATION_SEEDS sets how many runs there are.
"""

import asyncio
import os
from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest

from omninode_bridge.domain.errors import WorkflowFailed
from omninode_bridge.domain.reduction import State
from omninode_bridge.domain.stamp import Failure, Stamp
from tests.simulation.auditor import Findings, Groups, audit
from tests.simulation.world import World, said

SEEDS = range(int(os.environ.get("SIMULATION_SEEDS", "200")))
RUN_TIMEOUT_S = 30

MISFORTUNES = {
    "died before the commit",
    "died after the commit, before the answer",
    "died before reading the live generation",
    "died before beginning a generation",
    "died after beginning a generation",
    "died before reading positions",
    "died before reading events",
    "died after reading events",
    "died folded, before the state transaction",
    "died after the state transaction",
    "died before a swap",
    "died after a swap",
    "died before discarding",
    "answer of the ledger lost",
    "answer of the state transaction lost",
    "answer of a swap lost",
    "request sent twice at once",
    "old records came again",
    "record twice",
    "record lost",
    "records out of order",
    "read cut short",
    "foreign record",
    "body damaged",
    "body mended",
    "race of writers lost",
    "batch applied",
    "batch refused: somebody else folded it",
    "swapped",
    "swap refused: positions differ",
    "projector stopped at a misfit",
    "projector found another contract",
    "one namespace rebuilt",
    "all rebuilt",
}


async def finished(seed: int) -> World:
    print(f"seed {seed}")
    world = World(seed)
    async with asyncio.timeout(RUN_TIMEOUT_S):
        await world.run()
    return world


async def audited(world: World) -> Findings:
    log = {
        key: [(record.position, record.event_id, record.previous_id, record.body) for record in records]
        for key, records in world.store.log.items()
    }
    return audit(log, await world.contract_in_force(), world.store.dead_letters)


def plain(state: State) -> Groups:
    return {group: msgspec.structs.asdict(totals) for group, totals in state.items()}


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_dies_whenever_each_stamp_is_recorded_published_and_counted_once(seed: int) -> None:
    world = await finished(seed)
    found = await audited(world)
    assert found.faults == []
    assert plain(await world.state.rows(None)) == found.groups
    assert set(world.store.dead_letters) >= found.unreadable
    check_answers(world)
    check_events(world, found)
    check_versions(world)
    await check_retries(world)
    await check_rebuild(world)


async def check_rebuild(world: World) -> None:
    """Folded anew, what is readable is counted, whatever was met on the way, and only the rest has letters."""
    await world.rebuild()
    found = await audited(world)
    assert set(world.store.dead_letters) == found.unreadable
    assert plain(await world.state.rows(None)) == found.groups


def check_answers(world: World) -> None:
    """Every answer is on record: nothing acknowledged is lost, nothing is pretended."""
    for outcome, verdict in world.answers:
        workflow = world.store.workflows[outcome.request.namespace, outcome.request.workflow_id]
        if isinstance(outcome, Failure):
            assert isinstance(verdict, WorkflowFailed)
            assert workflow.state == "failed"
        else:
            assert isinstance(verdict, Stamp)
            assert (workflow.state, workflow.stamp_id) == ("completed", verdict.stamp_id)
            recorded = world.store.stamps[verdict.stamp_id]
            assert (recorded.file_hash, recorded.metadata) == (outcome.digest.file_hash, outcome.request.metadata)
            assert verdict.deduplicated is (recorded.workflow_id != outcome.request.workflow_id)
    assert len(world.store.workflows) == len(world.answers)


def check_events(world: World, found: Findings) -> None:
    """Each stamp and each failed workflow has exactly one event, but for those whose event was damaged."""
    failed = [key for key, workflow in world.store.workflows.items() if workflow.state == "failed"]
    assert set(found.stamps) <= set(world.store.stamps)
    assert not [key for key, count in Counter(found.failed).items() if count > 1]
    assert set(found.failed) <= set(failed)
    missing = len(world.store.stamps) - len(found.stamps) + len(failed) - len(found.failed)
    assert missing == len(found.unreadable)
    for stamp_id, data in found.stamps.items():
        assert data["file_hash"] == world.store.stamps[stamp_id].file_hash


def check_versions(world: World) -> None:
    versions = defaultdict(list)
    for stamp in world.store.stamps.values():
        versions[stamp.namespace, stamp.file_path].append(stamp.version)
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in versions.values())


async def check_retries(world: World) -> None:
    """Asking everything again gives the first answers and writes nothing."""
    before = {key: list(records) for key, records in world.store.log.items()}
    again = await world.again([outcome for outcome, _ in world.answers])
    assert said(again) == said([verdict for _, verdict in world.answers])
    assert world.store.log == before


async def test_the_same_seed_is_the_same_run() -> None:
    one, other = await finished(7), await finished(7)
    assert one.chaos.seen == other.chaos.seen
    assert one.store.log.keys() == other.store.log.keys()
    assert await one.state.rows(None) == await other.state.rows(None)


async def test_the_runs_meet_every_misfortune_they_are_made_for() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS[:100]:
        seen += (await finished(seed)).chaos.seen
    assert MISFORTUNES - set(seen) == set()


@pytest.mark.parametrize("fault", ["counted twice", "not counted", "bytes", "first", "extra group"])
async def test_the_auditor_notices_a_wrong_total(fault: str) -> None:
    world = await finished(3)
    state = await world.state.rows(None)
    group, totals = next((group, each) for group, each in state.items() if each.total_stamps)
    changes: dict[str, dict[str, Any]] = {
        "counted twice": {"total_stamps": totals.total_stamps + 1},
        "not counted": {"total_stamps": totals.total_stamps - 1},
        "bytes": {"total_size_bytes": totals.total_size_bytes + 1},
        "first": {"first": (totals.last or totals.first, "z")},
        "extra group": {},
    }
    state["c" if fault == "extra group" else group[0], *group[1:]] = msgspec.structs.replace(totals, **changes[fault])
    assert plain(state) != (await audited(world)).groups


@pytest.mark.parametrize("fault", ["hole", "repeat", "forged predecessor", "exchanged"])
async def test_the_auditor_notices_a_broken_chain(fault: str) -> None:
    world = await finished(3)
    records = max(world.store.log.values(), key=len)
    if fault == "hole":
        del records[1]
    elif fault == "repeat":
        records.insert(1, records[1])
    elif fault == "forged predecessor":
        records[1] = msgspec.structs.replace(records[1], previous_id=records[1].event_id)
    else:
        records[0], records[1] = records[1], records[0]
    assert (await audited(world)).faults
