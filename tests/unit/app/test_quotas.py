"""A day's quota: exact in one process, shared by all, and never lost sight of."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from omninode_bridge.adapters.memory import FixedClock, MemoryTokens
from omninode_bridge.app.quotas import FLUSH_S, SUM_AGE_S_MAX, Quotas
from omninode_bridge.domain.errors import QuotaExceeded, ServiceUnavailable
from omninode_bridge.domain.tenancy import Limits, Principal, Token, local_principal
from omninode_bridge.ports import TokenUse, UseKey
from tests.making import new_id

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Store(MemoryTokens):
    """Tokens in memory that can be away, and may then have counted all the same."""

    away = ""
    writes = 0

    async def use(self, uses: Mapping[UseKey, TokenUse]) -> dict[UseKey, TokenUse]:
        self.writes += 1
        if self.away == "before":
            raise ServiceUnavailable("PostgreSQL is not reachable")
        sums = await super().use(uses)
        if self.away == "after":
            raise ServiceUnavailable("the connection was lost")
        return sums


class World:
    """A storage, a time, and any number of processes."""

    def __init__(self) -> None:
        self.clock = FixedClock(NOON, step=timedelta())
        self.now_s = 1000.0
        self.store = Store(self.clock)

    def process(self) -> Quotas:
        return Quotas(self.store, self.clock, lambda: self.now_s)

    async def token(self, stamps: int | None = None, octets: int | None = None) -> Principal:
        token = Token(
            token_id=new_id(),
            name=f"token {new_id()}",
            scopes=("write",),
            namespaces=("*",),
            limits=Limits(None, stamps, octets),
            created_at=NOON,
        )
        await self.store.create(token, token.token_id.encode(), actor="root")
        return token.principal()

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.clock.now += timedelta(seconds=seconds)

    async def used(self, who: Principal) -> TokenUse:
        return next(
            use for token, use in await self.store.every(self.clock.now.date()) if token.token_id == who.token_id
        )


@pytest.fixture
def world() -> World:
    return World()


async def test_one_process_never_lets_more_through_than_the_quota(world: World) -> None:
    quotas, who = world.process(), await world.token(stamps=10, octets=1000)
    await quotas.charge(who, TokenUse(9, 100))
    with pytest.raises(QuotaExceeded, match="10 stamps a day: 9 are used, and 2 more"):
        await quotas.charge(who, TokenUse(2, 0))
    await quotas.flush()
    with pytest.raises(QuotaExceeded, match="1000 bytes a day: 100 are used, and 901 more"):
        await quotas.charge(who, TokenUse(1, 901))
    await quotas.charge(who, TokenUse(1, 900))
    with pytest.raises(QuotaExceeded) as told:
        await quotas.charge(who, TokenUse(1, 0))
    assert (told.value.code, told.value.context) == ("quota_exceeded", {"retry_after_s": 12 * 3600})
    await quotas.flush()
    assert await world.used(who) == TokenUse(10, 1000)


async def test_a_quota_of_nothing_lets_nothing_through(world: World) -> None:
    quotas, who = world.process(), await world.token(stamps=0)
    with pytest.raises(QuotaExceeded):
        await quotas.charge(who, TokenUse(1, 0))


async def test_who_has_no_token_uses_up_nothing(world: World) -> None:
    quotas = world.process()
    await quotas.charge(local_principal("root"), TokenUse(10**9, 10**18))
    await quotas.flush()
    assert world.store.writes == 0


async def test_what_a_token_without_quota_used_is_known_too(world: World) -> None:
    quotas, who = world.process(), await world.token()
    await quotas.charge(who, TokenUse(3, 30))
    assert world.store.writes == 0
    await quotas.flush()
    assert await world.used(who) == TokenUse(3, 30)


async def test_looking_whether_it_would_go_uses_up_nothing(world: World) -> None:
    quotas, who = world.process(), await world.token(stamps=1)
    for _ in range(3):
        await quotas.charge(who, TokenUse(1, 0), reserve=False)
    await quotas.charge(who, TokenUse(1, 0))
    with pytest.raises(QuotaExceeded):
        await quotas.charge(who, TokenUse(1, 0), reserve=False)


async def test_a_process_begins_with_what_others_have_let_through(world: World) -> None:
    who = await world.token(stamps=10)
    first = world.process()
    await first.charge(who, TokenUse(8, 0))
    await first.flush()
    second = world.process()
    with pytest.raises(QuotaExceeded):
        await second.charge(who, TokenUse(3, 0))
    await second.charge(who, TokenUse(2, 0))


async def test_a_sum_that_is_too_old_is_read_again_before_anything_is_let_through(world: World) -> None:
    who = await world.token(stamps=10)
    first, second = world.process(), world.process()
    await first.charge(who, TokenUse(1, 0))
    await second.charge(who, TokenUse(9, 0))
    await second.flush()
    world.pass_time(SUM_AGE_S_MAX)
    with pytest.raises(QuotaExceeded):
        await first.charge(who, TokenUse(1, 0))


@pytest.mark.parametrize("seed", range(10))
async def test_several_processes_exceed_a_quota_by_what_passes_between_two_flushes_at_most(
    world: World, seed: int
) -> None:
    fate = random.Random(seed)
    print(f"seed {seed}")
    limit, who = 500, await world.token(stamps=500)
    processes = [world.process() for _ in range(4)]
    through = since_flush = most = 0
    for _ in range(400):
        for quotas in processes:
            for _ in range(fate.randrange(3)):
                amount = fate.randrange(1, 4)
                try:
                    await quotas.charge(who, TokenUse(amount, 0))
                except QuotaExceeded:
                    continue
                through += amount
                since_flush += amount
        most = max(most, since_flush)
        if fate.random() < 0.3:
            for quotas in processes:
                await quotas.flush()
            since_flush = 0
            world.pass_time(FLUSH_S)
    for quotas in processes:
        await quotas.flush()
    assert (await world.used(who)).stamps == through
    # Who flushes first is not told what the others add right after it: their share of two intervals.
    assert limit - 3 <= through <= limit + 2 * most
    world.pass_time(SUM_AGE_S_MAX)
    with pytest.raises(QuotaExceeded):
        await processes[0].charge(who, TokenUse(3, 0))


async def test_a_flush_writes_once_for_all_tokens_and_not_at_all_for_none(world: World) -> None:
    quotas = world.process()
    await quotas.flush()
    assert world.store.writes == 0
    for _ in range(5):
        await quotas.charge(await world.token(), TokenUse(1, 1))
    await quotas.flush()
    assert world.store.writes == 1
    await quotas.flush()
    assert world.store.writes == 1


async def test_a_new_day_begins_at_midnight_of_utc_with_a_new_quota(world: World) -> None:
    quotas, who = world.process(), await world.token(stamps=5)
    world.pass_time(12 * 3600 - 0.25)
    await quotas.charge(who, TokenUse(5, 0))
    with pytest.raises(QuotaExceeded) as told:
        await quotas.charge(who, TokenUse(1, 0))
    assert told.value.context == {"retry_after_s": 1}
    world.pass_time(0.25)
    await quotas.charge(who, TokenUse(5, 0))
    await quotas.flush()
    assert await world.used(who) == TokenUse(5, 0)
    world.clock.now -= timedelta(days=1)
    assert await world.used(who) == TokenUse(5, 0)


async def test_days_that_are_over_are_forgotten(world: World) -> None:
    quotas, who = world.process(), await world.token(stamps=5)
    for _ in range(3):
        await quotas.charge(who, TokenUse(1, 0))
        await quotas.flush()
        world.pass_time(24 * 3600)
    await quotas.flush()
    assert len(quotas._days) == 0


async def test_what_could_not_be_added_is_added_later(world: World, caplog: pytest.LogCaptureFixture) -> None:
    quotas, who = world.process(), await world.token(stamps=10)
    await quotas.charge(who, TokenUse(2, 20))
    world.store.away = "before"
    with caplog.at_level(logging.WARNING):
        await quotas.flush()
        await quotas.charge(who, TokenUse(3, 30))
        await quotas.flush()
    assert len(caplog.records) == 1
    with pytest.raises(QuotaExceeded):
        await quotas.charge(who, TokenUse(6, 0))
    world.pass_time(SUM_AGE_S_MAX)
    with pytest.raises(ServiceUnavailable):
        await quotas.charge(who, TokenUse(1, 0))
    world.store.away = ""
    await quotas.flush()
    assert await world.used(who) == TokenUse(5, 50)


async def test_a_connection_lost_in_a_flush_may_count_twice_and_never_not_at_all(world: World) -> None:
    quotas, who = world.process(), await world.token()
    await quotas.charge(who, TokenUse(2, 20))
    world.store.away = "after"
    await quotas.flush()
    world.store.away = ""
    await quotas.flush()
    assert await world.used(who) == TokenUse(4, 40)
