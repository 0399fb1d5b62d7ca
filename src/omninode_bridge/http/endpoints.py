"""What each call reads, asks the bridge, and answers.

The hot ones take the request as it is and answer bytes from msgspec. Names are checked before a body is read, so
that nobody sends ten gibibytes to learn that the namespace is misspelt.
"""

from __future__ import annotations

import asyncio
import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, NotFound, ServiceUnavailable
from omninode_bridge.domain.names import check_file_hash, check_namespace
from omninode_bridge.domain.stamp import Inline, Stamp, StampRequest, Streamed
from omninode_bridge.http import bodies
from omninode_bridge.http.messages import (
    Hashed,
    Health,
    LookUpParameters,
    NoParameters,
    RawParameters,
    Stamps,
    json_object,
    parameters,
    query,
    stamp_body,
)
from omninode_bridge.http.problems import BodyTypeUnsupported

READY_S_MAX = 5.0
"""How long PostgreSQL may take to say that it is there."""
INTELLIGENCE_HEAD_BYTES = 64 * 1024
"""What is kept of a raw body for those who analyse it."""

# What clients send when nobody told them what the bytes are.
_UNTOLD = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
_JSON = re.compile(r"(?:application|text)/(?:[\w.+-]+\+)?json|application/x-www-form-urlencoded|")
_EMPTY = Inline(b"")
_encode = msgspec.json.Encoder().encode


class Endpoints:
    """The calls, on one bridge."""

    def __init__(self, bridge: Bridge, settings: Settings) -> None:
        self._bridge = bridge
        self._settings = settings
        self._allowance = bodies.Allowance()

    async def stamp(self, request: Request) -> Response:
        """Stamp a content: JSON, or with `file_path` in the query the raw body."""
        query_string: bytes = request.scope["query_string"]
        if query_string:
            return await self._stamp_raw(request, query_string)
        _require_json(request)
        with self._allowance.share() as share:
            body = stamp_body(await bodies.whole(request, self._settings.json_bytes_max, share))
            _refuse_embed(wanted=body.embed)
            asked = self._bridge.request(
                Inline(body.data()),
                file_path=body.file_path,
                namespace=body.namespace,
                content_type=body.content_type,
                metadata=body.metadata,
                op_id=body.op_id,
                enable_intelligence=body.enable_intelligence,
                traceparent=traceparent(request),
            )
            return await self._run(request, asked)

    async def hash(self, request: Request) -> Response:
        """Hash a raw body, or the file of a form."""
        parameters(request.scope["query_string"], NoParameters)
        running, limit = self._bridge.running_digest(), self._settings.body_bytes_max
        if _media_type(request) == "multipart/form-data":
            digest = await bodies.hashed_file(request, running, limit)
        else:
            digest, _ = await bodies.hashed(request, running, limit)
        return _json(
            Hashed(
                file_hash=digest.file_hash,
                file_size=digest.file_size,
                hash_generation_time_ms=digest.hash_time_us / 1000,
            )
        )

    async def look_up(self, request: Request) -> Response:
        """Return the stamps of a digest, newest first."""
        asked = parameters(request.scope["query_string"], LookUpParameters)
        file_hash = check_file_hash(request.path_params["file_hash"])
        namespaces = None if asked.namespace is None else [check_namespace(asked.namespace)]
        found = await self._bridge.reads.by_hash(file_hash, namespaces)
        if not found:
            where = f" in {asked.namespace}" if asked.namespace else ""
            raise NotFound(f"no stamp has the digest {file_hash}{where}", field="file_hash")
        return _json(Stamps(stamps=found))

    async def live(self, _: Request) -> Response:
        """Answer: the process runs."""
        return _json(Health(status="alive"))

    async def ready(self, _: Request) -> Response:
        """Answer when stamps could be recorded now; ServiceUnavailable says why they could not."""
        try:
            async with asyncio.timeout(READY_S_MAX):
                await self._bridge.maintenance.ready()
        except TimeoutError as error:
            raise ServiceUnavailable(f"PostgreSQL did not answer within {READY_S_MAX:g} s") from error
        return _json(Health(status="ready"))

    async def _stamp_raw(self, request: Request, query_string: bytes) -> Response:
        if "file_path" not in query(query_string):
            raise InvalidInput(
                "there are query parameters, but no file_path: with it, the body is the raw content; "
                "without parameters, the body is JSON",
                field="file_path",
            )
        asked = parameters(query_string, RawParameters)
        _refuse_embed(wanted=asked.embed == "true")
        told = request.headers.get("content-type")
        content_type = asked.content_type or (None if _media_type(request) in _UNTOLD else told)
        intelligence = asked.enable_intelligence == "true"
        wanted = self._bridge.request(
            _EMPTY,
            file_path=asked.file_path,
            namespace=asked.namespace,
            content_type=content_type,
            metadata=json_object(asked.metadata, "metadata"),
            op_id=asked.op_id,
            enable_intelligence=intelligence,
            traceparent=traceparent(request),
        )
        digest, head = await bodies.hashed(
            request,
            self._bridge.running_digest(),
            self._settings.body_bytes_max,
            keep_bytes=INTELLIGENCE_HEAD_BYTES if intelligence else 0,
        )
        return await self._run(request, msgspec.structs.replace(wanted, content=Streamed(digest, head)))

    async def _run(self, request: Request, asked: StampRequest) -> Response:
        # From here on something may be recorded: whatever goes wrong, the problem names what is safe to retry with.
        request.state.op_id = asked.workflow_id
        stamp: Stamp = await self._bridge.orchestrator.run(asked)
        if stamp.deduplicated:
            return _json(stamp)
        return _json(stamp, 201, {"Location": f"/stamp/{stamp.file_hash}?namespace={stamp.namespace}"})


def traceparent(request: Request) -> str | None:
    """Return the caller's trace context if it is valid (W3C Trace Context §3.2); an invalid one is as none."""
    match = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not match["trace"].strip("0") or not match["parent"].strip("0"):
        return None
    # A version from the future is read, and passed on, as the one that is known.
    return f"00-{match['trace']}-{match['parent']}-{match['flags']}"


_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


def _json(value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _require_json(request: Request) -> None:
    media_type = _media_type(request)
    if not _JSON.fullmatch(media_type):
        raise BodyTypeUnsupported(
            f"a body of type {media_type[:80]!r} is not JSON: send application/json, or raw bytes with ?file_path=",
            field="content-type",
        )


def _refuse_embed(*, wanted: bool) -> None:
    if wanted:
        raise InvalidInput("embed is not available: leave it out; the stamp itself is the answer", field="embed")
