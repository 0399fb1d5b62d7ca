"""Connections that are used in doubtful ways: several requests at once, one of them bad; hanging up; taking nothing.

On real sockets. The laws: what is sound is answered, in order, and before what is not is refused; no answer has another
one's bytes in it; an answer that nobody takes, or nobody is there for, ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.http import protocol
from omninode_bridge.http.protocol import LimitedProtocol
from tests.chaos.wire import Connection, Lost
from tests.conftest import Server
from tests.integration.serving import NAMESPACE, PATIENCE_S, served

KIBIBYTE = 1024
HEAD = b"POST /stamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
EVENTS = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
NO_HOST = b"GET /health/live HTTP/1.1\r\n\r\n"
GARBAGE = b"this is no HTTP\r\n\r\n"


@pytest_asyncio.fixture
async def url(servers: dict[str, Server]) -> AsyncIterator[str]:
    url = await servers["embedded"].create()
    yield url
    await servers["embedded"].drop(url)


@pytest_asyncio.fixture
async def bridge(url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[LimitedProtocol]:
    """The server's ends of the connections to come; the kernel keeps little of what they send."""
    ends: list[LimitedProtocol] = []
    made: Callable[..., None] = LimitedProtocol.connection_made

    def noted(end: LimitedProtocol, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIBIBYTE)
        ends.append(end)
        made(end, transport)

    monkeypatch.setattr(LimitedProtocol, "connection_made", noted)
    return ends


async def connect(client: httpx.AsyncClient) -> Connection:
    port = client.base_url.port
    assert port is not None
    return await Connection.open(port)


async def exchange(client: httpx.AsyncClient, *sent: bytes, end: bool = False) -> bytes:
    """Send bytes as they are; return all that comes until the server closes the connection."""
    async with await connect(client) as connection:
        await connection.send(b"".join(sent))
        if end:
            connection.end()
        return await connection.rest()


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    found = re.search(rf"^omninode_bridge_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.02)


async def until_streams(client: httpx.AsyncClient, count: int) -> None:
    async with asyncio.timeout(10):  # less than the time after which a heartbeat would find nobody there
        while await metric(client, "event_streams") != count:  # noqa: ASYNC110 - what is counted tells nobody
            await asyncio.sleep(0.02)


def stamp(path: str, head: bytes = HEAD) -> bytes:
    body = json.dumps({"namespace": NAMESPACE, "file_path": path, "content": path}).encode()
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answered)]


def paths(answered: bytes) -> list[str]:
    return [path.decode() for path in re.findall(rb'"file_path":"([^"]+)"', answered)]


async def recorded(client: httpx.AsyncClient) -> set[str]:
    found = (await client.get(f"/namespaces/{NAMESPACE}/stamps?limit=1000")).json()
    return {one["file_path"] for one in found["stamps"]}


@pytest.mark.parametrize("sent", [b"", GARBAGE, NO_HOST], ids=["nothing", "garbage", "no-host"])
@pytest.mark.parametrize("later", [False, True], ids=["at-once", "later"])
@pytest.mark.parametrize("half", [False, True], ids=["close", "half-close"])
async def test_a_stream_ends_with_its_caller_whatever_was_sent_behind_it(
    client: httpx.AsyncClient, *, half: bool, later: bool, sent: bytes
) -> None:
    async with await connect(client) as connection:
        await connection.send(EVENTS if later else EVENTS + LIVE)
        await until_streams(client, 1)
        await connection.send(LIVE + sent if later else sent)
        if half:
            connection.end()
            # Nothing of another answer is within the stream's, or behind it.
            assert statuses(await connection.rest()) == [200]
        else:
            connection.close()
        await until_streams(client, 0)
    assert await metric(client, "http_requests_in_progress") == 1


async def test_a_stream_that_begins_after_something_bad_came_ends(client: httpx.AsyncClient) -> None:
    answered = await exchange(client, stamp("before"), EVENTS, GARBAGE)
    assert (statuses(answered), paths(answered)[:1]) == ([201, 200], ["before"])
    await until_streams(client, 0)


async def test_a_stream_that_begins_after_its_caller_has_gone_leaves_no_connection(
    client: httpx.AsyncClient, narrow: list[LimitedProtocol]
) -> None:
    async with await connect(client) as connection:
        await connection.send(EVENTS + LIVE + GARBAGE)
    await until(lambda: narrow)
    await until(lambda: narrow[0] not in narrow[0].connections)
    await until_streams(client, 0)


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (NO_HOST, 400),
        (GARBAGE, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
    ],
    ids=["no-host", "garbage", "long-head", "broken-body"],
)
async def test_sound_requests_are_answered_before_a_bad_one_is_refused(
    client: httpx.AsyncClient, bad: bytes, status: int
) -> None:
    answered = await exchange(client, stamp("one"), stamp("two"), bad, stamp("hidden"))
    assert (statuses(answered), paths(answered)) == ([201, 201, status], ["one", "two"]), answered
    assert await recorded(client) == {"one", "two"}


async def test_who_sends_too_far_ahead_is_answered_as_far_as_was_taken(client: httpx.AsyncClient) -> None:
    sent = [f"ahead-{number}" for number in range(protocol.AHEAD_MAX + 6)]
    answered = await exchange(client, *map(stamp, sent))
    taken = sent[: protocol.AHEAD_MAX + 1]
    assert (statuses(answered), paths(answered)) == ([201] * len(taken) + [429], taken)
    assert await recorded(client) == set(taken)


