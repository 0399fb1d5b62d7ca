"""Where the next page of a list begins, as an opaque word; and the links that lead there.

A cursor says which list it is of, so that one of another list is refused instead of answered by a wrong page. What it
says is no secret and gives no right: it is only a place in an order.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from starlette.requests import Request

from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.http.messages import query

# The longest place is a group key of 256 bytes, in JSON and base64.
_WORD = re.compile(r"[A-Za-z0-9_-]{1,4096}")


class _Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    of: str
    after: str


_decode = msgspec.json.Decoder(_Cursor).decode


def written(of: str, after: str) -> str:
    """Return the cursor of a place in a list."""
    return base64.urlsafe_b64encode(msgspec.json.encode(_Cursor(of, after))).rstrip(b"=").decode()


def read(word: str | None, of: str) -> str | None:
    """Return the place that a cursor of this list tells; None where there is no cursor."""
    if word is None:
        return None
    try:
        if not _WORD.fullmatch(word):
            raise ValueError("it has other characters than a cursor")
        cursor = _decode(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)))
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError) as error:
        raise _refused(word) from error
    if cursor.of != of or "\0" in cursor.after:
        raise _refused(word)
    return cursor.after


def read_id(word: str | None, of: str) -> str | None:
    """Return the place, which is the id of a stamp or of a workflow."""
    after = read(word, of)
    if after is None:
        return None
    try:
        return str(UUID(after))
    except ValueError as error:
        raise _refused(word) from error


def link(request: Request, cursor: str | None) -> dict[str, str]:
    """Return the header that leads to the next page (RFC 8288); none at the end."""
    if cursor is None:
        return {}
    asked = query(request.scope["query_string"]) | {"cursor": cursor}
    return {"Link": f'<{request.url.path}?{urlencode(asked)}>; rel="next"'}


def _refused(word: str | None) -> InvalidInput:
    return InvalidInput(
        f"cursor {ascii(word)[:80]} is none of this list: send the `next` of an answer, or leave it out", field="cursor"
    )
