"""Server-sent events over real sockets: what is told, where one goes on, and what slow or doubtful callers meet."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app import following
from omninode_bridge.app.administration import administration
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.http import events, protocol
from tests.conftest import Server
from tests.integration.proxy import Fault, Proxy, ends_request
from tests.integration.serving import NAMESPACE, PATIENCE_S, a_stamp, refused, served, token

KIBIBYTE = 1024


@dataclass
class Block:
    """One block of a stream as it came: its fields, and how often each was there."""

    id: str | None = None
    data: str | None = None
    comments: int = 0

    @property
    def event(self) -> Any:
        assert self.data is not None
        return json.loads(self.data)

    @property
    def path(self) -> str:
        path: str = self.event["data"]["file_path"]
        return path


class Stream:
    """A caller who reads blocks as EventSource would."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        self.response = response
        self._lines = response.aiter_lines()
        self.last_id: str | None = None

    async def block(self) -> Block | None:
        """Return the next block; None at the end of the stream."""
        found, empty = Block(), True
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if not line and not empty:
                    self.last_id = found.id or self.last_id
                    return found
                empty = False
                name, _, value = line.partition(": ")
                if name == "id":
                    assert found.id is None
                    found.id = value
                elif name == "data":
                    found.data = value if found.data is None else f"{found.data}\n{value}"
                else:
                    assert line == ":", line
                    found.comments += 1
        return None

    async def told(self) -> Block:
        """Return the next event."""
        while (found := await self.block()) is not None:
            if found.data is not None:
                return found
        raise AssertionError("the stream ended")

    async def paths(self, count: int) -> list[str]:
        return [(await self.told()).path for _ in range(count)]


@asynccontextmanager
async def following_events(
    client: httpx.AsyncClient, last_id: str | None = None, headers: dict[str, str] | None = None, **parameters: Any
) -> AsyncIterator[Stream]:
    named = {**(headers or {}), **({} if last_id is None else {"last-event-id": last_id})}
    async with client.stream("GET", "/events", params=parameters, headers=named) as response:
        yield Stream(response)


async def whole(client: httpx.AsyncClient, count: int, **asked: Any) -> list[Block]:
    """Return so many events from the start, or from an id."""
    async with following_events(client, limit=count, **asked) as stream:
        found = [await stream.told() for _ in range(count)]
        assert await stream.block() is None
        return found


def in_shards(blocks: list[Block]) -> dict[int, list[str | None]]:
    """Return the events of each shard in the order in which they came."""
    found: dict[int, list[str | None]] = {}
    for block in blocks:
        found.setdefault(block.event["shard"], []).append(block.data)
    return found


