r"""The stamp inside the content it stamps: one comment line, put at the end and found wherever it stands.

    # omninode-stamp: v=1 id=UUID blake3=64_HEX ns=NAMESPACE at=TIME [nl=1|2]

The rules it keeps:

1. The digest in the line is that of the bare content: the content without any stamp line of its language. So a stamp
   does not change what is stamped: `bare(embed(content, stamp)) == bare(content)`, byte for byte.
2. Embedding takes the old stamp lines out first: with the same stamp it gives the same bytes again.
3. A stamp line is one in the very form that `embed` writes: not a space more, no other version. All else is content.
4. All that the line says is the same in the first answer and in each deduplicated one.

`nl` counts the line ends that were put before the line, because the content did not end in one or needed a blank line
in between. They are taken out with it, unless something was appended since: then they end a line of that. A line ends
with \n or \r\n and nothing else. `+` stands between hyphens of the namespace, since XML forbids `--` in comments.
"""

from __future__ import annotations

import re

import msgspec

from omninode_bridge.domain.comments import MARKS, Syntax, syntax_of
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.domain.stamp import Stamp

__all__ = ["Embedded", "bare", "embed", "find"]

_START = b"omninode-stamp: v=1 "
# No part can match what follows it, so that no input makes the search try twice.
_STAMP = re.compile(
    _START + rb"id=(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) blake3=(?P<hash>[0-9a-f]{64})"
    rb" ns=(?P<ns>[a-z0-9_.+-]{1,509}) at=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?Z(?: nl=(?P<ends>[12]))?"
)
_MARK_BYTES_MAX = 1 + max(len(mark) for marks in MARKS for mark in marks) + len(b"\r\n")
"""Far enough around a stamp to see that something else is in its line."""

type _Marks = frozenset[tuple[bytes, bytes]]


class Embedded(msgspec.Struct, frozen=True, gc=False):
    """A stamp line that was found. `file_hash` is what it says of the bare content; `line` counts from 1."""

    stamp_id: str
    file_hash: str
    namespace: str
    line: int


def bare(content: bytes, file_path: str, content_type: str) -> bytes:
    """Return the content less its stamp lines: the bytes to digest. InvalidInput where no stamp can be embedded."""
    stripped, _ = _prepared(content, file_path, content_type)
    return stripped


def embed(content: bytes, stamp: Stamp) -> bytes:
    """Return the bare content with the stamp's line at its end. InvalidInput where no stamp can be embedded."""
    stripped, syntax = _prepared(content, stamp.file_path, stamp.content_type)
    added = _line_ends_needed(stripped, syntax)
    line = _line(stamp, added, syntax)
    if _strip(line, _marks(syntax))[0]:
        raise _refused(stamp.file_path, f"stamp {stamp.stamp_id!a:.80} of {stamp.namespace!a:.80} fits in no line")
    line_end = _line_end(stripped)
    return stripped + line_end * added + line + line_end


def find(content: bytes, file_path: str | None, content_type: str | None) -> tuple[bytes, list[Embedded]]:
    """Return the bare content and the stamps found in it, in order; never raises.

    Without a path and a content type, stamp lines of every language are found. In what is no text, or in a language
    without comments, there are none.
    """
    if not _is_text(content):
        return content, []
    if file_path is None and content_type is None:
        return _strip(content, MARKS)
    syntax = syntax_of(file_path, content_type)
    return (content, []) if syntax is None else _strip(content, _marks(syntax))


def _prepared(content: bytes, file_path: str, content_type: str) -> tuple[bytes, Syntax]:
    syntax = syntax_of(file_path, content_type)
    if syntax is None:
        raise _refused(
            file_path,
            f"its language (content type {content_type!a:.80}) has no comments, or nobody knows which it is: "
            "the path's ending tells it, such as .py, or else the content type, such as text/x-python",
        )
    if not _is_text(content):
        raise _refused(file_path, "its content is no UTF-8 text, or has a NUL")
    stripped, _ = _strip(content, _marks(syntax))
    objection = syntax.objection(stripped) if syntax.objection else None
    if _goes_on(stripped, syntax) and not stripped.endswith(b"\n"):
        objection = "it ends in a backslash, and with a line after it that would mean something else: end its last line"
    if objection:
        raise _refused(file_path, objection)
    return stripped, syntax


