"""Every store of API tokens: found by hash alone, names never used twice, uses added up whoever adds them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import pytest
import pytest_asyncio

from omninode_bridge.adapters.memory import FixedClock, MemoryTokens
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.tokens import PostgresTokens
from omninode_bridge.domain.errors import InvalidInput, NotFound
from omninode_bridge.domain.tenancy import Limits, Token
from omninode_bridge.ports import Tokens, TokenUse
from tests.conftest import SERVERS, Server
from tests.making import NOW, new_id

TODAY = date(2026, 3, 1)


@pytest_asyncio.fixture(params=["memory", *SERVERS])
async def tokens(request: pytest.FixtureRequest, servers: dict[str, Server]) -> AsyncIterator[Tokens]:
    if request.param == "memory":
        yield MemoryTokens(FixedClock(NOW))
        return
    server = servers[request.param]
    url = await server.create()
    try:
        async with pool(url) as opened:
            yield PostgresTokens(opened)
    finally:
        await server.drop(url)


def a_token(name: str = "acme-ci", **fields: Any) -> Token:
    given: dict[str, Any] = {"scopes": ("read", "write"), "namespaces": ("acme.*",), "created_at": NOW}
    return Token(token_id=new_id(), name=name, **(given | fields))


async def kept(tokens: Tokens, token: Token) -> bytes:
    secret_hash = secrets.token_bytes(32)
    await tokens.create(token, secret_hash, actor="root")
    return secret_hash


async def test_a_token_is_found_by_its_hash_with_all_that_it_is(tokens: Tokens) -> None:
    nobodys = secrets.token_bytes(32)
    assert await tokens.look([nobodys]) == (False, {})
    assert await tokens.look([]) == (False, {})
    limited = a_token(limits=Limits(7, 8, 2**40), expires_at=NOW + timedelta(days=1), namespaces=("acme.a", "*"))
    free = a_token("free", scopes=("admin",))
    first, second = await kept(tokens, limited), await kept(tokens, free)
    assert await tokens.look([first, nobodys, second]) == (True, {first: limited, second: free})
    assert await tokens.look([nobodys]) == (True, {})
    assert await tokens.look([]) == (True, {})


async def test_a_name_is_used_once_also_after_its_token_was_revoked(tokens: Tokens) -> None:
    secret_hash = await kept(tokens, a_token())
    with pytest.raises(InvalidInput, match="acme-ci"):
        await kept(tokens, a_token())
    revoked, now = await tokens.revoke("acme-ci", actor="root")
    assert now
    assert revoked.revoked_at is not None
    assert not revoked.is_live(NOW)
    assert await tokens.revoke("acme-ci", actor="root") == (revoked, False)
    assert await tokens.look([secret_hash]) == (True, {secret_hash: revoked})
    with pytest.raises(InvalidInput, match="acme-ci"):
        await kept(tokens, a_token())
    with pytest.raises(NotFound, match="nobody"):
        await tokens.revoke("nobody", actor="root")


async def test_of_those_who_want_a_name_at_once_one_gets_it(tokens: Tokens) -> None:
    answers = await asyncio.gather(*(kept(tokens, a_token()) for _ in range(6)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == [*["InvalidInput"] * 5, "bytes"]


async def test_of_those_who_revoke_at_once_one_does(tokens: Tokens) -> None:
    await kept(tokens, a_token())
    answers = await asyncio.gather(*(tokens.revoke("acme-ci", actor="root") for _ in range(6)))
    assert sorted(now for _, now in answers) == [*[False] * 5, True]
    assert len({token.revoked_at for token, _ in answers}) == 1


async def test_what_is_used_is_added_up_by_token_and_day(tokens: Tokens) -> None:
    one, other = a_token(), a_token("other")
    await kept(tokens, one)
    await kept(tokens, other)
    tomorrow = TODAY + timedelta(days=1)
    assert await tokens.use({}) == {}
    first = {(one.token_id, TODAY): TokenUse(3, 30), (one.token_id, tomorrow): TokenUse(1, 1)}
    assert await tokens.use(first) == first
    gone = new_id()
    more = {
        (gone, TODAY): TokenUse(9, 9),
        (one.token_id, TODAY): TokenUse(1, 2**40),
        (other.token_id, TODAY): TokenUse(),
    }
    sums = {(one.token_id, TODAY): TokenUse(4, 2**40 + 30), (other.token_id, TODAY): TokenUse()}
    assert await tokens.use(more) == sums
    assert await tokens.every(TODAY) == [(one, sums[one.token_id, TODAY]), (other, TokenUse())]
    assert await tokens.every(tomorrow) == [(one, TokenUse(1, 1)), (other, TokenUse())]


async def test_nothing_is_lost_when_many_add_at_once(tokens: Tokens) -> None:
    some = [a_token(f"token {number}") for number in range(5)]
    for token in some:
        await kept(tokens, token)
    one_each = {(token.token_id, TODAY): TokenUse(1, 10) for token in some}
    backwards = dict(reversed(one_each.items()))
    await asyncio.gather(*(tokens.use(one_each if turn % 2 else backwards) for turn in range(40)))
    assert [use for _, use in await tokens.every(TODAY)] == [TokenUse(40, 400)] * 5
