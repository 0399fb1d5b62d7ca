"""What the calls have in common on the wire: what a request's headers say, and how an answer is written."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.http.problems import BodyTypeUnsupported

NDJSON = "application/x-ndjson"
# What clients send when nobody told them what the bytes are.
UNTOLD = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})

_JSON = re.compile(r"(?:application|text)/(?:[\w.+-]+\+)?json|application/x-www-form-urlencoded|")
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_encode = msgspec.json.Encoder().encode


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a struct as a JSON answer."""
    return Response(_encode(value), status, headers, "application/json")


def media_type(request: Request) -> str:
    """Return what a body is said to be, without parameters; empty when nothing is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request, instead: str = "raw bytes with ?file_path=") -> None:
    """Raise BodyTypeUnsupported for a body that is said to be something else than JSON."""
    told = media_type(request)
    if not _JSON.fullmatch(told):
        raise BodyTypeUnsupported(
            f"a body of type {told[:80]!r} is not JSON: send application/json, or {instead}", field="content-type"
        )


def traceparent(request: Request) -> str | None:
    """Return the caller's trace context if it is valid (W3C Trace Context §3.2); an invalid one is as none."""
    match = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not match["trace"].strip("0") or not match["parent"].strip("0"):
        return None
    # A version from the future is read, and passed on, as the one that is known.
    return f"00-{match['trace']}-{match['parent']}-{match['flags']}"
