"""The names a caller gives: namespaces, file paths, ids, digests, content types, metadata.

Each `check_*` function returns its argument in canonical form or raises InvalidInput naming the value, the
rule it broke and the remedy. Nothing else in the bridge checks these rules a second time.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec

from omninode_bridge.domain.errors import InvalidInput, LimitExceeded

DEFAULT_NAMESPACE = "omninode.services.metadata"
DEFAULT_CONTENT_TYPE = "application/octet-stream"

NAMESPACE_CHARACTERS_MAX = 255
FILE_PATH_CHARACTERS_MAX = 4096
METADATA_BYTES_MAX = 64 * 1024
METADATA_DEPTH_MAX = 100
"""Far below what Python's stack and PostgreSQL's parser take, wherever they are called from."""
CONTENT_TYPE_CHARACTERS_MAX = 255
FILE_SIZE_BYTES_MAX = 2**62
"""Larger than any file; keeps a claimed size inside PostgreSQL's bigint."""

_NAMESPACE = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
# RFC 6838 type/subtype with RFC 9110 parameters, printable ASCII only.
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?: *;[\x20-\x7e]*)?")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

_canonical = msgspec.json.Encoder(order="sorted")


def check_namespace(value: str) -> str:
    """Return a legal namespace: 1-255 characters, dotted segments of `[a-z0-9_-]+`."""
    if len(value) > NAMESPACE_CHARACTERS_MAX:
        raise LimitExceeded(
            f"namespace has {len(value)} characters; {NAMESPACE_CHARACTERS_MAX} is the limit: shorten it",
            field="namespace",
        )
    if not _NAMESPACE.fullmatch(value):
        raise InvalidInput(
            f"namespace {_shown(value)} is not allowed: "
            "use dotted segments of a-z, 0-9, _ and -, such as legal.contracts",
            field="namespace",
        )
    return value


def check_file_path(value: str) -> str:
    """Return a legal file path, as given: 1-4096 characters, no NUL, valid Unicode."""
    if not value:
        raise InvalidInput("file_path is empty: name the file that the bytes belong to", field="file_path")
    if len(value) > FILE_PATH_CHARACTERS_MAX:
        raise LimitExceeded(
            f"file_path has {len(value)} characters; {FILE_PATH_CHARACTERS_MAX} is the limit", field="file_path"
        )
    if "\0" in value:
        raise InvalidInput(f"file_path {_shown(value)} contains a NUL: remove it", field="file_path")
    if not value.isascii() and not _is_unicode(value):
        raise InvalidInput(f"file_path {_shown(value)} is not valid Unicode: rename the file", field="file_path")
    return value


def normalise_path(typed: str) -> str:
    """Normalise a path as typed on the command line: `./docs//a.txt` becomes `docs/a.txt`."""
    normal = posixpath.normpath(typed)
    # POSIX gives a leading double slash a meaning of its own, which no recorded path has.
    return normal[1:] if normal.startswith("//") else normal


def check_op_id(value: str | UUID) -> str:
    """Return an op id in canonical form: a UUID, lower-case."""
    return _check_uuid(value, "op_id", "send one, or leave it out")


def check_workflow_id(value: str | UUID) -> str:
    """Return a workflow's id, which is its op id, in canonical form."""
    return _check_uuid(value, "workflow_id", "give the id that the stamp was answered with")


def is_uuid(value: str) -> bool:
    try:
        UUID(value)
    except ValueError:
        return False
    return True


def check_file_hash(value: str) -> str:
    """Return a BLAKE3 digest as 64 lower-case hexadecimal digits."""
    lowered = value.lower()
    if not _HEX_DIGEST.fullmatch(lowered):
        raise InvalidInput(
            f"file_hash {_shown(value)} is not a BLAKE3 digest: 64 hexadecimal digits are needed", field="file_hash"
        )
    return lowered


def check_content_type(value: str) -> str:
    """Return a media type such as `text/plain; charset=utf-8`, at most 255 characters."""
    if len(value) > CONTENT_TYPE_CHARACTERS_MAX:
        raise LimitExceeded(
            f"content_type has {len(value)} characters; {CONTENT_TYPE_CHARACTERS_MAX} is the limit",
            field="content_type",
        )
    if not _CONTENT_TYPE.fullmatch(value):
        raise InvalidInput(
            f"content_type {_shown(value)} is not a media type: use type/subtype, such as text/plain",
            field="content_type",
        )
    return value


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata unchanged: a JSON object, ≤ 64 KiB encoded, ≤ 100 deep, no NUL, only finite numbers."""
    if not isinstance(value, dict):
        raise InvalidInput(f"metadata {_shown(value)} is not a JSON object: send key-value pairs", field="metadata")
    if not value:
        return value
    try:
        encoded = canonical_json(value)
        _check_json(value, METADATA_DEPTH_MAX)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"metadata is not JSON: {error}", field="metadata") from error
    if len(encoded) > METADATA_BYTES_MAX:
        raise LimitExceeded(
            f"metadata has {len(encoded)} bytes as JSON; {METADATA_BYTES_MAX} is the limit: keep large values in files",
            field="metadata",
        )
    return value


def canonical_json(value: dict[str, Any]) -> bytes:
    """Encode with sorted keys and no spaces: equal objects, and only those, give equal bytes."""
    return _canonical.encode(value) if value else b"{}"


# A path is asked for three or four times on its way through a group; a few groups are under way at once.
@lru_cache(maxsize=8192)
def path_hash(namespace: str, file_path: str) -> bytes:
    """Return the 32-byte key of a path in a namespace: SHA-256 of both, joined by a NUL, which neither contains."""
    return hashlib.sha256(f"{namespace}\0{file_path}".encode()).digest()


def uuid7(unix_ms: int, entropy: bytes) -> str:
    """Build a UUIDv7 (RFC 9562 §5.7) from a time in milliseconds and 10 random bytes."""
    digits = ((unix_ms << 80) | int.from_bytes(entropy, "big")) & _UUID7_CLEAR | _UUID7_SET
    text = f"{digits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_UUID7_CLEAR = ((1 << 128) - 1) ^ (0xF << 76) ^ (0b11 << 62)
_UUID7_SET = (7 << 76) | (0b10 << 62)


def _check_json(value: Any, depth: int) -> None:
    """Raise ValueError for what JSON in PostgreSQL can't hold, or what would not come back as it went in."""
    if depth < 0:
        raise ValueError(f"it is nested deeper than {METADATA_DEPTH_MAX} levels: flatten it")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a string contains a NUL: remove it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a string")
            _check_json(key, depth)
            _check_json(item, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, depth - 1)
    elif not isinstance(value, int | None):
        raise ValueError(f"a {type(value).__name__} is not a JSON value")


def _check_uuid(value: str | UUID, field: str, remedy: str) -> str:
    try:
        return str(value if isinstance(value, UUID) else UUID(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(f"{field} {_shown(value)} is not a UUID: {remedy}", field=field) from error


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Quote an offending value, short and printable."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
