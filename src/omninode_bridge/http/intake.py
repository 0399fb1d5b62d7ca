"""Requests for stamps, as they come in: the same for POST /stamp, POST /workflows and the items of a batch.

The rules it keeps:

1. Names are checked before a body is read, so that nobody sends ten gibibytes to learn that the namespace is misspelt.
2. Who asks has to be allowed to write to the namespace before anything is done with the content.
3. What is embedded is taken out of the content before it is stamped, and its stamp is put into it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.domain.embedding import bare, embed
from omninode_bridge.domain.errors import BridgeError, InvalidInput
from omninode_bridge.domain.stamp import Inline, Stamp, StampRequest
from omninode_bridge.domain.tenancy import Principal
from omninode_bridge.http.messages import (
    EmbeddedStamp,
    RawParameters,
    StampBody,
    json_object,
    parameters,
    query,
)

EMPTY = Inline(b"")
AT_ONCE_BYTES_MAX = 256 * 1024
"""Content up to this much is searched for stamps where it is asked for; more of it in a thread."""
CONTENT_BYTES = 8 * 1024
"""What a content costs besides its own bytes, however few these are: 30 µs."""


def of_body(bridge: Bridge, who: Principal, body: StampBody, trace: str | None) -> StampRequest:
    """Return the request of a JSON body or item, without its content."""
    asked = bridge.request(
        EMPTY,
        file_path=body.file_path,
        namespace=body.namespace,
        content_type=body.content_type,
        metadata=body.properties(),
        op_id=body.op_id,
        enable_intelligence=body.enable_intelligence,
        traceparent=trace,
        stamped_by=_signature(who),
    )
    who.require_write(asked.namespace)
    return asked


def raw_parameters(query_string: bytes) -> RawParameters:
    """Return the query parameters of a raw upload."""
    if "file_path" not in query(query_string):
        raise InvalidInput(
            "there are query parameters, but no file_path: with it, the body is the raw content; "
            "without parameters, the body is JSON",
            field="file_path",
        )
    return parameters(query_string, RawParameters)


def of_parameters(
    bridge: Bridge, who: Principal, asked: RawParameters, told: str | None, trace: str | None
) -> StampRequest:
    """Return the request of a raw upload, without its content; `told` is what the header says that it is."""
    wanted = bridge.request(
        EMPTY,
        file_path=asked.file_path,
        namespace=asked.namespace,
        content_type=told if asked.content_type is None else asked.content_type,
        metadata=json_object(asked.metadata, "metadata"),
        op_id=asked.op_id,
        enable_intelligence=asked.enable_intelligence == "true",
        traceparent=trace,
        stamped_by=_signature(who),
    )
    who.require_write(wanted.namespace)
    return wanted


def with_content(asked: StampRequest, data: bytes) -> StampRequest:
    return msgspec.structs.replace(asked, content=Inline(data))


async def stripped(requests: Sequence[StampRequest]) -> list[StampRequest | BridgeError]:
    """Return requests with their stamps taken out of their contents, or why no stamp can be embedded in one."""

    def strip() -> list[StampRequest | BridgeError]:
        found: list[StampRequest | BridgeError] = []
        for asked in requests:
            try:
                found.append(with_content(asked, bare(_data(asked), asked.file_path, asked.content_type)))
            except BridgeError as error:
                found.append(error)
        return found

    return await _off_the_loop(strip, requests)


async def stamped(requests: Sequence[StampRequest], stamps: Sequence[Stamp]) -> list[EmbeddedStamp]:
    """Return stamps with the contents of their requests, in which they are embedded."""

    def put_in() -> list[EmbeddedStamp]:
        return [
            EmbeddedStamp(**msgspec.structs.asdict(stamp), stamped_content=embed(_data(asked), stamp).decode())
            for asked, stamp in zip(requests, stamps, strict=True)
        ]

    return await _off_the_loop(put_in, requests)


async def _off_the_loop[T](work: Callable[[], T], requests: Sequence[StampRequest]) -> T:
    octets = sum(CONTENT_BYTES + len(_data(asked)) for asked in requests)
    return work() if octets <= AT_ONCE_BYTES_MAX else await asyncio.to_thread(work)


def _data(asked: StampRequest) -> bytes:
    assert isinstance(asked.content, Inline)
    return asked.content.data


def _signature(who: Principal) -> str | None:
    """Return whom a stamp is by: the token's name; where there are no tokens, the user of the bridge."""
    return who.name if who.token_id is not None else None
