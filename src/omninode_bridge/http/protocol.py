"""HTTP/1.1 on a connection: uvicorn's protocol on httptools, with what those two leave open.

* An answer is one packet: its head and its body are written by one system call.
* Headers have a limit, in bytes and in time, and so have trailers and chunk extensions, which nobody reads. (A request
  line of 64 KiB or more, httptools refuses itself.)
* So have requests that are sent ahead of their answers, and connections: some files are kept for PostgreSQL.
* What is no HTTP request is refused by a problem, and so is one that does not say once for whom it is (RFC 9112 §3.2).
  That problem comes after the answers to the requests before it, and never within one.
* A caller may take an answer slowly, but not stand still: the connection of one who does is cut.
* After the headers of a request that asks for another protocol (`curl --http2` does) httptools reads nothing any more,
  not even that request's body, and says that the message is complete. So the connection ends with the answer, and
  `bodies` refuses to read such a body.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import resource
import secrets
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import httptools
import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from omninode_bridge.http.bodies import ALL_HERE
from omninode_bridge.http.envelope import CORRELATION_HEADER, LINGER_S_MAX
from omninode_bridge.http.joining import Joined
from omninode_bridge.http.problems import MEDIA_TYPE, TYPE, Problem

STALL_S_MAX = 60.0
"""How long a caller may take nothing of an answer that waits for him; at the server's end, LINGER_S_MAX."""
HEAD_BYTES_MAX = 128 * 1024
"""A request's headers; and what may come at a stretch that begins nothing, ends nothing, and is no body."""
HEAD_S_MAX = 30.0
"""How long headers may take from their first byte to their last."""
AHEAD_MAX = 64
"""Requests that a caller may send ahead of their answers."""
CONNECTIONS_MAX = 10_000
"""Connections at once, where the process may open as many files."""
FILES_KEPT = 64
"""Of the files that the process may open, those that are not for connections of callers."""
RETRY_AFTER_S = 1

type Count = Callable[[int, str], None]
"""What counts a refusal: by its status, and its code."""

_log = logging.getLogger(__name__)


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
    f"as many connections are open as this process may have ({CONNECTIONS_MAX}, or what its limit of open files, "
    "ulimit -n, leaves): try again",
)


