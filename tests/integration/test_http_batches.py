"""POST /stamp/batch over real sockets: order, isolation, forms, limits, and what is told when the ledger goes away."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.tenancy import Limits
from tests.integration.proxy import Fault, Proxy, is_ledgers_begin, is_ledgers_commit
from tests.integration.serving import (
    NAMESPACE,
    a_stamp,
    as_lines,
    check_problem,
    digest,
    nothing_recorded,
    post_lines,
    read_lines,
    refused,
    served,
    token,
)


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def test_items_are_stamped_and_answered_in_order(bridge: Bridge, client: httpx.AsyncClient) -> None:
    items = [a_stamp(file_path=f"{n}.txt", content=f"content {n}") for n in range(2500)]
    answers = read_lines(await post_lines(client, *items))
    assert [stamp["file_path"] for stamp in answers] == [item["file_path"] for item in items]
    assert [stamp["file_hash"] for stamp in answers] == [digest(item["content"].encode()) for item in items]
    assert (await bridge.state(NAMESPACE)).total_stamps == 2500
    again = read_lines(await post_lines(client, *items))
    assert {stamp["deduplicated"] for stamp in again} == {True}
    assert [stamp["stamp_id"] for stamp in again] == [stamp["stamp_id"] for stamp in answers]
    single = (await client.post("/stamp", json=items[7])).json()
    assert single.keys() == answers[7].keys()
    assert single["stamp_id"] == answers[7]["stamp_id"]


async def test_batches_at_once_stamp_each_path_once(bridge: Bridge, client: httpx.AsyncClient) -> None:
    items = [a_stamp(file_path=f"{n}.txt", content=f"content {n}") for n in range(300)]
    answers = [read_lines(got) for got in await asyncio.gather(*(post_lines(client, *items) for _ in range(6)))]
    first, *others = [[stamp["stamp_id"] for stamp in stamps] for stamps in answers]
    assert all(ids == first for ids in others)
    assert (await bridge.state(NAMESPACE)).total_stamps == 300
    assert [finding for finding in await bridge.audit() if not finding.holds] == []


async def test_versions_of_one_path_follow_the_order_of_the_items(client: httpx.AsyncClient) -> None:
    items = [a_stamp(content=f"version {n}") for n in range(1, 1203)]
    answers = read_lines(await post_lines(client, *items))
    assert [stamp["version"] for stamp in answers] == list(range(1, 1203))


async def test_an_item_has_all_that_a_request_has(client: httpx.AsyncClient) -> None:
    op_id = str(uuid4())
    content = bytes(range(256))
    answers = read_lines(
        await post_lines(
            client,
            a_stamp(op_id=op_id, metadata={"case": 7}, content_type="text/x-note", enable_intelligence=True),
            {"file_path": "b.bin", "content_base64": base64.b64encode(content).decode()},
            a_stamp(file_path="c.py", content="print()\n", embed=True),
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
    )
    full, raw, embedded = answers
    assert (full["op_id"], full["metadata"], full["content_type"]) == (op_id, {"case": 7}, "text/x-note")
    assert full["intelligence"]["file_type"]
    assert (raw["file_hash"], raw["namespace"]) == (digest(content), "omninode.services.metadata")
    assert embedded["file_hash"] == digest(b"print()\n")
    assert embedded["stamped_content"].startswith("print()\n# omninode-stamp: ")
    assert "stamped_content" not in full


async def test_a_digest_that_the_caller_computed_is_recorded_as_claimed(client: httpx.AsyncClient) -> None:
    file_hash = digest(b"somewhere else")
    claimed = a_stamp(file_hash=file_hash.upper(), file_size=14)
    del claimed["content"]
    (stamp,) = read_lines(await post_lines(client, claimed))
    assert (stamp["digest_origin"], stamp["file_hash"], stamp["file_size"]) == ("claimed", file_hash, 14)
    (computed,) = read_lines(await post_lines(client, a_stamp(content="somewhere else")))
    assert (computed["digest_origin"], computed["version"], computed["deduplicated"]) == ("computed", 2, False)
    (again,) = read_lines(await post_lines(client, claimed))
    assert (again["stamp_id"], again["deduplicated"]) == (computed["stamp_id"], True)


BAD_ITEMS: list[tuple[Any, int, str, str | None]] = [
    (b"{", 400, "body_malformed", "item"),
    (b"\xff\xfe", 400, "body_malformed", "item"),
    (b'{"file_path": "a", "content": "\xff"}', 400, "body_malformed", "item"),
    (b'{"file_path": "a", "content": "x", "metadata": {"n": NaN}}', 400, "body_malformed", "item"),
    (b'{"file_path": "a", "content": "\\ud800"}', 400, "body_malformed", "item"),
    (b'{"file_path":"a","metadata":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400, "body_malformed", "item"),
    (7, 422, "invalid_input", "item"),
    ([], 422, "invalid_input", "item"),
    ({}, 422, "invalid_input", "file_path"),
    (a_stamp(colour="red"), 422, "invalid_input", "colour"),
    (a_stamp(file_path=7), 422, "invalid_input", "file_path"),
    (a_stamp(file_path="a\0b"), 422, "invalid_input", "file_path"),
    (a_stamp(namespace="Bad Name"), 422, "invalid_input", "namespace"),
    (a_stamp(metadata={"k": "v" * 70_000}), 422, "limit_exceeded", "metadata"),
    (a_stamp(op_id="seven"), 422, "invalid_input", "op_id"),
    (a_stamp(embed=True), 422, "invalid_input", "embed"),
    (a_stamp(content_base64="YQ=="), 422, "invalid_input", "content_base64"),
    (a_stamp(file_hash="0" * 64), 422, "invalid_input", "file_hash"),
    ({"file_path": "a", "file_hash": "0" * 64}, 422, "invalid_input", "file_size"),
    ({"file_path": "a", "file_size": 1}, 422, "invalid_input", "file_hash"),
    ({"file_path": "a", "file_hash": "xyz", "file_size": 1}, 422, "invalid_input", "file_hash"),
    ({"file_path": "a", "file_hash": "0" * 64, "file_size": -1}, 422, "invalid_input", "file_size"),
    ({"file_path": "a", "file_hash": "0" * 64, "file_size": 10**30}, 422, "invalid_input", "file_size"),
    ({"file_path": "a.py", "file_hash": "0" * 64, "file_size": 1, "embed": True}, 422, "invalid_input", "embed"),
]


async def test_bad_items_spoil_no_other(bridge: Bridge, client: httpx.AsyncClient) -> None:
    items: list[Any] = [a_stamp(file_path="first.txt")]
    for bad, *_ in BAD_ITEMS:
        items += [bad, a_stamp(file_path=f"{len(items)}.txt")]
    answers = read_lines(await post_lines(client, *items))
    assert len(answers) == len(items)
    assert [stamp["file_path"] for stamp in answers[::2]] == [item["file_path"] for item in items[::2]]
    for answer, (_, *expected) in zip(answers[1::2], BAD_ITEMS, strict=True):
        assert answer.keys() == {"problem"}
        check_problem(answer["problem"], *expected)
    assert (await bridge.state(NAMESPACE)).total_stamps == len(BAD_ITEMS) + 1
    # In an array, too, what is JSON and no request is an affair of its item.
    (problem, stamp) = (await client.post("/stamp/batch", json=[7, a_stamp(file_path="first.txt")])).json()
    check_problem(problem["problem"], 422, "invalid_input", "item")
    assert stamp["deduplicated"] is True


async def test_what_is_no_utf8_spoils_no_other_element_of_an_array(client: httpx.AsyncClient) -> None:
    body = b'[{"file_path":"a","content":"\xff"}, {"file_path":"\xc3\xa4","content":"x"}, {"file_path":1e999}]'
    headers = {"content-type": "application/json"}
    first, second, third = (await client.post("/stamp/batch", content=body, headers=headers)).json()
    check_problem(first["problem"], 400, "body_malformed", "item")
    assert second["file_path"] == "ä"
    check_problem(third["problem"], 422, "invalid_input", "file_path")


async def test_a_conflict_and_a_repetition_are_answered_item_by_item(client: httpx.AsyncClient) -> None:
    op_id, other = str(uuid4()), str(uuid4())
    first = (await client.post("/stamp", json=a_stamp(op_id=op_id))).json()
    again, conflict, new, repeated = read_lines(
        await post_lines(
            client,
            a_stamp(op_id=op_id),
            a_stamp(op_id=op_id, content="other"),
            a_stamp(op_id=other, file_path="b.txt"),
            a_stamp(op_id=other, file_path="b.txt"),
        )
    )
    assert again == first
    check_problem(conflict["problem"], 409, "op_id_conflict", "op_id")
    assert conflict["problem"]["op_id"] == op_id
    assert repeated == new


@pytest.mark.parametrize(
    ("sent", "accepted", "expected"),
    [
        ("application/x-ndjson", None, "application/x-ndjson"),
        ("application/jsonl", None, "application/x-ndjson"),
        ("application/ndjson; charset=utf-8", "*/*", "application/x-ndjson"),
        ("application/json", None, "application/json"),
        ("application/json", "application/x-ndjson", "application/x-ndjson"),
        ("application/x-ndjson", "application/json;q=0.9, text/html", "application/json"),
        ("application/x-ndjson", "application/json, application/x-ndjson", "application/x-ndjson"),
        ("application/x-www-form-urlencoded", None, "application/json"),
        (None, "application/jsonl", "application/x-ndjson"),
    ],
)
async def test_the_answer_has_the_form_that_is_accepted_or_else_was_sent(
    client: httpx.AsyncClient, sent: str | None, accepted: str | None, expected: str
) -> None:
    lines = sent is not None and "json" in sent and sent != "application/json"
    item = a_stamp()
    body = as_lines(b"", item, b"  ", b"\r") if lines else b" \n[ " + json.dumps(item).encode() + b" ] \n"
    headers = {"accept": accepted or "*/*", **({"content-type": sent} if sent else {})}
    got = await client.post("/stamp/batch", content=body, headers=headers)
    assert (got.status_code, got.headers["content-type"]) == (200, expected), got.text
    stamps = got.json() if expected == "application/json" else [json.loads(line) for line in got.content.splitlines()]
    assert [stamp["file_path"] for stamp in stamps] == ["a.txt"]


async def test_curls_default_type_is_told_apart_by_its_first_character(client: httpx.AsyncClient) -> None:
    as_form = {"content-type": "application/x-www-form-urlencoded"}
    array = await client.post("/stamp/batch", content=json.dumps([a_stamp()]), headers=as_form)
    lines = await client.post("/stamp/batch", content=as_lines(a_stamp(), a_stamp()), headers=as_form)
    assert (len(array.json()), len(read_lines(lines))) == (1, 2)


async def test_nothing_in_nothing_out(client: httpx.AsyncClient) -> None:
    assert (await client.post("/stamp/batch", json=[])).json() == []
    assert read_lines(await post_lines(client)) == []
    await refused(client.post("/stamp/batch"), 400, "body_malformed", "body")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body_malformed"),
        (b"{}", 422, "invalid_input"),
        (b'{"file_path":"a","content":"x"}', 422, "invalid_input"),
        (b'[{"file_path":"a","content":"x"}', 400, "body_malformed"),
        (b'[{"file_path":"a","content":"x"},]', 400, "body_malformed"),
        (b'[{"file_path":"a","content":"x"} {}]', 400, "body_malformed"),
        (b'[{"file_path":"a","content":"x"}] []', 400, "body_malformed"),
        (b'[{"file_path":"a","content":"x"}, ?]', 400, "body_malformed"),
        (b"\xef\xbb\xbf[]", 400, "body_malformed"),
        (b"[" * 1_000_000, 400, "body_malformed"),
        (b"[" + b"0," * 10_001 + b"0]", 422, "limit_exceeded"),
        (b"[" + b"9" * 100_000 + b"e", 400, "body_malformed"),
    ],
    ids=["empty", "object", "item", "cut", "comma", "no-comma", "two", "odd", "bom", "deep", "long", "number"],
)
async def test_a_body_that_is_no_batch_is_refused_as_a_whole(
    bridge: Bridge, client: httpx.AsyncClient, body: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json"}
    await refused(client.post("/stamp/batch", content=body, headers=headers), status, code, "body")
    await nothing_recorded(bridge)


async def test_a_batch_has_limits(bridge: Bridge) -> None:
    async with served(bridge, batch_items_max=3, json_bytes_max=1000) as client:
        four = [a_stamp(file_path=f"{n}.txt") for n in range(4)]
        problem = await refused(post_lines(client, *four), 422, "limit_exceeded", "body")
        assert "BRIDGE_BATCH_ITEMS_MAX" in problem["detail"]
        await refused(client.post("/stamp/batch", json=four), 422, "limit_exceeded", "body")
        await refused(post_lines(client, a_stamp(content="x" * 1000)), 413, "limit_exceeded", "body")
        await nothing_recorded(bridge)
        assert len(read_lines(await post_lines(client, *four[:3]))) == 3


async def test_many_empty_elements_take_no_memory(client: httpx.AsyncClient) -> None:
    ones, blanks = b"[" + b"1," * 8_000_000 + b"1]", b"\n" * 16_000_000
    as_array, ndjson = {"content-type": "application/json"}, {"content-type": "application/jsonl"}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await refused(client.post("/stamp/batch", content=ones, headers=as_array), 422, "limit_exceeded", "body")
        assert read_lines(await client.post("/stamp/batch", content=blanks, headers=ndjson)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 5 * len(ones)


async def test_what_is_asked_otherwise_is_refused(client: httpx.AsyncClient) -> None:
    body = as_lines(a_stamp())
    as_pdf = client.post("/stamp/batch", content=body, headers={"content-type": "application/pdf"})
    await refused(as_pdf, 415, "body_type_unsupported", "content-type")
    lines = {"content-type": "application/x-ndjson"}
    await refused(client.post("/stamp/batch?embed=true", content=body, headers=lines), 422, "invalid_input", "embed")


async def test_an_item_of_anothers_namespace_spoils_no_other(database_url: str, client: httpx.AsyncClient) -> None:
    mine = await token(database_url, "acme-ci", "acme.*")
    ours, theirs = a_stamp(namespace="acme.docs"), a_stamp(namespace="rival.docs")
    first, second, third = read_lines(await post_lines(client, ours, theirs, ours | {"file_path": "b"}, **mine))
    assert (first["stamped_by"], third["stamped_by"]) == ("acme-ci", "acme-ci")
    check_problem(second["problem"], 403, "forbidden", "namespace")
    reader = await token(database_url, "reader", "acme.*", scopes="read")
    await refused(post_lines(client, ours, **reader), 403, "forbidden")


async def test_what_is_over_the_quota_is_refused_as_a_whole(
    database_url: str, bridge: Bridge, client: httpx.AsyncClient
) -> None:
    limited = await token(database_url, "limited", "legal.*", limits=Limits(stamps_per_day=3, bytes_per_day=100))
    items = [a_stamp(file_path=f"{n}.txt") for n in range(4)]
    got = await post_lines(client, *items, **limited)
    assert (got.status_code, got.json()["code"]) == (429, "quota_exceeded"), got.text
    assert int(got.headers["retry-after"]) > 0
    await refused(post_lines(client, a_stamp(content="x" * 101), **limited), 429, "quota_exceeded")
    await nothing_recorded(bridge)
    # What can't be read asks for nothing.
    answers = read_lines(await post_lines(client, *items[:3], b"{", b"[]", **limited))
    assert ["problem" in answer for answer in answers] == [False, False, False, True, True]


async def test_a_ledger_that_is_down_refuses_the_whole_batch(database_url: str, proxy: Proxy) -> None:
    async with Bridge.connect(proxy.url, settings=Settings.read(writers=1)) as bridge, served(bridge) as client:
        assert len(read_lines(await post_lines(client, a_stamp()))) == 1
        proxy.arm(Fault.BEFORE, is_ledgers_begin, then_refuse=True)
        got = await post_lines(client, a_stamp(file_path="b.txt"), b"{")
        assert (got.status_code, got.json()["code"]) == (503, "service_unavailable"), got.text
        assert int(got.headers["retry-after"]) > 0
        proxy.admit()
    async with Bridge.connect(database_url) as bridge:
        assert (await bridge.state(NAMESPACE)).total_stamps == 1


async def test_a_ledger_that_goes_away_midway_leaves_each_item_its_answer(database_url: str, proxy: Proxy) -> None:
    """Groups of two: the first is recorded, the outcome of the second is unknown, the third is never tried."""
    settings = Settings.read(writers=1, group_max=2)
    items = [a_stamp(file_path=f"{n}.txt") for n in range(6)]
    async with Bridge.connect(proxy.url, settings=settings) as bridge, served(bridge, group_max=2) as client:
        first: list[Any] = []

        def is_second(sent: bytes) -> bool:
            if is_ledgers_commit(sent):
                first.append(sent)
            return is_ledgers_commit(sent) and len(first) == 2

        proxy.arm(Fault.HOLD_AFTER, is_second, then_refuse=True)
        answers = read_lines(await post_lines(client, *items))
        proxy.release()
        proxy.admit()
    assert [stamp["file_path"] for stamp in answers[:2]] == ["0.txt", "1.txt"]
    for answer in answers[2:4]:
        check_problem(answer["problem"], 503, "outcome_unknown")
    for answer in answers[4:]:
        check_problem(answer["problem"], 503, "service_unavailable")
    retried = [item | {"op_id": a["problem"]["op_id"]} for item, a in zip(items[2:], answers[2:], strict=True)]
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        assert [stamp["version"] for stamp in read_lines(await post_lines(client, *retried))] == [1] * 4
        assert (await bridge.state(NAMESPACE)).total_stamps == 6
