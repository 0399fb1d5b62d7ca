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

from omninode_bridge.app.query import StateRow
from omninode_bridge.domain.errors import InvalidInput, LimitExceeded
from omninode_bridge.domain.names import (
    CONTENT_TYPE_CHARACTERS_MAX,
    DEFAULT_NAMESPACE,
    FILE_PATH_CHARACTERS_MAX,
    FILE_SIZE_BYTES_MAX,
    METADATA_BYTES_MAX,
    NAMESPACE_CHARACTERS_MAX,
    check_file_hash,
)
from omninode_bridge.domain.stamp import Claimed, Content, DigestOrigin, Inline, Stamp, Time
from omninode_bridge.http.problems import BodyMalformed, Problem

QUERY_PARAMETERS_MAX = 32
METADATA_WRITTEN_BYTES_MAX = 8 * METADATA_BYTES_MAX
"""Metadata as it comes, where spaces and escapes may take more than what they stand for."""

# What the document says of names; `domain.names` checks them.
type Namespace = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": "^[a-z0-9_-]+(\\.[a-z0-9_-]+)*$", "maxLength": NAMESPACE_CHARACTERS_MAX},
    ),
]
type FilePath = Annotated[
    str,
    Meta(extra_json_schema={"minLength": 1, "maxLength": FILE_PATH_CHARACTERS_MAX, "pattern": "^[^\\u0000]+$"}),
]
type FileHash = Annotated[
    str, Meta(description="BLAKE3, in hexadecimal digits.", extra_json_schema={"pattern": "^[0-9a-fA-F]{64}$"})
]
type OpId = Annotated[
    str,
    Meta(description="A UUID of yours, which makes trying again safe.", extra_json_schema={"format": "uuid"}),
]
type ContentType = Annotated[
    str,
    Meta(
        extra_json_schema={
            "maxLength": CONTENT_TYPE_CHARACTERS_MAX,
            "pattern": "^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[ -~]*)?$",
        },
    ),
]


class _WithContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    content: Annotated[str, Meta(description="Text; its UTF-8 is what counts.")] | UnsetType = UNSET
    content_base64: bytes | UnsetType = UNSET

    def data(self) -> bytes:
        """Return the bytes that were sent."""
        if isinstance(self.content, str) and isinstance(self.content_base64, bytes):
            raise InvalidInput("content and content_base64 are both there: send one of them", field="content_base64")
        if isinstance(self.content, str):
            return self.content.encode()
        if isinstance(self.content_base64, bytes):
            return self.content_base64
        raise InvalidInput("content is missing: send content (text) or content_base64 (bytes)", field="content")


