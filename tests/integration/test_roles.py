"""The roles as processes of their own: each does its part, and the part of one that is gone is done by another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3

from tests.load.fleet import Fleet, Process

NAMESPACE = "acme.docs"
BREAKER_S = 5.0
"""The shipped contract's: an open breaker lets a probe through after so long."""
PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@asynccontextmanager
async def client(process: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=process.url, timeout=60) as opened:
        yield opened


def asked(path: str, content: str = "a") -> dict[str, Any]:
    return {"file_path": path, "namespace": NAMESPACE, "content": content}


async def test_each_role_has_its_calls_and_no_others(folder: Path) -> None:
    async with Fleet.sailing(folder, ["api", "stamping", "orchestrator", "reducer"]) as fleet:
        for process in fleet.processes:
            async with client(process) as http:
                assert (await http.get("/health/live")).status_code == 200
                assert (await http.get("/health/ready")).status_code == 200
                hashed = await http.post("/hash", content=b"a")
                stamped = await http.post("/stamp", json=asked(process.role))
                listed = await http.get("/namespaces")
            codes = (hashed.status_code, stamped.status_code, listed.status_code)
            expected = {"api": (200, 201, 200), "stamping": (200, 201, 404)}
            assert codes == expected.get(process.role, (404, 404, 404)), process.role
        assert fleet.complaints() == []


async def test_what_the_api_accepts_an_orchestrator_runs_and_a_reducer_counts(folder: Path) -> None:
    async with Fleet.sailing(folder, ["api", "orchestrator", "reducer"]) as fleet, client(fleet.of("api")[0]) as http:
        accepted = [await http.post("/workflows", json=asked(f"{n}")) for n in range(20)]
        assert {answer.status_code for answer in accepted} == {202}
        async with asyncio.timeout(PATIENCE_S):
            for answer in accepted:
                while (found := (await http.get(answer.headers["location"])).json())["state"] != "completed":  # noqa: ASYNC110 - a caller can only ask again
                    await asyncio.sleep(0.02)
                assert found["stamp"]["file_hash"] == blake3(b"a").hexdigest()
        (row,) = (await http.get(f"/namespaces/{NAMESPACE}/state")).json()["rows"]
        assert (row["total_stamps"], row["failed"]) == (20, 0)
        assert fleet.complaints() == []


async def test_contents_are_spread_over_stamping_services_and_a_dead_one_costs_nothing(folder: Path) -> None:
    async with Fleet.sailing(folder, ["stamping", "stamping", "reducer"]) as fleet:
        first, second = fleet.of("stamping")
        api = await fleet.join("api", stamping_urls=f"{first.url},{second.url}")
        async with client(api) as http:

            async def stamp(*names: str) -> set[int]:
                answers = await asyncio.gather(*(http.post("/stamp", json=asked(name)) for name in names))
                return {answer.status_code for answer in answers}

            assert await stamp(*(f"a{n}" for n in range(100))) == {201}
            loads = [await _hashed(service) for service in (first, second)]
            assert sum(loads) == 100 and min(loads) >= 20, loads
            await first.kill()
            assert await stamp(*(f"b{n}" for n in range(100))) == {201}
            state = (await http.get(f"/namespaces/{NAMESPACE}")).json()
            assert (state["total_stamps"], state["failed"]) == (200, 0)
        assert fleet.complaints() == []


async def test_without_stamping_services_workflows_fail_fast_and_the_breaker_recovers_by_itself(folder: Path) -> None:
    async with Fleet.sailing(folder, ["stamping", "reducer"]) as fleet:
        (service,) = fleet.of("stamping")
        api = await fleet.join("api", stamping_urls=service.url)
        async with client(api) as http:
            await service.kill()
            for n in range(3):
                failed = (await http.post("/stamp", json=asked(f"down{n}"))).json()
                assert (failed["code"], failed["error_code"]) == ("workflow_failed", "stamping_unavailable"), failed
            workflow = (await http.get(f"/workflows/{failed['workflow_id']}")).json()
            assert [visit["state"] for visit in workflow["history"]] == ["pending", "processing", "failed"]
            assert workflow["error"]["code"] == "stamping_unavailable"
            events = await http.get("/events", params={"namespace": NAMESPACE, "limit": "3"})
            assert events.text.count('"type":"workflow.stamping.failed"') == 3
            await service.start()
            async with asyncio.timeout(PATIENCE_S):
                tries = 0
                while (answer := await http.post("/stamp", json=asked(f"up{tries}"))).status_code != 201:
                    tries += 1
                    await asyncio.sleep(0.2)
            assert answer.json()["version"] == 1
            state = (await http.get(f"/namespaces/{NAMESPACE}")).json()
            assert (state["total_stamps"], state["failed"]) == (1, 3 + tries)
        findings = await fleet.command("audit", "--json")
        assert '"holds":false' not in findings.replace(" ", "")


async def _hashed(service: Process) -> int:
    """Return how many contents a service has hashed."""
    async with client(service) as http:
        samples = (await http.get("/metrics")).text.splitlines()
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in samples
        if line.startswith("omninode_bridge_http_requests_total") and 'route="/hash"' in line
    )
