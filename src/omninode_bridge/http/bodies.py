"""Reading a request's body, within its limits.

The rules it keeps:

1. A body over its limit is refused before it is read where its length is announced, and as soon as it goes over
   where it is not.
2. A body that ends too early is no body: `ClientDisconnect` leaves every reader, and nothing is made of it.
3. A raw body of any length takes one piece of memory at a time. JSON is read whole, and all JSON that is being
   worked on shares one allowance, of which a token has a part.
4. A sender may be slow, not silent, and not for ever: after SILENCE_S_MAX he has to keep a rate; for what is held in
   memory meanwhile, a much higher one.
5. A body is taken as it is. One that is compressed for the way is refused: its digest would not be the content's, and
   what it becomes has no limit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from omninode_bridge.domain.errors import InvalidInput, Overloaded
from omninode_bridge.domain.stamp import Digest
from omninode_bridge.domain.tenancy import Principal
from omninode_bridge.http.asking import asker
from omninode_bridge.http.problems import BodyMalformed, BodyTimeout, BodyTooLarge, BodyTypeUnsupported
from omninode_bridge.ports import RunningDigest

SILENCE_S_MAX = 60.0
"""How long a sender may leave a body without a byte."""
RATE_BYTES_S_MIN = 512
"""What has to come a second, on average, of a body that is waited for longer than that."""
HELD_S_MAX = 60.0
"""How long a body that is held in memory may take, and a second more for each HELD_RATE_BYTES_S of its limit."""
HELD_RATE_BYTES_S = 256 * 1024
JSON_BYTES_AT_ONCE_MAX = 128 * 1024 * 1024
"""JSON bodies in memory together; decoded they are there twice."""
TOKENS_PART = 4
"""A token may hold one part in so many of that, and one body in any case."""
FORM_OVERHEAD_BYTES_MAX = 64 * 1024
"""What a form may have beside its file: boundaries and headers."""


ALL_HERE = "body_all_here"
"""Stands in the state of a request whose body has all come: then there is nothing to wait for."""


class Allowance:
    """Bytes that all requests together may hold. `with allowance.share() as share:` gives them back."""

    def __init__(self) -> None:
        self.bytes_max = self.left = JSON_BYTES_AT_ONCE_MAX
        self.held: dict[str, int] = {}
        """By token, where there are tokens."""

    def share(self) -> Share:
        return Share(self)


class Share:
    """What one request took of an allowance."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._taken = 0
        self._token_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._allowance.left += self._taken
        if self._token_id is not None:
            self._allowance.held[self._token_id] -= self._taken
            if not self._allowance.held[self._token_id]:
                del self._allowance.held[self._token_id]

    def take(self, count: int, who: Principal, limit_bytes: int) -> None:
        """Take some bytes of a body; Overloaded when there are not so many left, in all or for this token."""
        allowance = self._allowance
        if count > allowance.left:
            raise Overloaded("the JSON bodies being worked on fill the memory meant for them: try again")
        if who.token_id is not None:
            held = allowance.held.get(who.token_id, 0) + count
            if held > max(allowance.bytes_max // TOKENS_PART, limit_bytes):
                raise Overloaded(
                    f"the JSON bodies of token {who.name!r} fill the memory meant for one token: send fewer at once"
                )
            allowance.held[who.token_id] = held
            self._token_id = who.token_id
        allowance.left -= count
        self._taken += count


async def pieces(request: Request, limit_bytes: int, setting: str, within_s: float = math.inf) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, waited for so long in all; BodyTooLarge names the setting that limits it."""
    _refuse_codings(request)
    announced = int(request.headers.get("content-length", -1))
    if announced > limit_bytes:
        raise _too_large(str(announced), limit_bytes, setting)
    if "upgrade" in request.headers:
        raise BodyMalformed(
            "a request with a body can't ask for another protocol: leave out the Upgrade header (curl: --http1.1)",
            field="upgrade",
        )
    count, more, waited_s = 0, True, 0.0
    clock_s = asyncio.get_running_loop().time
    while more:
        began_s = clock_s()
        patience_s = min(SILENCE_S_MAX, SILENCE_S_MAX + count / RATE_BYTES_S_MIN - waited_s, within_s - waited_s)
        try:
            message = await _message(request, patience_s)
        except TimeoutError as error:
            in_all = "" if math.isinf(within_s) else f", all of it within {within_s:.0f} s"
            raise BodyTimeout(
                f"of the body {count} bytes came in {waited_s + patience_s:.0f} s: send it again, without a pause of "
                f"{SILENCE_S_MAX:g} s, and at {RATE_BYTES_S_MIN} bytes a second or more{in_all}",
                field="body",
            ) from error
        waited_s += clock_s() - began_s
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        count += len(piece)
        if count > limit_bytes:
            raise _too_large(f"at least {count}", limit_bytes, setting)
        if piece:
            yield piece
    if count != announced and announced >= 0:
        raise BodyMalformed(f"the body has {count} bytes, its Content-Length is {announced}", field="body")


async def _message(request: Request, patience_s: float) -> Message:
    if ALL_HERE in request.scope["state"]:
        return await request.receive()
    async with asyncio.timeout(patience_s):
        return await request.receive()


async def whole(request: Request, limit_bytes: int, share: Share) -> bytes:
    """Return a JSON body, or another that has to be held in memory."""
    # Pieces may be as small as a byte: kept one by one they would take many times what they hold.
    first, rest, who = b"", bytearray(), asker(request)
    within_s = HELD_S_MAX + limit_bytes / HELD_RATE_BYTES_S
    async for piece in pieces(request, limit_bytes, "BRIDGE_JSON_BYTES_MAX", within_s):
        share.take(len(piece), who, limit_bytes)
        if first:
            rest += piece
        else:
            first = piece
    return first + rest if rest else first


async def hashed(
    request: Request, running: RunningDigest, limit_bytes: int, keep_bytes: int = 0
) -> tuple[Digest, bytes]:
    """Return a raw body's digest, computed while it arrived, and up to `keep_bytes` of its beginning."""
    head = bytearray()
    async for piece in pieces(request, limit_bytes, "BRIDGE_BODY_BYTES_MAX"):
        running.update(piece)
        if len(head) < keep_bytes:
            head += piece[: keep_bytes - len(head)]
    return running.digest(), bytes(head)


async def hashed_file(request: Request, running: RunningDigest, limit_bytes: int) -> Digest:
    """Return the digest of a multipart form's `file`, its only part, computed while it arrived."""
    _, options = parse_options_header(request.headers.get("content-type"))
    form = _Form(options.get(b"boundary", b""), running.update)
    async for piece in pieces(request, limit_bytes + FORM_OVERHEAD_BYTES_MAX, "BRIDGE_BODY_BYTES_MAX"):
        form.feed(piece)
    form.close()
    digest = running.digest()
    if digest.file_size > limit_bytes:
        raise _too_large(f"at least {digest.file_size}", limit_bytes, "BRIDGE_BODY_BYTES_MAX")
    return digest


def _refuse_codings(request: Request) -> None:
    coding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding not in ("", "identity"):
        raise BodyTypeUnsupported(
            f"a body with the Content-Encoding {coding[:80]!r} is not taken: send the content as it is",
            field="content-encoding",
        )
    framing = ",".join(request.headers.getlist("transfer-encoding")).strip().lower()
    if framing not in ("", "chunked"):
        raise BodyMalformed(
            f"the Transfer-Encoding {framing[:80]!r} is not taken: send the content as it is, or chunked",
            field="transfer-encoding",
        )


class _Form:
    """A form (RFC 7578) that arrives in pieces: the bytes of its one file go to `take`."""

    def __init__(self, boundary: bytes, take: Callable[[bytes], None]) -> None:
        if not boundary:
            raise BodyMalformed("the Content-Type multipart/form-data has no boundary: add it", field="body")
        self._take = take
        self._name = b""
        self._value = b""
        self._part = b""
        self._files = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(error) from error

    def close(self) -> None:
        if not self._ended:
            raise BodyMalformed("the form ends before its last boundary: send all of it", field="body")
        if not self._files:
            raise InvalidInput("the form has no part named 'file': add it", field="file")

    def _on_part_begin(self) -> None:
        self._part = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._part = parse_options_header(self._value.decode("latin-1"))[1].get(b"name", b"")
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        if self._part != b"file":
            name = self._part.decode(errors="replace")[:80]
            raise InvalidInput(f"the form has a part named {name!r}: send one part, named 'file'", field="file")
        self._files += 1
        if self._files > 1:
            raise InvalidInput("the form has more than one part named 'file': send one a request", field="file")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._take(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def _malformed(error: FormParserError) -> BodyMalformed:
    return BodyMalformed(f"the body is not multipart/form-data: {error}", field="body")


def _too_large(size: str, limit_bytes: int, setting: str) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size} bytes; {limit_bytes} is the limit ({setting})", field="body")
