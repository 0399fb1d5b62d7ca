"""What callers send and get, as structs: read strictly, unknown names refused, each refusal naming the field.

They check shape and type; what a value may be is checked by `domain.names`. A stamp's own shape is
`domain.stamp.Stamp`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta, UnsetType

from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import DEFAULT_NAMESPACE
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.http.problems import BodyMalformed

QUERY_PARAMETERS_MAX = 32


class StampBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a stamp, with its content as text or as base64."""

    file_path: str
    content: Annotated[str, Meta(description="Text; its UTF-8 is stamped.")] | UnsetType = UNSET
    content_base64: bytes | UnsetType = UNSET
    namespace: str = DEFAULT_NAMESPACE
    content_type: Annotated[str, Meta(description="Left out: by the path's ending.")] | None = None
    metadata: dict[str, Any] = {}
    op_id: Annotated[str, Meta(description="A UUID of yours, which makes trying again safe.")] | None = None
    enable_intelligence: bool = False
    embed: Annotated[bool, Meta(description="Not available yet.")] = False

    def data(self) -> bytes:
        """Return the bytes to stamp."""
        if isinstance(self.content, str) and isinstance(self.content_base64, bytes):
            raise InvalidInput("content and content_base64 are both there: send one of them", field="content_base64")
        if isinstance(self.content, str):
            return self.content.encode()
        if isinstance(self.content_base64, bytes):
            return self.content_base64
        raise InvalidInput("content is missing: send content (text) or content_base64 (bytes)", field="content")


class RawParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a raw upload."""

    file_path: str
    namespace: str = DEFAULT_NAMESPACE
    content_type: Annotated[str, Meta(description="Comes before the Content-Type header.")] | None = None
    metadata: Annotated[str, Meta(description="A JSON object.")] = "{}"
    op_id: str | None = None
    enable_intelligence: Literal["true", "false"] = "false"
    embed: Annotated[Literal["true", "false"], Meta(description="Not available yet.")] = "false"


class LookUpParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a look-up by digest."""

    namespace: str | None = None


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No query parameters."""


class Hashed(msgspec.Struct, frozen=True, kw_only=True):
    """The BLAKE3 digest of a body."""

    file_hash: str
    file_size: int
    hash_generation_time_ms: float


class Stamps(msgspec.Struct, frozen=True, kw_only=True):
    """Stamps, newest first."""

    stamps: list[Stamp]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["alive", "ready"]


_stamp_body = msgspec.json.Decoder(StampBody)
_object = msgspec.json.Decoder(dict[str, Any])


def stamp_body(body: bytes) -> StampBody:
    """Decode a JSON request; BodyMalformed when it is no JSON, InvalidInput when it is the wrong one."""
    try:
        return _stamp_body.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(error) from error
    except (ValueError, RecursionError) as error:
        raise BodyMalformed(
            f"the body is not JSON ({error}): send a JSON object, or raw bytes with ?file_path=", field="body"
        ) from error


def parameters[P](query_string: bytes, shape: type[P]) -> P:
    """Return the query parameters as a struct; InvalidInput for one that is unknown, missing or given twice."""
    values = query(query_string)
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise refusal(error, "query parameter") from error


def query(query_string: bytes) -> dict[str, str]:
    """Return decoded query parameters by name."""
    if not query_string:
        return {}
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=QUERY_PARAMETERS_MAX,
        )
    except ValueError as error:
        raise InvalidInput(f"the query is not usable: {error}", field="query") from error
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise InvalidInput(f"query parameter {name[:80]!r} is there twice: send it once", field=name[:80])
        values[name] = value
    return values


def json_object(text: str, field: str) -> dict[str, Any]:
    """Decode a parameter that is a JSON object."""
    try:
        return _object.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{field} is not a JSON object: {error}", field=field) from error


_NAMED = re.compile(r"(?:unknown|missing required) field `(.*)`", re.DOTALL)
_PLACED = re.compile(r" - at `\$\.?(.*)`", re.DOTALL)


def refusal(error: msgspec.ValidationError, what: str = "field") -> InvalidInput:
    """Return the refusal of a value of the wrong shape, with the field that msgspec names in its sentence."""
    sentence = str(error)
    named, placed = _NAMED.search(sentence), _PLACED.search(sentence)
    if named:
        field = named[1][:80]
        if sentence.startswith("Object contains unknown"):
            return InvalidInput(f"{what} {field!r} is not known here: leave it out", field=field)
        return InvalidInput(f"{what} {field!r} is missing: send it", field=field)
    if placed:
        field = placed[1][:80]
        return InvalidInput(f"{field}: {sentence[: placed.start()]}", field=field)
    return InvalidInput(sentence, field="body" if what == "field" else None)
