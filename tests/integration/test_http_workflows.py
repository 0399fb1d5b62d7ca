"""Workflows that run later, over real sockets: accepted durably, run by a worker, told of by GET."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.queue import PostgresWorkQueue
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app.bootstrap import open_bridge
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import AttemptFailed
from omninode_bridge.nodes.orchestrator import v1_0_0
from tests.integration.serving import (
    NAMESPACE,
    PATIENCE_S,
    a_stamp,
    digest,
    nothing_recorded,
    refused,
    served,
    token,
)
from tests.services import Service, answer

CONTRACT = Path(v1_0_0.__path__[0]) / "contract.yaml"
MEBIBYTE = 1024 * 1024
PLAIN = {"workflow_id", "namespace", "file_path", "state", "why", "history", "error", "deduplicated", "stamp"}
WAITING = {"attempts", "attempts_max", "worker", "next_attempt_at", "leased_until", "last_error"}


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    """A bridge without a worker: what is accepted waits."""
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def accepted(client: httpx.AsyncClient, **fields: Any) -> Any:
    got = await client.post("/workflows", json=a_stamp(**fields))
    assert got.status_code == 202, got.text
    report = got.json()
    assert got.headers["location"] == f"/workflows/{report['workflow_id']}?namespace={report['namespace']}"
    return report


async def ended(client: httpx.AsyncClient, workflow_id: str) -> Any:
    """Ask until a workflow has come to its end."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            report = (await client.get(f"/workflows/{workflow_id}")).json()
            if report["state"] in ("completed", "failed"):
                return report
            await asyncio.sleep(0.02)


async def test_an_accepted_workflow_waits_durably(database_url: str, client: httpx.AsyncClient) -> None:
    report = await accepted(client, metadata={"case": 7})
    assert report.keys() == PLAIN | WAITING
    assert (report["state"], report["stamp"], report["error"]) == ("pending", None, None)
    assert [visit["state"] for visit in report["history"]] == ["pending"]
    assert (report["attempts"], report["worker"], report["leased_until"]) == (0, None, None)
    assert report["attempts_max"] > 0
    assert report["next_attempt_at"]
    assert report["why"] == "it waits for a free worker"
    async with Bridge.connect(database_url) as other, served(other) as elsewhere:
        assert (await elsewhere.get(f"/workflows/{report['workflow_id']}")).json() == report


async def test_a_worker_ends_it_with_its_stamp(database_url: str) -> None:
    settings = Settings.read(database_url=database_url)
    async with open_bridge(settings, "all") as bridge, served(bridge) as client:
        content = bytes(range(256)) * 100
        encoded = base64.b64encode(content).decode()
        asked = {"file_path": "a.bin", "namespace": NAMESPACE, "content_base64": encoded, "metadata": {"case": 7}}
        made = await client.post("/workflows", json=asked)
        report = await ended(client, made.json()["workflow_id"])
        assert report.keys() == PLAIN
        assert [visit["state"] for visit in report["history"]] == ["pending", "processing", "completed"]
        assert [visit["trigger"] for visit in report["history"]] == [None, "start", "complete"]
        stamp = report["stamp"]
        assert (stamp["file_hash"], stamp["metadata"], stamp["op_id"]) == (
            digest(content),
            {"case": 7},
            report["workflow_id"],
        )
        found = await client.get(f"/stamp/{digest(content)}?namespace={NAMESPACE}")
        assert found.json()["stamps"] == [stamp]
        assert f"version 1 of the path, by stamp {stamp['stamp_id']}" in report["why"]
        # The same bytes again make no new version; sent again, each is answered as it stands.
        second = await ended(client, (await client.post("/workflows", json=asked)).json()["workflow_id"])
        assert (second["deduplicated"], second["stamp"]["stamp_id"]) == (True, stamp["stamp_id"])
        assert "no new version" in second["why"]
        again = await client.post("/workflows", json=asked | {"op_id": report["workflow_id"]})
        assert (again.status_code, again.json()) == (202, report)


