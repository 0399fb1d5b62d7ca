"""A fault proxy between asyncpg and PostgreSQL's unix socket: it cuts a connection at a chosen message.

It reads the frontend side of the wire protocol (PostgreSQL's manual, "Message Formats") message by message:
a start-up message with its length, then messages with a type byte and their length. The backend's side is
passed on as it comes. One fault is armed at a time; it strikes once, at the first message that matches.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

SOCKET = ".s.PGSQL.5432"
_READY_FOR_QUERY = b"Z\0\0\0\5"

type Match = Callable[[bytes], bool]
"""Looks at one whole frontend message: type byte, length and body."""


class Fault(Enum):
    BEFORE = auto()
    """The server never gets the message, the client never an answer: both sides are cut."""
    AFTER = auto()
    """The server gets the message and answers it, the client never hears of that: both sides are cut."""
    HOLD_BEFORE = auto()
    """As BEFORE, but the server's side stays open until `release`."""
    HOLD_AFTER = auto()
    """As AFTER, but the server's side stays open until `release`."""
    STALL_BEFORE = auto()
    """The message is kept back, and nobody is cut until `release`: the client waits."""
    STALL_AFTER = auto()
    """The server answers, the client does not hear of it; nobody is cut until `release`: the client waits."""


def is_begin(message: bytes) -> bool:
    return re.fullmatch(rb"Q.{4}BEGIN;?(?: .*)?\0", message, re.DOTALL) is not None


def is_commit(message: bytes) -> bool:
    return re.fullmatch(rb"Q.{4}COMMIT;?\0", message, re.DOTALL) is not None


def is_ledgers_begin(message: bytes) -> bool:
    """Match the ledger's and nobody else's: a reducer at work begins and commits when it likes."""
    return re.fullmatch(rb"Q.{4}BEGIN; LOCK TABLE fsm_states .*\0", message, re.DOTALL) is not None


def is_ledgers_commit(message: bytes) -> bool:
    """Match the ledger's: the driver's own transactions, which all others are, end with a semicolon."""
    return re.fullmatch(rb"Q.{4}COMMIT\0", message, re.DOTALL) is not None


def ends_request(message: bytes) -> bool:
    """Tell whether the server answers this message with ReadyForQuery: it is a simple query, or Sync."""
    return message[:1] in {b"Q", b"S"}


def nth_request(number: int, *, since: Match = ends_request) -> Match:
    """Match the end of the `number`-th request, counted from 0 at the first one that matches `since`."""
    left, counting = number, False

    def matches(message: bytes) -> bool:
        nonlocal left, counting
        counting = counting or since(message)
        if not counting or not ends_request(message):
            return False
        left -= 1
        return left == -1

    return matches


