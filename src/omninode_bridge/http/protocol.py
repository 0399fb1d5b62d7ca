"""HTTP/1.1 on a connection: uvicorn's protocol on httptools, with a limit on headers and problems for its refusals."""

from __future__ import annotations

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from omninode_bridge.http.problems import MEDIA_TYPE, TYPE, Problem

HEAD_BYTES_MAX = 64 * 1024
"""Request line and headers together. The longest path, percent-encoded, with 64 KiB of metadata belongs into a body."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, or too long a one, and end the connection."""
        if self._head_bytes > HEAD_BYTES_MAX:
            status, code, title = 431, "head_too_large", "The headers are too large"
            detail = f"the request line and headers have more than {HEAD_BYTES_MAX} bytes: send less"
        else:
            status, code, title, detail = 400, "not_http", "This is no HTTP request", msg
        body = msgspec.json.encode(Problem(type=TYPE + code, title=title, status=status, detail=detail, code=code))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        self.transport.close()

    def _count(self, *parts: bytes) -> None:
        self._head_bytes += sum(map(len, parts))
        if self._head_bytes > HEAD_BYTES_MAX:
            # The parser turns what a callback raises into its own error, which ends in send_400_response.
            raise ValueError("head too large")
