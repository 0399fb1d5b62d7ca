"""Bodies that are held in memory while they come: nobody can keep the room for them from others, nor for long.

Limits are lowered by setting them, so that what takes minutes and megabytes takes fractions.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import httpx
import pytest

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.http import bodies
from tests.chaos.wire import Connection
from tests.integration.books import eventually
from tests.integration.serving import a_stamp, check_problem, served, token

BODY_BYTES = 900
HELD_BYTES = 800
ROOM_BYTES = 4 * 1000

pytestmark = pytest.mark.usefixtures("small_room")


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "JSON_BYTES_AT_ONCE_MAX", ROOM_BYTES)


async def begun(client: httpx.AsyncClient, call: str, authorization: str = "") -> Connection:
    """Send a request without the end of its body."""
    assert client.base_url.port is not None
    connection = await Connection.open(client.base_url.port)
    head = f"POST {call} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n"
    head += f"Authorization: {authorization}\r\n" if authorization else ""
    await connection.send(head.encode() + b"Content-Type: application/json\r\n\r\n" + b" " * HELD_BYTES)
    return connection


async def stamped(client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> int:
    """Ask for a stamp with as much as one of the bodies that are held; return the answer's status."""
    answer = await client.post("/stamp", json=a_stamp(content="x" * (HELD_BYTES - 100)), headers=headers)
    if answer.status_code == 503:
        check_problem(answer.json(), 503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
    return answer.status_code


async def fill(client: httpx.AsyncClient, stack: AsyncExitStack, headers: dict[str, str] | None = None) -> None:
    """Hold bodies until a request is refused for want of room.

    Where such a request is before a body that was to be held, it is the body that is refused: then one more.
    """

    async def is_full() -> bool:
        if await stamped(client, headers) == 503:
            return True
        await stack.enter_async_context(await begun(client, "/validate", (headers or {}).get("authorization", "")))
        return False

    await eventually(is_full, "the room is taken")


@pytest.mark.parametrize("call", ["/stamp", "/stamp/batch", "/validate", "/workflows", "/workflows?file_path=a"])
async def test_a_body_that_is_held_has_to_come_in_time_and_one_that_is_not_has_not(
    database_url: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(bodies, "HELD_S_MAX", 0.5)
    async with (
        Bridge.connect(database_url) as bridge,
        served(bridge, json_bytes_max=BODY_BYTES) as client,
        AsyncExitStack() as stack,
    ):
        raw = await stack.enter_async_context(await begun(client, "/hash"))
        held = [await stack.enter_async_context(await begun(client, call)) for _ in range(ROOM_BYTES // HELD_BYTES)]
        for connection in held:
            answer = await connection.answer()
            assert answer.status == 408, answer
            check_problem(answer.json(), 408, "body_timeout", "body")
            assert connection.closing
        monkeypatch.setattr(bodies, "HELD_S_MAX", 60.0)
        assert await stamped(client) == 201
        await raw.send(b" " * (BODY_BYTES - HELD_BYTES))
        assert (await raw.answer()).json()["file_size"] == BODY_BYTES


async def test_a_token_has_a_part_of_the_room_and_leaves_others_theirs(database_url: str) -> None:
    greedy = await token(database_url, "greedy", "*")
    other = await token(database_url, "other", "*")
    async with Bridge.connect(database_url) as bridge, served(bridge, json_bytes_max=BODY_BYTES) as client:
        async with AsyncExitStack() as stack:
            await fill(client, stack, greedy)
            assert await stamped(client, other) in (200, 201)
        # The connections are gone, and what they held is free again.

        async def is_free() -> bool:
            return await stamped(client, greedy) != 503

        await eventually(is_free, "the token's part is free again")


async def test_a_token_may_send_a_body_as_large_as_a_body_may_be(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "TOKENS_PART", 1000)
    whole = await token(database_url, "whole", "*")
    async with Bridge.connect(database_url) as bridge, served(bridge, json_bytes_max=BODY_BYTES) as client:
        for _ in range(10):
            assert await stamped(client, whole) in (200, 201)


async def test_without_tokens_the_room_is_for_all(database_url: str) -> None:
    async with (
        Bridge.connect(database_url) as bridge,
        served(bridge, json_bytes_max=BODY_BYTES) as client,
        AsyncExitStack() as stack,
    ):
        await fill(client, stack)
