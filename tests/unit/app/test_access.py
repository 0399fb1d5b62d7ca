"""The door of a process: who comes in, how long what it knows is believed, and what happens when it can't ask."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from omninode_bridge.adapters.memory import FixedClock, MemoryTokens
from omninode_bridge.app.access import STILL_S, Access, hash_of, new_secret
from omninode_bridge.app.administration import Administration, IssuedToken
from omninode_bridge.app.known_tokens import AGE_S_MAX, KEPT_MAX, KnownTokens
from omninode_bridge.domain.errors import BridgeError, ServiceUnavailable, TooManyRequests, Unauthenticated
from omninode_bridge.domain.tenancy import Limits, Token, local_principal
from tests.making import NOW, new_id

LOCAL = local_principal("root")


class Store(MemoryTokens):
    """Tokens in memory that are counted when asked, can be held back, and can be away."""

    def __init__(self) -> None:
        super().__init__(FixedClock(NOW))
        self.looks: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.away = False

    async def look(self, secret_hashes: Sequence[bytes]) -> tuple[bool, dict[bytes, Token]]:
        self.looks.append(len(secret_hashes))
        found = await super().look(secret_hashes)  # what the storage knew when it was asked
        self.asked.set()
        await self.open.wait()
        if self.away:
            raise ServiceUnavailable("PostgreSQL is not reachable")
        return found


class Door:
    """An Access with its storage and its clocks in hand."""

    def __init__(self) -> None:
        self.store = Store()
        self.clock = FixedClock(NOW, step=timedelta())
        self.now_s = 1000.0
        self.access = Access(self.store, self.clock, LOCAL, monotonic=lambda: self.now_s)

    async def token(self, name: str = "acme-ci", **given: Any) -> IssuedToken:
        desk = Administration(self.store, self.clock, lambda count: [new_id() for _ in range(count)], "root")
        return await desk.create_token(name, **({"namespaces": ["acme.*"], "scopes": ["write"]} | given))

    async def enter(self, issued: IssuedToken) -> str:
        return (await self.access.admit(hash_of(issued.secret))).name

    def looked(self) -> int:
        """How often the storage was asked since this was called last."""
        count = len(self.store.looks)
        self.store.looks.clear()
        return count


@pytest.fixture
def door() -> Door:
    return Door()


async def refusal(door: Door, secret: str | None) -> str:
    with pytest.raises(Unauthenticated) as told:
        await door.access.admit(None if secret is None else hash_of(secret))
    return told.value.message


async def test_without_tokens_whoever_asks_is_the_local_user(door: Door) -> None:
    assert await door.access.admit(None) is LOCAL
    assert await door.access.still(LOCAL)
    assert not await door.access.asks_for_tokens()


async def test_from_the_first_token_on_there_is_no_way_back(door: Door) -> None:
    assert await door.access.admit(None) is LOCAL
    await door.token()
    door.now_s += AGE_S_MAX
    await refusal(door, None)
    assert not await door.access.still(LOCAL)
    await door.store.revoke("acme-ci", actor="root")
    door.store._tokens.clear()  # as if somebody had restored a backup from before
    door.now_s += AGE_S_MAX
    await refusal(door, None)
    assert await door.access.asks_for_tokens()


async def test_a_token_that_is_sent_is_never_ignored(door: Door) -> None:
    await refusal(door, new_secret())
    assert await door.access.admit(None) is LOCAL


async def test_whatever_is_wrong_with_a_token_is_told_in_the_same_words(door: Door) -> None:
    expired = await door.token("expired", lifetime=timedelta(seconds=1))
    revoked = await door.token("revoked")
    await door.store.revoke("revoked", actor="root")
    door.clock.now += timedelta(seconds=1)
    good = (await door.token()).secret
    bad = [
        expired.secret,
        revoked.secret,
        new_secret(),
        "",
        "x",
        good[:-1],
        good + "A",
        good.upper(),
        f" {good}",
        "obt_",
    ]
    assert len({await refusal(door, secret) for secret in bad}) == 1
    told = await refusal(door, revoked.secret)
    assert revoked.secret not in told
    assert "acme" not in told


async def test_a_principal_has_what_its_token_says(door: Door) -> None:
    issued = await door.token(scopes=["admin", "read", "read"], namespaces=["acme.*", "acme.*", "x"], limits=Limits(5))
    principal = await door.access.admit(hash_of(issued.secret))
    assert (principal.name, principal.token_id) == ("acme-ci", issued.token.token_id)
    assert (principal.scopes, principal.visible.patterns) == ({"read", "admin"}, ("acme.*", "x"))
    assert principal.limits == Limits(5)


async def test_a_secret_shows_nowhere(door: Door) -> None:
    issued = await door.token()
    assert len(issued.secret) == 47
    assert issued.secret.startswith("obt_")
    await door.enter(issued)
    kept = [repr(thing) for thing in (issued, issued.token, door.access, vars(door.store), vars(door.access._known))]
    assert not any(issued.secret[4:] in text for text in kept)


async def test_what_is_known_is_believed_for_two_seconds_and_not_longer(door: Door) -> None:
    issued = await door.token()
    await door.enter(issued)
    assert door.looked() == 1
    await door.store.revoke("acme-ci", actor="root")
    door.now_s += AGE_S_MAX - 0.01
    assert await door.enter(issued) == "acme-ci"
    assert door.looked() == 0
    door.now_s += 0.01
    await refusal(door, issued.secret)
    assert door.looked() == 1
    await refusal(door, issued.secret)
    assert door.looked() == 0


async def test_a_token_that_was_not_there_is_found_two_seconds_later_at_most(door: Door) -> None:
    secret = new_secret()
    await refusal(door, secret)
    token = Token(token_id=new_id(), name="late", scopes=("read",), namespaces=("*",), created_at=NOW)
    await door.store.create(token, hash_of(secret), actor="root")
    door.now_s += AGE_S_MAX
    assert (await door.access.admit(hash_of(secret))).name == "late"


async def test_an_expired_token_is_refused_at_once_however_fresh_it_is_known(door: Door) -> None:
    issued = await door.token(lifetime=timedelta(seconds=10))
    principal = await door.access.admit(hash_of(issued.secret))
    door.clock.now += timedelta(seconds=10)
    await refusal(door, issued.secret)
    assert not await door.access.still(principal)
    assert door.looked() == 1


async def test_age_counts_from_the_question_and_not_from_the_answer(door: Door) -> None:
    issued = await door.token()
    door.store.open.clear()
    entering = asyncio.create_task(door.enter(issued))
    await door.store.asked.wait()
    await door.store.revoke("acme-ci", actor="root")
    door.now_s += AGE_S_MAX - 0.5
    door.store.open.set()
    assert await entering == "acme-ci"  # it was good when he asked
    door.now_s += 0.5
    await refusal(door, issued.secret)


async def test_who_comes_long_after_a_question_was_put_does_not_take_its_answer(door: Door) -> None:
    issued = await door.token()
    door.store.open.clear()
    first = asyncio.create_task(door.enter(issued))
    await door.store.asked.wait()
    await door.store.revoke("acme-ci", actor="root")
    door.now_s += AGE_S_MAX
    second = asyncio.create_task(refusal(door, issued.secret))
    await asyncio.sleep(0)
    door.store.open.set()
    await second
    await asyncio.wait({first})
    assert door.store.looks == [1, 1]


async def test_callers_who_come_at_once_share_a_look_up(door: Door) -> None:
    issued = [await door.token(f"token {number}") for number in range(20)]
    door.looked()
    names = await asyncio.gather(*(door.enter(one) for one in issued * 50))
    assert set(names) == {one.token.name for one in issued}
    assert door.store.looks == [20]


async def test_what_comes_during_a_look_up_goes_with_the_next(door: Door) -> None:
    issued = [await door.token(f"token {number}") for number in range(20)]
    door.looked()
    door.store.open.clear()
    entering = [asyncio.create_task(door.enter(issued[0]))]
    await door.store.asked.wait()
    entering += [asyncio.create_task(door.enter(one)) for one in issued * 10]
    await asyncio.sleep(0)
    door.store.open.set()
    await asyncio.gather(*entering)
    assert door.store.looks == [1, 19]


async def test_who_gives_up_waiting_takes_nobody_with_him(door: Door) -> None:
    issued = await door.token()
    door.store.open.clear()
    patient, impatient = (asyncio.create_task(door.enter(issued)) for _ in range(2))
    await door.store.asked.wait()
    impatient.cancel()
    door.store.open.set()
    assert await patient == "acme-ci"
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_when_nobody_can_say_nobody_comes_in(door: Door) -> None:
    issued = await door.token()
    await door.enter(issued)
    door.store.away = True
    assert await door.enter(issued) == "acme-ci"
    door.now_s += AGE_S_MAX
    for secret in (issued.secret, new_secret()):
        with pytest.raises(ServiceUnavailable):
            await door.access.admit(hash_of(secret))
    door.store.away = False
    assert await door.enter(issued) == "acme-ci"


async def test_a_server_without_tokens_closes_too_while_it_cannot_ask(door: Door) -> None:
    assert await door.access.admit(None) is LOCAL
    door.store.away = True
    assert await door.access.admit(None) is LOCAL
    door.now_s += AGE_S_MAX
    with pytest.raises(ServiceUnavailable):
        await door.access.admit(None)


async def test_a_flood_of_tokens_that_nobody_knows_is_bounded_and_drives_no_other_out(door: Door) -> None:
    issued = await door.token()
    known = KnownTokens(door.store, lambda: door.now_s)
    assert await known.find(hash_of(issued.secret)) is not None
    door.looked()
    flood = [secrets.token_bytes(32) for _ in range(3 * KEPT_MAX)]
    for at in range(0, len(flood), 1000):
        assert await asyncio.gather(*map(known.find, flood[at : at + 1000])) == [None] * 1000
    assert door.looked() == len(flood) / 1000
    assert len(known._unknown) == KEPT_MAX
    assert await known.find(hash_of(issued.secret)) is not None
    assert door.looked() == 0


async def test_tokens_beyond_the_bound_are_asked_for_again(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omninode_bridge.app.known_tokens.KEPT_MAX", 3)
    issued = [await door.token(f"token {number}") for number in range(5)]
    for one in issued + issued[::-1]:
        principal = await door.access.admit(hash_of(one.secret))
        assert await door.access.still(principal)
    assert len(door.access._known._known) == len(door.access._known._hashes) == 3
    first = issued[-1].token.principal()
    assert await door.access.still(first) == (first.token_id in door.access._known._hashes)


async def test_what_is_in_use_is_looked_at_again_before_anybody_has_to_wait(door: Door) -> None:
    used, idle = await door.token(), await door.token("idle")
    known = KnownTokens(door.store, lambda: door.now_s)
    for one in (used, idle):
        assert await known.find(hash_of(one.secret)) is not None
    assert await known.are_asked_for()
    known.look_again()
    await asyncio.sleep(0)
    door.looked()
    door.now_s += 1
    await known.find(hash_of(used.secret))
    known.look_again()
    await asyncio.sleep(0)
    assert door.store.looks == [1]
    door.now_s += 1.5
    await known.find(hash_of(used.secret))
    assert door.looked() == 1
    await known.find(hash_of(idle.secret))
    assert door.looked() == 1
    await known.close()


async def test_who_asks_every_second_whether_he_may_go_on_is_stopped_two_seconds_after_a_revocation(door: Door) -> None:
    issued = await door.token()
    principal = await door.access.admit(hash_of(issued.secret))
    await door.store.revoke("acme-ci", actor="root")
    door.now_s += STILL_S - 0.01
    assert await door.access.still(principal)
    door.now_s += STILL_S
    assert not await door.access.still(principal)
    tokenless = Door()
    assert await tokenless.access.admit(None) is LOCAL
    await tokenless.token()
    tokenless.now_s += STILL_S - 0.01
    assert await tokenless.access.still(LOCAL)
    tokenless.now_s += STILL_S
    assert not await tokenless.access.still(LOCAL)


async def test_a_rate_is_a_bucket_of_one_second(door: Door) -> None:
    issued = await door.token(limits=Limits(requests_per_s=10))
    for _ in range(10):
        await door.enter(issued)
    with pytest.raises(TooManyRequests, match="10 times a second") as told:
        await door.enter(issued)
    assert (told.value.code, told.value.context) == ("rate_limited", {"retry_after_s": 1})
    door.now_s += 0.35
    for _ in range(3):
        await door.enter(issued)
    with pytest.raises(TooManyRequests):
        await door.enter(issued)
    door.now_s += 3600
    for _ in range(10):
        await door.enter(issued)
    with pytest.raises(TooManyRequests):
        await door.enter(issued)


@pytest.mark.parametrize("seed", range(20))
async def test_no_second_lets_more_through_than_twice_the_rate_and_no_hour_more_than_the_rate(
    door: Door, seed: int
) -> None:
    fate = random.Random(seed)
    rate = fate.choice([1, 2, 7, 100])
    issued = await door.token(limits=Limits(requests_per_s=rate))
    start, let_in = door.now_s, []
    for _ in range(2000):
        door.now_s += fate.choice([0, 0.001, 0.01, 0.5])
        try:
            await door.enter(issued)
            let_in.append(door.now_s)
        except TooManyRequests:
            pass
    assert len(let_in) <= rate * (door.now_s - start + 1) + 1e-6
    for at, first in enumerate(let_in):
        assert sum(1 for other in let_in[at : at + 2 * rate + 1] if other < first + 1) <= 2 * rate
    print(f"seed {seed}")


async def test_a_token_that_asks_too_often_is_still_refused_its_streams_only_when_it_is_gone(door: Door) -> None:
    issued = await door.token(limits=Limits(requests_per_s=1))
    principal = await door.access.admit(hash_of(issued.secret))
    for _ in range(5):
        assert await door.access.still(principal)
    await door.store.revoke("acme-ci", actor="root")
    door.now_s += AGE_S_MAX
    assert not await door.access.still(principal)


async def test_an_open_door_closes_in_order(door: Door) -> None:
    issued = await door.token(limits=Limits(stamps_per_day=5))
    async with door.access:
        principal = await door.access.admit(hash_of(issued.secret))
        await door.access.charge(principal, stamps=2, content_bytes=20)
        door.store.open.clear()
        door.store.asked.clear()
        waiting = asyncio.create_task(door.access.admit(hash_of(new_secret())))
        await door.store.asked.wait()
    with pytest.raises(BridgeError):
        await waiting
    ((_, use),) = await door.store.every(NOW.date())
    assert (use.stamps, use.content_bytes) == (2, 20)
