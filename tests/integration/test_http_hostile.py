"""Whatever is sent to a call, the answer is what was asked for or a problem of the caller's; never an error of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app.bridge import Bridge
from tests.integration.serving import NAMESPACE, digest, raw_exchange, served

JSON_CALLS = ["/stamp", "/stamp/batch", "/validate", "/workflows"]
READS = [
    "/stamp/{}",
    "/workflows/{}",
    "/namespaces/{}",
    "/namespaces/{}/stamps",
    "/namespaces/{}/state",
]
FIELDS = [
    "content", "content_base64", "file_path", "namespace", "content_type", "metadata", "op_id", "enable_intelligence",
    "embed", "expected_hash", "file_hash", "file_size",
]  # fmt: skip
PARAMETERS = [
    "namespace", "limit", "cursor", "file_path", "file_hash", "content_type", "stamped_by", "digest_origin", "since",
    "until", "by", "metadata", "op_id", "enable_intelligence", "embed",
]  # fmt: skip
VALUES: list[bytes] = [
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e308",
    b"1e999",
    b"-0.0",
    b"123456789012345678901234567890",
    b"9" * 5000,
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\xff"',
    b'"\xf0\x9f\x98\x80"',
    b'"' + b"x" * 100_000 + b'"',
    b'"../../etc/passwd"',
    b"[]",
    b"{}",
    b'{"a": {"b": [1, null, "\\u0000"]}}',
    b'{"": 1e999}',
    b'{"a": 1, "a": 2}',
    b"[" * 50 + b"]" * 50,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b"NaN",
    b"-Infinity",
    b"'x'",
    b"",
]
BODIES: list[bytes] = [
    b"",
    b"\0",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"{",
    b"[",
    b"{" * 100_000,
    b"[" * 100_000,
    b'"' + b"a" * 100_000,
    b"null",
    b'[null, true, 7, "x", [], {}]',
    b'{"file_path": "a", "file_path": "b", "content": "x", "namespace": "a.b"}',
    b"{}\n{}\n\xff\n\n[\n",
    json.dumps({"a": "\0"}).encode("utf-16"),
    json.dumps({"a": 1}).encode("utf-32"),
    b"a=b&c=d",
    b"\x1f\x8b\x08\0\0\0\0\0",
]
TYPES = [
    "application/json",
    "application/x-ndjson",
    "application/x-www-form-urlencoded",
    "text/json; charset=utf-7",
    "",
    "x",
]
WORDS = [
    "", " ", "a", "null", "-1", "1e9", "%00", "%ff", "%C0%80", "%ED%A0%80", "%F0%9F%98%80", "%2e%2e%2f", "%0d%0aX:y",
    "%2F", "%", "%zz", "9" * 400, "x" * 5000, "a.b", "A", "'%20OR%201=1--", "{}", "[]", "*", "acme.*",
    "2026-01-01T00:00:00Z", "0001-01-01T00:00:00%2B23:59", "NaN", "true", digest(b"x"), str(uuid4()),
    "urn:uuid:" + str(uuid4()),
]  # fmt: skip


@pytest_asyncio.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with Bridge.connect(database_url) as bridge, served(bridge) as opened:
        yield opened


def check(got: httpx.Response, what: object) -> None:
    """Check that an answer is one of the call's own, or says what is wrong with the request."""
    assert got.status_code < 500, (what, got.text)
    if got.status_code >= 400:
        assert got.headers["content-type"] == "application/problem+json", (what, got.text)
        assert got.json()["status"] == got.status_code
    elif got.headers["content-type"] == "application/x-ndjson":
        for line in got.content.splitlines():
            check_item(json.loads(line), what)
    elif isinstance(got.json(), list):
        for item in got.json():
            check_item(item, what)


def check_item(item: Any, what: object) -> None:
    assert item.get("problem", {}).get("status", 200) < 500, (what, item)


@pytest.mark.parametrize("call", JSON_CALLS)
async def test_hostile_values_in_any_field(client: httpx.AsyncClient, call: str) -> None:
    whole = {"file_path": b'"a.py"', "namespace": f'"{NAMESPACE}"'.encode(), "content": b'"x"'}
    for field in FIELDS:
        for value in VALUES:
            fields = {**whole, field: value}
            body = b"{" + b", ".join(b'"%s": %s' % (name.encode(), given) for name, given in fields.items()) + b"}"
            lines = call == "/stamp/batch"
            kind = "application/x-ndjson" if lines else "application/json"
            check(await client.post(call, content=body, headers={"content-type": kind}), (field, value[:50]))
            if lines:
                check(await client.post(call, content=b"[%s, 7]" % body), (field, value[:50]))


@pytest.mark.parametrize("call", [*JSON_CALLS, "/hash"])
async def test_hostile_bodies_of_any_type(client: httpx.AsyncClient, call: str) -> None:
    for body in BODIES:
        for kind in TYPES:
            check(await client.post(call, content=body, headers={"content-type": kind}), (body[:50], kind))


@pytest.mark.parametrize("call", ["/namespaces", *READS])
async def test_hostile_names_and_parameters(client: httpx.AsyncClient, call: str) -> None:
    await client.post("/stamp", json={"file_path": "a", "content": "x", "namespace": "a.b"})
    for word in WORDS:
        check(await client.get(call.format(word)), word)
        for name in PARAMETERS:
            check(await client.get(f"{call.format('a.b')}?{name}={word}"), (name, word))


@pytest.mark.parametrize("call", ["/stamp", "/workflows"])
async def test_hostile_parameters_of_a_raw_body(client: httpx.AsyncClient, call: str) -> None:
    for word in WORDS:
        check(await client.post(f"{call}?file_path={word}", content=b"\xff\0"), word)
        for name in PARAMETERS:
            check(await client.post(f"{call}?file_path=a.py&{name}={word}", content=b"x"), (name, word))


async def test_hostile_hosts_and_paths(client: httpx.AsyncClient) -> None:
    for host in (b"x", b"[", b"]", b"[::1", b"a b", b"", b"\xff", b"x" * 5000, b"http://x"):
        for path in (
            b"/namespaces",
            b"/nowhere",
            b"/namespaces/a.b/stamps?limit=1",
            b"//namespaces",
            b"/%00",
            b"/\xff",
        ):
            answer = await raw_exchange(
                client, b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
            )
            assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (host, path, answer)
