"""Stamps inside contents over real sockets: put in by POST /stamp, found and checked by POST /validate."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app.bridge import Bridge
from tests.integration.serving import NAMESPACE, a_stamp, digest, nothing_recorded, refused, served, token

SOURCE = "def main() -> None:\n    print('ä')\n"


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def embedded(client: httpx.AsyncClient, **fields: Any) -> Any:
    """Stamp a source with its stamp in it."""
    made = await client.post("/stamp", json=a_stamp(file_path="a.py", content=SOURCE, embed=True, **fields))
    assert made.status_code in (200, 201), made.text
    return made.json()


async def validated(client: httpx.AsyncClient, content: str | bytes, headers: Any = None, **fields: Any) -> Any:
    sent = {"content": content} if isinstance(content, str) else {"content_base64": base64.b64encode(content).decode()}
    got = await client.post("/validate", json={"namespace": NAMESPACE, **sent, **fields}, headers=headers)
    assert got.status_code == 200, got.text
    assert got.json().keys() == {"is_valid", "file_hash", "stamps", "embedded"}
    return got.json()


async def test_a_stamp_in_its_content_is_found_again_and_true(client: httpx.AsyncClient) -> None:
    stamp = await embedded(client)
    text = stamp["stamped_content"]
    assert text.startswith(SOURCE)
    assert stamp["file_hash"] == digest(SOURCE.encode())
    for fields in ({}, {"file_path": "a.py"}, {"file_path": "a.py", "expected_hash": stamp["file_hash"].upper()}):
        found = await validated(client, text, **fields)
        assert (found["is_valid"], found["file_hash"]) == (True, stamp["file_hash"])
        assert [one["stamp_id"] for one in found["stamps"]] == [stamp["stamp_id"]]
        assert found["embedded"] == [
            {
                "stamp_id": stamp["stamp_id"],
                "namespace": NAMESPACE,
                "file_hash": stamp["file_hash"],
                "line": 3,
                "is_valid": True,
                "reason": None,
            }
        ]


async def test_stamping_stamped_content_again_is_stable(bridge: Bridge, client: httpx.AsyncClient) -> None:
    first = await embedded(client)
    again = await client.post("/stamp", json=a_stamp(file_path="a.py", content=first["stamped_content"], embed=True))
    assert (again.status_code, again.json()["deduplicated"]) == (200, True)
    assert again.json()["stamped_content"] == first["stamped_content"]
    parameters = {"file_path": "a.py", "namespace": NAMESPACE, "embed": "true"}
    raw = await client.post("/stamp", params=parameters, content=first["stamped_content"].encode())
    assert raw.json()["stamped_content"] == first["stamped_content"]
    assert (await bridge.state(NAMESPACE)).total_stamps == 1


async def test_an_op_id_gives_the_same_content_again(client: httpx.AsyncClient) -> None:
    op_id = str(uuid4())
    first = await embedded(client, op_id=op_id)
    assert await embedded(client, op_id=op_id) == first
    await refused(
        client.post("/stamp", json=a_stamp(file_path="a.py", content="other", embed=True, op_id=op_id)),
        409,
        "op_id_conflict",
        "op_id",
    )


async def test_without_embed_the_answer_has_no_content(client: httpx.AsyncClient) -> None:
    parameters = {"file_path": "a.py", "namespace": NAMESPACE, "embed": "false"}
    assert "stamped_content" not in (await client.post("/stamp", params=parameters, content=b"x")).json()
    assert "stamped_content" not in (await client.post("/stamp", json=a_stamp(embed=False))).json()


@pytest.mark.parametrize(
    ("path", "content"),
    [("a.bin", b"x"), ("a.py", b"\xff\xfe"), ("a.py", b"a\0b"), ("a.json", b"{}")],
    ids=["language", "not-utf8", "nul", "no-comments"],
)
async def test_what_takes_no_stamp_is_refused_before_anything_is_recorded(
    bridge: Bridge, client: httpx.AsyncClient, path: str, content: bytes
) -> None:
    encoded = base64.b64encode(content).decode()
    body = {"file_path": path, "content_base64": encoded, "embed": True}
    await refused(client.post("/stamp", json=body), 422, "invalid_input", "embed")
    raw = client.post("/stamp", params={"file_path": path, "embed": "true"}, content=content)
    await refused(raw, 422, "invalid_input", "embed")
    await nothing_recorded(bridge)


async def test_a_raw_body_to_embed_in_is_limited_as_json_is(bridge: Bridge) -> None:
    async with served(bridge, json_bytes_max=1000) as client:
        parameters = {"file_path": "a.py", "embed": "true"}
        over = client.post("/stamp", params=parameters, content=b"#" * 1001)
        assert "BRIDGE_JSON_BYTES_MAX" in (await refused(over, 413, "limit_exceeded", "body"))["detail"]
        assert (await client.post("/stamp", params=parameters, content=b"#" * 1000)).status_code == 201


async def test_a_large_content_is_embedded_in_and_validated(client: httpx.AsyncClient) -> None:
    content = "x = 1\n" * 700_000
    made = await client.post("/stamp", json=a_stamp(file_path="a.py", content=content, embed=True))
    text = made.json()["stamped_content"]
    assert text.startswith(content)
    found = await validated(client, text.encode(), file_path="a.py")
    assert (found["is_valid"], [line["is_valid"] for line in found["embedded"]]) == (True, [True])


async def test_a_changed_content_is_not_valid_and_its_stamp_says_why(client: httpx.AsyncClient) -> None:
    stamp = await embedded(client)
    found = await validated(client, "# changed\n" + stamp["stamped_content"], file_path="a.py")
    assert (found["is_valid"], found["stamps"]) == (False, [])
    (line,) = found["embedded"]
    assert (line["is_valid"], line["line"], line["reason"]) == (False, 4, "the content is not what was stamped")


async def test_a_forged_line_is_not_true(client: httpx.AsyncClient) -> None:
    stamp = await embedded(client)
    text = stamp["stamped_content"]
    other = digest(b"other")
    (line,) = (await validated(client, text.replace(stamp["file_hash"], other)))["embedded"]
    assert (line["is_valid"], line["file_hash"], line["reason"]) == (
        False,
        other,
        "the line's digest is not the stamp's",
    )
    (line,) = (await validated(client, text.replace(stamp["stamp_id"], str(uuid4()))))["embedded"]
    assert (line["is_valid"], line["reason"]) == (False, "there is no such stamp in this namespace")
    (line,) = (await validated(client, text.replace(f"ns={NAMESPACE}", "ns=else.where")))["embedded"]
    assert (line["is_valid"], line["namespace"]) == (False, "else.where")


async def test_with_a_path_only_its_latest_stamp_counts(client: httpx.AsyncClient) -> None:
    for content in ("old", "new"):
        await client.post("/stamp", json=a_stamp(content=content))
    old = await validated(client, "old", file_path="a.txt")
    assert (old["is_valid"], [stamp["version"] for stamp in old["stamps"]]) == (False, [1])
    assert (await validated(client, "new", file_path="a.txt"))["is_valid"] is True
    anywhere = await validated(client, "old")
    assert (anywhere["is_valid"], len(anywhere["stamps"])) == (True, 1)
    assert (await validated(client, "new", file_path="b.txt"))["is_valid"] is False
    assert (await validated(client, "new", namespace="else.where"))["is_valid"] is False
    assert (await validated(client, "new", expected_hash=digest(b"old")))["is_valid"] is False
    await client.post("/stamp", json=a_stamp(content="old"))
    back = await validated(client, "old", file_path="a.txt")
    assert (back["is_valid"], [stamp["version"] for stamp in back["stamps"]]) == (True, [3, 1])


async def test_the_stamp_knows_the_language_that_the_path_does_not_tell(client: httpx.AsyncClient) -> None:
    body = a_stamp(file_path="tool", content=SOURCE, content_type="text/x-python", embed=True)
    text = (await client.post("/stamp", json=body)).json()["stamped_content"]
    found = await validated(client, text, file_path="tool")
    assert (found["is_valid"], len(found["embedded"])) == (True, 1)


async def test_too_many_stamps_in_a_content_are_refused(client: httpx.AsyncClient) -> None:
    line = (await embedded(client))["stamped_content"].splitlines(keepends=True)[-1]
    many = await validated(client, SOURCE + line * 100)
    assert (many["is_valid"], len(many["embedded"])) == (True, 100)
    body = {"namespace": NAMESPACE, "content": SOURCE + line * 101}
    await refused(client.post("/validate", json=body), 422, "limit_exceeded", "content")


async def test_stamps_that_the_caller_may_not_see_do_not_exist(database_url: str, client: httpx.AsyncClient) -> None:
    mine = await token(database_url, "acme-ci", "acme.*")
    theirs = await token(database_url, "rival-ci", "rival.*")
    body = a_stamp(file_path="a.py", content=SOURCE, namespace="rival.docs", embed=True)
    text = (await client.post("/stamp", json=body, headers=theirs)).json()["stamped_content"]
    assert (await validated(client, text, theirs, namespace="rival.docs"))["embedded"][0]["is_valid"] is True
    hidden = await validated(client, text, mine, namespace="rival.docs")
    missing = await validated(client, text.replace("rival", "nobody"), mine, namespace="nobody.docs")
    for found in (hidden, missing):
        assert (found["is_valid"], found["stamps"]) == (False, [])
        assert found["embedded"][0]["reason"] == "there is no such stamp in this namespace"
    writer = await token(database_url, "writer", "rival.*", scopes="write")
    asked = {"namespace": "rival.docs", "content": "x"}
    await refused(client.post("/validate", json=asked, headers=writer), 403, "forbidden")


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"namespace": None}, 422, "invalid_input", "namespace"),
        ({"namespace": "Bad"}, 422, "invalid_input", "namespace"),
        ({"content": None}, 422, "invalid_input", "content"),
        ({"file_path": ""}, 422, "invalid_input", "file_path"),
        ({"file_path": "a\0b"}, 422, "invalid_input", "file_path"),
        ({"file_path": "x" * 4097}, 422, "limit_exceeded", "file_path"),
        ({"expected_hash": "abc"}, 422, "invalid_input", "expected_hash"),
        ({"expected_hash": 7}, 422, "invalid_input", "expected_hash"),
        ({"content_base64": "YQ=="}, 422, "invalid_input", "content_base64"),
        ({"embed": True}, 422, "invalid_input", "embed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_value_that_is_not_allowed_is_named(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str, field: str
) -> None:
    body = {"namespace": NAMESPACE, "content": "x", **fields}
    await refused(client.post("/validate", json=body), status, code, field)


async def test_the_namespace_has_to_be_named(client: httpx.AsyncClient) -> None:
    await refused(client.post("/validate", json={"content": "x"}), 422, "invalid_input", "namespace")
    raw = client.post("/validate", content=b"x", headers={"content-type": "text/x-python"})
    await refused(raw, 415, "body_type_unsupported", "content-type")
    await refused(client.post("/validate?namespace=a", json={}), 422, "invalid_input", "namespace")
