"""`GET /events`: the event log as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The rules it keeps:

1. Each event is one block: the `id` to go on from, and the stored CloudEvent in one `data` line. Whoever goes on from
   an id is given exactly what comes after it (`app.following`).
2. Where nothing may be seen, the place moves on all the same, and is told every HEARTBEAT_S by a block that has an id
   and no data: EventSource remembers it and dispatches nothing. So a stream that sees little resumes near the end.
   When the place has not moved either, it is a comment: proxies drop what is silent.
3. What is refused is refused before the first byte. After that PostgreSQL's absence is waited for, because EventSource
   gives up for good on a 503; anything else ends the stream, and the caller learns why when it comes back.
4. A stream holds one step's events, and no connection of the pool while it sends. Its caller's right to see is asked
   again every RECHECK_S; a namespace that may not be seen is one that has no events.
5. The server's end ends all streams at once: they can be gone on with elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from omninode_bridge.app.access import STILL_S
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.following import ID_CHARACTERS_MAX, Extents, Follower, Tail, Told
from omninode_bridge.domain.errors import EventsExpired, Overloaded, ServiceUnavailable
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.http.asking import asker
from omninode_bridge.http.gate import still
from omninode_bridge.http.messages import query, refusal
from omninode_bridge.http.problems import ShuttingDown
from omninode_bridge.ports import EventSource

HEARTBEAT_S = 15.0
"""Less than the shortest time after which common proxies and balancers drop a silent connection."""
RECHECK_S = STILL_S
"""How often a caller's right to go on is asked: a revoked token's stream ends within 2 s, if what is sent is taken."""
TROUBLE_S = 1.0
"""How long to leave PostgreSQL alone when it could not be read."""

LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "string", "maxLength": ID_CHARACTERS_MAX},
    "description": "The id of the last event that you have: what comes after it is told. Left out: from the oldest on.",
}
"""The header, as the description of the calls has it."""

_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would keep events back until it has a few kilobytes
}
_NUMBER = re.compile(r"[0-9]{1,18}")
_log = logging.getLogger(__name__)


class StreamMeter(Protocol):
    """What counts streams."""

    def opened(self) -> None: ...

    def closed(self) -> None: ...

    def refused(self) -> None: ...

    def told(self, events: int) -> None: ...


class EventParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a stream of events."""

    namespace: Annotated[str, Meta(description="Left out: all that the caller may see.")] | None = None
    limit: Annotated[int, Meta(ge=1, description="The stream ends after so many events.")] | None = None
    last_event_id: Annotated[str, Meta(description="As the header Last-Event-ID, which comes first.")] | None = None


class EventStreams:
    """The call, on one bridge, and its streams."""

    def __init__(self, bridge: Bridge, tail: Tail, *, streams_max: int, meter: StreamMeter) -> None:
        self.meter = meter
        self._bridge = bridge
        self._tail = tail
        self._streams_max = streams_max
        self._open: set[_Stream] = set()
        self._stopped = False

    async def events(self, request: Request) -> Response:
        """Tell the events that the caller may see, those that are there and those to come."""
        who = asker(request)
        who.require("read")
        asked = _parameters(request.scope["query_string"])
        visible = who.visible
        if asked.namespace is not None:
            namespace = check_namespace(asked.namespace)
            visible = Visible((namespace,) if visible.sees(namespace) else ())
        last_id = request.headers.get("last-event-id") or asked.last_event_id or None
        return _Stream(self, request, self._bridge.seen_by(visible).source, last_id, asked.limit)

    def stop(self) -> None:
        """End all streams, and refuse new ones."""
        self._stopped = True
        for stream in self._open:
            stream.end()

    @asynccontextmanager
    async def open(self, stream: _Stream) -> AsyncIterator[News]:
        """Count a stream among the open ones, and give what wakes it; Overloaded when there are too many."""
        if self._stopped:
            raise ShuttingDown("the server stops: go on elsewhere, or try again")
        if len(self._open) >= self._streams_max:
            self.meter.refused()
            raise Overloaded(f"{len(self._open)} streams of events are open, which is the limit: try again")
        self._open.add(stream)
        self.meter.opened()
        try:
            async with self._tail.followed() as changed:
                yield News(self._tail, changed)
        finally:
            self._open.discard(stream)
            self.meter.closed()


class News:
    """What wakes one stream: the log has moved, or the stream is to end."""

    def __init__(self, tail: Tail, changed: asyncio.Event) -> None:
        self.turns = tail.turns
        self._tail = tail
        self._changed = changed

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, timeout_s: float) -> Extents | None:
        """Wait for news, and return where the log ends then; None when there were none."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return None
        self._changed.clear()
        return self._tail.extents


class _Stream(Response):
    """One answer."""

    def __init__(
        self, streams: EventStreams, request: Request, source: EventSource, last_id: str | None, limit: int | None
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._streams = streams
        self._request = request
        self._source = source
        self._last_id = last_id
        self._left = limit
        self._over = False
        self._recheck_at_s = asyncio.get_running_loop().time() + RECHECK_S
        self._wake: Callable[[], None] = lambda: None

    def end(self) -> None:
        """End the stream, whatever it waits for, but for a caller who does not take what is sent."""
        self._over = True
        self._wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._streams.open(self) as news:
            self._wake = news.wake
            follower, extents = await Follower.begin(self._source, self._last_id)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                listening = asyncio.create_task(self._listen(receive), name="event-caller")
                try:
                    await self._tell(follower, extents, news, send)
                except EventsExpired:
                    pass  # who comes back with his last id is told so
                except Exception:
                    _log.exception("a stream of events ended too early")
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _listen(self, receive: Receive) -> None:
        """End the stream when the caller hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end()

    async def _tell(self, follower: Follower, extents: Extents, news: News, send: Send) -> None:
        clock_s = asyncio.get_running_loop().time
        told_id, told_at_s = follower.id, clock_s()
        while not self._over and self._left != 0:
            events, troubled = [], False
            try:
                if not await self._may_go_on():
                    return
                if follower.is_behind(extents):
                    async with news.turns:
                        events = await follower.step(extents, self._left)
            except ServiceUnavailable:
                troubled = True
            if events:
                await send(_piece(b"".join(map(_block, events))))
                self._streams.meter.told(len(events))
                told_id, told_at_s = events[-1].id, clock_s()
                self._left = None if self._left is None else self._left - len(events)
            elif clock_s() - told_at_s >= HEARTBEAT_S:
                await send(_piece(b":\n\n" if follower.id == told_id else f"id: {follower.id}\n\n".encode()))
                told_id, told_at_s = follower.id, clock_s()
            if self._left != 0 and (troubled or not follower.is_behind(extents)):
                extents = await news.wait(TROUBLE_S if troubled else RECHECK_S) or extents

    async def _may_go_on(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._recheck_at_s:
            return True
        may = await still(self._request)
        self._recheck_at_s = now_s + RECHECK_S  # not before it was answered: unasked, nothing is told
        return may


def _block(event: Told) -> bytes:
    # One line it is, unless somebody has damaged it: then a line each, so that the next block is not damaged too.
    data = b"\ndata: ".join(event.record.body.splitlines())
    return b"id: %b\ndata: %b\n\n" % (event.id.encode(), data)


def _piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _parameters(query_string: bytes) -> EventParameters:
    values: dict[str, Any] = dict(query(query_string))
    if _NUMBER.fullmatch(values.get("limit", "")):
        values["limit"] = int(values["limit"])
    try:
        return msgspec.convert(values, EventParameters)
    except msgspec.ValidationError as error:
        raise refusal(error, "query parameter", None) from error
