"""The HTTP side over real sockets, on real databases: what is answered, what is refused, and what is recorded then."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from blake3 import blake3

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from omninode_bridge.http.server import serve
from tests.integration.proxy import Fault, Proxy, is_ledgers_commit
from tests.integration.serving import NAMESPACE, a_stamp, digest, nothing_recorded, raw_exchange, refused, served

MEBIBYTE = 1024 * 1024
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest_asyncio.fixture
async def bridge(database_url: str) -> AsyncIterator[Bridge]:
    async with Bridge.connect(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    async with served(bridge) as opened:
        yield opened


async def test_json_content_is_stamped_and_found_by_its_digest(client: httpx.AsyncClient) -> None:
    made = await client.post("/stamp", json=a_stamp(metadata={"case": 7}, content_type="text/x-note"))
    assert made.status_code == 201
    stamp = made.json()
    assert made.headers["location"] == f"/stamp/{digest(b'hello')}?namespace={NAMESPACE}"
    assert stamp["file_hash"] == digest(b"hello")
    assert (stamp["file_size"], stamp["version"], stamp["deduplicated"]) == (5, 1, False)
    assert (stamp["content_type"], stamp["metadata"]) == ("text/x-note", {"case": 7})
    assert (stamp["digest_origin"], stamp["workflow_state"], stamp["op_id"]) == (
        "computed",
        "completed",
        stamp["workflow_id"],
    )
    assert stamp["created_at"].endswith("Z")
    found = await client.get(made.headers["location"])
    assert (found.status_code, found.json()) == (200, {"stamps": [stamp]})
    assert (await client.get(f"/stamp/{digest(b'hello').upper()}")).json() == {"stamps": [stamp]}


async def test_base64_and_raw_content_are_the_same_bytes(client: httpx.AsyncClient) -> None:
    content = bytes(range(256))
    encoded = base64.b64encode(content).decode()
    fields = {"file_path": "b.bin", "namespace": NAMESPACE, "metadata": {"k": "v"}}
    made = await client.post("/stamp", json={**fields, "content_base64": encoded})
    assert (made.status_code, made.json()["file_hash"]) == (201, digest(content))
    parameters = {"file_path": "b.bin", "namespace": NAMESPACE, "metadata": '{"k": "v"}'}
    again = await client.post("/stamp", params=parameters, content=content)
    assert again.status_code == 200
    assert again.json()["deduplicated"] is True
    assert again.json()["stamp_id"] == made.json()["stamp_id"]


async def test_the_newest_stamp_of_a_digest_comes_first(client: httpx.AsyncClient) -> None:
    for path in ("1.txt", "2.txt", "3.txt"):
        assert (await client.post("/stamp", json=a_stamp(file_path=path))).status_code == 201
    await client.post("/stamp", json=a_stamp(file_path="4.txt", namespace="else.where"))
    everywhere = (await client.get(f"/stamp/{digest(b'hello')}")).json()["stamps"]
    assert [stamp["file_path"] for stamp in everywhere] == ["4.txt", "3.txt", "2.txt", "1.txt"]
    here = (await client.get(f"/stamp/{digest(b'hello')}", params={"namespace": NAMESPACE})).json()["stamps"]
    assert [stamp["file_path"] for stamp in here] == ["3.txt", "2.txt", "1.txt"]


async def test_the_header_says_what_raw_bytes_are_unless_it_says_nothing(client: httpx.AsyncClient) -> None:
    async def type_of(path: str, told: str | None, **parameters: str) -> str:
        headers = {"content-type": told} if told else {}
        made = await client.post("/stamp", params={"file_path": path, **parameters}, content=b"x", headers=headers)
        assert made.status_code == 201, made.text
        content_type: str = made.json()["content_type"]
        return content_type

    assert await type_of("1.txt", "image/png") == "image/png"
    assert await type_of("2.json", "application/octet-stream") == "application/json"
    assert await type_of("3.txt", "application/x-www-form-urlencoded") == "text/plain"
    assert await type_of("4.txt", None) == "text/plain"
    assert await type_of("5.txt", "image/png", content_type="text/css") == "text/css"


async def test_an_op_id_answers_again_and_only_for_the_same_request(bridge: Bridge, client: httpx.AsyncClient) -> None:
    op_id = str(uuid4())
    made = await client.post("/stamp", json=a_stamp(op_id=op_id))
    assert (made.status_code, made.json()["op_id"]) == (201, op_id)
    again = await client.post("/stamp", json=a_stamp(op_id=op_id))
    assert again.json() == made.json()
    streamed = await client.post(
        "/stamp", params={"file_path": "a.txt", "namespace": NAMESPACE, "op_id": op_id}, content=b"hello"
    )
    assert streamed.json() == made.json()
    problem = await refused(
        client.post("/stamp", json=a_stamp(op_id=op_id, content="other")), 409, "op_id_conflict", "op_id"
    )
    assert problem["op_id"] == op_id
    assert (await bridge.state(NAMESPACE)).total_stamps == 1


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"namespace": "Bad Name"}, 422, "invalid_input", "namespace"),
        ({"namespace": "x" * 256}, 422, "limit_exceeded", "namespace"),
        ({"file_path": ""}, 422, "invalid_input", "file_path"),
        ({"file_path": 7}, 422, "invalid_input", "file_path"),
        ({"content_type": "nonsense"}, 422, "invalid_input", "content_type"),
        ({"metadata": []}, 422, "invalid_input", "metadata"),
        ({"metadata": {"k": "v" * 70_000}}, 422, "limit_exceeded", "metadata"),
        ({"op_id": "seven"}, 422, "invalid_input", "op_id"),
        ({"embed": True}, 422, "invalid_input", "embed"),
        ({"colour": "red"}, 422, "invalid_input", "colour"),
        ({"content_base64": "YQ=="}, 422, "invalid_input", "content_base64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_value_that_is_not_allowed_is_named(
    bridge: Bridge, client: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str, field: str
) -> None:
    await refused(client.post("/stamp", json=a_stamp(**fields)), status, code, field)
    await nothing_recorded(bridge)


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "body_malformed", "body"),
        (b'{"file_path": "a"', 400, "body_malformed", "body"),
        (b'{"file_path": "\xff"}', 400, "body_malformed", "body"),
        (b'{"file_path":"a","metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, 400, "body_malformed", "body"),
        (b"[]", 422, "invalid_input", "body"),
        (b'{"file_path": "a"}', 422, "invalid_input", "content"),
        (b'{"content": "a"}', 422, "invalid_input", "file_path"),
        (b'{"file_path": "a", "content_base64": "@@"}', 422, "invalid_input", "content_base64"),
        (b'{"file_path": "a", "content_base64": "YQ"}', 422, "invalid_input", "content_base64"),
    ],
    ids=["empty", "cut", "not-utf8", "deep", "array", "no-content", "no-path", "no-base64", "no-padding"],
)
async def test_a_body_that_is_no_request_is_refused(
    bridge: Bridge, client: httpx.AsyncClient, body: bytes, status: int, code: str, field: str
) -> None:
    headers = {"content-type": "application/json"}
    await refused(client.post("/stamp", content=body, headers=headers), status, code, field)
    await nothing_recorded(bridge)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("namespace=a.b", "file_path"),
        ("file_path=a&colour=red", "colour"),
        ("file_path=a&file_path=b", "file_path"),
        ("file_path=a&namespace=Bad", "namespace"),
        ("file_path=a&metadata=[]", "metadata"),
        ("file_path=a&enable_intelligence=perhaps", "enable_intelligence"),
        ("file_path=a&embed=true", "embed"),
        ("file_path=%ff", "query"),
        ("file_path=a%00b", "file_path"),
    ],
)
async def test_bad_query_parameters_are_named(
    bridge: Bridge, client: httpx.AsyncClient, query: str, field: str
) -> None:
    await refused(client.post(f"/stamp?{query}", content=b"x"), 422, "invalid_input", field)
    await nothing_recorded(bridge)


async def test_metadata_that_is_written_too_long_is_not_read(bridge: Bridge, client: httpx.AsyncClient) -> None:
    body = b'{"file_path": "a", "content": "x", "metadata": {"a": [' + b"[]," * 5_000_000 + b"[]]}}"
    headers = {"content-type": "application/json"}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await refused(client.post("/stamp", content=body, headers=headers), 422, "limit_exceeded", "metadata")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 5 * len(body)
    await nothing_recorded(bridge)


async def test_json_in_another_dress_is_refused_but_not_for_curls_default(client: httpx.AsyncClient) -> None:
    body = json.dumps(a_stamp()).encode()
    as_pdf = client.post("/stamp", content=body, headers={"content-type": "application/pdf"})
    await refused(as_pdf, 415, "body_type_unsupported", "content-type")
    as_form = await client.post("/stamp", content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert as_form.status_code == 201


async def test_a_body_over_its_limit_is_refused_announced_or_not(bridge: Bridge) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(50_000)

    async with served(bridge, body_bytes_max=200_000, json_bytes_max=100_000) as client:
        raw = {"file_path": "a", "namespace": NAMESPACE}
        for call, parameters in (("/stamp", raw), ("/hash", {}), ("/stamp", {})):
            limit = 200_000 if call == "/hash" or parameters else 100_000
            over = client.post(call, params=parameters, content=bytes(limit + 1))
            assert str(limit) in (await refused(over, 413, "limit_exceeded", "body"))["detail"]
            await refused(client.post(call, params=parameters, content=chunked()), 413, "limit_exceeded", "body")
        await refused(client.post("/hash", files={"file": bytes(200_001)}), 413, "limit_exceeded", "body")
        assert (await client.post("/hash", content=bytes(200_000))).status_code == 200
        await nothing_recorded(bridge)


async def test_a_refusal_by_length_does_not_wait_for_the_body(client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /hash HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999999\r\n\r\n")
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    writer.close()


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"], ids=["length", "chunked"])
async def test_a_body_cut_off_leaves_nothing(bridge: Bridge, client: httpx.AsyncClient, framing: bytes) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /stamp?file_path=a HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    assert (await client.get("/health/ready")).status_code == 200
    await nothing_recorded(bridge)


async def test_a_body_behind_an_upgrade_is_never_taken_for_an_empty_one(client: httpx.AsyncClient) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    for framing in (b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"):
        answer = await raw_exchange(client, b"POST /hash HTTP/1.1\r\nHost: x\r\n" + upgrade + framing)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"body_malformed" in answer
    answer = await raw_exchange(client, b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_long_body_is_hashed_and_stamped_in_little_memory(client: httpx.AsyncClient) -> None:
    piece = os.urandom(64 * 1024)
    whole = blake3()
    for _ in range(1024):
        whole.update(piece)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield piece

    await client.post("/stamp", params={"file_path": "small"}, content=b"x")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        parameters = {"file_path": "long.bin", "enable_intelligence": "true"}
        made = await client.post("/stamp", params=parameters, content=body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (made.status_code, made.json()["file_size"]) == (201, 64 * MEBIBYTE)
    assert made.json()["file_hash"] == whole.hexdigest()
    assert made.json()["hash_generation_time_ms"] > 0
    assert peak - before < 8 * MEBIBYTE
    hashed = (await client.post("/hash", content=body())).json()
    assert (hashed["file_hash"], hashed["file_size"]) == (whole.hexdigest(), 64 * MEBIBYTE)


async def test_hash_takes_raw_bytes_and_forms_and_records_nothing(bridge: Bridge, client: httpx.AsyncClient) -> None:
    content = os.urandom(3 * MEBIBYTE) + b"\r\n--not-the-boundary\r\n"
    raw = (await client.post("/hash", content=content)).json()
    form = (await client.post("/hash", files={"file": ("name.bin", content)})).json()
    for answer in (raw, form):
        assert answer.keys() == {"file_hash", "file_size", "hash_generation_time_ms"}
        assert (answer["file_hash"], answer["file_size"]) == (digest(content), len(content))
    assert (await client.post("/hash", content=b"")).json()["file_hash"] == digest(b"")
    await nothing_recorded(bridge)


async def test_a_form_that_is_not_one_file_is_refused(client: httpx.AsyncClient) -> None:
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhello\r\n'

    async def post(content: bytes, content_type: str = form) -> httpx.Response:
        return await client.post("/hash", content=content, headers={"content-type": content_type})

    assert (await post(part + b"--b--\r\n")).json()["file_hash"] == digest(b"hello")
    await refused(post(part), 400, "body_malformed", "body")
    await refused(post(b"hello"), 400, "body_malformed", "body")
    await refused(post(part, "multipart/form-data"), 400, "body_malformed", "body")
    await refused(post(part + part + b"--b--\r\n"), 422, "invalid_input", "file")
    await refused(post(part.replace(b"file", b"other") + b"--b--\r\n"), 422, "invalid_input", "file")
    await refused(post(b"--b--\r\n"), 422, "invalid_input", "file")


async def test_look_ups_say_what_is_missing_or_wrong(client: httpx.AsyncClient) -> None:
    await client.post("/stamp", json=a_stamp())
    await refused(client.get(f"/stamp/{digest(b'other')}"), 404, "not_found", "file_hash")
    await refused(client.get(f"/stamp/{digest(b'hello')}?namespace=else.where"), 404, "not_found", "file_hash")
    await refused(client.get("/stamp/abc"), 422, "invalid_input", "file_hash")
    await refused(client.get(f"/stamp/{digest(b'hello')}?namespace=Bad"), 422, "invalid_input", "namespace")
    await refused(client.get(f"/stamp/{digest(b'hello')}?limit=1"), 422, "invalid_input", "limit")


async def test_what_is_no_call_is_a_problem_too(client: httpx.AsyncClient) -> None:
    await refused(client.get("/nowhere"), 404, "no_such_path")
    await refused(client.post("/stamp/"), 404, "no_such_path")
    await refused(client.put("/stamp", content=b"x"), 405, "method_not_allowed")
    assert (await client.delete("/hash")).headers["allow"] == "POST"
    not_http = await raw_exchange(client, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert not_http.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in not_http
    endless = await raw_exchange(client, b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 500_000)
    assert endless.startswith(b"HTTP/1.1 431 ")


async def test_a_page_of_another_origin_may_not_post(client: httpx.AsyncClient) -> None:
    elsewhere = {"origin": "https://elsewhere.example"}
    await refused(client.post("/stamp", json=a_stamp(), headers=elsewhere), 403, "cross_origin", "origin")
    own = {"origin": str(client.base_url).rstrip("/")}
    assert (await client.post("/stamp", json=a_stamp(), headers=own)).status_code == 201


async def test_a_correlation_id_comes_back_if_it_is_one(client: httpx.AsyncClient) -> None:
    async def returned(sent: dict[str, str], path: str = "/health/live") -> str:
        return (await client.get(path, headers=sent)).headers["x-correlation-id"]

    assert await returned({"x-correlation-id": "order-66/a:b"}) == "order-66/a:b"
    assert await returned({"x-correlation-id": "order-67"}, "/nowhere") == "order-67"
    made = [
        await returned({}),
        await returned({"x-correlation-id": "x" * 129}),
        await returned({"x-correlation-id": "a b"}),
    ]
    assert len(set(made)) == 3
    assert all(len(name) == 32 for name in made)


@pytest.mark.parametrize(
    ("sent", "recorded"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-01"),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", f"00-{TRACE}-00f067aa0ba902b7-01"),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", None),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        ("nonsense", None),
    ],
)
async def test_a_valid_trace_context_goes_into_the_event(
    bridge: Bridge, client: httpx.AsyncClient, sent: str, recorded: str | None
) -> None:
    for body in ({"json": a_stamp()}, {"params": {"file_path": "b", "namespace": NAMESPACE}, "content": b"x"}):
        assert (await client.post("/stamp", headers={"traceparent": sent}, **body)).status_code == 201  # type: ignore[arg-type]
    assert [event.traceparent async for event in bridge.events(namespace=NAMESPACE)] == [recorded] * 2


async def test_the_calls_are_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    calls = {(path, method) for path, item in document["paths"].items() for method in item}
    assert calls >= {
        ("/stamp", "post"),
        ("/stamp/batch", "post"),
        ("/stamp/{file_hash}", "get"),
        ("/hash", "post"),
        ("/validate", "post"),
        ("/workflows", "post"),
        ("/workflows/{workflow_id}", "get"),
        ("/namespaces", "get"),
        ("/namespaces/{namespace}", "get"),
        ("/namespaces/{namespace}/stamps", "get"),
        ("/namespaces/{namespace}/state", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
    }
    schemas = document["components"]["schemas"]
    named = {text.split('"')[0] for text in json.dumps(document).split("#/components/schemas/")[1:]}
    assert named <= schemas.keys()
    stamp = (await client.post("/stamp", json=a_stamp())).json()
    assert stamp.keys() == schemas["Stamp"]["properties"].keys()
    assert (await client.get("/docs")).headers["content-type"].startswith("text/html")


async def test_an_error_nobody_meant_says_nothing_of_itself(
    bridge: Bridge, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_down(*_: object) -> Any:
        raise RuntimeError("secret of the house")

    bridge.run = break_down  # type: ignore[method-assign] # a fault such as no input can provoke
    problem = await refused(
        client.post("/stamp", json=a_stamp(), headers={"x-correlation-id": "tell-me"}), 500, "internal_error"
    )
    assert "secret" not in json.dumps(problem)
    assert problem["op_id"]
    assert "tell-me" in caplog.text
    assert "secret of the house" in caplog.text


async def test_without_its_database_it_is_alive_but_not_ready_and_a_retry_is_safe(database_url: str) -> None:
    async with AsyncExitStack() as way:
        proxy = await way.enter_async_context(Proxy(database_url))
        async with Bridge.connect(proxy.url) as bridge, served(bridge) as client:
            assert (await client.get("/health/ready")).json() == {"status": "ready"}
            await way.aclose()
            await refused(client.get("/health/ready"), 503, "service_unavailable")
            assert (await client.get("/health/live")).json() == {"status": "alive"}
            await refused(client.get(f"/stamp/{digest(b'hello')}"), 503, "service_unavailable")
            op_id = str(uuid4())
            answer = await client.post("/stamp", json=a_stamp(op_id=op_id))
            assert int(answer.headers["retry-after"]) > 0
            assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        await nothing_recorded(bridge)
        assert (await client.post("/stamp", json=a_stamp(op_id=op_id))).status_code == 201


async def test_after_an_unknown_outcome_the_same_op_id_gets_the_stamp(database_url: str, proxy: Proxy) -> None:
    async with Bridge.connect(proxy.url, settings=Settings.read(writers=1)) as bridge, served(bridge) as client:
        proxy.arm(Fault.HOLD_AFTER, is_ledgers_commit, then_refuse=True)
        problem = await refused(client.post("/stamp", json=a_stamp()), 503, "outcome_unknown")
        proxy.release()
        proxy.admit()
        again = await client.post("/stamp", json=a_stamp(op_id=problem["op_id"]))
        assert (again.status_code, again.json()["op_id"]) == (201, problem["op_id"])
        assert (await bridge.state(NAMESPACE)).total_stamps == 1


async def start(settings: Settings) -> tuple[asyncio.Task[None], str]:
    announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings, announce=announced.set_result))
    await asyncio.wait({serving, announced}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    return serving, announced.result()


async def test_a_signal_ends_the_server_after_what_was_taken_is_answered(database_url: str) -> None:
    serving, url = await start(Settings.read(database_url=database_url, port=0))
    taken = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first, "
        taken.set()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            await refuses_connections(url)
        yield b"then"

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        made = await client.post("/stamp", params={"file_path": "a"}, content=slow())
    assert taken.is_set()
    assert (made.status_code, made.json()["file_hash"]) == (201, digest(b"first, then"))
    await serving


async def test_a_signal_while_the_bridge_opens_ends_that_in_order(tmp_path: Path) -> None:
    settings = Settings.read(data_dir=tmp_path / "data", port=0)
    opening = asyncio.create_task(serve(settings, announce=print))
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    await opening
    serving, _ = await start(settings)
    os.kill(os.getpid(), signal.SIGINT)
    await serving


async def refuses_connections(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            await client.get("/health/live", headers={"connection": "close"})


async def test_a_taken_port_is_told_at_once(database_url: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceUnavailable, match=f"127.0.0.1:{port}"):
            await serve(Settings.read(database_url=database_url, port=port), announce=print)


async def test_a_host_that_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no address"):
        await serve(Settings.read(host="no such host", port=0), announce=print)


async def test_the_server_ends_with_its_embedded_database(tmp_path: Path) -> None:
    serving, url = await start(Settings.read(data_dir=tmp_path / "data", port=0))
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.post("/stamp", json=a_stamp())).status_code == 201
    (pid_file,) = (tmp_path / "data").rglob("postmaster.pid")
    os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)
    with pytest.raises(ServiceUnavailable, match="ended by itself"):
        await serving
