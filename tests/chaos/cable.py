"""A cable between a process and a server, for the tests to pull: TCP, or PostgreSQL's unix socket.

It passes bytes on and knows nothing of what they mean. Stalled, it loses what is sent and tells nobody, as a network
does that drops packets; cut, it resets the connections and takes no new ones. Those that it forgets are silent for
good, as when a firewall lost its memory, while new ones are as good as ever.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

_CHUNK = 1 << 16
_SOCKET = ".s.PGSQL.{port}"
_NO_LINGERING = struct.pack("ii", 1, 0)
"""With this option the end of a TCP connection is a reset."""


class _Link:
    """A connection through the cable, and the ends of it that are open."""

    def __init__(self) -> None:
        self.ends: list[asyncio.StreamWriter] = []
        self.forgotten = False

    def reset(self) -> None:
        """Let the ends of TCP be resets from now on."""
        for end in self.ends:
            if end.get_extra_info("socket").family == socket.AF_INET:
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)


class Cable:
    """An async context manager. `listen` and `upstream` are host:port, or paths of unix sockets."""

    def __init__(self, listen: str, upstream: str) -> None:
        self._listen = listen
        self._upstream = upstream
        self._whole = asyncio.Event()
        self._whole.set()
        self._refuses = False
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        self._refuses = True
        self._end_links()

    def stall(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        """Be a cable again. What was stalled for so long is cut: those bytes are lost."""
        if not self._whole.is_set():
            self._end_links()
        self._whole.set()
        self._refuses = False

    def forget(self, keepalive_s: float) -> None:
        """Pass nothing on any more over the connections that there are; the server's side notices some time later."""
        for link in self._links.values():
            if not link.forgotten and len(link.ends) == 2:
                link.forgotten = True
                asyncio.get_running_loop().call_later(keepalive_s, link.ends[1].transport.abort)

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
        for task in self._links:
            task.cancel()  # also those that it forgot
        await asyncio.gather(*self._links, return_exceptions=True)

    def _end_links(self) -> None:
        for task, link in self._links.items():
            if not link.forgotten:
                link.reset()
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        link = _Link()
        task = asyncio.create_task(self._pass(link, reader, writer))
        self._links[task] = link
        task.add_done_callback(self._links.pop)

    async def _pass(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link.ends.append(writer)
        try:
            if self._upstream.startswith("/"):
                from_server, to_server = await asyncio.open_unix_connection(self._upstream)
            else:
                from_server, to_server = await asyncio.open_connection(*self._upstream.split(":"))
            link.ends.append(to_server)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, reader, to_server))
                both.create_task(self._pump(link, from_server, writer))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # a side that went away by itself, or was not there: the other is closed
        finally:
            for end in link.ends:
                end.transport.abort()

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                await self._whole.wait()
                if not link.forgotten:
                    writer.write(chunk)
                    await writer.drain()
        except ConnectionError:
            if not link.forgotten:
                raise
        if link.forgotten:
            await asyncio.Event().wait()  # the other side never hears of it
        raise ConnectionResetError  # the end of one direction is the end of both


class DatabaseCable(Cable):
    """One to a PostgreSQL on a unix socket; `url` is the database's URL through it. With a port: over TCP."""

    def __init__(self, database_url: str, port: int | None = None) -> None:
        split = urlsplit(database_url)
        asked = parse_qs(split.query)
        socket_name = _SOCKET.format(port=asked.get("port", ["5432"])[0])
        self._folder = tempfile.mkdtemp(prefix="cable-")
        if port is None:
            listen = f"{self._folder}/{_SOCKET.format(port=5432)}"
            self.url = split._replace(query=f"host={quote(self._folder, safe='')}&port=5432").geturl()
        else:
            listen = f"127.0.0.1:{port}"
            user = f"{split.username}@" if split.username else ""
            self.url = split._replace(netloc=f"{user}{listen}", query="").geturl()
        super().__init__(listen, f"{asked['host'][0]}/{socket_name}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        shutil.rmtree(self._folder)
