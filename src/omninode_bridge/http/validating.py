"""POST /validate: is this what was stamped, and are the stamps in it true?"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.app.validation import validate
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import check_file_hash, check_file_path, check_namespace
from omninode_bridge.http import bodies
from omninode_bridge.http.asking import asker
from omninode_bridge.http.messages import NoParameters, parameters, validate_body
from omninode_bridge.http.wire import answer, require_json


class Validating:
    """The call, on one bridge. `allowance` is what all JSON bodies share."""

    def __init__(self, bridge: Bridge, settings: Settings, allowance: bodies.Allowance) -> None:
        self._bridge = bridge
        self._settings = settings
        self._allowance = allowance

    async def validate(self, request: Request) -> Response:
        """Compare a content with what the caller may see."""
        who = asker(request)
        who.require("read")
        parameters(request.scope["query_string"], NoParameters)
        require_json(request, "the content in it as content or content_base64")
        with self._allowance.share() as share:
            body = validate_body(await bodies.whole(request, self._settings.json_bytes_max, share))
            seen = self._bridge.seen_by(who.visible)
            return answer(
                await validate(
                    seen.reads,
                    seen.running_digest(),
                    body.data(),
                    namespace=check_namespace(body.namespace),
                    file_path=None if body.file_path is None else check_file_path(body.file_path),
                    expected_hash=None if body.expected_hash is None else _expected(body.expected_hash),
                )
            )


def _expected(value: str) -> str:
    try:
        return check_file_hash(value)
    except InvalidInput as error:
        raise InvalidInput(error.message.replace("file_hash", "expected_hash", 1), field="expected_hash") from error
