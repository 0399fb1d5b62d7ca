"""A service under load whose network to PostgreSQL is cut, falls silent, or forgets its connections, again and again.

The laws: every request is answered, in bounded time, with what is right or with a counted 503 that says when to come
back; the same process serves again soon after, by itself; nothing acknowledged is lost, and no op id has two stamps.
CHAOS_SECONDS in the environment makes each test last longer, CHAOS_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.broker import free_ports
from tests.chaos import impatient
from tests.chaos.cable import DatabaseCable
from tests.chaos.crowd import Crowd
from tests.load.fleet import Fleet, Process, hasty_contract
from tests.load.reckoning import reckon

SECONDS = float(os.environ.get("CHAOS_SECONDS", "5"))
SEED = os.environ.get("CHAOS_SEED", "20260307")
LEASE_MS = 5000
KEEPALIVE_S = 3.0
"""When PostgreSQL notices that a session's client is gone: half of what a statement may take, as by our settings."""
ANSWER_S_MAX = impatient.STATEMENT_S + impatient.CANCEL_S + 4.0
"""A statement that is silent, its end, and some time on a busy machine: less than two statements."""
RECOVERY_S_MAX = 25.0
"""From the network's return until everybody has been answered with what is right: two answers, and pauses."""

pytestmark = pytest.mark.timeout(150 + 2 * SECONDS)


class Outage:
    """What becomes of the network; each ends with a network that is well."""

    def __init__(self, cable: DatabaseCable, crowd: Crowd, rng: random.Random) -> None:
        self._cable = cable
        self._crowd = crowd
        self._rng = rng
        self.count = 0

    async def reset(self) -> None:
        """Reset all connections; take new ones at once, or when somebody was told of it."""
        self._cable.cut()
        if self.count == 0 or self._rng.random() < 0.5:
            await self._until_refused()
        self._cable.mend()

    async def silence(self) -> None:
        """Lose whatever is sent, also of those who connect anew."""
        self._cable.stall()
        if self.count == 0 or self._rng.random() < 0.25:
            await self._until_refused()
        else:
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))  # shorter than anybody's patience
        self._cable.mend()

    async def amnesia(self) -> None:
        """Lose whatever is sent over the connections that there are, for good; new ones are as good as ever."""
        self._cable.forget(KEEPALIVE_S)

    async def _until_refused(self) -> None:
        before = refusals(self._crowd)
        async with asyncio.timeout(ANSWER_S_MAX):
            while refusals(self._crowd) == before:  # noqa: ASYNC110 - the books tell nobody
                await asyncio.sleep(0.005)


def refusals(crowd: Crowd) -> int:
    return sum(count for name, count in crowd.circle.counts.items() if name.startswith("503 "))


@pytest.mark.parametrize(
    "strike",
    [
        pytest.param(Outage.reset, id="reset"),
        pytest.param(Outage.silence, id="silent"),
        pytest.param(Outage.amnesia, id="forgotten"),
    ],
)
async def test_who_loses_postgresql_answers_everybody_and_comes_back_by_itself(
    tmp_path: Path, strike: Callable[[Outage], Awaitable[None]]
) -> None:
    print(f"CHAOS_SEED={SEED}")
    rng = random.Random(f"{SEED} {strike.__name__}")
    contract = hasty_contract(tmp_path, LEASE_MS)
    async with Fleet.sailing(tmp_path, (), orchestrator_contract=str(contract)) as fleet:
        async with DatabaseCable(fleet.postgres.url, next(free_ports())) as cable:
            orchestrator = await fleet.join("orchestrator", program=impatient.PROGRAM, database_url=cable.url)
            api = await fleet.join("api", program=impatient.PROGRAM, database_url=cable.url)
            crowd = await Crowd.gather(fleet, SEED)
            outage = Outage(cable, crowd, rng)
            try:
                await crowd.progress()
                end_s = asyncio.get_running_loop().time() + SECONDS
                while asyncio.get_running_loop().time() < end_s or outage.count < 2:
                    await asyncio.sleep(rng.uniform(0, 0.5))  # how long the network is left in peace
                    await strike(outage)
                    outage.count += 1
                    async with asyncio.timeout(RECOVERY_S_MAX):
                        await crowd.progress()
                        await crowd.calm()  # else one request waits through two outages
                await crowd.end()
            finally:
                await crowd.give_up()
            told = await counted_by(api)
            assert await api.stop() == 0  # it is still the one that was started
            counted = await reckon(fleet, crowd.told)
            assert await orchestrator.stop() == 0
        counts = crowd.circle.counts
        print(outage.count, counted, dict(counts), crowd.slowest)
        assert told == refusals(crowd) > 0
        assert (counted["unanswered"], counts["lost"]) == (0, 0)
        assert crowd.slowest[0] < ANSWER_S_MAX, crowd.slowest
        assert not (said := fleet.complaints()), "\n".join(said[:20])


async def counted_by(api: Process) -> int:
    """Return how many answers of 503 a process has counted itself."""
    async with httpx.AsyncClient(base_url=api.url) as client:
        answer = await client.get("/metrics")
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "omninode_bridge_http_requests_total" and sample.labels["status"] == "503"
    )
