"""OnexTree in this process: what can be told of content from its first bytes and its name. The port `Intelligence`.

The rules it keeps: it looks at HEAD_BYTES_MAX of any content; it never fails, whatever the bytes are; what it answers
is JSON that PostgreSQL can hold (no NUL in a string) and small. It is advice: nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import codecs
import csv
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import puremagic

from omninode_bridge.domain.names import DEFAULT_CONTENT_TYPE
from omninode_bridge.domain.stamp import Claimed, Inline, LocalFile, StampRequest

__all__ = ["LocalIntelligence", "analyse"]

MODEL = "onextree-local"
MODEL_VERSION = "1"
HEAD_BYTES_MAX = 64 * 1024
ITEMS_MAX = 50
"""Headings, keys, names, columns told of one content."""
ITEM_CHARACTERS_MAX = 120


class LocalIntelligence:
    """Analyses batches off the event loop, in one thread a batch."""

    async def analyse_many(self, requests: Sequence[StampRequest]) -> list[dict[str, Any] | None]:
        """Return what `analyse` tells of each content, in order; None where its bytes are not at hand."""
        return await asyncio.to_thread(lambda: [_analyse_request(request) for request in requests])


def analyse(head: bytes, file_path: str, *, size: int | None = None) -> dict[str, Any]:
    """Return file_type, content_type, confidence (0 to 1), tags, structure, model and model_version.

    `head` are the content's first bytes, `size` is its length in bytes where it is longer. Costs up to 3 ms.
    """
    whole = size is None or size <= len(head)
    whole = whole and len(head) <= HEAD_BYTES_MAX
    head = head[:HEAD_BYTES_MAX]
    text = _decoded(head, whole)
    guess = _guess(head, text, file_path)
    structure: dict[str, Any] = {"bytes_analysed": len(head), "complete": whole}
    if text is not None:
        structure |= {"lines": len(text.splitlines()), "words": len(text.split())}
        describe = _DESCRIBE.get(guess.file_type)
        if describe is not None:
            structure |= describe(text, whole)
    tags = {guess.file_type, guess.category}
    if head.startswith(b"#!"):
        tags.add("executable")
    return {
        "file_type": guess.file_type,
        "content_type": guess.content_type,
        "confidence": guess.confidence,
        "tags": sorted(tags),
        "structure": structure,
        "model": MODEL,
        "model_version": MODEL_VERSION,
    }


def _analyse_request(request: StampRequest) -> dict[str, Any] | None:
    content = request.content
    match content:
        case Claimed():
            return None
        case Inline(data):
            return analyse(data, request.file_path)
        case LocalFile(path, facts):
            try:
                head = _read_head(path)
            except OSError:
                # Whether it can be read is for the digest to say.
                return None
            return analyse(head, request.file_path, size=facts.size)
    return analyse(content.head, request.file_path, size=content.digest.file_size)


def _read_head(path: str) -> bytes:
    # Not blocking: a FIFO may have taken the file's place.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return os.read(descriptor, HEAD_BYTES_MAX)
    finally:
        os.close(descriptor)


class _Guess(NamedTuple):
    file_type: str
    content_type: str
    category: str
    confidence: float


def _guess(head: bytes, text: str | None, file_path: str) -> _Guess:
    suffix = os.path.splitext(file_path)[1].lower()
    if not head:
        return _Guess("empty", DEFAULT_CONTENT_TYPE, "empty", 1.0)
    if text is None:
        return _guess_binary(head, suffix)
    if suffix in _TEXTS:
        return _Guess(*_TEXTS[suffix], 0.9)
    for opening, like in _OPENINGS:
        if opening.match(text):
            return _Guess(*_TEXTS[like], 0.7)
    return _Guess("text", "text/plain", "document", 0.6)


def _guess_binary(head: bytes, suffix: str) -> _Guess:
    try:
        # Never with a file name: puremagic would open a file of that name on this machine, whoever sent it.
        matches = puremagic.magic_string(head)
    except Exception:  # heuristics over bytes that anyone may have made up: whatever they stumble on, they don't know
        matches = []
    if not matches:
        return _Guess("binary", DEFAULT_CONTENT_TYPE, "binary", 0.1)
    # Some formats begin alike (all of Office's are zip files): between those the name decides.
    best = max(matches, key=lambda match: (match.extension.lower() == suffix, match.confidence))
    content_type = best.mime_type or DEFAULT_CONTENT_TYPE
    file_type = best.extension.lstrip(".").lower() or best.name.lower().partition(" ")[0]
    major = content_type.partition("/")[0]
    if major not in {"audio", "font", "image", "video"}:
        major = "archive" if file_type in _ARCHIVES else "document" if file_type in _DOCUMENTS else "binary"
    return _Guess(_clean(file_type), content_type, major, round(min(float(best.confidence), 1.0), 2))


def _decoded(head: bytes, whole: bool) -> str | None:
    """Return the text that the bytes are, without a character cut off at their end; None when they are not text."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=whole)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def _describe_markdown(text: str, whole: bool) -> dict[str, Any]:
    matches = re.findall(r"^(#{1,6})[ \t]+(.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {
        "headings": [
            {"level": len(marks), "text": _clean(title.rstrip("# \t"))} for marks, title in matches[:ITEMS_MAX]
        ]
    }


