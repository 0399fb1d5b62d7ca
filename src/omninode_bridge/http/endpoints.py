"""What the calls of the stamping service read, ask the bridge, and answer: stamp, look up, hash.

The hot ones take the request as it is and answer bytes from msgspec.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import BridgeError, NotFound
from omninode_bridge.domain.names import check_file_hash, check_namespace
from omninode_bridge.domain.stamp import Stamp, StampRequest, Streamed
from omninode_bridge.domain.tenancy import Principal
from omninode_bridge.http import bodies, intake
from omninode_bridge.http.asking import asker
from omninode_bridge.http.gate import afford, charge
from omninode_bridge.http.messages import Hashed, LookUpParameters, NoParameters, Stamps, parameters, stamp_body
from omninode_bridge.http.wire import UNTOLD, answer, media_type, require_json, traceparent

INTELLIGENCE_HEAD_BYTES = 64 * 1024
"""What is kept of a raw body for those who analyse it."""


class Endpoints:
    """The calls, on one bridge. `allowance` is what all JSON bodies share."""

    def __init__(self, bridge: Bridge, settings: Settings, allowance: bodies.Allowance) -> None:
        self._bridge = bridge
        self._settings = settings
        self._allowance = allowance

    async def stamp(self, request: Request) -> Response:
        """Stamp a content: JSON, or with `file_path` in the query the raw body."""
        who = asker(request)
        who.require("write")
        query_string: bytes = request.scope["query_string"]
        if query_string:
            return await self._stamp_raw(request, who, query_string)
        require_json(request)
        with self._allowance.share() as share:
            body = stamp_body(await bodies.whole(request, self._settings.json_bytes_max, share))
            asked = intake.of_body(self._bridge, who, body, traceparent(request))
            data = body.data()
            asked = intake.with_content(asked, data)
            return await (self._run_embedding if body.embed else self._run)(request, asked, len(data))

    async def hash(self, request: Request) -> Response:
        """Hash a raw body, or the file of a form."""
        who = asker(request)
        if not who.may("read"):
            who.require("write")
        parameters(request.scope["query_string"], NoParameters)
        running, limit = self._bridge.running_digest(), self._settings.body_bytes_max
        if media_type(request) == "multipart/form-data":
            digest = await bodies.hashed_file(request, running, limit)
        else:
            digest, _ = await bodies.hashed(request, running, limit)
        return answer(
            Hashed(
                file_hash=digest.file_hash,
                file_size=digest.file_size,
                hash_generation_time_ms=digest.hash_time_us / 1000,
            )
        )

    async def look_up(self, request: Request) -> Response:
        """Return the stamps of a digest, newest first."""
        who = asker(request)
        who.require("read")
        asked = parameters(request.scope["query_string"], LookUpParameters)
        file_hash = check_file_hash(request.path_params["file_hash"])
        namespaces = None if asked.namespace is None else [check_namespace(asked.namespace)]
        found = await self._bridge.seen_by(who.visible).reads.by_hash(file_hash, namespaces)
        if not found:
            where = f" in {asked.namespace}" if asked.namespace else ""
            raise NotFound(f"no stamp has the digest {file_hash}{where}", field="file_hash")
        return answer(Stamps(stamps=found))

    async def _stamp_raw(self, request: Request, who: Principal, query_string: bytes) -> Response:
        asked = intake.raw_parameters(query_string)
        told = None if media_type(request) in UNTOLD else request.headers["content-type"]
        wanted = intake.of_parameters(self._bridge, who, asked, told, traceparent(request))
        await afford(request)
        if asked.embed == "true":
            # What is put into a content, and given back with it, is held in memory: as JSON it is limited.
            with self._allowance.share() as share:
                data = await bodies.whole(request, self._settings.json_bytes_max, share)
                return await self._run_embedding(request, intake.with_content(wanted, data), len(data))
        digest, head = await bodies.hashed(
            request,
            self._bridge.running_digest(),
            self._settings.body_bytes_max,
            keep_bytes=INTELLIGENCE_HEAD_BYTES if wanted.enable_intelligence else 0,
        )
        wanted = msgspec.structs.replace(wanted, content=Streamed(digest, head))
        return await self._run(request, wanted, digest.file_size)

    async def _run_embedding(self, request: Request, asked: StampRequest, octets: int) -> Response:
        (bare,) = await intake.stripped([asked])
        if isinstance(bare, BridgeError):
            raise bare
        stamp = await self._stamped(request, bare, octets)
        (embedded,) = await intake.stamped([bare], [stamp])
        return _told(embedded)

    async def _run(self, request: Request, asked: StampRequest, octets: int) -> Response:
        return _told(await self._stamped(request, asked, octets))

    async def _stamped(self, request: Request, asked: StampRequest, octets: int) -> Stamp:
        await charge(request, 1, octets)
        # From here on something may be recorded: whatever goes wrong, the problem names what is safe to retry with.
        request.state.op_id = asked.workflow_id
        return await self._bridge.run(asked)


def _told(stamp: Stamp) -> Response:
    if stamp.deduplicated:
        return answer(stamp)
    return answer(stamp, 201, {"Location": f"/stamp/{stamp.file_hash}?namespace={stamp.namespace}"})