class StampBody(_WithContent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a stamp, with its content as text or as base64."""

    file_path: FilePath
    namespace: Namespace = DEFAULT_NAMESPACE
    content_type: Annotated[ContentType, Meta(description="Left out: by the path's ending.")] | None = None
    # Unread until its length is known: five million empty lists of it would take half a gigabyte.
    metadata: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    op_id: OpId | None = None
    enable_intelligence: bool = False
    embed: Annotated[bool, Meta(description="Answer the content with its stamp in a comment.")] = False

    def properties(self) -> dict[str, Any]:
        """Return the metadata."""
        if isinstance(self.metadata, UnsetType):
            return {}
        if len(written := memoryview(self.metadata)) > METADATA_WRITTEN_BYTES_MAX:
            raise LimitExceeded(
                f"metadata is written in {len(written)} bytes; {METADATA_WRITTEN_BYTES_MAX} is the limit: "
                "keep large values in files",
                field="metadata",
            )
        return json_object(self.metadata, "metadata")


class BatchItem(StampBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item of a batch: with its content, or with a digest and size of your own computing, recorded as claimed."""

    file_hash: FileHash | UnsetType = UNSET
    file_size: Annotated[int, Meta(ge=0, le=FILE_SIZE_BYTES_MAX)] | UnsetType = UNSET

    def wanted(self) -> Content:
        """Return what to stamp."""
        if self.file_hash is UNSET and self.file_size is UNSET:
            return Inline(self.data())
        if self.content is not UNSET or self.content_base64 is not UNSET:
            raise InvalidInput("a content and a digest of it are both there: send one of them", field="file_hash")
        if self.file_hash is UNSET:
            raise InvalidInput("file_hash is missing: send it with file_size", field="file_hash")
        if self.file_size is UNSET:
            raise InvalidInput("file_size is missing: send it with file_hash", field="file_size")
        if self.embed:
            raise InvalidInput("without the content no stamp can be embedded in it: leave embed out", field="embed")
        return Claimed(check_file_hash(self.file_hash), self.file_size)


class ValidateBody(_WithContent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A content whose stamp is asked for."""

    namespace: Namespace
    file_path: Annotated[FilePath, Meta(description="Left out: any path of the namespace.")] | None = None
    expected_hash: FileHash | None = None


class RawParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a raw upload."""

    file_path: FilePath
    namespace: Namespace = DEFAULT_NAMESPACE
    content_type: Annotated[ContentType, Meta(description="Comes before the Content-Type header.")] | None = None
    metadata: Annotated[str, Meta(description="A JSON object.")] = "{}"
    op_id: OpId | None = None
    enable_intelligence: Literal["true", "false"] = "false"
    embed: Annotated[Literal["true", "false"], Meta(description="As in JSON; the body is then limited as JSON is.")] = (
        "false"
    )


class LookUpParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a look-up by digest, or by workflow id."""

    namespace: Namespace | None = None


class PageParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a list."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: (
        Annotated[
            str,
            Meta(description="The `next` of the page before.", extra_json_schema={"pattern": "^[A-Za-z0-9_-]+$"}),
        ]
        | None
    ) = None


class StampsParameters(PageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a list of stamps: all that are given have to fit."""

    file_path: FilePath | None = None
    file_hash: FileHash | None = None
    content_type: ContentType | None = None
    stamped_by: Annotated[str, Meta(extra_json_schema={"pattern": "^[^\\u0000]*$"})] | None = None
    digest_origin: DigestOrigin | None = None
    since: Annotated[Time, Meta(description="Completed then or later.")] | None = None
    until: Annotated[Time, Meta(description="Completed before.")] | None = None


class StateParameters(PageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a state."""

    by: Annotated[
        str, Meta(description="namespace, content_type, size_bucket, time_window, workflow or metadata.KEY.")
    ] = "namespace"


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


class EmbeddedStamp(Stamp, frozen=True, kw_only=True, gc=False):
    """A stamp, and the content with this stamp in it."""

    stamped_content: str


class BatchProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What an item of a batch is answered that got no stamp."""

    problem: Problem


class StampsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stamps, newest first. With a filter, a page may have few of them or none and still have a next one."""

    stamps: list[Stamp]
    next: str | None


class NamespacesPage(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of namespaces, by name."""

    namespaces: list[StateRow]
    next: str | None


class StatePage(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace's aggregates of one grouping, by group key, with every stamp acknowledged before `as_of`."""

    namespace: str
    as_of: Time
    rows: list[StateRow]
    next: str | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["alive", "ready"]


_stamp_body = msgspec.json.Decoder(StampBody)
_batch_item = msgspec.json.Decoder(BatchItem)
_validate_body = msgspec.json.Decoder(ValidateBody)
_object = msgspec.json.Decoder(dict[str, Any])


def stamp_body(body: bytes) -> StampBody:
    """Decode a request for a stamp; BodyMalformed when it is no JSON, InvalidInput when it is the wrong one."""
    return _decoded(_stamp_body, body, ", or raw bytes with ?file_path=")


def validate_body(body: bytes) -> ValidateBody:
    """Decode a content to validate; raises as `stamp_body`."""
    return _decoded(_validate_body, body)


def batch_item(item: bytes | msgspec.Raw) -> BatchItem:
    """Decode an item of a batch; raises as `stamp_body`, of the item."""
    return _decoded(_batch_item, item, what="item")


def _decoded[B](decoder: msgspec.json.Decoder[B], body: bytes | msgspec.Raw, remedy: str = "", what: str = "body") -> B:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(error, whole=what) from error
    except (ValueError, RecursionError) as error:
        raise BodyMalformed(f"the {what} is not JSON ({error}): send a JSON object{remedy}", field=what) from error


def parameters[P](query_string: bytes, shape: type[P]) -> P:
    """Return the query parameters as a struct; InvalidInput for one that is unknown, missing or given twice."""
    values = query(query_string)
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise refusal(error, "query parameter", None) from error


def page_parameters[P: PageParameters](query_string: bytes, shape: type[P]) -> P:
    """Return the query parameters of a list; raises as `parameters`."""
    values: dict[str, Any] = dict(query(query_string))
    limit = values.get("limit", "")
    if _NUMBER.fullmatch(limit):
        values["limit"] = int(limit)
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise refusal(error, "query parameter", None) from error


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


def json_object(text: str | msgspec.Raw, field: str) -> dict[str, Any]:
    """Decode a value that has to be a JSON object."""
    try:
        return _object.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{field} is not a JSON object: {error}", field=field) from error


_NUMBER = re.compile(r"[0-9]{1,9}")
_NAMED = re.compile(r"(?:unknown|missing required) field `(.*)`", re.DOTALL)
_PLACED = re.compile(r" - at `\$\.?(.*)`", re.DOTALL)


def refusal(error: msgspec.ValidationError, what: str = "field", whole: str | None = "body") -> InvalidInput:
    """Return the refusal of a value of the wrong shape, with the field that msgspec names in its sentence, if any."""
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
    return InvalidInput(sentence, field=whole)
