"""Every example of docs/http.md is run by a shell, and is answered as the document says; every call has one."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest_asyncio

from omninode_bridge.app.bootstrap import open_bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.http.openapi import describe
from tests.integration.serving import served, token

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "http.md"
# A block, and the paragraph under it. That begins with the status of each call, or with the one that they all have, and
# in its first sentence quotes words of the answers.
BLOCK = re.compile(r"^```sh\n(.*?)^```\n\n(.+?)\n(?:\n|\Z)", re.MULTILINE | re.DOTALL)
STATUSES = re.compile(r"(?:`\d\d\d`(?:, then |, | and )?)+")
WORDS = re.compile(r'`("[^`]*)`')
CALL = re.compile(r'curl\b[^\n]*?"\$SERVER([^"]*)"([^\n]*)')
BLOCK_S_MAX = 60
# What curl tells of each answer goes to standard error, where no example looks.
CURLRC = 'write-out = "%{stderr}%{http_code}\\n"\n'


class Example(NamedTuple):
    script: str
    told: str

    @property
    def calls(self) -> list[tuple[str, str]]:
        """The method and the path of each curl."""
        script = self.script.replace("\\\n", " ")
        return [
            ("post" if re.search(r" (?:-d|--data-binary|-F) ", rest) else "get", url.partition("?")[0])
            for url, rest in CALL.findall(script)
        ]


EXAMPLES = [example for example in map(Example._make, BLOCK.findall(DOCUMENT.read_text())) if example.calls]


@pytest_asyncio.fixture
async def environment(database_url: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A server with a token, as the examples' variables, and a home for curl."""
    (tmp_path / ".curlrc").write_text(CURLRC)
    settings = Settings.read(database_url=database_url)
    authorization = (await token(database_url, "reader-of-documents", "legal.*"))["authorization"]
    async with open_bridge(settings, "all") as bridge, served(bridge) as client:
        yield {
            "PATH": os.environ["PATH"],
            "CURL_HOME": str(tmp_path),
            "SERVER": str(client.base_url).rstrip("/"),
            "TOKEN": authorization.removeprefix("Bearer "),
        }


async def test_every_example_is_answered_as_the_document_says(environment: dict[str, str], tmp_path: Path) -> None:
    for example in EXAMPLES:
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-eu", "-o", "pipefail", "-c", example.script),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(BLOCK_S_MAX):
            output, errors = await shell.communicate()
        assert shell.returncode == 0, (example.script, output, errors)
        got, answers = errors.decode().split(), output.decode().replace('": ', '":')
        told = STATUSES.match(example.told)
        assert told, f"{example.told} begins with no status"
        expected = re.findall(r"\d+", told[0])
        assert got == (expected * len(got) if len(expected) == 1 else expected), (example.script, output, errors)
        for words in WORDS.findall(re.split(r"\.\s", example.told)[0]):
            assert words.replace('": ', '":') in answers, (example.script, words, output)


def test_every_call_has_an_example() -> None:
    shown = {call for example in EXAMPLES for call in example.calls}
    missing = []
    for path, item in describe("", "")["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", r"[^/]+", path))
        missing += [
            f"{method} {path}"
            for method in item
            if not any(method == verb and pattern.fullmatch(url) for verb, url in shown)
        ]
    assert missing == []