async def stamp(client: httpx.AsyncClient, *paths: str, headers: dict[str, str] | None = None, **fields: Any) -> None:
    for path in paths:
        made = await client.post("/stamp", json=a_stamp(file_path=path, **fields), headers=headers)
        assert made.status_code == 201, made.text


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^omninode_bridge_{name} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def until_gauge(client: httpx.AsyncClient, name: str, value: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await gauge(client, name) != value:  # noqa: ASYNC110 - what is counted tells nobody
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def test_each_event_is_the_stored_one_in_one_line_with_an_id(
    client: httpx.AsyncClient, database_url: str
) -> None:
    await stamp(client, "a.txt", "b.txt", "c.txt", metadata={"k": "line\nbreak ü"})
    async with following_events(client, limit=3) as stream:
        assert stream.response.headers["cache-control"] == "no-store"
        assert stream.response.headers["x-correlation-id"]
        blocks = [await stream.told() for _ in range(3)]
        assert await stream.block() is None
    connection = await asyncpg.connect(database_url)
    kept = {row["body"].decode() for row in await connection.fetch("SELECT body FROM event_log")}
    await connection.close()
    assert {block.data for block in blocks} == kept
    assert all(block.id and re.fullmatch(r"[A-Za-z0-9_-]+", block.id) for block in blocks)
    assert len({block.id for block in blocks}) == 3


async def test_from_any_id_exactly_the_rest_is_told(client: httpx.AsyncClient) -> None:
    await stamp(client, *(f"{n}.txt" for n in range(6)))
    await client.post("/stamp", json=a_stamp(file_path="last.txt", namespace="else.where"))
    blocks = await whole(client, 7)
    for at, block in enumerate(blocks[:-1]):
        rest = await whole(client, 6 - at, last_id=block.id)
        assert in_shards(rest) == in_shards(blocks[at + 1 :])
    assert in_shards(await whole(client, 4, last_event_id=blocks[2].id)) == in_shards(blocks[3:])
    # The header is newer: a caller that reconnects by itself sends it with the URL of its beginning.
    by_query = {"last_event_id": str(blocks[2].id), "limit": "1"}
    both = await client.get("/events", params=by_query, headers={"last-event-id": str(blocks[5].id)})
    assert f"data: {blocks[6].data}\n" in both.text


async def test_what_is_stamped_later_is_told_then(client: httpx.AsyncClient) -> None:
    async with following_events(client) as stream:
        for path in ("a.txt", "b.txt", "c.txt"):
            await stamp(client, path)
            assert (await stream.told()).path == path


async def test_what_another_process_commits_is_told_too(client: httpx.AsyncClient, database_url: str) -> None:
    async with following_events(client) as stream, Bridge.connect(database_url) as neighbour:
        await neighbour.stamp(b"x", file_path="from-there.txt")
        assert (await stream.told()).path == "from-there.txt"


async def test_a_namespace_is_told_alone(client: httpx.AsyncClient) -> None:
    await stamp(client, "1", "2", namespace="a.x")
    await stamp(client, "3", "4", namespace="a.y")
    async with following_events(client, namespace="a.y") as stream:
        assert sorted(await stream.paths(2)) == ["3", "4"]
        await stamp(client, "5", namespace="a.x")
        await stamp(client, "6", namespace="a.y")
        assert (await stream.told()).path == "6"


async def test_a_token_is_told_its_own_only(client: httpx.AsyncClient, database_url: str) -> None:
    await stamp(client, "theirs", namespace="b.x")
    mine = await token(database_url, "mine", "a.*", "c.x")
    theirs = await token(database_url, "theirs", "b.*")
    for path, namespace in (("1", "a.x"), ("2", "c.x"), ("3", "a.y.z")):
        await client.post(
            "/stamp", json=a_stamp(file_path=path, namespace=namespace), headers=mine if path != "0" else theirs
        )
    await stamp(client, "more of theirs", namespace="b.y", headers=theirs)
    async with following_events(client, headers=mine) as stream:
        assert sorted(await stream.paths(3)) == ["1", "2", "3"]
        await stamp(client, "yet more", namespace="b.z", headers=theirs)
        await stamp(client, "4", namespace="a.x", headers=mine)
        assert (await stream.told()).path == "4"
    async with following_events(client, headers=theirs, namespace="b.z") as stream:
        assert (await stream.told()).path == "yet more"
    await refused(client.get("/events"), 401, "unauthenticated")
    writer = await token(database_url, "writer", "a.*", scopes="write")
    await refused(client.get("/events", headers=writer), 403, "forbidden")


async def test_what_may_not_be_seen_looks_like_what_is_not_there(
    client: httpx.AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.0)
    theirs = await token(database_url, "theirs", "b.*")
    await stamp(client, "1", "2", namespace="b.x", headers=theirs)
    mine = await token(database_url, "mine", "a.*")
    seen = []
    for namespace in ("b.x", "b.unused", "a.unused"):
        async with following_events(client, headers=mine, namespace=namespace) as stream:
            block = await stream.block()
            assert block is not None
            seen.append((stream.response.status_code, block.data, block.comments, block.id))
    assert seen[0] == seen[1] == seen[2]


async def test_one_who_sees_little_still_gets_on(
    client: httpx.AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STEP_POSITIONS_MAX", 4)
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.0)
    await stamp(client, *(f"{n}" for n in range(20)), namespace="b.x")
    mine = await token(database_url, "mine", "a.*")
    async with following_events(client, headers=mine) as stream:
        ids = set[str | None]()
        while (block := await stream.block()) is not None and not block.comments:
            assert block.data is None
            ids.add(block.id)
        assert len(ids) >= 5
        last_id = stream.last_id
    await stamp(client, "mine", namespace="a.x", headers=mine)
    for each in {*ids, last_id, None}:
        async with following_events(client, last_id=each, headers=mine) as stream:
            assert (await stream.told()).path == "mine"


async def test_a_silent_stream_has_a_heartbeat(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(events, "RECHECK_S", 0.05)
    await stamp(client, "a")
    async with following_events(client) as stream:
        assert (await stream.told()).path == "a"
        for _ in range(2):
            assert await stream.block() == Block(comments=1)


@pytest.mark.parametrize("name", ["header", "query"])
async def test_a_bad_id_is_refused(client: httpx.AsyncClient, name: str) -> None:
    await stamp(client, "a")
    (block,) = await whole(client, 1)
    assert block.id is not None
    for bad in ("nonsense", block.id[:-1], block.id + "A", block.id[1:], "obt", "-" * 20_000):
        named = {"headers": {"last-event-id": bad}} if name == "header" else {"params": {"last_event_id": bad}}
        await refused(client.get("/events", **named), 422, "invalid_input", "Last-Event-ID")
    assert (await client.get("/events", headers={"last-event-id": ""}, params={"limit": 1})).status_code == 200


async def test_an_id_of_another_database_is_refused(client: httpx.AsyncClient, server: Server) -> None:
    url = await server.create()
    async with Bridge.connect(url) as bridge, served(bridge) as elsewhere:
        await stamp(elsewhere, "a", "b")
        blocks = await whole(elsewhere, 2)
        await refused(
            client.get("/events", headers={"last-event-id": str(blocks[1].id)}), 422, "invalid_input", "Last-Event-ID"
        )
        await stamp(client, "a", "b", "c", "d")
        await refused(
            client.get("/events", headers={"last-event-id": str(blocks[1].id)}), 422, "invalid_input", "Last-Event-ID"
        )
    await server.drop(url)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("limit=1e3", "limit"), ("limit=", "limit"),
        ("limit=" + "9" * 30, "limit"), ("namespace=A", "namespace"), ("namespace=", "namespace"),
        ("namespace=a.*", "namespace"), ("since=1", "since"), ("limit=1&limit=2", "limit"),
    ],
)  # fmt: skip
async def test_a_bad_parameter_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    await refused(client.get(f"/events?{query}"), 422, "invalid_input", field)