async def test_an_op_id_is_accepted_again_and_only_for_the_same_request(client: httpx.AsyncClient) -> None:
    op_id = str(uuid4())
    first = await accepted(client, op_id=op_id)
    assert await accepted(client, op_id=op_id) == first
    raw = await client.post(
        "/workflows", params={"file_path": "a.txt", "namespace": NAMESPACE, "op_id": op_id}, content=b"hello"
    )
    assert (raw.status_code, raw.json()) == (202, first)
    other = client.post("/workflows", json=a_stamp(op_id=op_id, content="other"))
    assert (await refused(other, 409, "op_id_conflict", "op_id"))["op_id"] == op_id
    waiting = client.post("/stamp", json=a_stamp(op_id=op_id))
    await refused(waiting, 409, "in_progress", "op_id")


async def test_what_was_stamped_at_once_is_a_workflow_too(client: httpx.AsyncClient) -> None:
    stamp = (await client.post("/stamp", json=a_stamp())).json()
    report = (await client.get(f"/workflows/{stamp['workflow_id']}")).json()
    assert report.keys() == PLAIN
    assert (report["state"], report["stamp"], report["deduplicated"]) == ("completed", stamp, False)
    assert (await client.get(f"/workflows/{stamp['workflow_id'].upper()}")).json() == report


async def test_why_it_waits_is_told_in_words(database_url: str, bridge: Bridge, client: httpx.AsyncClient) -> None:
    workflow_id = (await accepted(client))["workflow_id"]

    async def told() -> Any:
        return (await client.get(f"/workflows/{workflow_id}")).json()

    async with pool(database_url) as opened:
        queue = PostgresWorkQueue(opened, bridge.orchestrator.bridge_contract.plan, utc_now)
        (held,) = await queue.claim("worker-7", count_max=1, bytes_max=MEBIBYTE, lease_s=600)
        report = await told()
        assert (report["state"], report["attempts"], report["worker"]) == ("processing", 1, "worker-7")
        assert report["next_attempt_at"] is None
        assert datetime.fromisoformat(report["leased_until"]) > datetime.now(UTC) + timedelta(seconds=500)
        assert report["why"].startswith(f"worker worker-7 runs it (attempt 1 of {report['attempts_max']})")

        failed = AttemptFailed("no stamping service answers", step="hash", error_code="stamping_unavailable")
        await queue.release([held], delay_s=-60, error=failed)
        report = await told()
        assert (report["worker"], report["leased_until"]) == (None, None)
        assert report["last_error"] == {"code": "stamping_unavailable", "message": "no stamping service answers"}
        assert "failed with stamping_unavailable: no stamping service answers; it waits for a free" in report["why"]

        (held,) = await queue.claim("worker-8", count_max=1, bytes_max=MEBIBYTE, lease_s=-60)
        report = await told()
        assert (report["attempts"], report["worker"]) == (2, "worker-8")
        assert report["why"].endswith("the next free worker takes it over")

        await queue.release([held], delay_s=600, error=failed)
        assert "; it is tried again from" in (await told())["why"]


async def test_a_workflow_that_fails_for_good_says_in_which_step(database_url: str, tmp_path: Path) -> None:
    async with Service(answer("no", status=500)) as broken:
        contract = tmp_path / "contract.yaml"
        contract.write_text(CONTRACT.read_text().replace("attempts_max: 8", "attempts_max: 1"))
        settings = Settings.read(database_url=database_url, stamping_urls=[broken.url], orchestrator_contract=contract)
        async with open_bridge(settings, "all") as bridge, served(bridge) as client:
            report = await ended(client, (await accepted(client))["workflow_id"])
    assert report.keys() == PLAIN
    assert (report["state"], report["stamp"], report["error"]["step"]) == ("failed", None, "hash")
    assert report["error"]["code"] == "stamping_unavailable"
    assert report["why"].startswith("step hash failed with stamping_unavailable")
    assert [visit["state"] for visit in report["history"]] == ["pending", "processing", "failed"]


