"""HTTP/1.1 on a connection: uvicorn's protocol on httptools, with what those two leave open.

* Headers have a limit. (A request line of 64 KiB or more, httptools refuses itself.)
* What is no HTTP request is refused by a problem.
* After the headers of a request that asks for another protocol (`curl --http2` does) httptools reads nothing any more,
  not even that request's body, and says that the message is complete. So the connection ends with the answer, and
  `bodies` refuses to read such a body.
"""

from __future__ import annotations

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from omninode_bridge.http.envelope import LINGER_S_MAX
from omninode_bridge.http.problems import MEDIA_TYPE, TYPE, Problem

HEAD_BYTES_MAX = 128 * 1024
"""What may have come of a request, at the latest, when its headers end."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    _refused = False
    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        # Those of a request that began in the middle of `data` are counted too generously by a read at most.
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(
                431,
                "head_too_large",
                "The headers are too large",
                f"the request line and headers have more than {HEAD_BYTES_MAX} bytes: send less",
            )

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: to answer in HTTP/1.1 is the usual way to decline (RFC 9110 §7.8)."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, and end the connection."""
        self._refuse(400, "not_http", "This is no HTTP request", msg)

    def _refuse(self, status: int, code: str, title: str, detail: str) -> None:
        body = msgspec.json.encode(Problem(type=TYPE + code, title=title, status=status, detail=detail, code=code))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._refused = True
        under_way: RequestResponseCycle | None = self.cycle
        if under_way is not None and not under_way.response_complete:
            # Cut short: for the application, its caller is gone.
            under_way.disconnected = True
            under_way.message_event.set()
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        # What still arrives is dropped for a while: to close now would reset the connection, and lose the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S_MAX, self.transport.close)
