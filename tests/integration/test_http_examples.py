"""Every example of docs/http.md is run by a shell, and is answered as the document says; every call has one.

Those in the other documents are run too: they say nothing of their answers, so that these have to be good.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from omninode_bridge.app.bootstrap import open_bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.http.openapi import describe
from tests.integration.serving import a_stamp, served, token

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "http.md"
# A block, and the paragraph under it. That begins with the status of each call, or with the one that they all have, and
# in its first sentence quotes words of the answers.
BLOCK = re.compile(r"^```sh\n(.*?)^```\n\n(.+?)\n(?:\n|\Z)", re.MULTILINE | re.DOTALL)
STATUSES = re.compile(r"(?:`\d\d\d`(?:, then |, | and )?)+")
WORDS = re.compile(r'`("[^`]*)`')
CALL = re.compile(r'curl\b[^\n]*?"\$SERVER([^"]*)"([^\n]*)')
BLOCK_S_MAX = 60
# What curl tells of each answer goes to standard error, where no example looks.
CURLRC = 'write-out = "%{stderr}%{http_code}\\n"\nno-progress-meter\n'
# What the other documents call a server, and a token.
PLACES = ("localhost:8054", "127.0.0.1:8054", "bridge:8054")
A_TOKEN = "obt_…"
EVENTS = 25
"""More than the examples ask for, which end there."""


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


def others() -> list[tuple[str, str]]:
    """Return the other documents' examples that call a server, each with where it stands."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path != DOCUMENT:
            blocks = re.findall(r"^```sh\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
            found += [(path.name, block) for block in blocks if "curl " in block]
    lines = re.findall(r"^#\s+(curl .*)$", (ROOT / "deploy" / "compose.yaml").read_text(), re.MULTILINE)
    return [*found, *(("compose.yaml", line) for line in lines)]


@pytest_asyncio.fixture
async def environment(database_url: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A server with a token, as the examples' variables, and a home for curl."""
    async with serving(database_url, tmp_path, "legal.*") as variables:
        yield variables


@asynccontextmanager
async def serving(database_url: str, folder: Path, pattern: str | None) -> AsyncIterator[dict[str, str]]:
    """Run a server, with a token for a pattern of namespaces; with None, one that asks for no token and has events."""
    settings = Settings.read(database_url=database_url)
    secret = ""
    if pattern:
        authorization = (await token(database_url, "reader-of-documents", pattern))["authorization"]
        secret = authorization.removeprefix("Bearer ")
    async with open_bridge(settings, "all") as bridge, served(bridge) as client:
        for number in range(0 if pattern else EVENTS):
            (await client.post("/stamp", json=a_stamp(file_path=f"{number}.txt"))).raise_for_status()
        here = f"{client.base_url.host}:{client.base_url.port}"
        (folder / ".curlrc").write_text(CURLRC + "".join(f'connect-to = "{place}:{here}"\n' for place in PLACES))
        yield {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "CURL_HOME": str(folder),
            "HOME": str(folder),
            "SERVER": f"http://{here}",
            "TOKEN": secret,
        }


async def run(script: str, folder: Path, variables: dict[str, str]) -> tuple[str, list[str]]:
    """Have a shell run a script, to a good end; return what it wrote, and the status of each answer that curl got."""
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-o", "pipefail", "-c", script),
        cwd=folder,
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BLOCK_S_MAX):
        output, errors = await shell.communicate()
    assert shell.returncode == 0, (script, output, errors)
    return output.decode(), errors.decode().split()


async def test_every_example_is_answered_as_the_document_says(environment: dict[str, str], tmp_path: Path) -> None:
    for example in EXAMPLES:
        output, got = await run(example.script, tmp_path, environment)
        answers = output.replace('": ', '":')
        told = STATUSES.match(example.told)
        assert told, f"{example.told} begins with no status"
        expected = re.findall(r"\d+", told[0])
        assert got == (expected * len(got) if len(expected) == 1 else expected), (example.script, output, got)
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


@pytest.mark.parametrize(("where", "script"), others(), ids=[where for where, _ in others()])
async def test_the_examples_of_the_other_documents_are_answered_well(
    where: str, script: str, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 a report")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("a document")
    calls = len(re.findall(r"\bcurl ", script))
    async with serving(database_url, tmp_path, "acme.*" if "TOKEN" in script else None) as variables:
        ours = script.replace("http://bridge:8054", variables["SERVER"]).replace(A_TOKEN, variables["TOKEN"])
        output, told = await run(ours, tmp_path, variables)
    statuses = [word for word in told if re.fullmatch(r"\d{3}", word)]
    assert len(statuses) == calls
    assert set(statuses) <= {"200", "201"}, (where, statuses, output)
    ids = re.findall(r"^id: (.+)$", output, re.MULTILINE)
    assert len(ids) == len(set(ids)) == 10 * script.count("limit=10"), "an event came twice, or not at all"


def test_the_examples_of_the_other_documents_are_found() -> None:
    assert {"README.md", "monitoring.md", "compose.yaml"} <= {where for where, _ in others()}
