"""Law 4 through every call: two tenants on one server, and no trace of one in anything that the other is answered.

What a tenant may not see is answered exactly like what does not exist, and what it may not do is refused whether or not
there is anything. Several tests compare whole answers: that of a tenant who asks for what the other has, and that of
one who asks for what nobody has.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from omninode_bridge.adapters.postgres.connection import connect
from omninode_bridge.app.bridge import Bridge
from tests.integration.books import eventually
from tests.integration.serving import PATIENCE_S, as_lines, check_problem, digest, refused, served, token

OURS, THEIRS = "acme.docs", "globex.docs"
ABSENT = "globex.nothing-is-here"
SECRET = b"what globex alone has"
SHARED = b"what both of them have"


@dataclass
class House:
    """A server with two tenants, who have both stamped the same bytes at the same path, and globex some more."""

    bridge: Bridge
    url: str
    client: httpx.AsyncClient
    acme: dict[str, str]
    globex: dict[str, str]
    stamps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By namespace and path."""
    workflow_id: str = ""
    """Of globex, accepted and waiting."""

    async def stamp(
        self, who: dict[str, str], namespace: str, path: str, content: bytes, **more: Any
    ) -> httpx.Response:
        body = {"namespace": namespace, "file_path": path, "content": content.decode(), **more}
        return await self.client.post("/stamp", json=body, headers=who)

    async def asks(self, path: str, **parameters: Any) -> httpx.Response:
        """What acme is answered."""
        return await self.client.get(path, params=parameters, headers=self.acme)


