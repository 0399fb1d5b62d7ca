"""A process is ready while what it needs is up; each look is new, bounded, and shared by those who wait for it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from itertools import pairwise

import pytest

from omninode_bridge.adapters.memory import FixedClock
from omninode_bridge.app import health
from omninode_bridge.app.health import Finding, Health, Part, Status
from omninode_bridge.app.telemetry import reading
from omninode_bridge.domain.errors import Overloaded, SchemaMismatch, ServiceUnavailable


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SPACING_S", 0.0)


class Looked:
    """A part that is as it is told to be."""

    def __init__(self, name: str = "x", *, needed: bool = False, asks: bool = False) -> None:
        self.found: Finding | Exception = Finding()
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.part = Part(name, self.check, needed=needed, asks=asks)

    async def check(self) -> Finding:
        self.count += 1
        await self.gate.wait()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("status", ["ok", "degraded", "down"])
async def test_down_is_said_of_what_is_needed(status: Status, needed: bool) -> None:
    one, other = Looked("one", needed=needed), Looked("other")
    one.found = Finding(status, "so it is")
    watched = Health([one.part, other.part], FixedClock())
    report = await watched.report()
    assert report.status == ("down" if status == "down" and needed else "ok" if status == "ok" else "degraded")
    assert [(c.name, c.status, c.needed, c.reason) for c in report.components] == [
        ("one", status, needed, "so it is"),
        ("other", "ok", False, None),
    ]
    if report.status == "down":
        with pytest.raises(ServiceUnavailable, match="so it is"):
            await watched.require_ready()
    else:
        await watched.require_ready()


@pytest.mark.parametrize("error", [ServiceUnavailable("away"), SchemaMismatch("old"), Overloaded("full")])
async def test_who_asks_whether_it_is_ready_gets_the_error_itself(error: ServiceUnavailable) -> None:
    one = Looked(needed=True)
    one.found = error
    watched = Health([one.part], FixedClock())
    with pytest.raises(type(error)) as raised:
        await watched.require_ready()
    assert raised.value is error
    one.found = Finding()
    await watched.require_ready()


async def test_since_moves_when_the_status_does_and_is_logged_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omninode_bridge")
    one = Looked()
    clock = FixedClock(step=timedelta(seconds=1))
    watched = Health([one.part], clock)
    since = []
    late, later = Finding("degraded", "late"), Finding("degraded", "later")
    for found in (Finding(), Finding(), late, later, ServiceUnavailable("gone"), Finding()):
        one.found = found
        since.append((await watched.report()).components[0].since)
    assert since == sorted(since)
    assert [a == b for a, b in pairwise(since)] == [True, False, True, False, False]
    assert [record.getMessage() for record in caplog.records] == ["x is degraded: late", "x is down: gone", "x is ok"]


async def test_a_part_that_does_not_answer_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_S_MAX", 0.05)
    one, between, other = Looked("one", needed=True, asks=True), Looked("between"), Looked("other", asks=True)
    one.gate.clear()
    watched = Health([one.part, between.part, other.part], FixedClock())
    report = await watched.report()
    assert [component.reason for component in report.components] == [
        "no answer within 0.05 s",
        None,
        "not known: PostgreSQL can't be asked",
    ]
    assert other.count == 0


async def test_a_fault_in_looking_spoils_no_other_part() -> None:
    one, other = Looked("one"), Looked("other", needed=True)
    one.found = KeyError("secret")
    report = await Health([one.part, other.part], FixedClock()).report()
    assert [component.status for component in report.components] == ["down", "ok"]
    assert "secret" not in (report.components[0].reason or "")


async def test_those_who_wait_share_a_look_that_begins_after_they_asked() -> None:
    one = Looked()
    watched = Health([one.part], FixedClock())
    one.gate.clear()
    first = asyncio.create_task(watched.report())
    while not one.count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    others = [asyncio.create_task(watched.report()) for _ in range(20)]
    await asyncio.sleep(0)
    one.found = Finding("degraded", "new")
    one.gate.set()
    await first
    assert {(await other).status for other in others} == {"degraded"}
    assert one.count == 2


async def test_looks_are_some_time_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SPACING_S", 0.1)
    one = Looked()
    watched = Health([one.part], FixedClock())
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(3):
        await watched.report()
    assert one.count == 3
    assert loop.time() - began >= 0.19


async def test_a_process_that_ends_is_ready_for_nothing() -> None:
    watched = Health([Looked(needed=True).part], FixedClock())
    await watched.require_ready()
    watched.stop()
    with pytest.raises(ServiceUnavailable, match="shutting down"):
        await watched.require_ready()
    assert (await watched.report()).status == "down"
    assert {gauge.name: gauge.values[0][1] for gauge in await watched.gauges()}["ready"] == 0


async def test_what_a_part_measures_is_told_with_its_status() -> None:
    one, other = Looked("one"), Looked("other")
    one.found = Finding("degraded", "late", [reading("lag", "Lag.", 7)])
    other.found = ServiceUnavailable("away")
    gauges = {gauge.name: list(gauge.values) for gauge in await Health([one.part, other.part], FixedClock()).gauges()}
    assert gauges == {
        "component_status": [(("one",), 0.5), (("other",), 0.0)],
        "ready": [((), 1.0)],
        "lag": [((), 7)],
    }
