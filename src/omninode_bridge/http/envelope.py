"""What every answer carries, and the last resort: ASGI middleware around all of the application.

* `X-Correlation-ID`: the caller's, if it is 1-128 characters of `[A-Za-z0-9._:/+=@-]`, else one made here; in each
  answer, and in the log line of what went wrong.
* An error that nobody meant to raise is logged with its trace and answered as a problem that says nothing of it.
* An answer that refuses a long body before its end ends the connection, though not at once: to close a connection on
  which bytes still arrive resets it, and the caller would lose the answer (RFC 9112 §9.6).
* A page of another origin may not make a browser post to a server that asks for no token. With a token it could: no
  browser adds one by itself, and a page that has one may use it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omninode_bridge.app.logs import asked_with
from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.http.measuring import Measure
from omninode_bridge.http.problems import CrossOrigin, ShuttingDown, bridge_problem, http_problem, unexpected

CORRELATION_HEADER = b"x-correlation-id"
LEFT_BYTES_MAX = 64 * 1024
"""A refused body up to this long is read to its end, so that the connection can be used again."""
LINGER_S_MAX = 5.0
"""How long a caller whose longer body is refused may go on sending, so that he gets to reading the answer."""

_CORRELATION = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Envelope:
    """The outermost part of the application."""

    def __init__(self, app: ASGIApp, measure: Measure) -> None:
        self._app = app
        self._measure = measure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(CORRELATION_HEADER, b"")
        correlation = given if _CORRELATION.fullmatch(given) else secrets.token_hex(16).encode()
        asked_with(correlation.decode(), headers.get(b"traceparent"))
        measure = self._measure
        began_s = measure.began()
        status = 0
        complete = lingering = False

        async def receiving() -> Message:
            nonlocal complete
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal status, lingering
            if message["type"] == "http.response.start":
                status = message["status"]
                measure.answered(scope, status, began_s)
                message["headers"] = [*message["headers"], (CORRELATION_HEADER, correlation)]
                lingering = not complete and _is_long(headers)
                if lingering:
                    message["headers"].append((b"connection", b"close"))
            elif lingering and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _linger(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        request = Request(scope)
        try:
            if scope["method"] not in _SAFE_METHODS and _is_foreign(headers):
                raise CrossOrigin("a web page of another origin asks: only this server's own pages may", field="origin")
            await self._app(scope, receiving, sending)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except (BridgeError, HTTPException) as error:
            if status:
                measure.failed(scope, error, answered=True)
                raise
            problem = bridge_problem if isinstance(error, BridgeError) else http_problem
            await (await problem(request, error))(scope, receive, sending)
        except asyncio.CancelledError:
            # The server's patience at shutdown is over; the answer is not to be had, but safe to ask for again.
            if status:
                measure.cut_off()
                raise
            stopping = ShuttingDown("the server stopped before the answer was there: try again with the same op_id")
            await (await bridge_problem(request, stopping))(scope, receive, sending)
        except Exception as error:
            measure.failed(scope, error, answered=status != 0)
            if status:
                raise
            await unexpected(request)(scope, receive, sending)
        finally:
            measure.ended(scope, status, began_s)


async def _linger(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S_MAX):
            while (await receive()).get("more_body", False):
                pass


def _is_long(headers: dict[bytes, bytes]) -> bool:
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not length.isdigit() or int(length) > LEFT_BYTES_MAX


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    if origin is None or headers.get(b"authorization", b"")[:7].lower() == b"bearer ":
        return False
    return origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()
