"""A load generator for one server on loopback: HTTP/1.1, connections that stay open, no pipelining.

It shares the cores with what it measures, so it does as little as it can: requests are encoded beforehand, and of an
answer it reads the status and the length, and keeps the bytes. What they say is read when the clock has stopped.

    closed_loop  each connection sends its next request when it has its answer: how much is there to be had
    open_loop    requests are due at a fixed rate, whatever the server does: how long does a caller wait

In the open loop latency counts from when a request was due, not from when a connection was free for it: a server that
stalls is charged for everybody who would have come meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, cast

TICK_S = 0.001
"""How often the open loop looks what is due: the resolution of uvloop's timers. Being late by it counts as latency."""
RATE_MIN, SILENCE_S_MAX = 100, 60.0
"""A run that takes longer than at this rate, and this time more, has failed."""

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "


class Answer(NamedTuple):
    """What came back: the status, the body, and the seconds since the request was due."""

    status: int
    body: bytes
    latency_s: float


class Load(NamedTuple):
    """A finished run: the answers, in the order of their requests, and the seconds from first to last."""

    answers: list[Answer]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds

    def latency_ms(self, share: float) -> float:
        """Return the latency that `share` of the requests stayed within (nearest rank)."""
        ordered = sorted(answer.latency_s for answer in self.answers)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class LoadFailed(Exception):
    """The server closed a connection, fell silent, or answered what is no answer."""


def post(path: str, body: bytes) -> bytes:
    """Return an encoded request of a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + _HEAD_END + body


async def closed_loop(port: int, requests: Sequence[bytes], connections: int) -> Load:
    """Send all requests as fast as the connections get their answers."""
    async with _Run(port, requests, connections) as run:
        return await run.at_once()


async def open_loop(port: int, requests: Sequence[bytes], connections: int, rate: float) -> Load:
    """Send `rate` requests a second, spread over the connections that are free; the others wait for one."""
    async with _Run(port, requests, connections) as run:
        return await run.in_time(rate)


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, answered: Callable[[_Connection, int, int, bytes], None], lost: Callable[[str], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._buffer = b""
        self._number = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, number: int, request: bytes) -> None:
        assert self._transport is not None
        self._number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(_HEAD_END)
        if head >= 0:
            at = data.find(_LENGTH, 0, head)
            if at < 0:
                self._lost(f"an answer has no Content-Length: {data[:head]!r}")
                return
            at += len(_LENGTH)
            start = head + len(_HEAD_END)
            missing = start + int(data[at : data.find(b"\r", at)]) - len(data)
            if missing < 0:
                self._lost(f"an answer is longer than its Content-Length: {data!r}")
                return
            if missing == 0:
                self._buffer = b""
                self._answered(self, self._number, int(data[9:12]), data[start:])
                return
        self._buffer = data

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(f"the server closed a connection ({exc})")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Run:
    """Requests on their way through the connections, from the first to the last answer."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self._port = port
        self._requests = requests
        self._count = connections
        self._connections: list[_Connection] = []
        self._free: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._due_s = [0.0] * len(requests)
        self._answers: list[Answer | None] = [None] * len(requests)
        self._left = len(requests)
        self._done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._answered, self._lost), "127.0.0.1", self._port
            )
            self._connections.append(connection)
        self._free.extend(self._connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.cancel()
        for connection in self._connections:
            connection.close()

    async def at_once(self) -> Load:
        """Closed: a request is due when a connection is free for it."""
        started = time.perf_counter()
        self._waiting.extend(range(len(self._requests)))
        self._send(started)
        return await self._finished(started)

    async def in_time(self, rate: float) -> Load:
        """Open: each request is due at its own time."""
        started = time.perf_counter()
        self._due_s = [started + number / rate for number in range(len(self._requests))]
        arrived = 0
        while arrived < len(self._requests) and not self._done.done():
            now = time.perf_counter()
            while arrived < len(self._requests) and self._due_s[arrived] <= now:
                self._waiting.append(arrived)
                arrived += 1
            self._send(now)
            await asyncio.sleep(TICK_S)
        return await self._finished(started)

    def _send(self, now: float) -> None:
        while self._free and self._waiting:
            number = self._waiting.popleft()
            if not self._due_s[number]:
                self._due_s[number] = now
            self._free.popleft().send(number, self._requests[number])

    def _answered(self, connection: _Connection, number: int, status: int, body: bytes) -> None:
        now = time.perf_counter()
        if self._answers[number] is not None:
            self._lost(f"request {number} was answered twice")
            return
        self._answers[number] = Answer(status, body, now - self._due_s[number])
        self._left -= 1
        if not self._left:
            self._done.set_result(now)
            return
        self._free.append(connection)
        self._send(now)

    def _lost(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(LoadFailed(why))

    async def _finished(self, started: float) -> Load:
        try:
            ended = await asyncio.wait_for(self._done, len(self._requests) / RATE_MIN + SILENCE_S_MAX)
        except TimeoutError as error:
            raise LoadFailed(f"{self._left} of {len(self._requests)} requests got no answer") from error
        return Load([answer for answer in self._answers if answer is not None], ended - started)
