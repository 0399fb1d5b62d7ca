"""A cable between a process and a server, for the tests to pull: TCP, or PostgreSQL's unix socket.

It passes bytes on and knows nothing of what they mean. Stalled, it loses what is sent and tells nobody, as a network
does that drops packets; cut, it ends the connections and takes no new ones.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

_CHUNK = 1 << 16
_SOCKET = ".s.PGSQL.{port}"


class Cable:
    """An async context manager. `listen` and `upstream` are host:port, or paths of unix sockets."""

    def __init__(self, listen: str, upstream: str) -> None:
        self._listen = listen
        self._upstream = upstream
        self._whole = asyncio.Event()
        self._whole.set()
        self._refuses = False
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        self._refuses = True
        for link in self._links:
            link.cancel()

    def stall(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        """Be a cable again. What was stalled for so long is cut: those bytes are lost."""
        if not self._whole.is_set():
            for link in self._links:
                link.cancel()
        self._whole.set()
        self._refuses = False

    async def __aenter__(self) -> Self:
        if self._listen.startswith("/"):
            self._server = await asyncio.start_unix_server(self._accept, self._listen)
        else:
            host, port = self._listen.split(":")
            self._server = await asyncio.start_server(self._accept, host, int(port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        link = asyncio.create_task(self._pass(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self._upstream.startswith("/"):
                from_server, to_server = await asyncio.open_unix_connection(self._upstream)
            else:
                from_server, to_server = await asyncio.open_connection(*self._upstream.split(":"))
            ends.append(to_server)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, to_server))
                both.create_task(self._pump(from_server, writer))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # a side that went away by itself, or was not there: the other is closed
        finally:
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._whole.wait()
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # the end of one direction is the end of both


class DatabaseCable(Cable):
    """One to a PostgreSQL on a unix socket; `url` is the database's URL through it."""

    def __init__(self, database_url: str) -> None:
        split = urlsplit(database_url)
        asked = parse_qs(split.query)
        port = asked.get("port", ["5432"])[0]
        self._folder = tempfile.mkdtemp(prefix="cable-")
        super().__init__(
            f"{self._folder}/{_SOCKET.format(port=5432)}", f"{asked['host'][0]}/{_SOCKET.format(port=port)}"
        )
        self.url = split._replace(query=f"host={quote(self._folder, safe='')}&port=5432").geturl()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        shutil.rmtree(self._folder)