async def test_events_that_retention_dropped_are_gone(client: httpx.AsyncClient, database_url: str) -> None:
    await stamp(client, *(f"{n}" for n in range(6)))
    blocks = await whole(client, 6)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE log_heads SET floor = position - 1 WHERE position > 0")
    await connection.execute(
        """DELETE FROM event_log AS e USING log_heads AS h
        WHERE (h.topic, h.shard) = (e.topic, e.shard) AND e.position <= h.floor"""
    )
    left = await connection.fetchval("SELECT count(*) FROM event_log")
    await connection.close()
    problem = await refused(
        client.get("/events", headers={"last-event-id": str(blocks[0].id)}), 410, "events_expired", "Last-Event-ID"
    )
    assert "without Last-Event-ID" in problem["detail"]
    kept = await whole(client, left)
    assert {block.data for block in kept} < {block.data for block in blocks}
    await stamp(client, "new")
    assert [block.path for block in await whole(client, 1, last_id=kept[-1].id)] == ["new"]


async def test_a_damaged_event_damages_no_other(client: httpx.AsyncClient, database_url: str) -> None:
    await stamp(client, "a", "b")
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "UPDATE event_log SET body = $1 WHERE body LIKE '%\"a\"%'::bytea", b"id: x\n\ndata: y\r\n\xff\rz\n"
    )
    await connection.close()
    blocks = await whole(client, 2)
    assert min(block.data or "" for block in blocks) == "id: x\n\ndata: y\n�\nz"
    assert [block.path for block in blocks if block.data and block.data.startswith("{")] == ["b"]


async def test_there_are_so_many_streams_and_no_more(bridge: Bridge) -> None:
    async with served(bridge, event_streams_max=2) as client:
        async with following_events(client), following_events(client):
            assert await gauge(client, "event_streams") == 2
            answer = await client.get("/events")
            await refused(client.get("/events"), 503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert await gauge(client, "event_streams_refused_total") == 2
        await until_gauge(client, "event_streams", 0)
        async with following_events(client):
            pass


async def test_who_asks_for_the_head_gets_no_stream(client: httpx.AsyncClient) -> None:
    await stamp(client, "a")
    answer = await client.head("/events")
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "text/event-stream", b"")
    assert await gauge(client, "event_streams") == 0


