"""A real server of a bridge, on a port of its own, and what tests of its calls have in common."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from blake3 import blake3

from omninode_bridge.app.administration import administration
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.tenancy import Limits
from omninode_bridge.http.application import create_app
from omninode_bridge.http.server import Stop, serve_app

NAMESPACE = "legal.contracts"
PATIENCE_S = 30.0
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""There is no TLS on loopback, and reading the system's authorities takes 45 ms, a thousand times."""


@asynccontextmanager
async def served(bridge: Bridge, **limits: int) -> AsyncIterator[httpx.AsyncClient]:
    """A server on a free port, and a client of it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = Stop(None)
        died = asyncio.create_task(bridge.maintenance.database_died())
        app = create_app(bridge, Settings.read(**limits))
        serving = asyncio.create_task(serve_app(app, listener, stop=stop, announce=announced.set_result, died=died))
        try:
            async with httpx.AsyncClient(base_url=await announced, timeout=60, verify=_NO_AUTHORITIES) as client:
                yield client
        finally:
            stop()
            await serving
            died.cancel()


async def token(
    database_url: str, name: str, *namespaces: str, scopes: str = "read,write", limits: Limits | None = None
) -> dict[str, str]:
    """Make a token; return the header that carries it."""
    async with administration(Settings.read(database_url=database_url)) as administrator:
        issued = await administrator.create_token(name, namespaces=namespaces, scopes=scopes.split(","), limits=limits)
    return {"authorization": f"Bearer {issued.secret}"}


def digest(content: bytes) -> str:
    return blake3(content).hexdigest()


def a_stamp(**fields: Any) -> dict[str, Any]:
    return {"file_path": "a.txt", "namespace": NAMESPACE, "content": "hello", **fields}


def check_problem(problem: Any, status: int, code: str, field: str | None = None) -> None:
    assert problem["type"] == f"urn:omninode-bridge:problem:{code}"
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field), problem
    assert problem["title"] and problem["detail"]


async def refused(answer: Awaitable[httpx.Response], status: int, code: str, field: str | None = None) -> Any:
    """Check that an answer is a whole problem document; return it."""
    got = await answer
    assert (got.status_code, got.headers["content-type"]) == (status, "application/problem+json"), got.text
    check_problem(got.json(), status, code, field)
    assert got.headers["x-correlation-id"]
    return got.json()


async def nothing_recorded(bridge: Bridge) -> None:
    assert [prior async for prior in bridge.reads.workflows()] == []


async def raw_exchange(client: httpx.AsyncClient, sent: bytes) -> bytes:
    """Send bytes as they are; return all that comes until the server ends the connection."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


def as_lines(*items: Any) -> bytes:
    """NDJSON; bytes are lines as they are."""
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    return b"\n".join(lines) + b"\n"


async def post_lines(client: httpx.AsyncClient, *items: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"content-type": "application/x-ndjson", **named}
    return await client.post("/stamp/batch", content=as_lines(*items), headers=sent)


def read_lines(answer: httpx.Response) -> list[Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.text
    return [json.loads(line) for line in answer.content.splitlines()]
