"""Names over HTTP, in JSON, in queries and in paths: whatever they are, they are refused by name or kept exactly.

Each example runs against the same server and database, so that examples meet what others left behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from omninode_bridge.app.bridge import Bridge
from tests.integration.serving import as_lines, check_problem, read_lines, served
from tests.property.strategies import NAMESPACES, TEXT

NAMESPACE = "laws.of.names"
# What breaks parsers, shells, URLs and file systems; and lengths around the limit.
ODD = st.sampled_from(
    ["", " ", ".", "..", "/", "//a", "a/../b", "a\\b", "a\nb", "\r\n", "%00", "%2f", "+", "a b", "a;b", "a&b=c",
     "a#b", "a?b", "\u202e", "\ufeff", "e\u0301", "\u00e9", "\U0001f600", "\x7f", "\x1b[31m", "'", '"', "`id`",
     "a\0b", "\0", "x" * 4096, "x" * 4097, "\U0001f600" * 1100]
)  # fmt: skip
PATHS = st.one_of(TEXT, ODD, st.text("/.ab\\ ", max_size=20))
ANY_NAMESPACE = st.one_of(NAMESPACES, TEXT, ODD, st.from_regex(r"[a-z0-9_.A-Z-]{1,12}", fullmatch=True))
few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest_asyncio.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with Bridge.connect(database_url) as bridge, served(bridge) as opened:
        yield opened


@given(PATHS)
@example("a" * 4096)
@example("\ud7ff\ue000")
@example("\x85\u2028")
@few
async def test_a_path_is_refused_or_found_again_exactly_as_it_was(client: httpx.AsyncClient, path: str) -> None:
    legal = 1 <= len(path) <= 4096 and "\0" not in path
    asked = {"file_path": path, "namespace": NAMESPACE, "content": path}
    in_json = await client.post("/stamp", content=json.dumps(asked))
    query = f"file_path={quote(path, safe='')}&namespace={NAMESPACE}"
    in_query = await client.post(f"/stamp?{query}", content=path.encode())
    (in_batch,) = read_lines(await client.post("/stamp/batch", content=as_lines(asked)))
    listed = await client.get(f"/namespaces/{NAMESPACE}/stamps?file_path={quote(path, safe='')}")
    if not legal:
        code = "limit_exceeded" if len(path) > 4096 else "invalid_input"
        for problem in (in_json.json(), in_query.json(), in_batch["problem"], listed.json()):
            check_problem(problem, 422, code, "file_path")
        return
    stamp = in_json.json()
    assert (in_json.status_code, stamp["file_path"]) == (200 if stamp["deduplicated"] else 201, path)
    assert (in_query.status_code, in_batch["deduplicated"]) == (200, True)
    assert stamp["stamp_id"] == in_query.json()["stamp_id"] == in_batch["stamp_id"]
    (found,) = listed.json()["stamps"]
    assert (found["file_path"], found["stamp_id"], found["version"]) == (path, stamp["stamp_id"], 1)
    validated = await client.post("/validate", json={"namespace": NAMESPACE, "file_path": path, "content": path})
    assert validated.json()["is_valid"] is True


@given(ANY_NAMESPACE)
@example("x" * 255)
@example("x" * 256)
@example("a.b-c_d.0")
@few
async def test_a_namespace_is_refused_or_found_again_by_any_call(client: httpx.AsyncClient, namespace: str) -> None:
    legal = len(namespace) <= 255 and re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", namespace) is not None
    quoted = quote(namespace, safe="")
    asked = {"file_path": "a", "namespace": namespace, "content": "x"}
    (in_batch,) = read_lines(await client.post("/stamp/batch", content=as_lines(asked)))
    answers: list[httpx.Response] = [
        await client.post("/stamp", content=json.dumps(asked)),
        await client.post(f"/stamp?file_path=a&namespace={quoted}", content=b"x"),
        await client.post("/workflows", content=json.dumps(asked)),
        await client.post("/validate", json={"namespace": namespace, "content": "x"}),
        await client.get(f"/stamp/{'0' * 64}?namespace={quoted}"),
    ]
    problems: list[Any] = [got.json() for got in answers]
    # In a path, a slash and what browsers resolve make another path of it.
    if namespace and "/" not in namespace and namespace not in (".", ".."):
        reads = [await client.get(f"/namespaces/{quoted}{call}") for call in ("", "/stamps", "/state")]
        answers += reads
        problems += [got.json() for got in reads]
    if not legal:
        code = "limit_exceeded" if len(namespace) > 255 else "invalid_input"
        for problem in (*problems, in_batch["problem"]):
            check_problem(problem, 422, code, "namespace")
        return
    assert [got.status_code for got in answers] == [200, 200, 202, 200, 404, 200, 200, 200]
    assert {in_batch["namespace"], answers[0].json()["namespace"], answers[5].json()["namespace"]} == {namespace}
    assert answers[3].json()["is_valid"] is True
