"""The service under load while its processes and its PostgreSQL are killed, again and again.

The laws: what was acknowledged is there, once; every accepted workflow ends, once; whoever tries again gets an answer;
the audit is clean and the totals are right. CHAOS_SECONDS in the environment makes each test last longer, CHAOS_SEED
repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.crowd import Crowd
from tests.load.fleet import Blow, Fleet, Process, Role, hasty_contract
from tests.load.reckoning import reckon

SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))
SEED = os.environ.get("CHAOS_SEED", "20260307")
ROLES: tuple[Role, ...] = ("api", "api", "orchestrator", "orchestrator", "reducer")
BLOWS: tuple[Blow, ...] = ("fast", "immediate", "backend")
LEASE_MS = 2000

WORK_S_MAX = 2.0

pytestmark = pytest.mark.timeout(240 + 2 * SECONDS)


class Havoc:
    """Who is killed, and started again at once; meanwhile the next may be killed."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._starting: dict[Process, asyncio.Task[None]] = {}
        self.blows: Counter[str] = Counter()

    async def strike(self) -> None:
        blow = self._rng.choice(BLOWS)
        self.blows[f"PostgreSQL {blow}"] += 1
        await self._fleet.postgres.suffer(blow)

    async def kill(self) -> None:
        """kill -9 one of the processes; a worker while it holds workflows, if it gets some soon."""
        process = self._rng.choice(self._fleet.processes)
        if process in self._starting:
            await self._starting.pop(process)
        if process.role == "orchestrator":
            await self._until_it_holds_work(process)
        await process.kill()
        self.blows[process.role] += 1
        self._starting[process] = asyncio.create_task(process.start())

    async def both(self) -> None:
        await asyncio.gather(self.kill(), self.strike())

    async def end(self) -> None:
        """Let everybody who was killed serve again."""
        await asyncio.gather(*self._starting.values())

    async def give_up(self) -> None:
        for task in self._starting.values():
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)

    async def _until_it_holds_work(self, process: Process) -> None:
        query = "SELECT EXISTS (SELECT FROM workflow_inputs WHERE worker LIKE '%/' || $1::text)"
        with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with asyncio.timeout(WORK_S_MAX):
                connection = await asyncpg.connect(self._fleet.postgres.url)
                try:
                    while not await connection.fetchval(query, str(process.pid)):  # noqa: ASYNC110 - a database has no events
                        await asyncio.sleep(0.002)
                    self.blows["worker with work"] += 1
                finally:
                    connection.terminate()


@pytest.mark.parametrize(
    "violence",
    [
        pytest.param(Havoc.strike, id="postgresql-restarted"),
        pytest.param(Havoc.kill, id="processes-killed"),
        pytest.param(Havoc.both, id="both-at-once"),
    ],
)
async def test_under_load_whatever_is_killed_nothing_acknowledged_is_lost_or_counted_twice(
    tmp_path: Path, violence: Callable[[Havoc], Awaitable[None]]
) -> None:
    print(f"CHAOS_SEED={SEED}")
    rng = random.Random(f"{SEED} {violence.__name__}")
    contract = str(hasty_contract(tmp_path, LEASE_MS))
    async with Fleet.sailing(tmp_path, ROLES, orchestrator_contract=contract) as fleet:
        havoc, crowd = Havoc(fleet, rng), await Crowd.gather(fleet, SEED)
        try:
            end_s = asyncio.get_running_loop().time() + SECONDS
            while asyncio.get_running_loop().time() < end_s or havoc.blows.total() < 2:
                await asyncio.sleep(rng.uniform(0.5, 2.0))  # how long they are left in peace
                await violence(havoc)
                await crowd.progress()
            await havoc.end()
            await crowd.end()
        finally:
            await havoc.give_up()
            await crowd.give_up()
        counted = await reckon(fleet, crowd.told)
        print(dict(havoc.blows), counted, dict(crowd.circle.counts))
        assert counted["unanswered"] == 0
        assert havoc.blows.total() > 1
        assert not (said := fleet.complaints()), "\n".join(said[:20])