async def test_an_id_in_several_namespaces_needs_the_namespace(database_url: str, client: httpx.AsyncClient) -> None:
    op_id = str(uuid4())
    for namespace in ("acme.docs", "rival.docs"):
        await accepted(client, op_id=op_id, namespace=namespace)
    problem = await refused(client.get(f"/workflows/{op_id}"), 422, "invalid_input", "namespace")
    assert "acme.docs" in problem["detail"]
    assert (await client.get(f"/workflows/{op_id}?namespace=acme.docs")).json()["namespace"] == "acme.docs"
    # Among those that the caller may see, it is unique.
    mine = await token(database_url, "acme-ci", "acme.*")
    seen = await client.get(f"/workflows/{op_id}", headers=mine)
    assert seen.json()["namespace"] == "acme.docs"


async def test_what_may_not_be_seen_is_not_found_like_what_is_not_there(
    database_url: str, client: httpx.AsyncClient
) -> None:
    hidden = (await accepted(client, namespace="rival.docs"))["workflow_id"]
    mine = await token(database_url, "acme-ci", "acme.*")
    missing = str(uuid4())
    for query in ("", "?namespace=rival.docs"):
        answers = [await client.get(f"/workflows/{name}{query}", headers=mine) for name in (hidden, missing)]
        texts = [got.text.replace(name, "ID") for got, name in zip(answers, (hidden, missing), strict=True)]
        assert [got.status_code for got in answers] == [404, 404]
        assert texts[0] == texts[1]
    writer = await token(database_url, "writer", "rival.*", scopes="write")
    await refused(client.get(f"/workflows/{hidden}", headers=writer), 403, "forbidden")
    elsewhere = client.post("/workflows", json=a_stamp(namespace="rival.docs"), headers=mine)
    await refused(elsewhere, 403, "forbidden", "namespace")
    named = await client.post("/workflows", json=a_stamp(namespace="rival.docs"), headers=writer)
    assert named.status_code == 202


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"embed": True}, "embed"),
        ({"namespace": "Bad"}, "namespace"),
        ({"file_path": ""}, "file_path"),
        ({"op_id": "seven"}, "op_id"),
        ({"metadata": {"n": 10**400, "nul": "\0"}}, "metadata"),
        ({"colour": "red"}, "colour"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_value_that_is_not_allowed_is_named(
    bridge: Bridge, client: httpx.AsyncClient, fields: dict[str, Any], field: str
) -> None:
    await refused(client.post("/workflows", json=a_stamp(**fields)), 422, "invalid_input", field)
    await nothing_recorded(bridge)


async def test_embedding_is_refused_with_the_reason(client: httpx.AsyncClient) -> None:
    for sent in ({"json": a_stamp(embed=True)}, {"params": {"file_path": "a.py", "embed": "true"}, "content": b"x"}):
        problem = await refused(client.post("/workflows", **sent), 422, "invalid_input", "embed")  # type: ignore[arg-type]
        assert "before there is a stamp" in problem["detail"]


async def test_content_that_is_too_large_to_wait_is_refused(client: httpx.AsyncClient) -> None:
    parameters = {"file_path": "a.bin", "namespace": NAMESPACE}
    most = await client.post("/workflows", params=parameters, content=bytes(8 * MEBIBYTE))
    assert most.status_code == 202
    over = client.post("/workflows", params=parameters, content=bytes(8 * MEBIBYTE + 1))
    assert "POST /stamp" in (await refused(over, 413, "limit_exceeded", "content"))["detail"]
    await refused(
        client.post("/workflows", params=parameters, content=bytes(16 * MEBIBYTE + 1)), 413, "limit_exceeded", "body"
    )


async def test_what_is_asked_of_it_has_to_be_an_id(client: httpx.AsyncClient) -> None:
    await refused(client.get("/workflows/seven"), 422, "invalid_input", "workflow_id")
    await refused(client.get(f"/workflows/{uuid4()}"), 404, "not_found")
    await refused(client.get(f"/workflows/{uuid4()}?namespace=Bad"), 422, "invalid_input", "namespace")
    await refused(client.get(f"/workflows/{uuid4()}?limit=1"), 422, "invalid_input", "limit")
    await refused(client.get("/workflows/a%00b"), 422, "invalid_input", "workflow_id")
