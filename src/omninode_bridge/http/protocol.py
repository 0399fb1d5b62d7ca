"""HTTP/1.1 on a connection: uvicorn's protocol on httptools, with what those two leave open.

* An answer is one packet: its head and its body are written by one system call.
* Headers have a limit. (A request line of 64 KiB or more, httptools refuses itself.)
* What is no HTTP request is refused by a problem.
* A caller may take an answer slowly, but not stand still: the connection of one who does is cut.
* After the headers of a request that asks for another protocol (`curl --http2` does) httptools reads nothing any more,
  not even that request's body, and says that the message is complete. So the connection ends with the answer, and
  `bodies` refuses to read such a body.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from contextlib import suppress
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from omninode_bridge.http.envelope import LINGER_S_MAX
from omninode_bridge.http.problems import MEDIA_TYPE, TYPE, Problem

STALL_S_MAX = 60.0
"""How long a caller may take nothing of an answer that waits for him; at the server's end, LINGER_S_MAX."""
HEAD_BYTES_MAX = 128 * 1024
"""What may have come of a request, at the latest, when its headers end."""


class _Joined:
    """A transport that sends what is written in one turn of the event loop at once.

    uvicorn writes an answer's head and body apart, and each write is a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._ended = False

    def write(self, data: bytes) -> None:
        if self._ended:
            return  # the answer to an earlier request, after a later one was no HTTP
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def write_eof(self) -> None:
        self._flush()
        self._ended = True
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(data)


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    _refused = False
    _in_head = False
    _head_bytes = 0
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall(STALL_S_MAX)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        if self._stall is not None:
            self._watch_stall(LINGER_S_MAX)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        # Those of a request that began in the middle of `data` are counted too generously by a read at most.
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(
                431,
                "head_too_large",
                "The headers are too large",
                f"the request line and headers have more than {HEAD_BYTES_MAX} bytes: send less",
            )

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def _watch_stall(self, patience_s: float) -> None:
        """Cut the connection if by then nothing more of what waits to be sent was taken; else wait on."""
        self._end_stall()
        left = self._untaken()

        def look() -> None:
            if self._untaken() >= left:
                self.transport.abort()
            else:
                self._watch_stall(patience_s)

        self._stall = self.loop.call_later(patience_s, look)

    def _untaken(self) -> int:
        """Return how many bytes wait here and in the kernel: a slow caller moves the kernel's long before ours."""
        waiting: int = self.transport.get_write_buffer_size()
        with suppress(OSError):
            told = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(told, sys.byteorder)
        return waiting

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: to answer in HTTP/1.1 is the usual way to decline (RFC 9110 §7.8)."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, and end the connection."""
        self._refuse(400, "not_http", "This is no HTTP request", msg)

    def _refuse(self, status: int, code: str, title: str, detail: str) -> None:
        body = msgspec.json.encode(Problem(type=TYPE + code, title=title, status=status, detail=detail, code=code))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._refused = True
        under_way: RequestResponseCycle | None = self.cycle
        if under_way is not None and not under_way.response_complete:
            # Cut short: for the application, its caller is gone.
            under_way.disconnected = True
            under_way.message_event.set()
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        # What still arrives is dropped for a while: to close now would reset the connection, and lose the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S_MAX, self.transport.close)
