"""Callers that mean harm, over raw sockets, against the server as a process of its own.

The laws, after whatever was sent: others were served meanwhile and are served now; the memory is what it was, but for a
bound; nothing is recorded of what was refused or cut; the log tells of no fault. HOSTILE_SEED repeats what is random.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import re
import resource
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from blake3 import blake3

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.http import bodies, protocol
from tests.chaos.wire import Connection, Lost
from tests.conftest import Server
from tests.integration.serving import served
from tests.load.caller import Answer, Ask
from tests.load.fleet import Process

MEBIBYTE = 1024 * 1024
GROWTH_MIB_MAX = 96
"""What one attack may add to the memory, at the peak: JSON bodies being worked on are the most of it."""
POOLED = 8
"""Connections to PostgreSQL that may have been opened in the meantime."""
SEED = os.environ.get("HOSTILE_SEED", "20260306")
NAMESPACE = "hostile.docs"
HEAD = b"POST /stamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HASH = b"POST /hash HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FORM = HASH + b"Content-Type: multipart/form-data; boundary=b\r\n" + CHUNKED
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Target:
    """The server under attack."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.port = process.port
        self.files = len(os.listdir(f"/proc/{process.pid}/fd"))

    async def exchange(self, sent: bytes) -> bytes:
        """Send bytes as they are, on a connection of their own; return all that comes until the server closes it."""
        async with await Connection.open(self.port) as connection:
            await connection.send(sent)
            return await connection.rest()

    async def stamp(self, body: bytes, *headers: str) -> Answer:
        """Ask for a stamp with a JSON body, whatever it is."""
        fields = dict(field.split(": ", 1) for field in headers)
        async with await Connection.open(self.port) as connection:
            return await connection.ask(Ask("", "POST", "/stamp", body, {"content-type": "application/json"} | fields))

    async def flood(self, head: bytes, piece: bytes, octets: int) -> bytes:
        """Send a piece again and again, until so much is sent or the server has had enough; return what it answers."""
        async with await Connection.open(self.port) as connection:
            try:
                await connection.send(head)
                for _ in range(octets // len(piece)):
                    await connection.send(piece)
            except Lost:
                return b""
            connection.end()
            return await connection.rest()

    async def recorded(self) -> set[str]:
        """Return the paths that are recorded."""
        connection = await asyncpg.connect(self.url)
        try:
            return {row[0] for row in await connection.fetch("SELECT DISTINCT file_path FROM fsm_states")}
        finally:
            await connection.close()

    def memory_mib(self, what: str = "VmRSS") -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    async def alone(self) -> None:
        """Wait until the connections of tests before are gone: for some the server lingers."""
        async with asyncio.timeout(60):
            while len(os.listdir(f"/proc/{self.process.pid}/fd")) > self.files + POOLED:  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.05)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(servers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    server = servers["embedded"]
    url = await server.create()
    folder = tmp_path_factory.mktemp("hostile")
    process = Process("all", 1, folder, {"BRIDGE_DATABASE_URL": url})
    await process.start()
    target = Target(process, url)
    for number in range(200):  # what is made once is made
        await target.stamp(a_stamp(f"warm-up-{number}"))
    yield target
    assert await process.stop() == 0
    await server.drop(url)


@pytest_asyncio.fixture(loop_scope="module")
async def target(running: Target) -> AsyncIterator[Target]:
    """The server; afterwards it has to be as well as before."""
    running.forget_peak()
    before, log_bytes = running.memory_mib(), running.process.log_bytes()
    yield running
    path = f"after-{uuid4()}"
    answer = await running.stamp(a_stamp(path))
    assert answer.status == 201, answer
    assert running.memory_mib("VmHWM") - before < GROWTH_MIB_MAX
    assert not running.process.complaints(log_bytes)


def a_stamp(path: str, **fields: Any) -> bytes:
    return json.dumps({"namespace": NAMESPACE, "file_path": path, "content": path, **fields}).encode()


def with_length(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answered)]


def codes(answered: bytes) -> list[str]:
    return [code.decode() for code in re.findall(rb'"code":"(\w+)"', answered)]


