"""HTTP/1.1 on a connection: uvicorn's protocol on httptools, with what those two leave open.

* An answer is one packet: its head and its body are written by one system call.
* Headers have a limit, in bytes and in time, and so have trailers and chunk extensions, which nobody reads. (A request
  line of 64 KiB or more, httptools refuses itself.)
* So have requests that are sent ahead of their answers, and connections: some files are kept for PostgreSQL.
* What is no HTTP request is refused by a problem, and so is one that does not say once for whom it is (RFC 9112 §3.2).
* A caller may take an answer slowly, but not stand still: the connection of one who does is cut.
* After the headers of a request that asks for another protocol (`curl --http2` does) httptools reads nothing any more,
  not even that request's body, and says that the message is complete. So the connection ends with the answer, and
  `bodies` refuses to read such a body.
"""

from __future__ import annotations

import asyncio
import fcntl
import resource
import sys
import termios
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from omninode_bridge.http.bodies import ALL_HERE
from omninode_bridge.http.envelope import LINGER_S_MAX
from omninode_bridge.http.problems import MEDIA_TYPE, TYPE, Problem

STALL_S_MAX = 60.0
"""How long a caller may take nothing of an answer that waits for him; at the server's end, LINGER_S_MAX."""
HEAD_BYTES_MAX = 128 * 1024
"""A request's headers; and what may come at a stretch that begins nothing, ends nothing, and is no body."""
HEAD_S_MAX = 30.0
"""How long headers may take from their first byte to their last."""
AHEAD_MAX = 64
"""Requests that a caller may send ahead of their answers."""
FILES_KEPT = 64
"""Of the files that the process may open, those that are not for connections of callers."""
RETRY_AFTER_S = 1


class _Refusal(NamedTuple):
    status: int
    code: str
    title: str
    detail: str


_NOT_HTTP = _Refusal(400, "not_http", "This is no HTTP request", "Invalid HTTP request received.")
_HEAD_TOO_LARGE = _Refusal(
    431,
    "head_too_large",
    "The headers are too large",
    f"the request line and headers, or what comes beside a body, have more than {HEAD_BYTES_MAX} bytes: send less",
)
_HEAD_LATE = _Refusal(
    408, "head_timeout", "The headers did not come", "the headers did not come to their end in time: send them again"
)
_TOO_FAR_AHEAD = _Refusal(
    429,
    "too_far_ahead",
    "Too many answers are outstanding",
    f"more than {AHEAD_MAX} requests were sent ahead of their answers: wait for some, or use several connections",
)
_HOST_UNCLEAR = _Refusal(
    400, "host_unclear", "It is not clear for whom the request is", "send one Host header, as HTTP/1.1 asks for"
)
_TOO_MANY = _Refusal(
    503,
    "overloaded",
    "Too many connections",
    "as many connections are open as this process may have: try again, or raise its limit of open files (ulimit -n)",
)


class _Excess(Exception):
    """Raised out of a callback, it ends the parser's work at once."""


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
    _refusal = _NOT_HTTP
    _in_head = False
    _head_bytes = 0
    _hosts = 0
    _steps = 0
    _idle_bytes = 0
    _head_late: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > _connections_max():
            self._refuse(_TOO_MANY, linger_s=0.0)
            return
        # One on which nothing is ever sent is as idle as one on which nothing is sent any more.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        self._end_head_late()
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
        before = self._steps
        super().data_received(data)
        # The parser keeps a header to itself until it ends, and tells nothing of chunk extensions: reads are counted.
        self._idle_bytes = self._idle_bytes + len(data) if self._steps == before else 0
        if self._idle_bytes > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)
        elif not self._awaits_head():
            self._end_head_late()
        elif self._head_late is None:
            self._head_late = self.loop.call_later(HEAD_S_MAX, self._on_head_late)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._hosts = 0
        self._steps += 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it may not become a header (RFC 9110 §6.5.1), and nobody asked for it
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            self._give_up(_HEAD_TOO_LARGE)
        if name.lower() == b"host":
            self._hosts += 1
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._steps += 1
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            self._give_up(_HOST_UNCLEAR)
        if len(self.pipeline) >= AHEAD_MAX:
            self._give_up(_TOO_FAR_AHEAD)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        under_way: RequestResponseCycle = self.cycle
        under_way.scope["state"][ALL_HERE] = True
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the way back open for who has sent all and waits for his answer, which is the last then."""
        under_way: RequestResponseCycle | None = self.cycle
        if under_way is None or under_way.more_body or under_way.response_started:
            return False
        under_way.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and self._head_late is None:
            self._head_late = self.loop.call_later(HEAD_S_MAX, self._on_head_late)

    def _awaits_head(self) -> bool:
        under_way: RequestResponseCycle | None = self.cycle
        return under_way is None or under_way.response_complete

    def _on_head_late(self) -> None:
        if self._refused or not self._awaits_head():
            return
        if self._in_head:
            self._refuse(_HEAD_LATE)
        else:
            self.transport.close()  # an empty line came, and nothing more

    def _end_head_late(self) -> None:
        if self._head_late is not None:
            self._head_late.cancel()
            self._head_late = None

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
        """Answer what the parser gave up on, and end the connection."""
        self._refuse(self._refusal)

    def _give_up(self, refusal: _Refusal) -> None:
        self._refusal = refusal
        raise _Excess

    def _refuse(self, refusal: _Refusal, linger_s: float = LINGER_S_MAX) -> None:
        if self._refused:
            return
        status, code, title, detail = refusal
        body = msgspec.json.encode(Problem(type=TYPE + code, title=title, status=status, detail=detail, code=code))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        headers += f"retry-after: {RETRY_AFTER_S}\r\n\r\n" if refusal is _TOO_MANY else "\r\n"
        self._refused = True
        self.pipeline.clear()
        under_way: RequestResponseCycle | None = self.cycle
        if under_way is not None and not under_way.response_complete:
            # Cut short: for the application, its caller is gone.
            under_way.disconnected = True
            under_way.message_event.set()
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        # What still arrives is dropped for a while: to close now would reset the connection, and lose the answer.
        self.transport.write_eof()
        self.loop.call_later(linger_s, self.transport.close)


def _connections_max() -> float:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if files == resource.RLIM_INFINITY else max(1, files - FILES_KEPT)
