"""API tokens as users and servers meet them: made, used, limited, revoked; on one server and on several."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from omninode_bridge.adapters.postgres.connection import connect
from omninode_bridge.app.access import new_secret
from omninode_bridge.app.administration import administration
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, NotFound, ServiceUnavailable
from omninode_bridge.domain.tenancy import Limits
from omninode_bridge.http.server import serve
from tests.integration.books import eventually
from tests.integration.proxy import Proxy
from tests.integration.serving import a_stamp, as_lines, digest, nothing_recorded, raw_exchange, refused, served
from tests.integration.test_cli import Desk

OURS = "acme.docs"
OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs")


async def made(database_url: str, name: str = "acme-ci", limits: Limits | None = None, **given: Any) -> str:
    """Make a token; return its secret."""
    fields = {"namespaces": ["acme.*"], "scopes": ["read", "write"]} | given
    async with administration(Settings.read(database_url=database_url)) as desk:
        return (await desk.create_token(name, limits=limits, **fields)).secret


async def revoke(database_url: str, name: str = "acme-ci") -> None:
    async with administration(Settings.read(database_url=database_url)) as desk:
        await desk.revoke_token(name)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def stamped(path: str = "a.txt", content: str = "hello", **more: Any) -> dict[str, Any]:
    return a_stamp(namespace=OURS, file_path=path, content=content, **more)


async def until_status(client: httpx.AsyncClient, status: int, **request: Any) -> None:
    async def there() -> bool:
        return (await client.post("/hash", content=b"x", **request)).status_code == status

    await eventually(there, f"an answer {status}")


async def challenged(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), answer.text
    assert answer.json()["code"] == "unauthenticated"
    detail: str = answer.json()["detail"]
    return detail


async def test_without_tokens_everybody_local_may_do_everything(database_url: str) -> None:
    settings = Settings.read(database_url=database_url, stamped_by="hausherr")
    async with Bridge.connect(database_url, settings=settings) as bridge, served(bridge) as client:
        answer = await client.post("/stamp", json=a_stamp(namespace="any.where"))
        assert (answer.status_code, answer.json()["stamped_by"]) == (201, "hausherr")
        assert (await client.get("/namespaces/any.where")).status_code == 200


async def test_from_the_first_token_on_every_call_needs_one(database_url: str) -> None:
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        assert (await client.post("/hash", content=b"x")).status_code == 200
        secret = await made(database_url)
        await until_status(client, 401)
        calls = [
            ("GET", "/"), ("GET", "/nowhere"), ("POST", "/stamp"), ("PUT", "/stamp"), ("GET", f"/stamp/{digest(b'x')}"),
            ("POST", "/stamp/batch"), ("POST", "/hash"), ("POST", "/validate"), ("POST", "/workflows"),
            ("GET", "/workflows/x"), ("GET", "/namespaces"), ("GET", "/namespaces/x"), ("GET", "/namespaces/x/stamps"),
            ("GET", "/namespaces/x/state"), ("GET", "/events"), ("OPTIONS", "/stamp"), ("HEAD", "/events"),
            ("GET", "/healthy"), ("GET", "/metrics/"), ("GET", "//health"), ("GET", "/docs/x"),
        ]  # fmt: skip
        for method, path in calls:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), (path, answer.text)
        for path in OPEN:
            assert (await client.get(path)).status_code == 200, path
            assert (await client.get(path, headers=bearer("nonsense"))).status_code == 200, path
        await nothing_recorded(bridge)
        answer = await client.post("/stamp", json=stamped(), headers=bearer(secret))
        assert (answer.status_code, answer.json()["stamped_by"]) == (201, "acme-ci")
        await revoke(database_url)
        await until_status(client, 401, headers=bearer(secret))
        await challenged(await client.post("/hash", content=b"x"))


async def test_whatever_is_wrong_with_a_token_gets_one_answer(database_url: str) -> None:
    good, revoked = await made(database_url), await made(database_url, "revoked")
    expired = await made(database_url, "expired", lifetime=timedelta(microseconds=1))
    await revoke(database_url, "revoked")
    wrong = [
        f"Bearer {revoked}", f"Bearer {expired}", f"Bearer {new_secret()}", f"Bearer {good[:-1]}", f"Bearer {good}=",
        f"Bearer {good} {good}", f"Bearer {good},", f"Basic {good}", f"Token {good}", good, "Bearer", "Basic eDp5",
        f"bearer\t{good}", f'Bearer "{good}"', f"Bearer {good.lower()}", "Bearer \xe9\xfc",
    ]  # fmt: skip
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        answers = [
            await client.post("/hash", content=b"x", headers={"authorization": w.encode("latin-1")}) for w in wrong
        ]
        told = {await challenged(answer) for answer in answers}
        assert len(told) == 1
        assert {frozenset(answer.headers.keys()) for answer in answers} == {frozenset(answers[0].headers.keys())}
        for right in (f"Bearer {good}", f"bearer {good}", f"BEARER   {good}"):
            assert (await client.post("/hash", content=b"x", headers={"authorization": right})).status_code == 200
        twice = f"POST /hash HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\n"
        assert (await raw_exchange(client, f"{twice}Connection: close\r\n\r\n".encode())).startswith(b"HTTP/1.1 401 ")


async def test_a_token_in_a_url_is_refused_and_not_repeated(database_url: str) -> None:
    secret = await made(database_url)
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        for query in (
            f"access_token={secret}",
            f"token={secret}",
            f"file_path={secret}&namespace={OURS}",
            f"x&{secret}",
        ):
            for headers in ({}, bearer(secret)):
                answer = await client.post(f"/stamp?{query}", content=b"x", headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (400, "token_in_query")
                assert secret not in answer.text
        await nothing_recorded(bridge)


async def test_a_secret_is_in_no_answer_and_no_database(database_url: str) -> None:
    secret = await made(database_url)
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        texts = [(await client.post("/stamp", json=stamped(), headers=bearer(secret))).text]
        texts.append((await client.post("/stamp", json=stamped(op_id="x"), headers=bearer(secret))).text)
        texts += [repr(thing) for thing in (bridge.access, vars(bridge.access), vars(bridge.access._known))]
    owner = await connect(database_url)
    try:
        for table in ("api_tokens", "admin_log", "token_usage", "metadata_stamps", "event_log"):
            rows = await owner.fetch(f"SELECT * FROM {table}")
            assert rows, table
            texts += [repr(dict(row)) for row in rows]
    finally:
        await owner.close()
    assert not [text for text in texts if secret[4:] in text]


async def test_a_page_of_another_origin_may_ask_with_a_token_and_not_without(database_url: str) -> None:
    elsewhere = {"origin": "https://elsewhere.example"}
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        await refused(client.post("/stamp", json=stamped(), headers=elsewhere), 403, "cross_origin", "origin")
        # What a browser may add by itself is no token.
        ambient = {**elsewhere, "authorization": "Basic eDp5"}
        await refused(client.post("/stamp", json=stamped(), headers=ambient), 403, "cross_origin", "origin")
        await refused(
            client.post("/stamp", json=stamped(), headers={**elsewhere, **bearer("x")}), 401, "unauthenticated"
        )
        secret = await made(database_url)
        answer = await client.post("/stamp", json=stamped(), headers={**elsewhere, **bearer(secret)})
        assert answer.status_code == 201
        assert not [name for name in answer.headers if name.startswith("access-control")]


NO_NAMES = (
    "", ":80", "localhost:1@evil.example", "localhost:x", "localhost:1:2", "localhost/evil.example", "[::1", "[::1]x",
    "[localhost]evil.example", "evil.example@localhost", "localhost evil.example", "localhost,evil.example", "http://localhost",
)  # fmt: skip


async def test_without_tokens_the_server_answers_to_the_names_of_this_machine_only(database_url: str) -> None:
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        port = client.base_url.port
        for host in ("rebound.example", f"rebound.example:{port}", "127.0.0.1.rebound.example", "localhost.example"):
            await refused(client.get("/namespaces", headers={"host": host}), 421, "foreign_host", "host")
            await refused(
                client.post("/stamp", json=stamped(), headers={"host": host, "origin": f"http://{host}"}),
                421, "foreign_host", "host",
            )  # fmt: skip
        for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "bridge", "bridge.localhost", "127.0.0.2"):
            assert (await client.get("/namespaces", headers={"host": host})).status_code == 200, host
        for host in NO_NAMES:
            sent = f"GET /namespaces HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n\r\n"
            answered = await raw_exchange(client, sent.encode())
            assert answered.startswith(b"HTTP/1.1 421 ") and b'"foreign_host"' in answered, (host, answered)
        answered = await raw_exchange(client, b"GET /namespaces HTTP/1.0\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 421 "), answered
        answered = await raw_exchange(client, b"GET /namespaces HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200 "), answered
        secret = await made(database_url)
        named = {"host": "bridge.acme.example", **bearer(secret)}
        assert (await client.get("/namespaces", headers=named)).status_code == 200


async def test_two_servers_both_refuse_a_revoked_token_and_end_its_streams(database_url: str) -> None:
    secret = await made(database_url)
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            bridge = await stack.enter_async_context(Bridge.connect(database_url))
            clients.append(await stack.enter_async_context(served(bridge)))
        streams = [
            await stack.enter_async_context(client.stream("GET", "/events", headers=bearer(secret)))
            for client in clients
        ]
        assert [stream.status_code for stream in streams] == [200, 200]
        assert (await clients[0].post("/stamp", json=stamped(), headers=bearer(secret))).status_code == 201
        readings = [stream.aiter_bytes() for stream in streams]
        async with asyncio.timeout(30):
            for reading in readings:
                told = b""
                while b"acme.docs" not in told:
                    told += await anext(reading)
        await revoke(database_url)
        async with asyncio.timeout(30):
            for client, reading in zip(clients, readings, strict=True):
                await until_status(client, 401, headers=bearer(secret))
                async for _ in reading:
                    pass


async def test_without_its_database_nobody_comes_in_and_health_is_told(database_url: str) -> None:
    secret = await made(database_url)
    async with AsyncExitStack() as way:
        proxy = await way.enter_async_context(Proxy(database_url))
        async with Bridge.connect(proxy.url) as bridge, served(bridge) as client:
            assert (await client.post("/hash", content=b"x", headers=bearer(secret))).status_code == 200
            await way.aclose()
            await until_status(client, 503, headers=bearer(secret))
            answer = await client.post("/hash", content=b"x", headers=bearer(new_secret()))
            assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 503
            await challenged(await client.post("/hash", content=b"x", headers=bearer("malformed")))


async def test_a_token_that_asks_too_often_is_told_when_to_come_back(database_url: str) -> None:
    slow = await made(database_url, "slow", Limits(requests_per_s=5))
    other = await made(database_url, "other")
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        began_s = time.monotonic()
        answers = await asyncio.gather(*(client.post("/hash", content=b"x", headers=bearer(slow)) for _ in range(40)))
        took_s = time.monotonic() - began_s
        late = [answer for answer in answers if answer.status_code == 429]
        assert len(answers) - len(late) <= 5 + 5 * took_s
        assert {answer.status_code for answer in answers} == {200, 429}
        assert {(a.headers["retry-after"], a.json()["code"]) for a in late} == {("1", "rate_limited")}
        assert (await client.post("/hash", content=b"x", headers=bearer(other))).status_code == 200
        await until_status(client, 200, headers=bearer(slow))


async def exhausted(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Check that each call that stamps is refused by the quota, with the way to midnight."""
    item = stamped("new.txt", "new")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/stamp", {"json": item}),
        ("/stamp", {"params": {"namespace": OURS, "file_path": "raw"}, "content": b"raw"}),
        ("/stamp/batch", {"json": [item]}),
        ("/workflows", {"json": item}),
    ]
    for path, more in calls:
        answer = await client.post(path, headers=headers, **more)
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded"), (path, answer.text)
        left = timedelta(seconds=int(answer.headers["retry-after"]))
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        assert abs(datetime.now(UTC) + left - midnight) < timedelta(minutes=1)
    assert (await client.post("/hash", content=b"x", headers=headers)).status_code == 200
    assert (await client.get(f"/stamp/{digest(b'first')}", headers=headers)).status_code == 200