async def answered_unread(house: House, path: str) -> Any:
    """What acme is answered to a raw upload of which no byte is sent."""
    reader, writer = await asyncio.open_connection(house.client.base_url.host, house.client.base_url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {house.acme['authorization']}\r\n"
    writer.write(f"{head}Content-Length: 999999\r\nExpect: 100-continue\r\n\r\n".encode())
    try:
        async with asyncio.timeout(PATIENCE_S):
            told = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", told)
            assert length is not None, told
            return json.loads(await reader.readexactly(int(length[1])))
    finally:
        writer.close()


def traces(text: str) -> list[str]:
    """What of globex is in a text that acme got, other than what acme itself asked for."""
    return [word for word in ("globex", SECRET.decode(), digest(SECRET), "secret.txt") if word in text]


@pytest_asyncio.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    acme = await token(database_url, "acme-ci", "acme.*")
    globex = await token(database_url, "globex-ci", "globex.*")
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        opened = House(bridge, database_url, client, acme, globex)
        for who, namespace, path, content in (
            (acme, OURS, "same.txt", SHARED),
            (globex, THEIRS, "same.txt", SHARED),
            (globex, THEIRS, "secret.txt", SECRET),
        ):
            made = await opened.stamp(who, namespace, path, content, metadata={"project": "p", "of": namespace})
            assert made.status_code == 201, made.text
            opened.stamps[f"{namespace}/{path}"] = made.json()
        waiting = {"namespace": THEIRS, "file_path": "later.txt", "content": "later"}
        accepted = await client.post("/workflows", json=waiting, headers=globex)
        assert accepted.status_code == 202, accepted.text
        opened.workflow_id = accepted.json()["workflow_id"]
        assert (await bridge.state(THEIRS)).total_stamps >= 2
        yield opened


async def same_as_nothing(house: House, theirs: str, nothing: str, **parameters: Any) -> None:
    """Check that asking for what globex has is answered, to the letter, as asking for what nobody has."""
    one = await house.asks(theirs, **parameters)
    other = await house.asks(nothing, **parameters)
    assert one.status_code == other.status_code == 404, (theirs, one.text, other.text)
    assert without(one.text, theirs) == without(other.text, nothing)
    assert headers_of(one) == headers_of(other)


def without(text: str, path: str) -> str:
    """A text less what the caller has asked for."""
    for asked in sorted({THEIRS, ABSENT, *re.split(r"[/?=&]", path)} - {""}, key=len, reverse=True):
        text = text.replace(asked, "…")
    return text


def headers_of(answer: httpx.Response) -> dict[str, str]:
    passing = {"date", "x-correlation-id", "content-length"}
    return {name: value for name, value in answer.headers.items() if name not in passing}


async def test_each_stamps_under_its_own_name(house: House) -> None:
    assert house.stamps[f"{OURS}/same.txt"]["stamped_by"] == "acme-ci"
    assert house.stamps[f"{THEIRS}/same.txt"]["stamped_by"] == "globex-ci"
    tokenless = house.bridge.request(stamped_by=None, content=None, file_path="a")  # type: ignore[arg-type]
    assert tokenless.stamped_by not in ("acme-ci", "globex-ci")


@pytest.mark.parametrize("namespace", [THEIRS, ABSENT, "acme", "acme-docs", "acmeglobex.docs", "other"])
async def test_nobody_writes_into_a_namespace_that_is_not_his(house: House, namespace: str) -> None:
    """Refused in the same words whether or not there is such a namespace; before a raw body is read."""
    body = {"namespace": namespace, "file_path": "same.txt", "content": SHARED.decode()}
    json_answer = await house.client.post("/stamp", json=body, headers=house.acme)
    later = await house.client.post("/workflows", json=body, headers=house.acme)
    told = set()
    raw_answer = await answered_unread(house, f"/stamp?namespace={namespace}&file_path=same.txt")
    for problem in (json_answer.json(), raw_answer, later.json()):
        check_problem(problem, 403, "forbidden", "namespace")
        told.add(problem["detail"])
    assert {sentence.replace(f"to {namespace}:", "to …:") for sentence in told} == {
        "token 'acme-ci' may not write to …: use a token whose namespaces include it"
    }
    with_op = await house.client.post(
        "/stamp", json={**body, "op_id": house.stamps[f"{THEIRS}/same.txt"]["op_id"]}, headers=house.acme
    )
    assert (with_op.status_code, with_op.json()["detail"]) == (403, told.pop())


async def test_a_batch_tells_of_each_item_by_itself(house: House) -> None:
    items = [
        {"namespace": OURS, "file_path": "new.txt", "content": "new"},
        {"namespace": THEIRS, "file_path": "same.txt", "content": SHARED.decode()},
        {"namespace": ABSENT, "file_path": "same.txt", "content": SHARED.decode()},
        {"namespace": THEIRS, "file_path": "x", "file_hash": digest(SECRET), "file_size": len(SECRET)},
        {"namespace": OURS, "file_path": "claimed.txt", "file_hash": digest(SECRET), "file_size": len(SECRET)},
    ]
    headers = {**house.acme, "content-type": "application/x-ndjson"}
    answer = await house.client.post("/stamp/batch", content=as_lines(*items), headers=headers)
    mine, theirs, nothing, claimed, own = map(json.loads, answer.text.splitlines())
    assert (mine["namespace"], mine["stamped_by"]) == (OURS, "acme-ci")
    for item in (theirs, nothing, claimed):
        check_problem(item["problem"], 403, "forbidden", "namespace")
    assert theirs["problem"]["detail"].replace(THEIRS, "…") == nothing["problem"]["detail"].replace(ABSENT, "…")
    # To claim the digest of what another has gives nothing of his.
    assert (own["digest_origin"], own["deduplicated"], own["version"]) == ("claimed", False, 1)
    assert len(await house.bridge.reads.history(THEIRS, "same.txt")) == 1


async def test_the_stamps_of_a_digest_are_ones_own(house: House) -> None:
    found = (await house.asks(f"/stamp/{digest(SHARED)}")).json()["stamps"]
    assert [stamp["namespace"] for stamp in found] == [OURS]
    nobodys = digest(b"what nobody has")
    await same_as_nothing(house, f"/stamp/{digest(SECRET)}", f"/stamp/{nobodys}")
    await same_as_nothing(house, f"/stamp/{digest(SECRET)}", f"/stamp/{nobodys}", namespace=OURS)
    await same_as_nothing(house, f"/stamp/{digest(SECRET)}", f"/stamp/{nobodys}", namespace=THEIRS)
    await same_as_nothing(house, f"/stamp/{digest(SHARED)}", f"/stamp/{nobodys}", namespace=THEIRS)


async def test_the_newest_hundred_stamps_of_a_digest_are_counted_among_ones_own(house: House) -> None:
    items = [{"namespace": THEIRS, "file_path": f"{n}.txt", "content": SHARED.decode()} for n in range(150)]
    headers = {**house.globex, "content-type": "application/x-ndjson"}
    await house.client.post("/stamp/batch", content=as_lines(*items), headers=headers)
    found = (await house.asks(f"/stamp/{digest(SHARED)}")).json()["stamps"]
    assert [stamp["namespace"] for stamp in found] == [OURS]


async def test_the_same_bytes_at_the_same_path_leave_no_trace_of_one_another(house: House) -> None:
    ours, theirs = house.stamps[f"{OURS}/same.txt"], house.stamps[f"{THEIRS}/same.txt"]
    assert (ours["deduplicated"], theirs["deduplicated"]) == (False, False)
    assert (ours["version"], theirs["version"]) == (1, 1)
    assert ours["stamp_id"] != theirs["stamp_id"]
    more = {"metadata": {"project": "p", "of": OURS}}
    again = await house.stamp(house.acme, OURS, "same.txt", SHARED, **more)
    assert (again.status_code, again.json()["stamp_id"], again.json()["deduplicated"]) == (200, ours["stamp_id"], True)
    assert traces(again.text) == []
    second = await house.stamp(house.acme, OURS, "same.txt", SHARED, metadata={"of": THEIRS})
    assert (second.status_code, second.json()["version"]) == (201, 2)
    first = await house.stamp(house.acme, OURS, "secret.txt", SECRET)
    assert (first.status_code, first.json()["version"], first.json()["deduplicated"]) == (201, 1, False)
    assert len(await house.bridge.reads.history(THEIRS, "same.txt")) == 1


async def test_an_op_id_that_another_has_used_is_as_good_as_new(house: House) -> None:
    for op_id in (house.stamps[f"{THEIRS}/secret.txt"]["op_id"], house.workflow_id, str(uuid4())):
        made = await house.stamp(house.acme, OURS, f"{op_id}.txt", b"of acme", op_id=op_id)
        assert (made.status_code, made.json()["op_id"], made.json()["deduplicated"]) == (201, op_id, False), made.text
        assert traces(made.text) == []
        again = await house.stamp(house.acme, OURS, f"{op_id}.txt", b"of acme", op_id=op_id)
        assert again.json() == made.json()
        other = await refused(
            house.stamp(house.acme, OURS, "else.txt", b"else", op_id=op_id), 409, "op_id_conflict", "op_id"
        )
        assert traces(json.dumps(other)) == []
        # The other's own goes on as it was.
        found = await house.client.get(f"/workflows/{op_id}", params={"namespace": OURS}, headers=house.acme)
        assert (found.status_code, found.json()["namespace"]) == (200, OURS)
        # To acme there is one workflow of this id: it need not name a namespace.
        assert (await house.asks(f"/workflows/{op_id}")).json()["namespace"] == OURS


async def test_op_ids_raced_by_two_tenants_never_meet(house: House) -> None:
    async def run(who: dict[str, str], namespace: str, op_id: str) -> httpx.Response:
        return await house.stamp(who, namespace, f"{op_id}.txt", namespace.encode(), op_id=op_id)

    ids = [str(uuid4()) for _ in range(40)]
    calls = [(who, ns, op) for op in ids for who, ns in ((house.acme, OURS), (house.globex, THEIRS))]
    answers = await asyncio.gather(*(run(*call) for call in calls))
    for (_, namespace, op_id), answer in zip(calls, answers, strict=True):
        assert (answer.status_code, answer.json()["op_id"], answer.json()["namespace"]) == (201, op_id, namespace)
        assert answer.json()["file_hash"] == digest(namespace.encode())


async def test_a_location_leads_to_ones_own(house: House) -> None:
    made = await house.stamp(house.acme, OURS, "located.txt", SECRET)
    assert traces(made.headers["location"].replace(digest(SECRET), "")) == []
    assert [s["namespace"] for s in (await house.asks(made.headers["location"])).json()["stamps"]] == [OURS]
    later = {"namespace": OURS, "file_path": "later.txt", "content": "x", "op_id": house.workflow_id}
    accepted = await house.client.post("/workflows", json=later, headers=house.acme)
    assert accepted.status_code == 202
    found = await house.asks(accepted.headers["location"])
    assert (found.status_code, found.json()["namespace"]) == (200, OURS)


async def test_a_workflow_of_another_does_not_exist(house: House) -> None:
    nobodys = str(uuid4())
    for theirs in (house.workflow_id, house.stamps[f"{THEIRS}/secret.txt"]["workflow_id"]):
        await same_as_nothing(house, f"/workflows/{theirs}", f"/workflows/{nobodys}")
        await same_as_nothing(house, f"/workflows/{theirs}", f"/workflows/{nobodys}", namespace=THEIRS)
        await same_as_nothing(house, f"/workflows/{theirs}", f"/workflows/{nobodys}", namespace=OURS)


async def test_content_of_another_is_validated_like_content_that_nobody_stamped(house: House) -> None:
    async def validated(namespace: str, content: str, **more: Any) -> dict[str, Any]:
        body = {"namespace": namespace, "content": content, **more}
        answer = await house.client.post("/validate", json=body, headers=house.acme)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    secret = SECRET.decode()
    for more in ({}, {"file_path": "secret.txt"}, {"expected_hash": digest(SECRET)}):
        for namespace in (THEIRS, ABSENT, OURS):
            found = await validated(namespace, secret, **more)
            assert (found["is_valid"], found["stamps"], found["embedded"]) == (False, [], [])
    assert (await validated(OURS, SHARED.decode()))["is_valid"]


async def test_a_stamp_of_another_written_into_content_is_none(house: House) -> None:
    body = {"namespace": THEIRS, "file_path": "notes.py", "content": "x = 1\n", "embed": True}
    made = await house.client.post("/stamp", json=body, headers=house.globex)
    assert made.status_code == 201, made.text
    written = made.json()["stamped_content"]
    forged = written.replace(made.json()["stamp_id"], str(uuid4()))
    reasons = []
    for content in (written, forged):
        asked = {"namespace": THEIRS, "content": content, "file_path": "notes.py"}
        answer = await house.client.post("/validate", json=asked, headers=house.acme)
        (line,) = answer.json()["embedded"]
        assert not answer.json()["is_valid"]
        assert not line["is_valid"]
        reasons.append(line["reason"])
    assert reasons[0] == reasons[1]
    true = await house.client.post(
        "/validate", json={"namespace": THEIRS, "content": written, "file_path": "notes.py"}, headers=house.globex
    )
    assert true.json()["is_valid"]


async def test_the_overview_has_ones_own_namespaces(house: House) -> None:
    overview = await house.asks("/namespaces")
    assert [row["namespace"] for row in overview.json()["namespaces"]] == [OURS]
    assert traces(overview.text) == []
    paged = await house.asks("/namespaces", limit=1)
    assert paged.json().get("next") is None
    everything = await token(house.url, "auditor", "*")
    both = await house.client.get("/namespaces", headers=everything)
    assert [row["namespace"] for row in both.json()["namespaces"]] == [OURS, THEIRS]


@pytest.mark.parametrize(
    "rest", ["", "/stamps", "/state", "/state?by=content_type", "/state?by=workflow", "/state?by=metadata.project"]
)
async def test_a_namespace_of_another_does_not_exist(house: House, rest: str) -> None:
    path, _, query = rest.partition("?")
    parameters = dict([query.split("=")]) if query else {}
    await same_as_nothing(house, f"/namespaces/{THEIRS}{path}", f"/namespaces/{ABSENT}{path}", **parameters)
    own = await house.asks(f"/namespaces/{OURS}{path}", **parameters)
    assert own.status_code == 200, own.text
    assert traces(own.text) == []


async def test_a_cursor_of_another_opens_nothing(house: House) -> None:
    for number in range(3):
        await house.stamp(house.globex, THEIRS, f"{number}.txt", str(number).encode())
    theirs = await house.client.get(f"/namespaces/{THEIRS}/stamps", params={"limit": 2}, headers=house.globex)
    cursor = theirs.json()["next"]
    assert cursor
    for path in (f"/namespaces/{THEIRS}/stamps", f"/namespaces/{OURS}/stamps", "/namespaces"):
        answer = await house.asks(path, cursor=cursor)
        assert traces(answer.text.replace(THEIRS, "").replace(cursor, "")) == []
        assert "stamps" not in answer.json() or all(s["namespace"] == OURS for s in answer.json()["stamps"])


@dataclass
class Heard:
    """What came of a stream of events: as text, and decoded."""

    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.events) >= count

        await eventually(enough, f"{count} events, of which {len(self.events)} came")

    @property
    def namespaces(self) -> list[str]:
        return [event["namespace"] for event in self.events]


