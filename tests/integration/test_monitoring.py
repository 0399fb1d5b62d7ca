"""Health, metrics and logs of a real server: true when something is wrong, and silent about whose data it is."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.app import bootstrap, logs
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from tests.integration.books import eventually
from tests.integration.proxy import Proxy
from tests.integration.serving import PATIENCE_S, a_stamp, digest, post_lines, raw_exchange, refused, served, token
from tests.services import Service

SECRETS = {
    "content": "c0ntent-nobody-may-log",
    "metadata": "m3tadata-nobody-may-log",
    "token": "obt_" + "t0ken-nobody-may-log-" * 2 + "x",
    "password": "p4ssword-nobody-may-log",
}
LABELS = {"route", "method", "status", "le", "code", "outcome", "component", "target", "state", "version"}


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def metrics(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """All samples by name and label values, in the order of the labels' names."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (
            sample.name.removeprefix("omninode_bridge_"),
            *(text for _, text in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def component(client: httpx.AsyncClient, name: str) -> Any:
    report = (await client.get("/health")).json()
    (found,) = (each for each in report["components"] if each["name"] == name)
    return found


async def test_a_server_that_is_well_says_so(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    answer = await client.get("/health")
    report = answer.json()
    assert (answer.status_code, report["status"]) == (200, "ok")
    assert {each["name"] for each in report["components"]} == {
        "postgresql", "schema", "ledger_queue", "reducer", "workflows", "tokens",
    }  # fmt: skip
    assert all(each["status"] == "ok" and each["since"].endswith("Z") for each in report["components"])
    found = await metrics(client)
    assert found["ready",] == found["component_status", "postgresql"] == 1
    for name in ("law_broken_total", "unexpected_errors_total", "answers_lost_total", "dead_letters_open"):
        assert found[name,] == 0


async def test_without_its_database_it_says_what_is_down_and_still_tells_the_rest(database_url: str) -> None:
    async with AsyncExitStack() as way:
        proxy = await way.enter_async_context(Proxy(database_url))
        async with Bridge.connect(proxy.url) as bridge, served(bridge) as client:
            well = await component(client, "postgresql")
            await way.aclose()
            problem = await refused(client.get("/health/ready"), 503, "service_unavailable")
            assert "PostgreSQL" in problem["detail"]
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "down")
            by_name = {each["name"]: each for each in answer.json()["components"]}
            assert by_name["postgresql"]["status"] == by_name["schema"]["status"] == "down"
            assert by_name["postgresql"]["since"] > well["since"]
            assert by_name["reducer"]["reason"] == "not known: PostgreSQL can't be asked"
            assert by_name["ledger_queue"]["status"] == "ok"
            found = await metrics(client)
            assert (found["ready",], found["component_status", "postgresql"]) == (0, 0)
            assert found["ledger_queue_stamps",] == 0
            # An old number would look like a good one.
            assert ("reducer_lag_events",) not in found


async def test_with_another_schema_it_is_not_ready(client: httpx.AsyncClient, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO schema_migrations VALUES (9999, '9999_newer.sql', 'x')")
    problem = await refused(client.get("/health/ready"), 503, "schema_mismatch")
    assert "9999" in problem["detail"]
    await connection.execute("DELETE FROM schema_migrations WHERE number = 9999")
    await connection.close()
    assert (await client.get("/health/ready")).status_code == 200


async def test_on_a_database_that_is_read_only_it_is_not_ready(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await connection.close()
    settings = Settings.read(database_url=database_url)
    async with bootstrap.connect(database_url, settings, "api") as bridge, served(bridge) as client:
        problem = await refused(client.get("/health/ready"), 503, "service_unavailable")
        assert "read-only" in problem["detail"]


async def test_while_its_queue_is_full_it_is_not_ready(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres._SETTINGS, "lock_timeout", "120000")  # what is held is held to the end
    blocker = await asyncpg.connect(database_url)
    settings = Settings.read(queue_max=2, writers=1)
    async with Bridge.connect(database_url, settings=settings) as bridge, served(bridge) as client:
        await bridge.stamp(b"x", file_path="first")
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("LOCK TABLE metadata_stamps IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(bridge.stamp(b"x", file_path="held"))]

        async def stuck() -> bool:
            return bool(
                await blocker.fetchval(
                    """SELECT EXISTS (SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock')"""
                )
            )

        await eventually(stuck, "a commit waits for the lock")
        waiting += [asyncio.create_task(bridge.stamp(b"x", file_path=f"{n}")) for n in range(2)]

        async def full() -> bool:
            return (await metrics(client))["ledger_queue_stamps",] == 2

        await eventually(full, "the queue is full")
        problem = await refused(client.get("/health/ready"), 503, "service_unavailable")
        assert "queue is full" in problem["detail"]
        found = await component(client, "ledger_queue")
        assert (found["status"], found["needed"]) == ("down", True)
        await refused(client.post("/stamp", json=a_stamp()), 503, "overloaded")
        await transaction.rollback()
        await asyncio.gather(*waiting)
        assert (await client.get("/health/ready")).status_code == 200
        found = await metrics(client)
        assert found["http_problems_total", "overloaded"] == 1
        assert found["stamps_total", "refused"] >= 1  # the step is tried again before the caller is told
    await blocker.close()


async def test_what_is_not_folded_is_told_with_its_age(database_url: str) -> None:
    settings = Settings.read(database_url=database_url)
    async with bootstrap.connect(database_url, settings, "api") as bridge, served(bridge) as client:
        for path in ("a", "b", "c"):
            await bridge.stamp(b"x", file_path=path)
        found = await metrics(client)
        assert found["reducer_lag_events",] == 3
        assert 0 < found["reducer_oldest_event_age_seconds",] < 600
        async with bootstrap.connect(database_url, settings, "reducer") as reducer, served(reducer) as other:

            async def folded() -> bool:
                return (await metrics(other))["reducer_lag_events",] == 0

            await eventually(folded, "the reducer has folded all")
            assert (await metrics(other))["reducer_events_total",] == 3
            assert (await component(other, "reducer"))["needed"]
            assert not (await component(other, "ledger_queue"))["needed"]
        found = await metrics(client)
        assert found["reducer_lag_events",] == found["reducer_oldest_event_age_seconds",] == 0


async def test_a_broken_log_is_told_loudly_and_stamps_go_on(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.read(database_url=database_url)
    async with bootstrap.connect(database_url, settings, "api") as bridge:
        for path in ("a", "b", "c", "d"):
            await bridge.stamp(b"x", file_path=path)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE event_log SET previous_id = gen_random_uuid() WHERE position = 2")
    await connection.close()
    async with bootstrap.connect(database_url, settings, "all") as bridge, served(bridge) as client:

        async def told() -> bool:
            return (await metrics(client))["law_broken_total",] > 0

        await eventually(told, "the broken law is counted")
        found = await component(client, "reducer")
        assert found["status"] == "down"
        assert "does not continue after position" in found["reason"]
        assert (await metrics(client))["reducer_errors_total", "law_broken"] > 0
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/stamp", json=a_stamp())).status_code == 201
        problem = await refused(client.get("/namespaces"), 500, "law_broken")
        assert "position" not in problem["detail"]
    said = [record.getMessage() for record in caplog.records]
    assert sum("the reducer can't fold" in line for line in said) == 1
    assert sum("a request met what must not be" in line for line in said) == 1


async def test_an_event_that_can_t_be_read_is_told_until_it_is_dealt_with(database_url: str) -> None:
    settings = Settings.read(database_url=database_url)
    async with bootstrap.connect(database_url, settings, "api") as bridge:
        await bridge.stamp(b"x", file_path="a")
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE event_log SET body = 'damaged'")
    async with bootstrap.connect(database_url, settings, "all") as bridge, served(bridge) as client:

        async def told() -> bool:
            return (await metrics(client))["dead_letters_open",] == 1

        await eventually(told, "the dead letter is counted")
        found = await component(client, "reducer")
        assert (found["status"], "dead letters" in found["reason"]) == ("degraded", True)
        await connection.execute("UPDATE dead_letters SET status = 'discarded'")
        assert (await component(client, "reducer"))["status"] == "ok"
    await connection.close()


async def test_stamping_services_are_told_by_their_place(database_url: str) -> None:
    async with Service() as up, Service() as gone:
        await gone.stop()
        settings = Settings.read(database_url=database_url, stamping_urls=f"{gone.url},{up.url}")
        async with Bridge.connect(database_url, settings=settings) as bridge, served(bridge) as client:
            await asyncio.gather(*(client.post("/stamp", json=a_stamp(file_path=f"{n}")) for n in range(60)))
            found = await metrics(client)
            assert found["stamping_breaker_state", "open", "0"] == found["stamping_breaker_state", "closed", "1"] == 1
            assert found["stamping_failures_total", "0"] > 0
            assert found["stamping_calls_total", "1"] >= 60
            told = await client.get("/health")
            assert (told.status_code, told.json()["status"]) == (200, "degraded")
            await up.stop()
            await asyncio.gather(*(client.post("/stamp", json=a_stamp(content=f"{n}")) for n in range(20)))
            assert (await component(client, "stamping_services"))["status"] == "down"
            everything = told.text + (await client.get("/health")).text + (await client.get("/metrics")).text
            assert not [url for url in (up.url, gone.url) if url.removeprefix("http://") in everything]
            assert (await metrics(client))["stamps_total", "failed"] > 0
        await gone.start()
        await up.start()


async def mixed_traffic(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Every call, well and badly asked, with secrets wherever something can be put."""
    fields = {"content": SECRETS["content"], "metadata": {"k": SECRETS["metadata"]}}
    op_id = str(uuid4())
    for stamp in (a_stamp(**fields), a_stamp(**fields, op_id=op_id), a_stamp(**fields, op_id=op_id, file_path="other")):
        await client.post("/stamp", json=stamp, headers=headers)
    raw = {"file_path": "raw.bin", "namespace": "legal.contracts", "metadata": json.dumps({"k": SECRETS["metadata"]})}
    await client.post("/stamp", params=raw, content=SECRETS["content"].encode(), headers=headers)
    await client.post("/stamp", content=b'{"content": "' + SECRETS["content"].encode(), headers=headers)
    await client.post("/stamp", json=a_stamp(namespace=SECRETS["metadata"].upper()), headers=headers)
    await client.post("/stamp", json=a_stamp(metadata={"k": SECRETS["metadata"] + "\0"}), headers=headers)
    await client.post("/hash", content=SECRETS["content"].encode(), headers=headers)
    await post_lines(
        client, a_stamp(**fields), {"content": SECRETS["content"]}, b"{" + SECRETS["content"].encode(), **headers
    )
    await client.post("/workflows", json=a_stamp(file_path="w", **fields), headers=headers)
    await client.post(
        "/validate", json={"namespace": "legal.contracts", "content": SECRETS["content"]}, headers=headers
    )
    for path in (
        f"/stamp/{digest(b'x')}", f"/stamp/{SECRETS['content']}", "/namespaces", "/namespaces/legal.contracts",
        "/namespaces/legal.contracts/stamps", "/namespaces/legal.contracts/state", f"/workflows/{op_id}",
        "/events?limit=1", f"/events?last_event_id={SECRETS['content']}", "/docs", "/openapi.json", "/health",
        f"/no/such/{SECRETS['content']}", f"/{SECRETS['token']}", f"/events?token={SECRETS['token']}",
        f"/stamp?password={SECRETS['password']}", "/health/ready",
    ):  # fmt: skip
        await client.get(path, headers=headers)
        await client.request("PURGE", path, headers=headers)
    await client.get("/namespaces", headers={"authorization": f"Bearer {SECRETS['token']}"})
    await client.get("/namespaces", headers={"authorization": f"Basic {SECRETS['password']}"})
    await client.get("/namespaces", headers={**headers, "x-correlation-id": "traced", "cookie": SECRETS["password"]})
    await raw_exchange(client, f"GET /{SECRETS['content']}\x00 {SECRETS['token']}\r\n\r\n".encode())


async def test_no_label_tells_of_anybody(client: httpx.AsyncClient, database_url: str) -> None:
    headers = await token(database_url, "token-name-of-a-tenant", "legal.*", scopes="read,write")
    await mixed_traffic(client, headers)
    await client.get("/metrics")
    text = (await client.get("/metrics")).text
    series = [
        (sample.name, sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    routes = {labels["route"] for _, labels in series if "route" in labels}
    assert {"/stamp", "/stamp/{file_hash}", "/namespaces/{namespace}/state", "/events", "/metrics", "none"} <= routes
    assert all("?" not in route and len(route) < 40 for route in routes)
    assert {label for _, labels in series for label in labels} <= LABELS
    statuses = {labels["status"] for name, labels in series if name == "omninode_bridge_http_requests_total"}
    assert {"200", "201", "202", "401", "404", "405", "409", "422"} <= statuses
    for name in ("legal", "contracts", "token-name", "raw.bin", "traced", digest(b"x"), *SECRETS.values()):
        assert name not in text
    found = await metrics(client)
    assert found["stamps_total", "new"] == 2
    assert found["stamps_total", "deduplicated"] >= 1
    assert found["stamps_total", "refused"] >= 1
    assert found["stamps_total", "accepted"] == 1
    assert found["http_problems_total", "unauthenticated"] >= 2
    assert found["http_problems_total", "op_id_conflict"] == 1
    assert found["http_requests_in_progress",] == 1
    assert found["unexpected_errors_total",] == found["answers_lost_total",] == 0
    # What anybody may ask for makes no new series.
    for n in range(30):
        await client.get(f"/nowhere/{n}", headers={**headers, "x-correlation-id": f"{n}"})
    assert len(await metrics(client)) == len(found)


async def test_the_page_on_monitoring_has_every_metric(database_url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    async with Service() as service:
        settings = Settings.read(database_url=database_url, stamping_urls=service.url)
        async with bootstrap.connect(database_url, settings, "all") as bridge, served(bridge) as client:
            text = (await client.get("/metrics")).text
            report = (await client.get("/health")).json()
    names = {
        line.split()[2].removeprefix("omninode_bridge_") for line in text.splitlines() if line.startswith("# TYPE")
    }
    assert [name for name in sorted(names) if f"`{name}" not in page] == []
    assert [each["name"] for each in report["components"] if f"| `{each['name']}` |" not in page] == []


async def test_no_line_of_the_log_tells_a_secret(
    database_url: str, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    with logs.configured("debug", "json", stream):
        async with served(bridge, access_log=True) as client:
            headers = await token(database_url, "mine", "legal.*")
            trace = {"traceparent": f"00-{'4bf92f3577b34da6a3ce929d0e0e4736'}-00f067aa0ba902b7-01"}
            await mixed_traffic(client, headers | trace)

            async def break_down(*_: object) -> Any:
                raise ValueError(f"can't stamp {SECRETS['content']} with {SECRETS['metadata']}")

            monkeypatch.setattr(type(bridge.orchestrator), "accept", break_down)
            await refused(
                client.post("/workflows", json=a_stamp(content=SECRETS["content"]), headers=headers),
                500,
                "internal_error",
            )
        logs.logging.getLogger("asyncio").error("x\nfuture: <Task exception=ValueError('%s')>", SECRETS["content"])
    text = stream.getvalue()
    assert [name for name, secret in SECRETS.items() if secret in text] == []
    assert headers["authorization"].removeprefix("Bearer ") not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event", "logger"} <= line.keys() for line in lines)
    accesses = [line for line in lines if line["logger"] == "omninode_bridge.access"]
    assert len(accesses) > 40
    assert all(
        {"correlation_id", "route", "status", "seconds", "principal", "code"} <= line.keys() for line in accesses
    )
    stamps = [line for line in accesses if line["route"] == "/stamp" and line["status"] == 201]
    assert {line["trace_id"] for line in stamps} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert {line["principal"] for line in stamps} == {"mine"}
    assert {line["correlation_id"] for line in accesses} >= {"traced"}
    (failed,) = (line for line in lines if line["level"] == "error" and line["logger"].startswith("omninode_bridge"))
    assert "break_down" in failed["exception"] and "ValueError" in failed["exception"]


async def test_a_request_makes_one_line_only_where_that_is_asked_for(bridge: Bridge) -> None:
    for asked in (False, True):
        stream = io.StringIO()
        with logs.configured("info", "json", stream):
            async with served(bridge, access_log=asked) as client:
                await client.post("/stamp", json=a_stamp(file_path=str(asked)), headers={"x-correlation-id": "one"})
                async with asyncio.timeout(PATIENCE_S):
                    while asked and "one" not in stream.getvalue():  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [(line["event"], line["route"], line["correlation_id"]) for line in lines if "route" in line] == (
            [("POST /stamp 201", "/stamp", "one")] if asked else []
        )
