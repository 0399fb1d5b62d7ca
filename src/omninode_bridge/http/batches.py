"""POST /stamp/batch: many stamps in one call, NDJSON or a JSON array.

    body ─▶ items ─▶ requests ─▶ quota ─▶ orchestrator, group by group ─▶ a stamp or a problem each, in order

The rules it keeps:

1. An item that can't be read, is not allowed or is refused is its own answer, and spoils no other. Its problem is the
   one that a call for it alone would have been answered with.
2. When the ledger is down before anything is recorded, that is the answer to the whole call. Later, what was recorded
   is answered, and every other item gets a problem with the op_id by which it is safe to try again.
3. What is too much for the limits or for the token's quota is refused as a whole, before anything is recorded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import BridgeError, InvalidInput, LimitExceeded, OutcomeUnknown, ServiceUnavailable
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Inline, Stamp, StampRequest
from omninode_bridge.http import bodies, intake
from omninode_bridge.http.asking import asker
from omninode_bridge.http.gate import charge
from omninode_bridge.http.messages import NoParameters, batch_item, parameters
from omninode_bridge.http.problems import BodyMalformed, bridge_problem
from omninode_bridge.http.wire import NDJSON, media_type, require_json, traceparent

TURN_ITEMS = 250
"""Items that are read, or answered, before others get their turn: some 5 ms."""

_NDJSON = re.compile(r"(?:application|text)/(?:x-)?(?:ndjson|jsonl|jsonlines)")
_LINE = re.compile(rb"[^ \t\n\r][^\n]*")
_NONE = msgspec.Raw()
_encoder = msgspec.json.Encoder()


class _Item(msgspec.Struct):
    """An item on its way: what it asks for, then its answer; an error at once if it asks for nothing that can be."""

    asked: StampRequest | None = None
    embed: bool = False
    answer: Answer | None = None

    @property
    def octets(self) -> int:
        """The bytes of its content; a claimed size is none."""
        content = self.asked.content if self.asked else None
        return len(content.data) if isinstance(content, Inline) else 0


class Batches:
    """The call, on one bridge. `allowance` is what all JSON bodies share."""

    def __init__(self, bridge: Bridge, settings: Settings, allowance: bodies.Allowance) -> None:
        self._bridge = bridge
        self._settings = settings
        self._allowance = allowance
        # More in one transaction gains nothing, and keeps others waiting.
        self._group_max = min(settings.group_max, bridge.orchestrator.bridge_contract.batch_items_max)

    async def stamp(self, request: Request) -> Response:
        """Stamp the items of a body."""
        asker(request).require("write")
        parameters(request.scope["query_string"], NoParameters)
        told = media_type(request)
        if not _NDJSON.fullmatch(told):
            require_json(request, "NDJSON as application/x-ndjson")
        with self._allowance.share() as share:
            body = await bodies.whole(request, self._settings.json_bytes_max, share)
            in_lines = _is_in_lines(body, told)
            pieces = (_lines if in_lines else _elements)(body, self._settings.batch_items_max)
            items = await self._read(request, pieces)
            going = [item for item in items if item.answer is None]
            await charge(request, len(going), sum(item.octets for item in going))
            await self._run(going)
            answers = await _answers(request, items)
            if _wants_lines(request, in_lines):
                return Response(_encoder.encode_lines(answers), media_type=NDJSON)
            return Response(_encoder.encode(answers), media_type="application/json")

    async def _read(self, request: Request, pieces: Sequence[bytes | msgspec.Raw]) -> list[_Item]:
        trace = traceparent(request)
        items: list[_Item] = []
        for piece in pieces:
            items.append(self._item(request, piece, trace))
            if len(items) % TURN_ITEMS == 0:
                await asyncio.sleep(0)
        embedding = [(item, item.asked) for item in items if item.embed and item.asked]
        for (item, _), bare in zip(embedding, await intake.stripped([a for _, a in embedding]), strict=True):
            if isinstance(bare, BridgeError):
                item.asked, item.answer = None, bare
            else:
                item.asked = bare
        return items

    def _item(self, request: Request, piece: bytes | msgspec.Raw, trace: str | None) -> _Item:
        try:
            body = batch_item(piece)
            asked = intake.of_body(self._bridge, asker(request), body, trace)
            return _Item(msgspec.structs.replace(asked, content=body.wanted()), body.embed)
        except BridgeError as error:
            return _Item(answer=error)

    async def _run(self, items: Sequence[_Item]) -> None:
        """Give every item its answer. Raises ServiceUnavailable when nothing could be recorded."""
        for start in range(0, len(items), self._group_max):
            group = items[start : start + self._group_max]
            try:
                answers = await self._bridge.orchestrator.run_many([item.asked for item in group if item.asked])
            except ServiceUnavailable as error:
                if start == 0 and not isinstance(error, OutcomeUnknown):
                    raise
                for item in group:
                    item.answer = error
                for item in items[start + self._group_max :]:
                    item.answer = ServiceUnavailable(
                        f"the batch was broken off before this item ({error.code}): try again with the same op_id"
                    )
                return
            for item, found in zip(group, answers, strict=True):
                item.answer = found


async def _answers(request: Request, items: Sequence[_Item]) -> list[Any]:
    """Return what is told of each item."""
    answers: list[Any] = []
    for item in items:
        if isinstance(item.answer, Stamp):
            answers.append(item.answer)
        else:
            assert item.answer is not None
            request.state.op_id = item.asked.workflow_id if item.asked else None
            problem = await bridge_problem(request, item.answer)
            answers.append({"problem": msgspec.Raw(bytes(problem.body))})
        if len(answers) % TURN_ITEMS == 0:
            await asyncio.sleep(0)
    request.state.op_id = None
    stamped = [
        (at, item.asked, item.answer)
        for at, item in enumerate(items)
        if item.embed and item.asked and isinstance(item.answer, Stamp)
    ]
    embedded = await intake.stamped([asked for _, asked, _ in stamped], [stamp for *_, stamp in stamped])
    for (at, *_), stamp in zip(stamped, embedded, strict=True):
        answers[at] = stamp
    return answers


def _is_in_lines(body: bytes, told: str) -> bool:
    if told in ("", "application/x-www-form-urlencoded"):
        return body.lstrip()[:1] not in (b"[", b"")
    return _NDJSON.fullmatch(told) is not None


def _wants_lines(request: Request, in_lines: bool) -> bool:
    """Tell which form the caller accepts; where that is both or neither, the one that was sent."""
    accepted = [kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")]
    lines, array = any(map(_NDJSON.fullmatch, accepted)), "application/json" in accepted
    return in_lines if lines == array else lines


def _lines(body: bytes, items_max: int) -> list[bytes]:
    """Return the lines of NDJSON that are not blank."""
    lines = [match[0] for match in islice(_LINE.finditer(body), items_max + 1)]
    if len(lines) > items_max:
        raise _too_many(items_max)
    return lines


def _elements(body: bytes, items_max: int) -> list[msgspec.Raw]:
    """Return the elements of a JSON array, unread."""
    try:
        found = msgspec.structs.astuple(_array(items_max).decode(body))
    except msgspec.ValidationError as error:
        if body.lstrip().startswith(b"["):  # elements may be anything: only its length can be wrong
            raise _too_many(items_max) from error
        raise InvalidInput(
            "the body is no JSON array: send one, or NDJSON as application/x-ndjson", field="body"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BodyMalformed(f"the body is not JSON ({error}): send a JSON array, or NDJSON", field="body") from error
    return [element for element in found if element is not _NONE]


@cache
def _array(items_max: int) -> msgspec.json.Decoder[msgspec.Struct]:
    """Return the decoder of an array that holds so many elements, at most, and leaves them unread.

    A list of Raw would hold ten million empty ones before it could be counted; a struct ends at its last field.
    """
    fields = [(f"item_{at}", msgspec.Raw, _NONE) for at in range(items_max)]
    shape = msgspec.defstruct("Items", fields, array_like=True, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(shape)


def _too_many(items_max: int) -> LimitExceeded:
    return LimitExceeded(
        f"the batch has more than {items_max} items (BRIDGE_BATCH_ITEMS_MAX): send several", field="body"
    )