async def test_others_are_served_while_many_dribble_headers_and_bodies(target: Target) -> None:
    body = a_stamp("dribbled")
    slow = [
        (b"", HEAD + b"X-Slow: " + b"x" * 1000),
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body),
        (HEAD + CHUNKED, b"".join(chunk(bytes([byte])) for byte in body)),
        (FORM, chunk(b"--b\r\nContent-Disposition: form-data; name=file; filename=dribbled")),
    ]
    dribbled = [(await Connection.open(target.port), *kind) for kind in slow for _ in range(100)]
    until_s = asyncio.get_running_loop().time() + protocol.HEAD_S_MAX / 2
    try:
        for connection, head, _ in dribbled:
            await connection.send(head)
        for turn in range(60):
            if asyncio.get_running_loop().time() > until_s:
                break  # before it is too long for headers
            for connection, _, data in dribbled:
                await connection.send(data[turn : turn + 1])
            assert (await target.stamp(a_stamp(f"meanwhile-{turn}"))).status == 201
    finally:
        for connection, _, _ in dribbled:
            connection.close()
    assert "dribbled" not in await target.recorded()


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "two-framings": (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "not_http"),
    "two-framings-turned": (HEAD + CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400, "not_http"),
    "two-lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "not_http"),
    "length-twice": (HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "not_http"),
    "length-list": (HEAD + b"Content-Length: 3, 3\r\n\r\nabc", 400, "not_http"),
    "length-signed": (HEAD + b"Content-Length: +3\r\n\r\nabc", 400, "not_http"),
    "length-negative": (HEAD + b"Content-Length: -3\r\n\r\nabc", 400, "not_http"),
    "length-hexadecimal": (HEAD + b"Content-Length: 0x3\r\n\r\nabc", 400, "not_http"),
    "length-beyond-64-bits": (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc", 400, "not_http"),
    "space-before-colon": (HEAD + b"Content-Length : 3\r\n\r\nabc", 400, "not_http"),
    "coding-last": (HASH + b"Transfer-Encoding: chunked, gzip\r\n\r\n1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "coding-first": (HASH + b"Transfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400, "body_malformed"),
    "coding-twice": (HASH + b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "coding-unknown": (HASH + b"Transfer-Encoding: xchunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "coding-behind-a-tab": (HASH + b"Transfer-Encoding: \x0bchunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "chunk-size-signed": (HASH + CHUNKED + b"+1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "chunk-size-beyond-64-bits": (HASH + CHUNKED + b"f" * 17 + b"\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "chunk-too-long": (HASH + CHUNKED + b"1\r\nab\r\n0\r\n\r\n", 400, "not_http"),
    "folded-header": (LIVE + b"X-A: a\r\n b\r\n\r\n", 400, "not_http"),
    "folded-framing": (HASH + b"Transfer-Encoding:\r\n chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400, "not_http"),
    "bare-line-feeds": (b"GET /health/live HTTP/1.1\nHost: x\n\n", 400, "not_http"),
    "bare-line-feeds-in-chunks": (HASH + CHUNKED + b"1\na\n0\n\n", 400, "not_http"),
    "bare-carriage-return": (b"GET /health/live HTTP/1.1\r\nHost: x\rX: y\r\n\r\n", 400, "not_http"),
    "nul-in-a-header": (LIVE + b"X: a\0b\r\n\r\n", 400, "not_http"),
    "header-without-name": (LIVE + b": b\r\n\r\n", 400, "not_http"),
    "no-host": (b"GET /health/live HTTP/1.1\r\n\r\n", 400, "host_unclear"),
    "two-hosts": (LIVE + b"Host: y\r\n\r\n", 400, "host_unclear"),
    "another-protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not_http"),
    "another-version": (b"GET /health/live HTTP/1.9\r\nHost: x\r\n\r\n", 400, "not_http"),
    "tunnel": (b"CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "not_http"),
    "long-path": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400, "not_http"),
    "hundred-thousand-headers": (LIVE + b"a: b\r\n" * 100_000 + b"\r\n", 431, "head_too_large"),
    "endless-header": (LIVE + b"a: " + b"b" * 600_000, 431, "head_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_two_servers_might_read_differently_is_refused_and_ends_the_connection(
    target: Target, name: str
) -> None:
    sent, status, code = REFUSED[name]
    # What follows must not be taken for a request of its own.
    hidden = f"hidden-{name}"
    answered = await target.exchange(sent + with_length(HEAD + b"Connection: close\r\n", a_stamp(hidden)))
    assert (statuses(answered), codes(answered)) == ([status], [code]), answered
    assert b"application/problem+json" in answered
    assert hidden not in await target.recorded()


@pytest.mark.parametrize(
    "coding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "identity, gzip", "nonsense"]
)
async def test_a_compressed_body_is_refused_and_never_inflated(target: Target, coding: str) -> None:
    bomb = gzip.compress(bytes(64 * MEBIBYTE), 9)
    header = f"content-encoding: {coding}"
    for call, body in (("/stamp", gzip.compress(a_stamp("bomb"))), ("/stamp?file_path=bomb", bomb), ("/hash", bomb)):
        async with await Connection.open(target.port) as connection:
            answer = await connection.ask(Ask("", "POST", call, body, dict([header.split(": ", 1)])))
        assert (answer.status, answer.json()["field"]) == (415, "content-encoding"), answer
    assert "bomb" not in await target.recorded()
    assert (await target.stamp(a_stamp(f"not {coding}"), "content-encoding: identity")).status == 201


@pytest.mark.parametrize(
    ("name", "head", "piece"),
    [
        ("trailers", HASH + CHUNKED + b"1\r\na\r\n0\r\n", b"X-A: b\r\n" * 8192),
        ("one trailer", HASH + CHUNKED + b"1\r\na\r\n0\r\nX-A: ", b"b" * 65_536),
        ("chunk extension", HASH + CHUNKED + b"1;a=", b"b" * 65_536),
        ("chunk size", HASH + CHUNKED, b"0" * 65_536),
        ("tiny chunks", HASH + CHUNKED, chunk(b"a") * 8192),
        ("requests ahead", b"", LIVE.join([b"", b"\r\n"]) * 1024),
        ("requests ahead, small pieces", b"", LIVE.join([b"", b"\r\n"]) * 16),
        ("empty lines", b"", b"\r\n" * 32_768),
        ("header of a form", FORM + chunk(b"--b\r\nA: "), chunk(b"b" * 65_536)),
        ("headers of a form", FORM + chunk(b"--b\r\n"), chunk(b"a: b\r\n" * 8192)),
        ("JSON without end", HEAD + CHUNKED + chunk(b'{"content": "'), chunk(b"a" * 65_536)),
        ("NDJSON without end", HEAD.replace(b"/stamp", b"/stamp/batch").replace(b"json", b"x-ndjson") + CHUNKED,
         chunk(b"{}\n" * 20_000)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_has_no_end_takes_no_memory(target: Target, name: str, head: bytes, piece: bytes) -> None:
    octets = (4 if name == "tiny chunks" else 48) * MEBIBYTE
    answered = await target.flood(head, piece, octets)
    assert not [status for status in statuses(answered) if status >= 500], (name, answered[:500])


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"{}," * (5 * MEBIBYTE) + b"{}]",
        b"[" + b"0," * (7 * MEBIBYTE) + b"0]",
        b"[" * (8 * MEBIBYTE),
        b"{}\n" * (5 * MEBIBYTE),
        b"\n" * (15 * MEBIBYTE),
        b'{"metadata":{' + b'"k":[[[]]],' * MEBIBYTE + b'"k":0}}',
    ],
    ids=["objects", "numbers", "nested", "lines", "blank-lines", "metadata"],
)
@pytest.mark.parametrize("call", ["/stamp", "/stamp/batch", "/workflows", "/validate"])
async def test_a_json_bomb_is_refused_in_bounded_memory(target: Target, call: str, body: bytes) -> None:
    headers = {"content-type": "application/json" if body[:1] in b"[{" else "application/x-ndjson"}
    async with await Connection.open(target.port) as connection:
        answer = await connection.ask(Ask("", "POST", call, body, headers))
    nothing_asked = call == "/stamp/batch" and not body.strip()
    assert answer.status == 200 if nothing_asked else 400 <= answer.status < 500, answer
    assert len(answer.body) < 10_000


def numbered(number: bytes) -> bytes:
    return a_stamp("text", metadata={"k": 0}).replace(b"0", number)


WRONG_JSON: dict[str, tuple[bytes, int]] = {
    "utf-16": (a_stamp("text").decode().encode("utf-16"), 400),
    "utf-16-le": (a_stamp("text").decode().encode("utf-16-le"), 400),
    "utf-32": (a_stamp("text").decode().encode("utf-32"), 400),
    "byte-order-mark": (b"\xef\xbb\xbf" + a_stamp("text"), 400),
    "latin-1": (a_stamp("text").replace(b"text", b"t\xe4xt"), 400),
    "overlong": (a_stamp("text").replace(b"text", b"t\xc0\xaext"), 400),
    "half-a-pair": (a_stamp("text").replace(b"text", b"t\\ud800xt"), 400),
    "half-a-pair-in-metadata": (a_stamp("text", metadata={"k": "\ud800"}), 400),
    "nul-in-path": (a_stamp("te\0xt"), 422),
    "nul-in-metadata": (a_stamp("text", metadata={"k": "\0"}), 422),
    "nul-in-a-name": (a_stamp("text", metadata={"\0": "k"}), 422),
    "cut": (a_stamp("text")[:-1], 400),
    "more-behind": (a_stamp("text") + b"}", 400),
    "twice": (a_stamp("text") + a_stamp("text"), 400),
    "not-a-number": (numbered(b"NaN"), 400),
    "infinity": (numbered(b"Infinity"), 400),
    "beyond-doubles": (numbered(b"1e400"), 422),
    "beyond-doubles-below": (numbered(b"-1e400"), 422),
    "five-thousand-digits": (numbered(b"9" * 5000), 422),
    "leading-zero": (numbered(b"01"), 400),
    "hexadecimal": (numbered(b"0x1"), 400),
    "deep": (numbered(b'{"a":' * 900 + b"1" + b"}" * 900), 422),
    "deeper": (numbered(b'{"a":' * 9000 + b"1" + b"}" * 9000), 400),
    "deep-lists": (numbered(b"[" * 9000 + b"1" + b"]" * 9000), 400),
}


@pytest.mark.parametrize("name", WRONG_JSON)
async def test_what_is_no_utf_8_json_or_can_not_be_kept_as_it_is_is_refused(target: Target, name: str) -> None:
    body, status = WRONG_JSON[name]
    answer = await target.stamp(body)
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert "text" not in await target.recorded()


async def test_numbers_and_names_that_are_there_twice_come_back_as_they_were_understood(target: Target) -> None:
    body = a_stamp("numbers", metadata={"n": 0}).replace(b"0}", b'123456789012345678901234567890, "m": -0.0}')
    assert (await target.stamp(body)).json()["metadata"] == {"n": 123456789012345678901234567890, "m": -0.0}
    twice = a_stamp("first").replace(b'"content"', b'"file_path": "second", "content"', 1)
    answer = await target.stamp(twice)
    assert (answer.status, answer.json()["file_path"]) == (201, "second")
    assert "first" not in await target.recorded()


async def test_a_length_that_is_wrong_leaves_nothing_and_reaches_nobody_else(target: Target) -> None:
    body = a_stamp("too short a length")
    answered = await target.exchange(HEAD + b"Content-Length: 9\r\n\r\n" + body)
    assert statuses(answered)[-1] == 400
    async with await Connection.open(target.port) as connection:
        await connection.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body) + 1, body))
        connection.end()
        assert await connection.rest() == b""
    assert "too short a length" not in await target.recorded()


async def test_a_request_that_is_cut_anywhere_leaves_nothing(target: Target) -> None:
    rng = random.Random(SEED)
    for number in range(60):
        body = a_stamp(f"cut-{number}")
        whole = with_length(HEAD, body) if number % 2 else HEAD + CHUNKED + chunk(body) + b"0\r\n\r\n"
        async with await Connection.open(target.port) as connection:
            await connection.send(whole[: rng.randrange(len(whole))])
    assert not [path for path in await target.recorded() if path.startswith("cut-")]


async def test_requests_damaged_anywhere_are_answered_or_cut_and_never_break_anything(target: Target) -> None:
    print(f"HOSTILE_SEED={SEED}")
    rng = random.Random(SEED)
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhello\r\n--b--\r\n'
    sound = [
        with_length(HEAD, a_stamp("damaged", metadata={"a": [1, 2.5, None]}, op_id=str(uuid4()))),
        HEAD + CHUNKED + chunk(a_stamp("damaged")) + b"0\r\n\r\n",
        with_length(b"POST /stamp?file_path=damaged&metadata=%7B%7D HTTP/1.1\r\nHost: x\r\n", b"raw"),
        with_length(HEAD.replace(b"/stamp", b"/stamp/batch"), b"[" + a_stamp("damaged") + b"]"),
        with_length(HASH + b"Content-Type: multipart/form-data; boundary=b\r\n", form),
        b"GET /stamp/" + blake3(b"x").hexdigest().encode() + b"?namespace=a.b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /namespaces/hostile.docs/stamps?limit=3&file_path=a HTTP/1.1\r\nHost: x\r\n\r\n",
    ]

    async def attack(sent: bytes) -> None:
        async with await Connection.open(target.port) as connection:
            await connection.send(sent + b"\r\n\r\n")
            connection.end()
            assert not [status for status in statuses(await connection.rest()) if status >= 500], sent

    for _ in range(30):
        await asyncio.gather(*(attack(_damaged(rng, rng.choice(sound))) for _ in range(20)))


def _damaged(rng: random.Random, sound: bytes) -> bytes:
    data = bytearray(sound)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = rng.choice([b"\r\n", b"\0", b"\xff", b"%", b'"', b"9" * 20, b": ", b"\\u0000", b"[" * 50])
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
        if not data:
            return b"x"
    return bytes(data)


async def test_who_has_sent_all_and_ends_his_side_is_answered(target: Target) -> None:
    sent = [
        with_length(HEAD, a_stamp("all is sent")),
        with_length(HEAD, a_stamp("ahead of it"))
        + HEAD
        + CHUNKED
        + chunk(a_stamp("all is sent in chunks"))
        + chunk(b""),
    ]
    for requests, count in zip(sent, (1, 2), strict=True):
        async with await Connection.open(target.port) as connection:
            await connection.send(requests)
            connection.end()
            assert statuses(await connection.rest()) == [201] * count


async def test_requests_sent_ahead_are_answered_in_order(target: Target) -> None:
    paths = [f"ahead-{number}" for number in range(60)]
    async with await Connection.open(target.port) as connection:
        await connection.send(b"".join(with_length(HEAD, a_stamp(path)) for path in paths))
        answers = [await connection.answer() for _ in paths]
    assert [answer.json()["file_path"] for answer in answers] == paths


async def test_when_files_run_out_new_callers_are_told_and_those_that_are_there_go_on(target: Target) -> None:
    pid, free = target.process.pid, 20
    await target.alone()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (protocol.FILES_KEPT + free, before[1]))
    try:
        async with await Connection.open(target.port) as kept:
            assert (await kept.ask(Ask("", "GET", "/health/ready"))).status == 200
            crowd = [await Connection.open(target.port) for _ in range(5 * free)]
            refused = [connection for connection in crowd if await _is_refused(connection)]
            assert len(refused) >= 4 * free
            ask = Ask("", "POST", "/stamp", a_stamp("in the crowd"), {"content-type": "application/json"})
            assert (await kept.ask(ask)).status == 201
            for connection in crowd:
                connection.close()
        async with asyncio.timeout(30):
            while not await _is_served(target):  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.05)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def _is_refused(connection: Connection) -> bool:
    """Tell whether a new connection was refused: told so, or closed."""
    try:
        await connection.send(LIVE + b"\r\n")
        answer = await connection.answer()
    except Lost:
        return True
    if answer.status == 503:
        assert answer.headers["retry-after"].isdecimal()
    return answer.status == 503


