"""Workflows that run later: POST /workflows accepts one, GET /workflows/{id} tells where any is, and why."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.acceptance import CONTENT_BYTES_MAX
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.domain.stamp import StampRequest
from omninode_bridge.http import bodies, intake
from omninode_bridge.http.asking import asker
from omninode_bridge.http.gate import afford, charge
from omninode_bridge.http.messages import LookUpParameters, parameters, stamp_body
from omninode_bridge.http.problems import BodyTooLarge
from omninode_bridge.http.wire import UNTOLD, answer, media_type, require_json, traceparent


class Workflows:
    """The calls, on one bridge. `allowance` is what all bodies that are held in memory share."""

    def __init__(self, bridge: Bridge, settings: Settings, allowance: bodies.Allowance) -> None:
        self._bridge = bridge
        self._settings = settings
        self._allowance = allowance

    async def accept(self, request: Request) -> Response:
        """Accept a request as POST /stamp takes it, and answer once it is durable."""
        with self._allowance.share() as share:
            asked, data = await self._asked(request, share)
            if len(data) > CONTENT_BYTES_MAX:
                raise BodyTooLarge(
                    f"the content has {len(data)} bytes; {CONTENT_BYTES_MAX} is the limit of a workflow that is run "
                    "later: send it to POST /stamp",
                    field="content",
                )
            await charge(request, 1, len(data))
            # From here on it may be accepted: whatever goes wrong, the problem names what is safe to retry with.
            request.state.op_id = asked.workflow_id
            accepted = await self._bridge.accept(intake.with_content(asked, data))
        found = await self._bridge.workflow(accepted.workflow_id, accepted.namespace)
        location = f"/workflows/{accepted.workflow_id}?namespace={accepted.namespace}"
        return answer(self._bridge.report(found), 202, {"Location": location})

    async def look_up(self, request: Request) -> Response:
        """Return a workflow, whichever way it was asked for."""
        who = asker(request)
        who.require("read")
        asked = parameters(request.scope["query_string"], LookUpParameters)
        namespace = None if asked.namespace is None else check_namespace(asked.namespace)
        found = await self._bridge.seen_by(who.visible).workflow(request.path_params["workflow_id"], namespace)
        return answer(self._bridge.report(found))

    async def _asked(self, request: Request, share: bodies.Share) -> tuple[StampRequest, bytes]:
        who, trace, limit = asker(request), traceparent(request), self._settings.json_bytes_max
        who.require("write")
        query_string: bytes = request.scope["query_string"]
        if query_string:
            raw = intake.raw_parameters(query_string)
            _refuse_embed(wanted=raw.embed == "true")
            told = None if media_type(request) in UNTOLD else request.headers["content-type"]
            asked = intake.of_parameters(self._bridge, who, raw, told, trace)
            await afford(request)
            return asked, await bodies.whole(request, limit, share)
        require_json(request)
        body = stamp_body(await bodies.whole(request, limit, share))
        _refuse_embed(wanted=body.embed)
        return intake.of_body(self._bridge, who, body, trace), body.data()


def _refuse_embed(*, wanted: bool) -> None:
    if wanted:
        raise InvalidInput(
            "a workflow is answered before there is a stamp to embed: leave embed out, or send it to POST /stamp",
            field="embed",
        )
