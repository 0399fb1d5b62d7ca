"""Stamping services for tests: real HTTP servers on loopback that do as they are told, well or badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from blake3 import blake3

type Behaviour = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Asked:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


class Service:
    """A server on a port of its own; `behaviour` may be changed at any time, and `asked` has every request."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or honest
        self.asked: list[Asked] = []
        self.under_way = 0
        self.under_way_most = 0
        self._arrived = asyncio.Event()
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen, on the same port as before where there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: cut every connection and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def until_asked(self, count: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (asked := await _read(reader)) is not None and not writer.is_closing():
                self.asked.append(asked)
                self._arrived.set()
                self.under_way += 1
                self.under_way_most = max(self.under_way_most, self.under_way)
                try:
                    await self.behaviour(asked, writer)
                finally:
                    self.under_way -= 1
        except (ConnectionError, asyncio.CancelledError):
            pass  # the caller went, or the service is stopped
        finally:
            self._connections.discard(task)
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        return Asked(line, headers, await reader.readexactly(int(headers["content-length"])))
    except asyncio.IncompleteReadError:
        return None


def digest_of(body: bytes, **changed: Any) -> bytes:
    """What a service answers for a content, with some fields as they should not be."""
    answer = {"file_hash": blake3(body).hexdigest(), "file_size": len(body), "hash_generation_time_ms": 0.125}
    return json.dumps({**answer, **changed}).encode()


async def send(writer: asyncio.StreamWriter, body: bytes, status: int = 200, **headers: str) -> None:
    lines = [f"HTTP/1.1 {status} Told", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


async def honest(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await send(writer, digest_of(asked.body))


async def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def die_in_the_answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 130\r\n\r\n" + digest_of(asked.body)[:40])
    await writer.drain()
    writer.transport.abort()


async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time, for longer than anybody waits."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 15000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


async def never_end(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        await writer.drain()


async def talk_otherwise(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n\r\n")
    await writer.drain()


def answer(body: bytes | str, status: int = 200, **headers: str) -> Behaviour:
    """Always the same answer."""
    data = body.encode() if isinstance(body, str) else body

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await send(writer, data, status, **headers)

    return behave


def lie(**changed: Any) -> Behaviour:
    """The right answer, but for some fields."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await send(writer, digest_of(asked.body, **changed))

    return behave


def hold(gate: asyncio.Event, then: Behaviour = honest) -> Behaviour:
    """Answer once the gate is open."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await then(asked, writer)

    return behave