async def test_a_days_quota_of_stamps_counts_what_is_asked_for_by_every_call(database_url: str) -> None:
    headers = bearer(await made(database_url, limits=Limits(stamps_per_day=7)))
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        for _ in range(2):  # the second is deduplicated: it was asked for all the same
            await client.post("/stamp", json=stamped("first.txt", "first"), headers=headers)
        raw = {"namespace": OURS, "file_path": "raw"}
        assert (await client.post("/stamp", params=raw, content=b"raw", headers=headers)).status_code == 201
        batch = [stamped("1", "1"), stamped("2", "2"), {**stamped("3"), "namespace": "Not Allowed"}]
        lines = {**headers, "content-type": "application/x-ndjson"}
        over = await client.post("/stamp/batch", content=as_lines(*batch, *batch, *batch), headers=lines)
        assert over.status_code == 429  # six stamps are too many, and none of them is made
        assert (await client.post("/stamp/batch", content=as_lines(*batch), headers=lines)).status_code == 200
        assert (await client.post("/workflows", json=stamped("later", "later"), headers=headers)).status_code == 202
        assert (await client.post("/stamp", json=stamped("4", "4"), headers=headers)).status_code == 201
        await exhausted(client, headers)
        await refused(
            client.post("/stamp", json=a_stamp(namespace="Bad Name"), headers=headers),
            422,
            "invalid_input",
            "namespace",
        )
        assert len(await bridge.reads.by_hash(digest(b"new"))) == 0
    assert await used(database_url) == (7, len("firstfirstraw12later4"))


