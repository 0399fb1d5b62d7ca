"""Ask a PostgreSQL on a unix socket whether it serves a database, and run one statement there.

As much of the protocol as a launcher needs (PostgreSQL documentation, "Message Formats", version 3.0, trust only): so
the server is proved to answer without a driver, which belongs to the adapter that speaks SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct

from omninode_bridge.adapters.embedded.configuration import USER

__all__ = ["Refused", "ask"]

_TIMEOUT_S = 10.0
_PROTOCOL = 3 << 16


class Refused(Exception):
    """The server answered with an error; `sqlstate` has five characters."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


async def ask(socket_path: str, database: str, statement: str | None = None) -> int:
    """Log in to `database`, run `statement`, if any, and return how many rows it gave.

    Raises Refused with the server's error, OSError when there is no connection or no answer within 10 s.
    """
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            names = f"user\0{USER}\0database\0{database}\0\0".encode()
            writer.write(struct.pack("!ii", len(names) + 8, _PROTOCOL) + names)
            rows = await _until_ready(reader)
            if statement is not None:
                text = statement.encode() + b"\0"
                writer.write(b"Q" + struct.pack("!i", len(text) + 4) + text)
                rows = await _until_ready(reader)
            writer.write(b"X" + struct.pack("!i", 4))
            return rows
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the server closed the connection") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _until_ready(reader: asyncio.StreamReader) -> int:
    rows = 0
    while True:
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        body = await reader.readexactly(length - 4)
        if kind == b"Z":
            return rows
        rows += kind == b"D"
        if kind == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            raise Refused(fields.get(b"C", "XX000"), fields.get(b"M", ""))
        if kind == b"R" and body[:4] != b"\0\0\0\0":
            raise Refused("28000", "the server asks for a password, which an embedded one never does")