@asynccontextmanager
async def listening(house: House, who: dict[str, str], **parameters: Any) -> AsyncIterator[Heard]:
    heard = Heard()

    async def listen(answer: httpx.Response) -> None:
        async for line in answer.aiter_lines():
            heard.text += line + "\n"
            if line.startswith("data:"):
                heard.events.append(json.loads(line.removeprefix("data:")))

    async with house.client.stream("GET", "/events", params=parameters, headers=who) as answer:
        assert answer.status_code == 200, await answer.aread()
        task = asyncio.create_task(listen(answer))
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_events_are_ones_own(house: House) -> None:
    await house.stamp(house.acme, OURS, "second.txt", b"second")
    async with (
        listening(house, house.acme) as ours,
        listening(house, house.acme, namespace=OURS) as named,
        listening(house, house.acme, namespace=THEIRS) as nothing,
        listening(house, house.globex) as theirs,
    ):
        await ours.until(2)
        await named.until(2)
        await theirs.until(2)
        for number in range(3):
            await house.stamp(house.globex, THEIRS, f"live {number}", b"live")
            await theirs.until(3 + number)
            await house.stamp(house.acme, OURS, f"live {number}", b"live")
            await ours.until(3 + number)
            await named.until(3 + number)
    assert set(ours.namespaces) == set(named.namespaces) == {OURS}
    assert set(theirs.namespaces) == {THEIRS}
    assert nothing.events == []
    assert [traces(heard.text) for heard in (ours, named, nothing)] == [[], [], []]


