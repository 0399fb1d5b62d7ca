"""Intelligence tells type and structure of known formats, never fails, and answers what PostgreSQL can hold."""

import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters.onextree import HEAD_BYTES_MAX, ITEMS_MAX, LocalIntelligence, analyse
from omninode_bridge.domain.names import check_content_type, check_metadata
from omninode_bridge.domain.stamp import (
    Claimed,
    Content,
    Digest,
    FileFacts,
    Inline,
    LocalFile,
    StampRequest,
    Streamed,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + bytes(30)
KEYS = {"file_type", "content_type", "confidence", "tags", "structure", "model", "model_version"}


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return buffer.getvalue()


def request(content: Content, file_path: str) -> StampRequest:
    return StampRequest(
        workflow_id="018f2f7e-7b1a-7000-8000-000000000000",
        namespace="test",
        file_path=file_path,
        content=content,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("file_path", "content", "file_type", "content_type", "tag"),
    [
        ("a.md", b"# Title\n", "markdown", "text/markdown", "document"),
        ("a.py", b"x = 1\n", "python", "text/x-python", "code"),
        ("run", b"#!/usr/bin/env python3\n", "python", "text/x-python", "executable"),
        ("run", b"#!/bin/sh\n", "shell", "application/x-sh", "executable"),
        ("a.json", b"{}", "json", "application/json", "data"),
        ("unnamed", b'{"a": 1}', "json", "application/json", "data"),
        ("unnamed", b"<!doctype html><title>x</title>", "html", "text/html", "document"),
        ("notes", "naïve café".encode(), "text", "text/plain", "document"),
        ("a.png", PNG, "png", "image/png", "image"),
        ("looks-like.txt", PNG, "png", "image/png", "image"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "pdf", "application/pdf", "document"),
        ("a.bin", bytes(range(256)), "binary", "application/octet-stream", "binary"),
        ("empty", b"", "empty", "application/octet-stream", "empty"),
    ],
)
def test_types(file_path: str, content: bytes, file_type: str, content_type: str, tag: str) -> None:
    answer = analyse(content, file_path)
    assert answer.keys() == KEYS
    assert (answer["file_type"], answer["content_type"]) == (file_type, content_type)
    assert {file_type, tag} <= set(answer["tags"])
    assert 0 < answer["confidence"] <= 1


@pytest.mark.parametrize("suffix", ["docx", "xlsx", "pptx"])
def test_the_name_decides_between_formats_that_begin_alike(suffix: str) -> None:
    assert analyse(a_zip(), f"report.{suffix}")["file_type"] == suffix


@pytest.mark.parametrize(
    ("file_path", "content", "structure"),
    [
        ("a.md", b"# One\n\n```\n# code\n```\n\n## Two ##\n", {"headings": [{"level": 1, "text": "One"},
                                                                           {"level": 2, "text": "Two"}]}),
        ("a.json", b'{"b": 1, "a": {"c": 2}}', {"valid": True, "kind": "object", "keys": ["b", "a"]}),
        ("a.json", b"[1, 2, 3]", {"valid": True, "kind": "array", "items": 3}),
        ("a.json", b"{not json", {"valid": False}),
        ("a.jsonl", b'{"a": 1}\n{"b": 2}\n', {"valid": True, "kind": "object", "keys": ["a"]}),
        ("a.toml", b"a.b = 1\n[project]\nname = 'x'\n[[tool.y]]\n[tool.z]\n", {"keys": ["a", "project", "tool"]}),
        ("a.csv", b'id,"a, b"\n1,2\n', {"columns": ["id", "a, b"]}),
        ("a.tsv", b"id\tname\n", {"columns": ["id", "name"]}),
        ("a.py", b"class A:\n    def inner(self): ...\nasync def f(): ...\ndef g(): ...\n",
         {"classes": ["A"], "functions": ["f", "g"]}),
        ("a.txt", b"two words\nsecond line\n", {"lines": 2, "words": 4, "bytes_analysed": 22, "complete": True}),
    ],
)  # fmt: skip
def test_structure(file_path: str, content: bytes, structure: dict[str, Any]) -> None:
    assert structure.items() <= analyse(content, file_path)["structure"].items()


def test_only_the_head_of_a_long_content_is_looked_at() -> None:
    # The cut goes through a character.
    text = analyse(b"x" + "é".encode() * HEAD_BYTES_MAX, "a.txt")
    assert text["file_type"] == "text"
    assert text["structure"]["bytes_analysed"] == HEAD_BYTES_MAX
    assert text["structure"]["complete"] is False
    cut = analyse(b'{"a": "' + b"x" * HEAD_BYTES_MAX + b'"}', "a.json")
    assert cut["file_type"] == "json"
    assert "valid" not in cut["structure"]
    assert len(analyse(b"# x\n" * 9999, "a.md")["structure"]["headings"]) == ITEMS_MAX


@pytest.mark.parametrize(
    ("file_path", "content"),
    [
        ("a.json", b"[" * 60_000),
        ("a.json", b'{"a\\u0000b": 1}'),
        ("a.json", b'{"\\ud800": 1}'),
        ("a.json", b"9" * 60_000),
        ("a.toml", b"a = " + b"[" * 60_000),
        ("a.toml", b"a = " + b"9" * 60_000),
        ("a.toml", b"a." * 20_000 + b"b = 1"),
        ("a.md", b"# " + b"#" * 60_000 + b"x"),
        ("a.md", b"```\n~~~\n" * 8_000),
        ("a.py", b"async " * 10_000),
        ("a.csv", b'"' * 60_000),
        ("a.docx", b"PK\x03\x04" + b"\xff" * 60_000),
    ],
)
def test_hostile_content_is_answered(file_path: str, content: bytes) -> None:
    check_metadata(analyse(content, file_path))


magic = st.sampled_from([b"", b"PK\x03\x04", PNG[:8], b"%PDF-", b"\x7fELF", b"\x1f\x8b", b"RIFF", b"ID3", b"{", b"#!"])
suffixes = st.sampled_from(["", ".json", ".toml", ".md", ".csv", ".py", ".docx", ".jsonl"])


@given(opening=magic, rest=st.binary(max_size=400), suffix=suffixes)
def test_any_bytes_are_answered_in_json_that_the_ledger_takes(opening: bytes, rest: bytes, suffix: str) -> None:
    answer = analyse(opening + rest, f"file{suffix}")
    assert check_metadata(answer) == json.loads(json.dumps(answer))
    check_content_type(answer["content_type"])


@given(text=st.text(max_size=200), suffix=suffixes)
def test_any_text_is_answered_in_json_that_the_ledger_takes(text: str, suffix: str) -> None:
    check_metadata(analyse(text.encode(), f"file{suffix}"))


async def test_content_is_analysed_wherever_it_is_and_not_where_it_is_not(tmp_path: Path) -> None:
    data = b"# Title\n"
    path, fifo = tmp_path / "a.md", tmp_path / "fifo"
    path.write_bytes(data)
    os.mkfifo(fifo)
    facts = FileFacts(len(data), 0, 0, 0, 0)
    contents: list[Content] = [
        Inline(data),
        LocalFile(str(path), facts),
        Streamed(Digest("ab" * 32, len(data)), data),
        Claimed("ab" * 32, len(data)),
        LocalFile(str(tmp_path / "gone"), facts),
        LocalFile(str(fifo), facts),
    ]
    answers = await LocalIntelligence().analyse_many([request(content, "a.md") for content in contents])
    told = analyse(data, "a.md")
    assert answers[:5] == [told, told, told, None, None]
    assert answers[5] == analyse(b"", "a.md", size=len(data))
    assert await LocalIntelligence().analyse_many([]) == []


def test_a_file_of_this_machine_is_never_opened_for_its_name(tmp_path: Path) -> None:
    trap = tmp_path / "trap.bin"
    os.mkfifo(trap)
    # Opening the FIFO would hang.
    assert analyse(b"\x00\x01", str(trap))["file_type"] == "binary"
