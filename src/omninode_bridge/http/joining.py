"""What is written to a connection in one turn of the event loop, sent at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Joined:
    """A transport that sends what is written in one turn of the event loop at once.

    uvicorn writes an answer's head and body apart, and each write is a system call and a packet.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, flushed: Callable[[], None]
    ) -> None:
        self.sent = 0
        """Bytes that were given to the real transport."""
        self._transport = transport
        self._loop = loop
        self._flushed = flushed
        self._parts: list[bytes] = []
        self.is_ended = False

    def write(self, data: bytes) -> None:
        if self.is_ended or self._transport.is_closing():
            return  # an answer that was cut, or that nobody is there for
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def write_eof(self) -> None:
        self._flush()
        self.is_ended = True
        try:
            self._transport.write_eof()
        except OSError:  # the other side has reset the connection, which asyncio takes to be impossible here
            self._transport.abort()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if not self._parts:
            return
        data = b"".join(self._parts)
        self._parts.clear()
        if not self._transport.is_closing():
            self.sent += len(data)
            self._transport.write(data)
            self._flushed()