async def test_a_place_in_anothers_stream_opens_nothing(house: House) -> None:
    await house.stamp(house.globex, THEIRS, "more.txt", b"more")
    async with listening(house, house.globex) as theirs:
        await theirs.until(3)
    place = next(line.removeprefix("id: ") for line in theirs.text.splitlines() if line.startswith("id: "))
    async with listening(house, {**house.acme, "last-event-id": place}) as ours:
        await house.stamp(house.acme, OURS, "after.txt", b"after")
        await ours.until(1)
    assert set(ours.namespaces) == {OURS}
    assert traces(ours.text) == []


async def test_errors_name_nothing_of_another(house: House) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/stamp/{digest(b'x')}", {}),
        ("GET", f"/workflows/{house.workflow_id}", {}),
        ("GET", "/workflows/nonsense", {}),
        ("GET", "/namespaces/acme.nothing", {}),
        ("GET", f"/namespaces/{OURS}/state", {"params": {"by": "nothing"}}),
        ("GET", f"/namespaces/{OURS}/stamps", {"params": {"cursor": "nonsense"}}),
        ("POST", "/stamp", {"json": {"namespace": OURS}}),
        ("POST", "/stamp/batch", {"content": b"[nonsense"}),
        ("POST", "/validate", {"json": {}}),
        ("GET", "/events", {"headers": {**house.acme, "last-event-id": "nonsense"}}),
        ("GET", "/nowhere", {}),
        ("DELETE", "/stamp", {}),
    ]
    for method, path, more in asked:
        answer = await house.client.request(method, path, **({"headers": house.acme} | more))
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert traces(answer.text.replace(house.workflow_id, "")) == [], path