def _refused(file_path: str, reason: str) -> InvalidInput:
    return InvalidInput(f"no stamp can be embedded in {file_path!a:.80}: {reason}; or leave embed out", field="embed")


def _marks(syntax: Syntax) -> _Marks:
    return frozenset({(syntax.opening, syntax.closing)})


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strip(content: bytes, marks: _Marks) -> tuple[bytes, list[Embedded]]:
    """Return the content without its stamp lines, and these, in time linear in its size whatever it is."""
    if _START not in content:
        return content, []
    found: list[Embedded] = []
    kept: list[bytes] = []
    copied = 0  # up to here the content was kept or taken out
    added = 0
    number, counted = 1, 0
    for match in _STAMP.finditer(content):
        bounds = _line_around(content, match, marks)
        namespace = _namespace(match) if bounds else None
        if bounds is None or namespace is None:
            continue
        start, end = bounds
        number += content.count(b"\n", counted, start)
        counted = start
        found.append(Embedded(match["id"].decode(), match["hash"].decode(), namespace, number))
        if copied < start:
            # Of stamps one below the other, the first knows what was put before them all.
            kept.append(content[copied:start])
            added = int(match["ends"] or 0)
        copied = end
    if not found:
        return content, []
    if copied < len(content):
        kept.append(content[copied:])
        added = 0
    stripped = b"".join(kept)
    for _ in range(added):
        stripped = stripped[:-2] if stripped.endswith(b"\r\n") else stripped.removesuffix(b"\n")
    return stripped, found


def _line_around(content: bytes, match: re.Match[bytes], marks: _Marks) -> tuple[int, int] | None:
    """Return where the match's line starts and where the next one does; None if the marks are not all else in it."""
    before = content[max(0, match.start() - _MARK_BYTES_MAX) : match.start()]
    opening = before[before.rfind(b"\n") + 1 :]
    after = content[match.end() : match.end() + _MARK_BYTES_MAX]
    closing, line_end, _ = after.partition(b"\n")
    end = match.end() + len(closing) + len(line_end)
    if line_end:
        closing = closing.removesuffix(b"\r")
    return (match.start() - len(opening), end) if (opening, closing) in marks else None


def _namespace(match: re.Match[bytes]) -> str | None:
    told = match["ns"].decode()
    namespace = told.replace("+", "")
    try:
        check_namespace(namespace)
    except InvalidInput:
        return None
    return namespace if _spaced(namespace) == told else None


def _line(stamp: Stamp, added: int, syntax: Syntax) -> bytes:
    # As msgspec writes the time, so that it reads as in the answer and the event.
    at = msgspec.to_builtins(stamp.completed_at)
    line_ends = f" nl={added}" if added else ""
    text = f"id={stamp.stamp_id} blake3={stamp.file_hash} ns={_spaced(stamp.namespace)} at={at}{line_ends}"
    return syntax.opening + _START + text.encode("utf-8", "replace") + syntax.closing


def _spaced(namespace: str) -> str:
    """Put `+` between hyphens; a namespace has none of its own."""
    # Twice, since the hyphen that ends one pair begins the next.
    return namespace.replace("--", "-+-").replace("--", "-+-")


def _line_ends_needed(content: bytes, syntax: Syntax) -> int:
    """Return how many line ends go before the stamp line: one to end the content, one for a blank line."""
    if not content:
        return 0
    ended = content.endswith(b"\n")
    last = _last_line(content)
    # A blank line is all that a backslash joins to its line.
    blank = _goes_on(content, syntax) or (syntax.after_blank and last.strip() != b"")
    return (not ended) + blank


def _goes_on(content: bytes, syntax: Syntax) -> bool:
    return syntax.joins and _last_line(content).endswith(b"\\")


def _last_line(content: bytes) -> bytes:
    text = content.removesuffix(b"\n")
    return text[text.rfind(b"\n") + 1 :].removesuffix(b"\r")


def _line_end(content: bytes) -> bytes:
    r"""Return the line end that the content has at its end, or had last; after a lone \r, \n would make one with it."""
    at = content.rfind(b"\n")
    return b"\r\n" if content.endswith(b"\r") or (at > 0 and content[at - 1 : at] == b"\r") else b"\n"