class _Excess(Exception):
    """Raised out of a callback, it ends the parser's work at once."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Three requests may be different ones: the one that is parsed, the one that is answered, and those between. `cycle`
    is uvicorn's name for the last one whose headers were parsed; `_answered` is the one whose answer is under way, or
    was the last to be; `pipeline` has those that wait, the next one at its right end.

    Of uvicorn, this relies on: `cycle` and `pipeline`, and that both change in `on_headers_complete` and
    `on_response_complete` alone; `_start_asgi_task`, by which each answer begins; `parser`, fed by `data_received`
    alone; that keep_alive = False on a cycle ends the connection after its answer, and that such an answer starts no
    other one; that a cycle whose `disconnected` is set writes nothing and, woken by `message_event`, tells its
    application; that `chunked_encoding` of an answer that has begun is true where its length is not known.
    """

    _deaf = False
    _refusal = _NOT_HTTP
    _last_word: _Refusal | None = None
    _answered: RequestResponseCycle | None = None
    _in_head = False
    _head_bytes = 0
    _hosts = 0
    _steps = 0
    _idle_bytes = 0
    _stopping = False
    _head_late: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _joined: Joined

    def count(self, status: int, code: str) -> None:
        """Count a refusal; `counted_by` makes a class that does."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joined = Joined(transport, self.loop, self._on_flushed)
        super().connection_made(self._joined)  # type: ignore[arg-type]
        if len(self.connections) > _connections_max():
            self._refuse(_TOO_MANY)
            return
        # One on which nothing is ever sent is as idle as one on which nothing is sent any more.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        self._end_head_late()
        self._unset_keepalive_if_required()
        self._forsake()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._stopping = True
        super().shutdown()
        if self.transport.get_write_buffer_size():
            self._watch_stall()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        before = self._steps
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to answer in HTTP/1.1 is the usual way to decline (RFC 9110 §7.8)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
            return
        if self.pipeline and self._streams() and len(self.cycle.body) <= HIGH_WATER_LIMIT:
            # uvicorn would read on when that answer has ended. But then nobody learns that the caller has gone.
            self.flow.resume_reading()
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
        """Keep the way back open for who has sent all and waits for answers: the one to his last request is the last.

        An answer without end is none to wait for.
        """
        answered = self._outstanding()
        if answered is None or self._streams() or self._joined.is_ended:
            return False
        self._drop_what_is_not_whole()
        last = self.pipeline[0][0] if self.pipeline else answered
        if last.more_body:
            return False
        if self._last_word is None:
            last.keep_alive = False
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._outstanding() is not None or self.transport.is_closing():
            return
        if self._last_word is not None:
            self._unset_keepalive_if_required()
            self._say_and_end(self._last_word)
        elif self._in_head and self._head_late is None:
            self._head_late = self.loop.call_later(HEAD_S_MAX, self._on_head_late)

    def _outstanding(self) -> RequestResponseCycle | None:
        """Return the request that is being answered; None when all that were parsed have been."""
        answered = self._answered
        return None if answered is None or answered.response_complete else answered

    def _streams(self) -> bool:
        """Tell whether an answer is under way whose end is not known."""
        answered = self._outstanding()
        return answered is not None and answered.response_started and bool(answered.chunked_encoding)

    def _awaits_head(self) -> bool:
        return self._outstanding() is None

    def _on_head_late(self) -> None:
        self._head_late = None
        if self._deaf or not self._awaits_head():
            return  # the end of that answer sets the time again
        if self._in_head:
            self._refuse(_HEAD_LATE)
        else:
            self.transport.close()  # an empty line came, and nothing more

    def _end_head_late(self) -> None:
        if self._head_late is not None:
            self._head_late.cancel()
            self._head_late = None

    def _on_flushed(self) -> None:
        """Look at what was just sent: some of it may wait to be taken, and it may be the beginning of a stream."""
        if self._stall is None and self.transport.get_write_buffer_size():
            self._watch_stall()
        if self._last_word is not None and self._streams():
            self._end()

    def _watch_stall(self) -> None:
        """Cut the connection if nothing of what waits is taken for too long; look until nothing waits."""
        self._end_stall()
        taken = self._taken()

        def look() -> None:
            self._stall = None
            if not self.transport.get_write_buffer_size():
                return
            if self._taken() <= taken:
                self.transport.abort()
            else:
                self._watch_stall()

        self._stall = self.loop.call_later(LINGER_S_MAX if self._stopping else STALL_S_MAX, look)

    def _taken(self) -> int:
        """Return how many bytes have left this machine: a slow caller moves the kernel's queue long before ours."""
        waiting: int = self.transport.get_write_buffer_size()
        with suppress(OSError):
            told = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(told, sys.byteorder)
        return self._joined.sent - waiting

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _give_up(self, refusal: _Refusal) -> None:
        self._refusal = refusal
        raise _Excess

    def _refuse(self, refusal: _Refusal) -> None:
        """Read no more, and say why: after the answers to the requests that are whole, and never within one."""
        if self._deaf:
            return
        self._deaf = True
        self._drop_what_is_not_whole()
        answered = self._outstanding()
        if answered is None:
            self._say_and_end(refusal)
        elif answered.more_body and not answered.response_started:
            self._forsake()
            self._say_and_end(refusal)
        elif answered.more_body or self._streams():
            self._end()
        else:
            self._last_word = refusal

    def _drop_what_is_not_whole(self) -> None:
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()

    def _say_and_end(self, refusal: _Refusal) -> None:
        status, code, title, detail = refusal
        correlation_id = secrets.token_hex(16)
        body = msgspec.json.encode(Problem(type=TYPE + code, title=title, status=status, detail=detail, code=code))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        headers += f"{CORRELATION_HEADER.decode()}: {correlation_id}\r\n"
        headers += f"retry-after: {RETRY_AFTER_S}\r\n\r\n" if refusal is _TOO_MANY else "\r\n"
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        self.count(status, code)
        _log.debug("refused by the protocol: %s (%s)", code, correlation_id)
        self._end(0.0 if refusal is _TOO_MANY else LINGER_S_MAX)

    def _end(self, linger_s: float = LINGER_S_MAX) -> None:
        """Write nothing more, and close the connection soon.

        What still arrives is dropped for a while: to close now would reset the connection, and lose what was sent.
        """
        self._deaf = True
        self._last_word = None
        self._forsake()
        self.loop.call_later(linger_s, self.transport.close)
        self.flow.resume_reading()  # else nobody learns that the caller has gone
        self.transport.write_eof()

    def _forsake(self) -> None:
        """Tell the applications that their caller is gone, and begin no other answer."""
        for cycle in (self._answered, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()


def counted_by(counts: Count) -> type[LimitedProtocol]:
    """Return the protocol of a server that counts what it refuses."""

    class Counted(LimitedProtocol):
        def count(self, status: int, code: str) -> None:
            counts(status, code)

    return Counted


def _connections_max() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, max(1, files - FILES_KEPT))