async def _is_served(target: Target) -> bool:
    try:
        async with await Connection.open(target.port) as connection:
            return (await connection.ask(Ask("", "GET", "/health/ready"))).status == 200
    except Lost:
        return False


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute takes a fraction of a second."""
    monkeypatch.setattr(protocol, "HEAD_S_MAX", 0.3)
    monkeypatch.setattr(bodies, "SILENCE_S_MAX", 0.3)


async def dribble(connection: Connection, data: Iterable[int]) -> None:
    """Send a byte at a time, until the server has had enough."""
    try:
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)  # that is the attack
    except Lost:
        pass


@pytest.mark.usefixtures("short_patience")
async def test_headers_and_bodies_that_never_come_to_an_end_are_given_up(database_url: str) -> None:
    head = HEAD + b"X-Slow: " + b"x" * 400
    body = with_length(HEAD, b"x" * 400)
    async with Bridge.connect(database_url) as bridge, served(bridge) as client:
        port = client.base_url.port
        assert port is not None
        for sent, at_once, code in ((head, 3, "head_timeout"), (body, len(body) - 400, "body_timeout")):
            async with await Connection.open(port) as connection:
                await connection.send(sent[:at_once])
                dribbling = asyncio.create_task(dribble(connection, sent[at_once:]))
                answer = await connection.answer()
                assert (answer.status, answer.json()["code"]) == (408, code)
                assert connection.closing
                dribbling.cancel()
        assert [prior async for prior in bridge.reads.workflows()] == []
