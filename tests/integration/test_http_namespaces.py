"""Lists over real sockets: namespaces, their stamps and their aggregates, page by page, for those who may see them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import asyncpg
import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from tests.integration.serving import NAMESPACE, a_stamp, digest, post_lines, read_lines, refused, served, token
from tests.services import Service, answer

ROW = {
    "namespace",
    "aggregation_type",
    "group_key",
    "total_stamps",
    "failed",
    "total_size_bytes",
    "processing_time_us_sum",
    "processing_time_us_min",
    "processing_time_us_max",
    "first_at",
    "last_at",
}

PAGES_MAX = 100
"""More than any list of these tests has."""


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def stamp_some(client: httpx.AsyncClient, *items: dict[str, Any], **headers: str) -> list[Any]:
    stamps = read_lines(await post_lines(client, *(a_stamp(**item) for item in items), **headers))
    assert all("stamp_id" in stamp for stamp in stamps), stamps
    return stamps


async def pages(client: httpx.AsyncClient, url: str, key: str, **parameters: Any) -> list[list[Any]]:
    """Follow a list to its end by its links, which lead where its `next` does."""
    found = []
    got = await client.get(url, params=parameters)
    while True:
        assert got.status_code == 200, got.text
        found.append(got.json()[key])
        cursor = got.json()["next"]
        assert ("link" in got.headers) == (cursor is not None)
        if cursor is None:
            return found
        assert len(found) < PAGES_MAX
        linked = next_link(got)
        assert dict(parse_qsl(urlsplit(linked).query)) == {k: str(v) for k, v in parameters.items()} | {
            "cursor": cursor
        }
        got = await client.get(linked)


def flat(found: list[list[Any]]) -> list[Any]:
    return [item for page in found for item in page]


def next_link(got: httpx.Response) -> str:
    target: str = got.links["next"]["url"]
    assert target.startswith("/namespaces")
    return target


async def test_the_overview_has_the_totals_of_each_namespace(client: httpx.AsyncClient) -> None:
    assert (await client.get("/namespaces")).json() == {"namespaces": [], "next": None}
    await stamp_some(
        client,
        {"namespace": "b.two", "content": "12345"},
        {"namespace": "b.two", "file_path": "b.txt", "content": "123"},
        {"namespace": "a.one"},
    )
    rows = (await client.get("/namespaces")).json()["namespaces"]
    assert [row.keys() for row in rows] == [ROW, ROW]
    assert [(row["namespace"], row["total_stamps"], row["total_size_bytes"]) for row in rows] == [
        ("a.one", 1, 5),
        ("b.two", 2, 8),
    ]
    assert (await client.get("/namespaces/b.two")).json() == rows[1]
    assert rows[1]["aggregation_type"] == "namespace"


async def test_namespaces_come_in_pages_by_name(client: httpx.AsyncClient) -> None:
    names = [f"ns-{n}" for n in range(7)]
    await stamp_some(client, *({"namespace": name} for name in names))
    found = await pages(client, "/namespaces", "namespaces", limit=3)
    assert [[row["namespace"] for row in page] for page in found] == [names[:3], names[3:6], names[6:]]
    assert await pages(client, "/namespaces", "namespaces", limit=7) == [flat(found)]


async def test_stamps_come_in_pages_newest_first(client: httpx.AsyncClient) -> None:
    stamps = await stamp_some(client, *({"file_path": f"{n}.txt"} for n in range(10)))
    await stamp_some(client, {"namespace": "else.where"})
    found = await pages(client, f"/namespaces/{NAMESPACE}/stamps", "stamps", limit=4)
    assert [len(page) for page in found] == [4, 4, 2]
    assert flat(found) == stamps[::-1]
    first = await client.get(f"/namespaces/{NAMESPACE}/stamps", params={"limit": 4})
    # What is stamped meanwhile is newer than the cursor: the next page is the same.
    await stamp_some(client, {"file_path": "new.txt"})
    assert (await client.get(next_link(first))).json()["stamps"] == found[1]


async def test_pages_of_great_stamps_are_short_and_all_of_them_come(client: httpx.AsyncClient) -> None:
    great = {"metadata": {"k": "x" * 60_000}}
    stamps = await stamp_some(client, *({"file_path": f"{n}.txt", **great} for n in range(150)))
    found = await pages(client, f"/namespaces/{NAMESPACE}/stamps", "stamps", limit=1000)
    assert [len(page) for page in found] == [69, 69, 12]  # of 4 MiB
    assert [stamp["stamp_id"] for stamp in flat(found)] == [stamp["stamp_id"] for stamp in reversed(stamps)]
    looked_up = (await client.get(f"/stamp/{stamps[0]['file_hash']}")).json()["stamps"]
    assert looked_up == found[0]


async def test_stamps_are_filtered(client: httpx.AsyncClient) -> None:
    old, text, code, claimed = await stamp_some(
        client,
        {"content": "old"},
        {"content": "new"},
        {"file_path": "b.py", "content": "new"},
        {"file_path": "c.bin", "content": "x"},
    )
    hashed = {"file_path": "d.bin", "namespace": NAMESPACE, "file_hash": digest(b"d"), "file_size": 1}
    (there,) = read_lines(await post_lines(client, hashed))
    everything = [there, claimed, code, text, old]

    async def listed(**parameters: str) -> list[Any]:
        got = await client.get(f"/namespaces/{NAMESPACE}/stamps", params=parameters)
        assert (got.status_code, got.json()["next"]) == (200, None), got.text
        stamps: list[Any] = got.json()["stamps"]
        return stamps

    assert await listed() == everything
    assert await listed(file_path="a.txt") == [text, old]
    assert await listed(file_hash=digest(b"new").upper()) == [code, text]
    assert await listed(file_path="a.txt", file_hash=digest(b"new")) == [text]
    assert await listed(content_type=code["content_type"]) == [code]
    assert await listed(digest_origin="claimed") == [there]
    assert await listed(stamped_by=old["stamped_by"]) == everything
    assert await listed(stamped_by="nobody") == []
    assert await listed(since=there["completed_at"]) == [there]
    assert await listed(until=old["completed_at"]) == []
    since = datetime.fromisoformat(old["completed_at"]) - timedelta(hours=1)
    assert await listed(since=since.astimezone(UTC).isoformat()) == everything
    assert await listed(since="0001-01-01T00:00:00Z", until="9999-12-31T23:59:59Z") == everything


async def test_the_state_has_the_rows_of_a_grouping(client: httpx.AsyncClient) -> None:
    stamps = await stamp_some(
        client,
        {"content": "12345", "metadata": {"project": "apollo"}},
        {"file_path": "b.py", "content": "1" * 5000},
    )

    async def rows(by: str | None = None) -> list[Any]:
        parameters = {} if by is None else {"by": by}
        got = await client.get(f"/namespaces/{NAMESPACE}/state", params=parameters)
        assert got.status_code == 200, got.text
        state = got.json()
        assert (state.keys(), state["namespace"], state["next"]) == (
            {"namespace", "as_of", "rows", "next"},
            NAMESPACE,
            None,
        )
        assert datetime.fromisoformat(state["as_of"]) >= datetime.fromisoformat(stamps[-1]["completed_at"])
        assert all(row.keys() == ROW and row["namespace"] == NAMESPACE for row in state["rows"])
        found: list[Any] = state["rows"]
        return found

    (totals,) = await rows()
    assert (totals["total_stamps"], totals["total_size_bytes"], totals["failed"]) == (2, 5005, 0)
    assert totals == (await client.get(f"/namespaces/{NAMESPACE}")).json()
    assert await rows("namespace") == [totals]
    assert [(row["group_key"], row["total_size_bytes"]) for row in await rows("content_type")] == sorted(
        (stamp["content_type"], stamp["file_size"]) for stamp in stamps
    )
    assert [(row["group_key"], row["total_stamps"]) for row in await rows("size_bucket")] == [
        ("0..1023", 1),
        ("1024..1048575", 1),
    ]
    assert sum(row["total_stamps"] for row in await rows("time_window")) == 2
    workflows = await rows("workflow")
    assert [row["group_key"] for row in workflows] == sorted(stamp["workflow_id"] for stamp in stamps)
    assert [row["group_key"] for row in await rows("metadata.project")] == ["apollo"]
    for absent in ("metadata.colour", "colour", "metadata.\0", ""):
        unknown = client.get(f"/namespaces/{NAMESPACE}/state", params={"by": absent})
        await refused(unknown, 404, "not_found", "by")


@pytest.mark.parametrize("by", ["content_type", "workflow"])
async def test_the_rows_of_a_state_come_in_pages_by_key(client: httpx.AsyncClient, by: str) -> None:
    await stamp_some(client, *({"file_path": f"{n}.txt", "content_type": f"text/x-{n}"} for n in range(7)))
    await stamp_some(client, {"namespace": "other.one"})
    found = await pages(client, f"/namespaces/{NAMESPACE}/state", "rows", by=by, limit=3)
    keys = [[row["group_key"] for row in page] for page in found]
    assert [len(page) for page in keys] == [3, 3, 1]
    assert flat(keys) == sorted(flat(keys))
    assert len(set(flat(keys))) == 7


async def test_keys_of_any_characters_are_paged(client: httpx.AsyncClient) -> None:
    projects = ["", "ä/&?=", '"', "\\", "x" * 300, "\U0001f600", " ", "a\nb"]
    await stamp_some(
        client, *({"file_path": f"{n}.txt", "metadata": {"project": name}} for n, name in enumerate(projects))
    )
    found = await pages(client, f"/namespaces/{NAMESPACE}/state", "rows", by="metadata.project", limit=1)
    keys = [row["group_key"] for page in found for row in page]
    assert sorted(key for key in keys if not key.startswith("sha256:")) == sorted(set(projects) - {"x" * 300})
    assert keys == sorted(keys)


@pytest.mark.parametrize("call", ["", "/stamps", "/state", "/state?by=workflow", "/stamps?file_path=a.txt"])
async def test_what_may_not_be_seen_is_not_found_like_what_is_not_there(
    database_url: str, client: httpx.AsyncClient, call: str
) -> None:
    theirs = await token(database_url, "rival-ci", "rival.*")
    mine = await token(database_url, "acme-ci", "acme.*")
    await stamp_some(client, {"namespace": "rival.docs"}, **theirs)
    assert (await client.get(f"/namespaces/rival.docs{call}", headers=theirs)).status_code == 200
    hidden = await client.get(f"/namespaces/rival.docs{call}", headers=mine)
    missing = await client.get(f"/namespaces/rival.none{call}", headers=mine)
    assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found")
    assert hidden.text == missing.text.replace("rival.none", "rival.docs")
    assert hidden.headers.keys() == missing.headers.keys()
    writer = await token(database_url, "writer", "rival.*", scopes="write")
    await refused(client.get(f"/namespaces/rival.docs{call}", headers=writer), 403, "forbidden")


async def test_the_overview_has_only_what_the_caller_may_see(database_url: str, client: httpx.AsyncClient) -> None:
    everyone = await token(database_url, "admin", "*", scopes="admin")
    mine = await token(database_url, "acme-ci", "acme.*", "shared.docs")
    names = ["acme", "acme.a", "acme.b", "acmex.a", "rival.docs", "shared.docs"]
    await stamp_some(client, *({"namespace": name} for name in names), **everyone)
    seen = (await client.get("/namespaces", headers=mine)).json()["namespaces"]
    assert [row["namespace"] for row in seen] == ["acme.a", "acme.b", "shared.docs"]
    page = await client.get("/namespaces", headers=mine, params={"limit": 2})
    assert (await client.get(next_link(page), headers=mine)).json() == {"namespaces": seen[2:], "next": None}
    assert len((await client.get("/namespaces", headers=everyone)).json()["namespaces"]) == len(names)
    file_hash = digest(b"hello")
    found = (await client.get(f"/stamp/{file_hash}", headers=mine)).json()["stamps"]
    assert {stamp["namespace"] for stamp in found} == {"acme.a", "acme.b", "shared.docs"}
    await refused(client.get(f"/stamp/{file_hash}?namespace=rival.docs", headers=mine), 404, "not_found", "file_hash")


async def test_where_something_only_waits_there_is_nothing_yet(client: httpx.AsyncClient) -> None:
    assert (await client.post("/workflows", json=a_stamp(namespace="waiting.one"))).status_code == 202
    for call in ("", "/stamps", "/state", "/state?by=workflow"):
        await refused(client.get(f"/namespaces/waiting.one{call}"), 404, "not_found", "namespace")


async def test_where_something_only_failed_there_are_no_stamps(database_url: str) -> None:
    async with Service(answer("no", status=500)) as broken:
        settings = Settings.read(stamping_urls=[broken.url])
        async with Bridge.connect(database_url, settings=settings) as bridge, served(bridge) as client:
            await refused(client.post("/stamp", json=a_stamp()), 503, "workflow_failed")
            totals = (await client.get(f"/namespaces/{NAMESPACE}")).json()
            assert (totals["total_stamps"], totals["failed"]) == (0, 1)
            assert (await client.get(f"/namespaces/{NAMESPACE}/stamps")).json() == {"stamps": [], "next": None}
            by_type = await client.get(f"/namespaces/{NAMESPACE}/state?by=content_type")
            assert (by_type.status_code, by_type.json()["rows"]) == (200, [])
            (row,) = (await client.get(f"/namespaces/{NAMESPACE}/state?by=workflow")).json()["rows"]
            assert (row["failed"], row["total_stamps"]) == (1, 0)


def forged(of: Any, after: Any = "x") -> str:
    return base64.urlsafe_b64encode(json.dumps({"of": of, "after": after}).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "a b",
        "%00",
        "ä",
        "A" * 5000,
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        base64.urlsafe_b64encode(b"7").decode(),
        forged(7),
        forged("namespaces", None),
        forged("state else.where namespace"),
        forged(f"stamps {NAMESPACE}", "no-uuid"),
        forged(f"stamps {NAMESPACE}", "a\0b"),
        forged(f"state {NAMESPACE} namespace", "a\0b"),
        forged(f"state {NAMESPACE} namespace", "\ud800"),
        forged("namespaces", "a\0b"),
    ],
)
async def test_a_cursor_that_is_none_of_the_list_is_refused(client: httpx.AsyncClient, cursor: str) -> None:
    await stamp_some(client, {})
    for url in (f"/namespaces/{NAMESPACE}/stamps", f"/namespaces/{NAMESPACE}/state"):
        await refused(client.get(url, params={"cursor": cursor}), 422, "invalid_input", "cursor")
    await refused(client.get("/namespaces", params={"cursor": cursor}), 422, "invalid_input", "cursor")


@pytest.mark.parametrize("after", ["x", "", "a\0b", "\U0001f600"])
async def test_a_cursor_of_workflows_tells_an_id(client: httpx.AsyncClient, after: str) -> None:
    await stamp_some(client, {})
    parameters = {"by": "workflow", "cursor": forged(f"state {NAMESPACE} workflow", after)}
    await refused(client.get(f"/namespaces/{NAMESPACE}/state", params=parameters), 422, "invalid_input", "cursor")


async def test_a_cursor_of_another_list_is_refused(client: httpx.AsyncClient) -> None:
    await stamp_some(client, *({"file_path": f"{n}.txt", "content_type": f"text/x-{n}"} for n in range(3)))
    await stamp_some(client, {"namespace": "else.where"}, {"namespace": "else.where", "file_path": "b"})
    url = f"/namespaces/{NAMESPACE}"
    cursor = (await client.get(f"{url}/stamps?limit=1")).json()["next"]
    of_state = (await client.get(f"{url}/state?by=content_type&limit=1")).json()["next"]
    for wrong in (
        f"/namespaces?cursor={cursor}",
        f"{url}/state?cursor={cursor}",
        f"/namespaces/else.where/stamps?cursor={cursor}",
        f"{url}/state?by=size_bucket&cursor={of_state}",
    ):
        await refused(client.get(wrong), 422, "invalid_input", "cursor")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999999999", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=red", "colour"),
        ("%ff=1", "query"),
    ],
)
async def test_bad_parameters_of_a_list_are_named(client: httpx.AsyncClient, query: str, field: str) -> None:
    for url in ("/namespaces", f"/namespaces/{NAMESPACE}/stamps", f"/namespaces/{NAMESPACE}/state"):
        await refused(client.get(f"{url}?{query}"), 422, "invalid_input", field)


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("file_path=", "invalid_input", "file_path"),
        ("file_path=a%00", "invalid_input", "file_path"),
        (f"file_path={'x' * 4097}", "limit_exceeded", "file_path"),
        ("file_hash=abc", "invalid_input", "file_hash"),
        ("content_type=nonsense", "invalid_input", "content_type"),
        ("stamped_by=a%00", "invalid_input", "stamped_by"),
        ("digest_origin=guessed", "invalid_input", "digest_origin"),
        ("since=yesterday", "invalid_input", "since"),
        ("since=2026-01-01", "invalid_input", "since"),
        ("since=1767225600", "invalid_input", "since"),
        ("since=2026-01-01T00:00:00", "invalid_input", "since"),
        (f"since={quote('0001-01-01T00:00:00+23:59')}", "invalid_input", "since"),
        (f"until={quote('9999-12-31T23:59:59-23:59')}", "invalid_input", "until"),
    ],
)
async def test_bad_filters_are_named(client: httpx.AsyncClient, query: str, code: str, field: str) -> None:
    await refused(client.get(f"/namespaces/{NAMESPACE}/stamps?{query}"), 422, code, field)


@pytest.mark.parametrize("name", ["Bad", "a..b", "a%00b", "%ff", "%F0%9F%98%80", "a%0ab", "x" * 256])
async def test_a_name_that_is_no_namespace_is_refused(client: httpx.AsyncClient, name: str) -> None:
    for call in ("", "/stamps", "/state"):
        got = await client.get(f"/namespaces/{name}{call}")
        assert (got.status_code, got.json()["field"]) == (422, "namespace"), got.text


async def test_a_state_that_is_behind_says_so_and_comes_up(database_url: str) -> None:
    settings = Settings.read(state_timeout_s=3)
    other = await asyncpg.connect(database_url)
    async with Bridge.connect(database_url, settings=settings) as bridge, served(bridge) as client:
        assert (await client.get("/namespaces")).status_code == 200  # the log is read in time from now on

        async def is_behind(url: str) -> None:
            answer = asyncio.create_task(client.get(url))
            await refused(answer, 503, "state_behind")
            assert int((await answer).headers["retry-after"]) > 0

        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE bridge_state IN EXCLUSIVE MODE")  # the reducer can't write
        await stamp_some(client, {})
        urls = ("/namespaces", f"/namespaces/{NAMESPACE}", f"/namespaces/{NAMESPACE}/state?by=content_type")
        await asyncio.gather(*map(is_behind, urls))
        assert len((await client.get(f"/namespaces/{NAMESPACE}/stamps")).json()["stamps"]) == 1
        await transaction.rollback()
        await other.close()
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        assert (await client.get(f"/namespaces/{NAMESPACE}")).json()["total_stamps"] == 1


async def test_totals_take_no_parameters(client: httpx.AsyncClient) -> None:
    await refused(client.get(f"/namespaces/{NAMESPACE}?limit=1"), 422, "invalid_input", "limit")
