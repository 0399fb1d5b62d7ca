"""What the server logs, as lines on standard error: JSON for machines, or text for people at a terminal.

The rules this file obeys:

1. A line has time, level, event, logger, and while a request is answered its correlation and trace id. Whoever logs
   uses the standard library's `logging`: ours, uvicorn's and asyncio's lines all come through here.
2. No content, no metadata, no token and no password is in any line. What a caller sent is told to the caller: of an
   error about a caller's value the log has the code and the field. Of an error that nobody meant to raise it has where
   that was, and the words only where they can't quote what somebody sent.
3. Beside that, whatever looks like a secret is struck out of everything.

The only importer of structlog.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog

from omninode_bridge.domain.errors import BridgeError, InvalidInput

__all__ = ["asked_id", "asked_with", "configured", "struck_out"]

type Format = Literal["json", "console"]
type _Line = structlog.typing.EventDict

TEXT_CHARACTERS_MAX = 8192
"""Of one value of a line; the rest is cut off."""
FRAMES_MAX = 30
WITHHELD = "(its words are withheld: they may quote what somebody sent)"
STRUCK = "…"

_OURS = "omninode_bridge"
_SECRET_NAMES = frozenset({
    "access_token", "authorization", "body", "content", "content_base64", "cookie", "dsn", "metadata", "passwd",
    "password", "pwd", "secret", "sslpassword", "stamped_content", "stamping_token", "token",
})  # fmt: skip
_NAMED = r"access_token|authorization|passwd|password|pwd|secret|sslpassword|token"
_SECRETS = (
    (re.compile(r"\bobt_[A-Za-z0-9_-]+"), "obt_" + STRUCK),
    (re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE), r"\1 " + STRUCK),
    (re.compile(r"://([^\s:/@]*):\S*@"), r"://\1:" + STRUCK + "@"),
    (re.compile(rf"\b({_NAMED})=(?:'[^']*'|\"[^\"]*\"|[^\s&'\"]+)", re.IGNORECASE), r"\1=" + STRUCK),
    (re.compile(rf"([\"'](?:{_NAMED})[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*')", re.IGNORECASE), r"\1" + STRUCK),
    # PostgreSQL's second line, which may quote a row.
    (re.compile(r"\n(?:DETAIL|CONTEXT|QUERY):.*", re.DOTALL), ""),
)
# Most values: none of the above fits them, and to see that at once makes a line cost half.
_WORD = re.compile(r"(?!.*obt_)[A-Za-z0-9_./{}-]{0,200}")
# So that nobody writes lines of his own, or to the terminal, or what is no UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
# Errors whose words are made of names and types. A ValueError's or a KeyError's may be somebody's data.
_WORDED = (
    ArithmeticError, AssertionError, AttributeError, ImportError, MemoryError, NameError, RuntimeError, TypeError,
)  # fmt: skip

_asked: ContextVar[tuple[str, bytes | None] | None] = ContextVar("asked", default=None)


def asked_with(correlation_id: str, traceparent: bytes | None) -> None:
    """Have the lines that this task logs from now on bear the ids of the request that it answers."""
    _asked.set((correlation_id, traceparent))


def asked_id() -> str | None:
    """Return the correlation id of the request that this task answers."""
    asked = _asked.get()
    return None if asked is None else asked[0]


@contextmanager
def configured(level: str, format: Format | None = None, stream: TextIO | None = None) -> Iterator[None]:  # noqa: A002
    """Log to a stream, standard error if none is given: ours from `level` on, others' from warnings on.

    Without a format, a terminal gets text and anything else JSON.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(format or ("console" if stream.isatty() else "json"), stream))
    root, ours = logging.getLogger(), logging.getLogger(_OURS)
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        root.removeHandler(handler)
        handler.flush()


def struck_out(value: Any) -> Any:
    """Return a value of a line without what looks like a secret."""
    if isinstance(value, str):
        if _WORD.fullmatch(value):
            return value
        for secret, replacement in _SECRETS:
            value = secret.sub(replacement, value)
        value = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
        return value if len(value) <= TEXT_CHARACTERS_MAX else value[:TEXT_CHARACTERS_MAX] + STRUCK
    if isinstance(value, Mapping):
        return {
            struck_out(str(name)): STRUCK if str(name).lower() in _SECRET_NAMES else struck_out(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [struck_out(item) for item in value]
    if value is None or isinstance(value, bool | int | float | datetime):
        return value
    if isinstance(value, BaseException):
        return struck_out(_said(value))
    return f"<{type(value).__name__}>"  # what else there may be in it nobody knows


def _formatter(format: Format, stream: TextIO) -> logging.Formatter:  # noqa: A002
    render: structlog.typing.Processor = structlog.processors.JSONRenderer(serializer=_json)
    if format == "console":
        render = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
        )
    return structlog.stdlib.ProcessorFormatter(processors=[_line, render])


def _line(_: object, __: str, found: _Line) -> _Line:
    """Return the line of a record."""
    record: logging.LogRecord = found["_record"]
    event = found["event"]
    if not record.name.startswith(_OURS):
        # Others' first lines say what happened; asyncio's next ones print whatever was in its hands.
        event = event.strip().partition("\n")[0]
    line: _Line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": struck_out(event),
        "logger": record.name,
        **_ids(),
    }
    for name, value in vars(record).items():
        if name not in _PLAIN:
            line[struck_out(name)] = STRUCK if name.lower() in _SECRET_NAMES else struck_out(value)
    info = found.get("exc_info")
    if isinstance(info, tuple) and info[1] is not None:
        line["exception"] = "\n".join(map(struck_out, _told(info[1])))
    return line


def _ids() -> dict[str, str]:
    asked = _asked.get()
    if asked is None:
        return {}
    correlation_id, traceparent = asked
    match = _TRACEPARENT.fullmatch(traceparent or b"")
    return {"correlation_id": struck_out(correlation_id)} | ({"trace_id": match[1].decode()} if match else {})


def _told(error: BaseException, depth: int = 0) -> Iterator[str]:
    """Yield an error's lines: what it stems from, where it was raised, what it is."""
    if depth > FRAMES_MAX:
        return
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _told(before, depth + 1)
        yield "which led to:"
    for frame in traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]:
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
    yield _said(error)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _told(inner, depth + 1)


def _said(error: BaseException) -> str:
    """Return what an error is, in words that quote nothing that somebody sent."""
    name = type(error).__name__
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, InvalidInput):
        return f"{name} [{error.code}] of field {error.field}"
    if isinstance(error, BridgeError):
        words = f"[{error.code}] {error.message}"
    elif isinstance(sqlstate, str):
        # Class 22 is "data exception": such a value is quoted.
        words = f"[{sqlstate}] {WITHHELD if sqlstate.startswith('22') else error}"
    elif isinstance(error, OSError):
        words = error.strerror or ""
    elif isinstance(error, _WORDED):
        words = str(error)
    else:
        words = WITHHELD if error.args else ""
    return f"{name}: {words}" if words else name


def _json(line: _Line, **_: object) -> str:
    return msgspec.json.encode(line).decode()


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