async def test_a_days_quota_of_bytes_counts_contents_and_not_claims(database_url: str) -> None:
    headers = bearer(await made(database_url, limits=Limits(bytes_per_day=100)))
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        claims = [
            {"namespace": OURS, "file_path": f"{n}", "file_hash": digest(b"%d" % n), "file_size": 10**9}
            for n in range(3)
        ]
        assert (await client.post("/stamp/batch", json=claims, headers=headers)).status_code == 200
        raw = {"namespace": OURS, "file_path": "raw"}
        assert (await client.post("/stamp", params=raw, content=b"x" * 101, headers=headers)).status_code == 429

        async def unannounced() -> AsyncIterator[bytes]:
            yield b"x" * 101

        assert (await client.post("/stamp", params=raw, content=unannounced(), headers=headers)).status_code == 429
        assert (await client.post("/stamp", json=stamped("first.txt", "first"), headers=headers)).status_code == 201
        assert (await client.post("/stamp", params=raw, content=b"x" * 94, headers=headers)).status_code == 201
        await exhausted(client, headers)
    assert await used(database_url) == (5, 99)


async def used(database_url: str) -> tuple[int, int]:
    async with administration(Settings.read(database_url=database_url)) as desk:
        ((_, use),) = await desk.tokens()
    return use.stamps, use.content_bytes