async def test_what_is_open_to_all_names_no_tenant(house: House) -> None:
    for path in ("/metrics", "/health", "/health/live", "/health/ready", "/openapi.json", "/docs"):
        answer = await house.client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        for word in ("acme", "globex", digest(SHARED), digest(SECRET), house.workflow_id):
            assert word not in answer.text, path


async def test_a_token_may_do_what_its_scopes_say(house: House) -> None:
    reader = await token(house.url, "reader", "acme.*", scopes="read")
    writer = await token(house.url, "writer", "acme.*", scopes="write")
    body = {"namespace": OURS, "file_path": "scope.txt", "content": "x"}
    reads: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/stamp/{digest(SHARED)}", {}),
        ("GET", f"/workflows/{house.stamps[f'{OURS}/same.txt']['workflow_id']}", {}),
        ("GET", "/namespaces", {}),
        ("GET", f"/namespaces/{OURS}", {}),
        ("GET", f"/namespaces/{OURS}/stamps", {}),
        ("GET", f"/namespaces/{OURS}/state", {}),
        ("POST", "/validate", {"json": {"namespace": OURS, "content": "x"}}),
    ]
    writes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/stamp", {"json": body}),
        ("POST", "/stamp", {"params": {"namespace": OURS, "file_path": "raw"}, "content": b"x"}),
        ("POST", "/stamp/batch", {"json": [body]}),
        ("POST", "/workflows", {"json": body}),
    ]
    for may, may_not, calls in ((reader, writer, reads), (writer, reader, writes)):
        for method, path, more in calls:
            answer = await house.client.request(method, path, headers=may, **more)
            assert answer.status_code < 300, (path, answer.text)
            check = house.client.request(method, path, headers=may_not, **more)
            problem = (await check).json()
            problem = problem[0]["problem"] if isinstance(problem, list) else problem
            check_problem(problem, 403, "forbidden")
    assert (await house.client.get("/events", headers=writer)).status_code == 403
    for who in (reader, writer):
        assert (await house.client.post("/hash", content=b"x", headers=who)).status_code == 200


