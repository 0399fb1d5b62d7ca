"""Who comes in: ASGI middleware that puts the principal on the request, or raises why not; and what calls ask of it.

The rules it keeps:

1. A token comes as `Authorization: Bearer …` and in no other way. In a URL it would end up in logs and histories: such
   a request is refused, whatever else it has.
2. Nothing of a refused request's body is read.
3. The calls in OPEN tell nothing of any tenant, and ask for no token. Whoever asks them may do nothing else: should one
   of them begin to look at data, it would see none.
4. A server that asks for no token answers to the names of this machine only. To any other name a web page's owner may
   have given this machine's address (DNS rebinding), and then the browser takes the server for a part of that page.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omninode_bridge.app.access import SECRET_PATTERN, Access, hash_of
from omninode_bridge.domain.tenancy import Principal, Visible
from omninode_bridge.http.asking import asker
from omninode_bridge.http.problems import ForeignHost, TokenInQuery

__all__ = ["Gate", "afford", "charge", "still"]

OPEN = frozenset({"/health", "/metrics", "/openapi.json", "/docs"})
"""And all below /health."""
NOBODY = Principal("nobody", Visible(()), frozenset())

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_HOST = re.compile(rb"(?:\[([0-9A-Za-z:.%]+)\]|([0-9A-Za-z._~-]+))(?::[0-9]*)?")
_IN_QUERY = re.compile(rb"(?:^|&)(?:access_token|token)=|" + SECRET_PATTERN.encode())


class Gate:
    """Stands before the routes. `host`: the name that a server which asks for no token also answers to."""

    def __init__(self, app: ASGIApp, access: Access, host: str) -> None:
        self._app = app
        self._access = access
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            principal = await self._admit(scope)
            state = scope.setdefault("state", {})
            state["principal"], state["access"] = principal, self._access
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Principal:
        query = scope["query_string"]
        if query and _IN_QUERY.search(query):
            raise TokenInQuery(
                "a token is in the query, where logs keep it: send it as `Authorization: Bearer …`, and "
                "if it is a good one, revoke it and make another",
                field="query",
            )
        if scope["path"] in OPEN or scope["path"].startswith("/health/"):
            return NOBODY
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if sent:
            # Of two of them nobody can say which one is meant.
            match = _BEARER.fullmatch(sent[0].decode("latin-1")) if len(sent) == 1 else None
            return await self._access.admit(hash_of(match[1] if match else ""))
        local = await self._access.admit(None)
        self._require_own_name(scope)
        return local

    def _require_own_name(self, scope: Scope) -> None:
        told = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = _name_in(told)
        if not name or (name != self._host and not _is_local(name)):
            shown = told[:80].decode("latin-1")
            raise ForeignHost(
                f"this server asks for no token, and is not known as {shown!r}: use http://127.0.0.1 or localhost, "
                "or make a token with `omninode-bridge token create`",
                field="host",
            )


async def charge(request: Request, stamps: int, content_bytes: int = 0) -> None:
    """Count stamps that a request asks for, and the bytes of their contents, towards its token's quota.

    Called when both are known and before anything is recorded; QuotaExceeded when it is too much today. Claimed sizes
    are no bytes.
    """
    if (access := _access(request)) is not None:
        await access.charge(asker(request), stamps=stamps, content_bytes=content_bytes)


async def afford(request: Request, stamps: int = 1) -> None:
    """Raise QuotaExceeded before a body is read which can't be charged: by its announced length, where it has one."""
    if (access := _access(request)) is not None:
        announced = request.headers.get("content-length", "0")
        content_bytes = int(announced) if announced.isdecimal() else 0
        await access.afford(asker(request), stamps=stamps, content_bytes=content_bytes)


async def still(request: Request) -> bool:
    """Return whether the caller would still be let in: an answer without end asks it every second, and ends if not."""
    access = _access(request)
    return access is None or await access.still(asker(request))


def _access(request: Request) -> Access | None:
    found: Access | None = getattr(request.state, "access", None)
    return found


@lru_cache(1024)
def _name_in(host: bytes) -> str:
    """Return the name in a Host header; an empty one where it is none, with or without a port."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).decode().lower() if match else ""


@lru_cache(1024)
def _is_local(name: str) -> bool:
    """Tell whether nobody else can give a name this machine's address: without a dot it is in no domain."""
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