async def test_a_stream_whose_caller_is_gone_ends(bridge: Bridge, client: httpx.AsyncClient) -> None:
    async with following_events(client) as stream:
        await stamp(client, "a")
        await stream.told()
    await until_gauge(client, "event_streams", 0)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await reader.readuntil(b"data: ")
    assert await gauge(client, "event_streams") == 1
    writer.transport.abort()
    await until_gauge(client, "event_streams", 0)


async def test_a_stream_of_a_revoked_token_ends(
    client: httpx.AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RECHECK_S", 0.2)
    mine = await token(database_url, "mine", "a.*")
    async with following_events(client, headers=mine) as stream:
        await stamp(client, "1", namespace="a.x", headers=mine)
        assert (await stream.told()).path == "1"
        async with administration(Settings.read(database_url=database_url)) as administrator:
            await administrator.revoke_token("mine")
        assert await stream.block() is None


async def test_the_end_of_the_server_ends_a_stream_in_order(bridge: Bridge) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as caller, AsyncExitStack() as server:
        client = await server.enter_async_context(served(bridge))
        await stamp(client, "a")
        async with caller.stream("GET", f"{client.base_url}/events") as response:
            stream = Stream(response)
            await stream.told()
            ended = asyncio.create_task(server.aclose())
            assert await stream.block() is None  # with its last chunk: the answer is whole
            await ended


async def test_a_stream_outlives_the_absence_of_the_database(database_url: str, proxy: Proxy) -> None:
    async with Bridge.connect(proxy.url) as bridge, Bridge.connect(database_url) as neighbour, served(bridge) as client:
        await neighbour.stamp(b"x", file_path="before")
        async with following_events(client) as stream:
            assert (await stream.told()).path == "before"
            proxy.arm(Fault.BEFORE, ends_request, then_refuse=True)
            await neighbour.stamp(b"x", file_path="meanwhile")
            await asyncio.wait_for(proxy.struck.wait(), PATIENCE_S)
            proxy.admit()
            assert (await stream.told()).path == "meanwhile"
        await refused_while_away(client, proxy)


async def refused_while_away(client: httpx.AsyncClient, proxy: Proxy) -> None:
    """A stream that can't begin is refused, and is no stream."""
    proxy.leave()
    answer = await client.get("/events", params={"limit": 1})
    assert answer.status_code == 503
    proxy.admit()
    await until_gauge(client, "event_streams", 0)


async def test_who_takes_slowly_is_waited_for_and_who_stands_still_is_cut(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_S_MAX", 2.0)
    url = await servers["embedded"].create()
    async with Bridge.connect(url) as bridge, served(bridge) as client:
        for n in range(200):
            await bridge.stamp(b"x", file_path=f"{n}", metadata={"k": "v" * 60 * KIBIBYTE}, namespace=NAMESPACE)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIBIBYTE)
            slow.connect((client.base_url.host, client.base_url.port))
            slow.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            for _ in range(40):  # longer than one may stand still
                assert await asyncio.wait_for(loop.sock_recv(slow, 2 * KIBIBYTE), PATIENCE_S)
                await asyncio.sleep(0.065)
            assert await gauge(client, "event_streams") == 1  # what was read may have lain in the kernel
            monkeypatch.setattr(protocol, "STALL_S_MAX", 0.4)
            await until_gauge(client, "event_streams", 0)
    await servers["embedded"].drop(url)


async def test_who_takes_nothing_holds_little_and_hinders_nobody(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S_MAX", 0.5)
    url = await servers["embedded"].create()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIBIBYTE)
        async with Bridge.connect(url) as bridge, served(bridge) as client:
            for n in range(200):
                await bridge.stamp(b"x", file_path=f"{n}", metadata={"k": "v" * 60 * KIBIBYTE}, namespace=NAMESPACE)
            lazy.connect((client.base_url.host, client.base_url.port))
            lazy.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await until_gauge(client, "event_streams", 1)
            assert len(await whole(client, 200)) == 200
            told = await gauge(client, "event_streams_events_total") - 200
            assert 0 < told * 60 < 8 * KIBIBYTE  # of 12 MiB: what sockets hold, and one step
        # The server has ended all the same, because who stands still then is cut.
        while lazy.recv(KIBIBYTE * KIBIBYTE):
            pass
    await servers["embedded"].drop(url)