async def test_a_scope_is_asked_for_before_it_is_looked_whether_there_is_anything(house: House) -> None:
    writer = await token(house.url, "writer", "acme.*", scopes="write")
    told = set()
    for path in (
        f"/stamp/{digest(SECRET)}",
        f"/stamp/{digest(b'nobody')}",
        f"/workflows/{house.workflow_id}",
        f"/workflows/{uuid4()}",
    ):
        told.add((await refused(house.client.get(path, headers=writer), 403, "forbidden"))["detail"])
    assert len(told) == 1


async def test_tenants_read_and_write_under_the_tenants_role_and_no_other(house: House) -> None:
    """The service's role loses its rights to the tenants' rows: what tenants are answered does not change."""
    await house.bridge.query.up_to_date()
    paths = [
        f"/stamp/{digest(SHARED)}",
        f"/workflows/{house.stamps[f'{OURS}/same.txt']['workflow_id']}",
        "/namespaces",
        f"/namespaces/{OURS}",
        f"/namespaces/{OURS}/stamps",
        f"/namespaces/{OURS}/state",
    ]
    before = [(await house.asks(path)).json() for path in paths]
    owner = await connect(house.url)
    try:
        await owner.execute(
            """REVOKE SELECT ON metadata_stamps, fsm_states, event_log, bridge_state, file_facts
            FROM omninode_bridge_service"""
        )
        after = [(await house.asks(path)).json() for path in paths]
        for now, then in zip(after, before, strict=True):
            assert {**now, "as_of": None} == {**then, "as_of": None}
        assert (
            await house.client.post("/validate", json={"namespace": OURS, "content": "x"}, headers=house.acme)
        ).status_code == 200
        async with listening(house, house.acme) as ours:
            await ours.until(1)
        assert ours.namespaces == [OURS]
        await owner.execute(
            """REVOKE INSERT, UPDATE, DELETE ON metadata_stamps, fsm_states, event_log, file_facts
            FROM omninode_bridge_service"""
        )
        assert (await house.stamp(house.acme, OURS, "as tenant", b"x")).status_code == 201
    finally:
        await owner.close()