async def test_behind_the_last_request_nothing_is_answered(client: httpx.AsyncClient) -> None:
    answered = await exchange(client, stamp("last", HEAD + b"Connection: close\r\n"), GARBAGE)
    assert statuses(answered) == [201]


async def test_who_ends_his_side_amid_a_request_is_answered_those_that_are_whole(client: httpx.AsyncClient) -> None:
    for rest in (stamp("cut")[:-1], HEAD[:-9]):
        answered = await exchange(client, stamp(f"whole-{len(rest)}"), LIVE, rest, end=True)
        assert statuses(answered) == [201, 200]
    assert "cut" not in await recorded(client)


async def test_a_refusal_has_an_id_and_is_counted_and_warns_of_nothing(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "omninode_bridge")
    ids = set()
    for _ in range(3):
        async with await connect(client) as connection:
            await connection.send(GARBAGE)
            answer = await connection.answer()
            assert (answer.status, answer.json()["code"], connection.closing) == (400, "not_http", True)
            ids.add(answer.headers["x-correlation-id"])
    assert len(ids) == 3
    assert await metric(client, 'http_problems_total{code="not_http"}') == 3
    assert await metric(client, 'http_requests_total{method="other",route="none",status="400"}') == 3
    assert all(any(one in record.getMessage() for record in caplog.records) for one in ids)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG and "uvicorn" in record.name]


async def test_connections_have_a_limit(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS_MAX", 3)
    assert (await client.get("/health/live")).status_code == 200  # the first one
    async with await connect(client) as second, await connect(client) as third:
        for connection in (second, third):
            await connection.send(LIVE)
            assert (await connection.answer()).status == 200
        async with await connect(client) as fourth:
            answer = await fourth.answer()
            assert (answer.status, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
            with pytest.raises(Lost):
                await fourth.answer()
        await second.send(LIVE)
        assert (await second.answer()).status == 200


async def stall(client: httpx.AsyncClient, lazy: socket.socket, ends: list[LimitedProtocol], fields: bytes) -> None:
    """Ask for an answer below the high-water mark, and take nothing of it; return when it waits, or was cut."""
    before = len(ends)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIBIBYTE)
    lazy.connect((client.base_url.host, client.base_url.port))
    lazy.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    await until(lambda: len(ends) > before)
    end = ends[-1]
    await until(lambda: end.transport.get_write_buffer_size() or end not in end.connections)
    assert end.transport.get_write_buffer_size() < 64 * KIBIBYTE


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
async def test_who_takes_nothing_of_a_short_answer_is_cut(
    client: httpx.AsyncClient, narrow: list[LimitedProtocol], monkeypatch: pytest.MonkeyPatch, fields: bytes
) -> None:
    monkeypatch.setattr(protocol, "STALL_S_MAX", 0.3)
    with socket.socket() as lazy:
        await stall(client, lazy, narrow, fields)
        cut = narrow[-1]
        await until(lambda: cut not in cut.connections)
        head, _, body = b"".join(iter(lambda: lazy.recv(64 * KIBIBYTE), b"")).partition(b"\r\n\r\n")
        announced = re.search(rb"content-length: (\d+)", head)
        assert announced is not None
        assert len(body) < int(announced[1])


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
async def test_who_takes_nothing_of_a_short_answer_does_not_hold_up_a_stop(
    bridge: Bridge, narrow: list[LimitedProtocol], monkeypatch: pytest.MonkeyPatch, fields: bytes
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S_MAX", 0.3)
    with socket.socket() as lazy:
        async with AsyncExitStack() as server:
            await stall(await server.enter_async_context(served(bridge)), lazy, narrow, fields)
            async with asyncio.timeout(10):
                await server.aclose()


async def test_who_takes_a_short_answer_slowly_gets_all_of_it(
    client: httpx.AsyncClient, narrow: list[LimitedProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_S_MAX", 3.0)
    with socket.socket() as slow:
        await stall(client, slow, narrow, b"Connection: close\r\n")
        slow.setblocking(False)
        got = b""
        while piece := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(slow, 2 * KIBIBYTE), PATIENCE_S):
            got += piece
            await asyncio.sleep(0.2)  # so slow he is: in all, longer than one may stand still
        assert len(got.partition(b"\r\n\r\n")[2]) == len((await client.get("/openapi.json")).content)


async def test_headers_that_do_not_come_are_given_up_also_behind_an_answer_that_takes_longer(
    client: httpx.AsyncClient, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S_MAX", 0.2)
    holder = await asyncpg.connect(url)
    try:
        async with await connect(client) as connection:
            async with holder.transaction():
                await holder.execute("LOCK TABLE event_log IN SHARE MODE")
                await connection.send(LIVE + stamp("held up") + HEAD[:-9])
                assert (await connection.answer()).status == 200
                await asyncio.sleep(1)  # longer than headers may take
            assert (await connection.answer()).status == 201
            answer = await connection.answer()
            assert (answer.status, answer.json()["code"]) == (408, "head_timeout")
    finally:
        await holder.close()