async def test_servers_share_a_days_quota(database_url: str) -> None:
    headers = bearer(await made(database_url, limits=Limits(stamps_per_day=10)))
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            bridge = await stack.enter_async_context(Bridge.connect(database_url))
            clients.append(await stack.enter_async_context(served(bridge)))
        for number in range(10):
            answer = await clients[0].post("/stamp", json=stamped(f"{number}", "first"), headers=headers)
            assert answer.status_code == 201

        async def told() -> bool:
            answer = await clients[1].post("/stamp", json=stamped("other", "other"), headers=headers)
            return answer.status_code == 429

        await eventually(told, "the other server knows that the quota is used up")
        await exhausted(clients[1], headers)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[tuple[str, list[str]]]:
    """A server as `up` starts it; its URL and what it says of whom it serves."""
    announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    said: list[str] = []
    serving = asyncio.create_task(serve(settings, announce=announced.set_result, notice=said.append))
    await asyncio.wait({serving, announced}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    try:
        yield announced.result(), said
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await serving


async def test_where_other_machines_reach_it_a_server_without_tokens_does_not_start(database_url: str) -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(InvalidInput, match=r"other machines .*omninode-bridge token create") as told:
            await serve(Settings.read(database_url=database_url, host=host, port=0), announce=print)
        assert told.value.field == "host"
    with pytest.raises(ServiceUnavailable, match=r"192\.0\.2\.1:0 can't be listened on"):
        await serve(Settings.read(database_url=database_url, host="192.0.2.1", port=0), announce=print)


async def test_where_other_machines_reach_it_a_server_is_never_open_again(database_url: str) -> None:
    secret = await made(database_url)
    await revoke(database_url)
    async with started(Settings.read(database_url=database_url, host="0.0.0.0", port=0)) as (url, said):
        assert said == ["every call needs a token"]
        owner = await connect(database_url)
        await owner.execute("TRUNCATE api_tokens, token_usage")
        await owner.close()
        async with httpx.AsyncClient(base_url=url.replace("0.0.0.0", "127.0.0.1")) as client:
            # Two looks later the server knows that there is none any more.
            await asyncio.gather(*(until_status(client, 401, headers=headers) for headers in ({}, bearer(secret))))
            await challenged(await client.post("/stamp", json=stamped()))


async def test_a_server_without_tokens_says_whom_it_serves(database_url: str) -> None:
    settings = Settings.read(database_url=database_url, port=0, stamped_by="hausherr")
    async with started(settings) as (url, said):
        assert url.startswith("http://127.0.0.1:")
        (sentence,) = said
        assert "only this machine" in sentence
        assert "'hausherr'" in sentence
        assert "omninode-bridge token create" in sentence


async def test_every_act_leaves_a_row_with_its_actor(database_url: str) -> None:
    settings = Settings.read(database_url=database_url, stamped_by="admin@acme")
    async with administration(settings) as desk:
        issued = await desk.create_token("ci", namespaces=["acme.*", "x"], scopes=["write"], limits=Limits(5, 6, 7))
        with pytest.raises(InvalidInput):
            await desk.create_token("ci", namespaces=["*"], scopes=["read"])
        await desk.revoke_token("ci")
        await desk.revoke_token("ci")
        with pytest.raises(NotFound):
            await desk.revoke_token("nobody")
    async with Bridge.connect(database_url, settings=settings) as bridge:
        await bridge.rebuild()
        await bridge.rebuild("acme.docs")
    owner = await connect(database_url)
    try:
        rows = await owner.fetch("SELECT * FROM admin_log ORDER BY id")
    finally:
        await owner.close()
    assert [(row["actor"], row["act"], row["subject"]) for row in rows] == [
        ("admin@acme", "token.create", "ci"),
        ("admin@acme", "token.revoke", "ci"),
        ("admin@acme", "state.rebuild", "*"),
        ("admin@acme", "state.rebuild", "acme.docs"),
    ]
    assert json.loads(rows[0]["details"]) == {
        "token_id": issued.token.token_id,
        "scopes": ["write"],
        "namespaces": ["acme.*", "x"],
        "expires_at": None,
        "requests_per_s": 5,
        "stamps_per_day": 6,
        "bytes_per_day": 7,
    }


async def test_an_act_that_leaves_no_row_is_not_done(database_url: str) -> None:
    secret = await made(database_url)
    owner = await connect(database_url)
    try:
        await owner.execute("REVOKE INSERT ON admin_log FROM omninode_bridge_service")
        with pytest.raises(ServiceUnavailable, match="admin_log"):
            await made(database_url, "other")
        with pytest.raises(ServiceUnavailable, match="admin_log"):
            await revoke(database_url)
        rows = await owner.fetch("SELECT name, revoked_at FROM api_tokens")
        assert [tuple(row) for row in rows] == [("acme-ci", None)]
    finally:
        await owner.close()
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        assert (await client.post("/hash", content=b"x", headers=bearer(secret))).status_code == 200


async def test_the_whole_program_runs_for_a_login_that_may_do_nothing_by_itself(database_url: str) -> None:
    """So each session that touches data runs as one of the two roles: the login has no right that it could lend."""
    owner = await connect(database_url)
    login = f"app_{owner.get_server_pid()}_{os.getpid()}"
    await owner.execute(
        f"""CREATE ROLE {login} LOGIN NOINHERIT;
        GRANT omninode_bridge_tenant, omninode_bridge_service TO {login};
        GRANT SELECT ON schema_migrations TO {login}"""
    )
    url = database_url.replace("://bridge@", f"://{login}@")
    assert url != database_url
    try:
        bare = await connect(url)
        for table in ("metadata_stamps", "event_log", "fsm_states", "bridge_state", "api_tokens", "log_heads"):
            with pytest.raises(Exception, match="permission denied"):
                await bare.fetch(f"SELECT * FROM {table}")
        await bare.close()
        headers = bearer(await made(url))
        async with AsyncExitStack() as stack:
            address, _ = await stack.enter_async_context(started(Settings.read(database_url=url, port=0)))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, headers=headers, timeout=60))
            assert (await client.post("/stamp", json=stamped())).status_code == 201
            accepted = await client.post("/workflows", json=stamped("later", "later"))

            async def done() -> bool:
                found = await client.get(accepted.headers["location"])
                return bool(found.json()["state"] == "completed")

            await eventually(done, "the accepted workflow has ended")
            assert (await client.get(f"/namespaces/{OURS}")).json()["total_stamps"] == 2
            for path in (
                f"/stamp/{digest(b'hello')}",
                "/namespaces",
                f"/namespaces/{OURS}/stamps",
                "/metrics",
                "/health",
            ):
                assert (await client.get(path)).status_code == 200, path
        async with Bridge.connect(url) as bridge:
            async for result in bridge.stamp_tree(os.__file__, namespace=OURS):
                assert result.status == "new"
            await bridge.rebuild()
            assert (await bridge.state(OURS)).total_stamps == 3
            assert [finding.law for finding in await bridge.audit() if not finding.holds] == []
    finally:
        await owner.execute(f"DROP OWNED BY {login}; DROP ROLE {login}")
        await owner.close()