def _describe_python(text: str, whole: bool) -> dict[str, Any]:
    # By lines: a head cut off somewhere is no program to `ast`, which also warns on stderr of other people's escapes.
    return {
        "functions": _items(re.findall(r"^(?:async[ \t]+)?def[ \t]+(\w+)", text, re.MULTILINE)),
        "classes": _items(re.findall(r"^class[ \t]+(\w+)", text, re.MULTILINE)),
    }


def _describe_json(text: str, whole: bool) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text) if whole else None
    except (msgspec.DecodeError, RecursionError):
        return {"valid": False}
    return _describe_value(value) if whole else {}


def _describe_json_lines(text: str, whole: bool) -> dict[str, Any]:
    return _describe_json(text.lstrip().partition("\n")[0], whole or "\n" in text)


def _describe_toml(text: str, whole: bool) -> dict[str, Any]:
    # By lines: a parser takes seconds over a key of twenty thousand dots, holding up the whole process.
    top = re.split(r"^\[", text, maxsplit=1, flags=re.MULTILINE)[0]
    keys = re.findall(r"^([\w-]+)[ \t]*[.=]", top, re.MULTILINE)
    tables = re.findall(r"^\[\[?[ \t]*([\w-]+)", text, re.MULTILINE)
    return {"keys": _items(dict.fromkeys(keys + tables))}


def _describe_value(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"valid": True, "kind": "object", "keys": _items(value)}
    if isinstance(value, list):
        return {"valid": True, "kind": "array", "items": len(value)}
    return {"valid": True, "kind": "value"}


def _describe_table(delimiter: str) -> Callable[[str, bool], dict[str, Any]]:
    def describe(text: str, whole: bool) -> dict[str, Any]:
        try:
            columns = next(csv.reader([text.partition("\n")[0]], delimiter=delimiter), [])
        except csv.Error:
            return {}
        return {"columns": _items(columns)}

    return describe


def _items(values: Sequence[str] | dict[str, Any]) -> list[str]:
    return [_clean(value) for value in list(values)[:ITEMS_MAX]]


def _clean(text: str) -> str:
    return text.strip()[:ITEM_CHARACTERS_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")


_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_ARCHIVES = {"7z", "bz2", "deb", "gz", "jar", "rar", "rpm", "tar", "xz", "zip", "zst"}
_DOCUMENTS = {"doc", "docx", "epub", "odp", "ods", "odt", "pdf", "ppt", "pptx", "ps", "rtf", "xls", "xlsx"}

# suffix → file type, content type, category.
_TEXTS = {
    ".c": ("c", "text/x-c", "code"),
    ".cfg": ("ini", "text/plain", "configuration"),
    ".cpp": ("c++", "text/x-c++", "code"),
    ".css": ("css", "text/css", "code"),
    ".csv": ("csv", "text/csv", "data"),
    ".go": ("go", "text/x-go", "code"),
    ".h": ("c", "text/x-c", "code"),
    ".htm": ("html", "text/html", "document"),
    ".html": ("html", "text/html", "document"),
    ".ini": ("ini", "text/plain", "configuration"),
    ".java": ("java", "text/x-java", "code"),
    ".js": ("javascript", "text/javascript", "code"),
    ".json": ("json", "application/json", "data"),
    ".jsonl": ("jsonl", "application/x-ndjson", "data"),
    ".log": ("log", "text/plain", "data"),
    ".markdown": ("markdown", "text/markdown", "document"),
    ".md": ("markdown", "text/markdown", "document"),
    ".ndjson": ("jsonl", "application/x-ndjson", "data"),
    ".py": ("python", "text/x-python", "code"),
    ".pyi": ("python", "text/x-python", "code"),
    ".rb": ("ruby", "text/x-ruby", "code"),
    ".rs": ("rust", "text/x-rust", "code"),
    ".rst": ("restructuredtext", "text/x-rst", "document"),
    ".sh": ("shell", "application/x-sh", "code"),
    ".sql": ("sql", "application/sql", "code"),
    ".svg": ("svg", "image/svg+xml", "image"),
    ".toml": ("toml", "application/toml", "configuration"),
    ".ts": ("typescript", "application/typescript", "code"),
    ".tsv": ("tsv", "text/tab-separated-values", "data"),
    ".txt": ("text", "text/plain", "document"),
    ".xml": ("xml", "text/xml", "data"),
    ".yaml": ("yaml", "application/yaml", "configuration"),
    ".yml": ("yaml", "application/yaml", "configuration"),
}
# How a text begins that has no telling suffix, and the suffix of its like.
_OPENINGS = [
    (re.compile(r"#![^\n]*\bpython"), ".py"),
    (re.compile(r"#![^\n]*\b(?:ba|da|k|z)?sh\b"), ".sh"),
    (re.compile(r"\s*<!doctype html|\s*<html", re.IGNORECASE), ".html"),
    (re.compile(r"\s*<\?xml"), ".xml"),
    (re.compile(r'\s*(?:\{\s*["}]|\[\s*["{\[\]\d])'), ".json"),
    (re.compile(r"# \S"), ".md"),
]
_DESCRIBE: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "csv": _describe_table(","),
    "json": _describe_json,
    "jsonl": _describe_json_lines,
    "markdown": _describe_markdown,
    "python": _describe_python,
    "toml": _describe_toml,
    "tsv": _describe_table("\t"),
}
