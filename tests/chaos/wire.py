"""A client of HTTP/1.1 that hides nothing: one connection, whose bytes a test sends as it likes, and sees its end."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from tests.load.caller import Answer, Ask

SILENCE_S_MAX = 45.0
"""Longer than a server that stops takes for those it still answers."""
HEAD_BYTES_MAX = 1 << 18


class Lost(Exception):
    """The connection ended before an answer was whole. `began` tells whether some of it had come."""

    def __init__(self, why: str, *, began: bool) -> None:
        super().__init__(why)
        self.began = began


class Connection:
    """One connection. A context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.closing = False
        """Whether the server has said that it closes the connection."""

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect; Lost when nobody listens."""
        try:
            return cls(*await asyncio.open_connection("127.0.0.1", port, limit=HEAD_BYTES_MAX))
        except OSError as error:
            raise Lost(f"no connection: {error}", began=False) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are; Lost when the other side is gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise Lost(f"not sent: {error}", began=False) from error

    def end(self) -> None:
        """Tell that nothing more will be sent."""
        self._writer.write_eof()

    async def answer(self) -> Answer:
        """Read one answer; Lost when the connection ends first, or is silent for too long."""
        head = b""
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                head = await self._reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").split("\r\n")[:-2]
                pairs = (field.partition(":") for field in fields)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as error:
            raise Lost("the connection ended", began=bool(head or error.partial)) from error
        except (ConnectionError, TimeoutError) as error:
            raise Lost(str(error) or type(error).__name__, began=bool(head)) from error
        self.closing = headers.get("connection", "").lower() == "close"
        return Answer(int(line.split()[1]), headers, body)

    async def ask(self, ask: Ask) -> Answer:
        """Send a request and read its answer."""
        await self.send(encoded(ask))
        return await self.answer()

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        async with asyncio.timeout(SILENCE_S_MAX):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""


def encoded(ask: Ask) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{ask.method} {ask.target} HTTP/1.1", "host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in ask.headers.items()]
    if ask.body or ask.method == "POST":
        lines.append(f"content-length: {len(ask.body)}")
    return "\r\n".join([*lines, "", ""]).encode() + ask.body
