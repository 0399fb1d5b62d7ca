"""The calls are what /openapi.json says that they are: Schemathesis makes up requests, right and wrong.

It runs as the program that it is, in a process of its own, against the server as a process. FUZZ_EXAMPLES in the
environment is how many requests a call gets of each kind, FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from omninode_bridge.app.administration import administration
from omninode_bridge.app.settings import Settings
from tests.chaos.wire import Connection
from tests.conftest import Server
from tests.load.caller import Ask
from tests.load.fleet import Process

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "8")
SEED = os.environ.get("FUZZ_SEED", "20260305")
RUN_S_MAX = 600
NAMESPACE = "fuzz.docs"

CONFIGURATION = f"""
hooks = "tests.integration.fuzz_hooks"

# A stream of events ends by its limit, if there are so many events: there is one, in this namespace.
[[operations]]
include-path = "/events"
parameters = {{ "query.limit" = 1, "query.namespace" = "{NAMESPACE}" }}
max-stream-events = 1

# Whatever a form's file is made of is a content.
[[operations]]
include-path = "/hash"
checks.negative_data_rejection.enabled = false

# An item that is wrong is answered by a problem of its own, in an answer of 200. A path that has only POST is also
# one of GET /stamp/{{file_hash}}, which says that this is no digest.
[[operations]]
include-path = "/stamp/batch"
checks.negative_data_rejection.enabled = false
checks.unsupported_method.enabled = false
"""
EXCLUDED = (
    # What a schema can't tell: a cursor is one of this list, a query makes a body raw, an op id was used before.
    "positive_data_acceptance",
)


@pytest_asyncio.fixture
async def process(servers: dict[str, Server], tmp_path: Path) -> AsyncIterator[Process]:
    server = servers["embedded"]
    url = await server.create()
    running = Process("all", 1, tmp_path, {"BRIDGE_DATABASE_URL": url})
    async with administration(Settings.read(database_url=url)) as office:
        issued = await office.create_token("fuzz", namespaces=["*"], scopes=["read", "write"])
    (tmp_path / "token").write_text(issued.secret)
    await running.start()
    yield running
    assert await running.stop() == 0
    await server.drop(url)


@pytest.mark.timeout(RUN_S_MAX + 60)
async def test_every_call_answers_as_the_description_says_whatever_it_is_asked(
    process: Process, tmp_path: Path
) -> None:
    print(f"FUZZ_SEED={SEED}")
    authorization = f"Bearer {(tmp_path / 'token').read_text()}"
    body = json.dumps({"namespace": NAMESPACE, "file_path": "a.txt", "content": "a"}).encode()
    async with await Connection.open(process.port) as connection:
        made = await connection.ask(Ask("", "POST", "/stamp", body, {"authorization": authorization}))
        assert made.status == 201
        described = (await connection.ask(Ask("", "GET", "/openapi.json"))).json()
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    # With `default` in it any status would be one that is described.
    for call in (call for calls in described["paths"].values() for call in calls.values()):
        del call["responses"]["default"]
    (tmp_path / "openapi.json").write_text(json.dumps(described))
    arguments = ["run", "openapi.json", "--url", process.url, "--header", f"Authorization: {authorization}"]
    arguments += ["--max-examples", EXAMPLES, "--seed", SEED, "--exclude-checks", ",".join(EXCLUDED)]
    arguments += ["--continue-on-failure", "--no-shrink", "--output-truncate", "false"]
    arguments += ["--report", "json", "--report-json-path", "report.json"]
    fuzzing = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).parent / "schemathesis", *arguments),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(fuzzing.communicate(), RUN_S_MAX)
    finally:
        if fuzzing.returncode is None:
            fuzzing.kill()
            await fuzzing.wait()
    assert fuzzing.returncode == 0, said.decode()
    assert f"Operations:       {sum(map(len, described['paths'].values()))} selected" in said.decode(), said.decode()
    assert not process.complaints()