class Proxy:
    """Listens in a folder of its own; `url` is the database's URL through it. An async context manager."""

    def __init__(self, database_url: str) -> None:
        split = urlsplit(database_url)
        (self._upstream,) = parse_qs(split.query)["host"]
        self._folder = tempfile.mkdtemp(prefix="proxy-")
        self.url = split._replace(query=f"host={quote(self._folder, safe='')}&port=5432").geturl()
        self.struck = asyncio.Event()
        """Set when the armed fault has struck."""
        self.left = asyncio.Event()
        """Set when a stalled client has closed its side by itself."""
        self._armed: tuple[Fault, Match, bool] | None = None
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._released = asyncio.Event()
        self._links: set[_Link] = set()
        self._linking: set[asyncio.StreamWriter] = set()
        """Clients that were taken, and have no connection to the server yet."""
        self._serving: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._accept, f"{self._folder}/{SOCKET}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        shutil.rmtree(self._folder)

    def arm(self, fault: Fault, match: Match, *, then_refuse: bool = False) -> None:
        """Strike at the next message that matches; `then_refuse`: take no new connection until `admit`."""
        self._armed = (fault, match, then_refuse)
        self.struck.clear()
        self.left.clear()
        self._released.clear()

    def disarm(self) -> None:
        self._armed = None

    def leave(self) -> None:
        """Cut every connection, and take no new one until `admit`."""
        self._admitting.clear()
        for to_client in {*self._linking, *(link.to_client for link in self._links)}:
            to_client.transport.abort()

    def admit(self) -> None:
        """Take connections again."""
        self._admitting.set()

    def release(self) -> None:
        """Cut what is held or stalled."""
        self._released.set()

    async def inject(self, sql: str) -> None:
        """Run a statement in the session of the only open connection, which is idle; its client sees nothing of it."""
        (link,) = self._links
        body = sql.encode() + b"\0"
        await link.ask_unheard(b"Q" + (len(body) + 4).to_bytes(4, "big") + body)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._admitting.is_set():
            writer.transport.abort()
            return

        def ended(task: asyncio.Task[None]) -> None:
            self._serving.discard(task)
            self._linking.discard(writer)
            writer.transport.abort()

        self._linking.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(ended)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_unix_connection(f"{self._upstream}/{SOCKET}")
        self._linking.discard(writer)
        link = _Link(reader, writer, *upstream)
        self._links.add(link)
        try:
            while (message := await link.message()) is not None:
                fault = self._strike(message)
                if fault is None:
                    link.to_server.write(message)
                    await link.to_server.drain()
                    continue
                if fault in {Fault.AFTER, Fault.HOLD_AFTER, Fault.STALL_AFTER}:
                    await link.ask_unheard(message, for_good=True)
                stalled = fault in {Fault.STALL_BEFORE, Fault.STALL_AFTER}
                if not stalled:
                    link.to_client.transport.abort()
                self._links.discard(link)
                self.struck.set()
                if stalled:
                    await self._until_left_or_released(link)
                if fault not in {Fault.BEFORE, Fault.AFTER}:
                    await self._released.wait()
                return
        except ConnectionError:
            pass  # a side that went away by itself: close the other
        finally:
            self._links.discard(link)
            await link.close()

    async def _until_left_or_released(self, link: _Link) -> None:
        leaving = asyncio.create_task(link.message())
        released = asyncio.create_task(self._released.wait())
        await asyncio.wait({leaving, released}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.left.set()
        leaving.cancel()
        released.cancel()
        await asyncio.gather(leaving, released, return_exceptions=True)

    def _strike(self, message: bytes) -> Fault | None:
        if self._armed is None or not self._armed[1](message):
            return None
        fault, _, then_refuse = self._armed
        self._armed = None
        if then_refuse:
            self._admitting.clear()
        return fault


class _Link:
    """One connection: the client's side and the server's."""

    def __init__(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self.to_client = to_client
        self.to_server = to_server
        self._from_client = from_client
        self._from_server = from_server
        self._started = False
        self._unheard: asyncio.Event | None = None
        self._answers = asyncio.create_task(self._pass_answers())

    async def message(self) -> bytes | None:
        """Return the client's next message, None when there is no more."""
        try:
            head = await self._from_client.readexactly(5 if self._started else 4)
            self._started = True
            return head + await self._from_client.readexactly(int.from_bytes(head[-4:], "big") - 4)
        except asyncio.IncompleteReadError:
            return None

    async def ask_unheard(self, message: bytes, *, for_good: bool = False) -> None:
        """Send a message to the server and wait until it is answered; the client does not get the answer."""
        self._unheard = asyncio.Event()
        self.to_server.write(message)
        await self._unheard.wait()
        if not for_good:
            self._unheard = None

    async def close(self) -> None:
        self._answers.cancel()
        self.to_client.transport.abort()
        self.to_server.transport.abort()
        with suppress(asyncio.CancelledError):
            await self._answers

    async def _pass_answers(self) -> None:
        tail = b""
        with suppress(ConnectionError):
            while chunk := await self._from_server.read(1 << 16):
                if self._unheard is None:
                    self.to_client.write(chunk)
                    continue
                tail = (tail + chunk)[-6:]
                if tail[:5] == _READY_FOR_QUERY:
                    self._unheard.set()
        self.to_client.close()
        if self._unheard is not None:
            self._unheard.set()