@pytest.mark.parametrize("server", ["embedded"], indirect=True)
async def test_the_command_line_makes_lists_and_revokes_tokens(database_url: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"BRIDGE_DATABASE_URL": database_url})
    made = desk.run("token", "create", "acme-ci", "-n", "acme.*", "-n", "x", "--scope", "write", "--expires", "30d")
    secret = made.output.strip()
    assert made.output == f"{secret}\n"
    assert (len(secret), secret[:4]) == (47, "obt_")
    assert "only time" in made.sentence
    assert secret not in made.errors
    (other,) = desk.json("token", "create", "other", "-n", "*", "--scope", "read", "--scope", "admin",
        "--requests-per-s", "5", "--stamps-per-day", "1000", "--bytes-per-day", "1000000")  # fmt: skip
    assert (other["scopes"], other["namespaces"], other["stamps_per_day"]) == (["read", "admin"], ["*"], 1000)
    assert other["token"].startswith("obt_")
    listed = desk.run("token", "list").output
    assert listed.splitlines()[1].split()[:5] == ["acme-ci", "live", "write", "acme.*", "x"]
    assert "5 requests/s, 1,000 stamps/day, 1 MB/day" in listed
    assert secret not in listed
    first, second = desk.json("token", "list")
    assert (first["name"], first["status"], first["used_today"]) == (
        "acme-ci",
        "live",
        {"stamps": 0, "content_bytes": 0},
    )
    assert "token" not in first
    assert second["expires_at"] is None
    lifetime = datetime.fromisoformat(first["expires_at"]) - datetime.fromisoformat(first["created_at"])
    assert lifetime == timedelta(days=30)
    assert "is revoked" in desk.run("token", "revoke", "acme-ci").output
    assert "already" in desk.run("token", "revoke", "acme-ci").output
    assert [row["status"] for row in desk.json("token", "list")] == ["revoked", "live"]
    assert "nobody" in desk.run("token", "revoke", "nobody", code=1).sentence


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ci", "--scope", "read"], "--namespace"),
        (["ci", "-n", "acme.*"], "--scope"),
        (["ci", "-n", "acme*", "--scope", "read"], "acme*"),
        (["ci", "-n", "Acme", "--scope", "read"], "Acme"),
        (["ci", "-n", "a,b", "--scope", "read"], "a,b"),
        (["ci", "-n", "*.acme", "--scope", "read"], "*.acme"),
        (["ci", "-n", "", "--scope", "read"], "''"),
        (["ci", "-n", "acme", "--scope", "owner"], "owner"),
        (["", "-n", "acme", "--scope", "read"], "name"),
        (["c\ni", "-n", "acme", "--scope", "read"], "name"),
        (["x" * 256, "-n", "acme", "--scope", "read"], "name"),
        (["ci", "-n", "acme", "--scope", "read", "--expires", "soon"], "soon"),
        (["ci", "-n", "acme", "--scope", "read", "--expires", "0d"], "0d"),
        (["ci", "-n", "acme", "--scope", "read", "--expires", "99999999w"], "99999999w"),
        (["ci", "-n", "acme", "--scope", "read", "--requests-per-s", "0"], "requests_per_s"),
        (["ci", "-n", "acme", "--scope", "read", "--stamps-per-day", "-1"], "stamps_per_day"),
        (["ci", "-n", "acme", "--scope", "read", "--bytes-per-day", "99999999999999999999"], "bytes_per_day"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_token_that_cannot_be_meant_is_refused_with_the_reason(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    assert told in Desk(tmp_path).run("token", "create", *arguments, code=2).sentence
    assert not (tmp_path / "data").exists()


def test_up_says_whom_it_serves_and_takes_a_token_while_it_runs(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    process = desk.start("up", "--port", "0", BRIDGE_LOG_LEVEL="debug", BRIDGE_ACCESS_LOG="true")
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split()[3]
        assert "there are no tokens" in process.stdout.readline().decode()
        secret = desk.run("token", "create", "ci", "-n", "acme.*", "--scope", "write").output.strip()
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.post("/stamp", json=stamped(), headers=bearer(secret)).status_code == 201
            assert client.post(f"/stamp?access_token={secret}", content=b"").status_code == 400
            assert client.get(f"/stamp/{secret}", headers=bearer(secret)).status_code == 403
        desk.run("token", "revoke", "ci")
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0
    assert b"/stamp" in errors
    assert secret not in (output + errors).decode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    again = desk.start("up", "--host", "0.0.0.0", "--port", port)
    assert again.stdout is not None
    try:
        assert port in again.stdout.readline().decode()
        assert again.stdout.readline().decode() == "every call needs a token\n"
    finally:
        again.send_signal(signal.SIGTERM)
        again.communicate(timeout=90)
