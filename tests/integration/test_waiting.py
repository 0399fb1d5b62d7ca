"""A role waits at its start for what it needs, says so, and gives up after a limit with exit code 3."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.app import waiting
from omninode_bridge.app.settings import Settings
from omninode_bridge.app.waiting import Place, kafka_places, wait_for_dependencies
from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from tests.conftest import Server

COMMAND = str(Path(sys.executable).with_name("omninode-bridge"))
WAIT_S = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def starting(role: str, **environment: str) -> AsyncIterator[Process]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        COMMAND, "serve", "--role", role, "--port", "0", env=clean | environment, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), WAIT_S)


async def until_said(process: Process, what: bytes) -> bytes:
    """Return all lines up to the one that has `what`."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(WAIT_S):
        while True:
            lines.append(await process.stdout.readline())
            assert lines[-1], lines
            if what in lines[-1]:
                return b"".join(lines)


async def test_what_is_not_there_yet_is_waited_for_and_said(servers: dict[str, Server]) -> None:
    server = servers["embedded"]
    url = await server.create(template="template0")
    try:
        async with starting("api", BRIDGE_DATABASE_URL=url) as process:
            assert b"migrate" in await until_said(process, b"waits for PostgreSQL: ")
            migrating = await asyncio.create_subprocess_exec(
                COMMAND, "migrate", env=os.environ | {"BRIDGE_DATABASE_URL": url}, stdout=PIPE
            )
            await asyncio.wait_for(migrating.communicate(), WAIT_S)
            await until_said(process, b"serves on http://")
    finally:
        await server.drop(url)


@pytest.mark.parametrize("role", ["relay", "reducer", "all"])
async def test_who_needs_kafka_waits_for_it(role: str, servers: dict[str, Server]) -> None:
    url = await servers["embedded"].create()
    place = f"127.0.0.1:{free_port()}"
    try:
        async with starting(role, BRIDGE_DATABASE_URL=url, BRIDGE_KAFKA_BOOTSTRAP_SERVERS=place) as process:
            assert place.encode() in await until_said(process, b"waits for Kafka: ")
    finally:
        await servers["embedded"].drop(url)


@pytest.mark.parametrize(
    ("what", "limit_s"),
    [
        ("PostgreSQL", "1.5"),
        ("Kafka", "5"),  # PostgreSQL is looked at first, and takes some of it
        ("a stamping service", "5"),
    ],
)
async def test_what_does_not_come_is_named_and_ends_it_with_3(
    what: str, limit_s: str, servers: dict[str, Server]
) -> None:
    url = await servers["embedded"].create()
    place = f"127.0.0.1:{free_port()}"
    missing = {
        "PostgreSQL": {"BRIDGE_DATABASE_URL": f"postgresql://nobody@{place}/none"},
        "Kafka": {"BRIDGE_KAFKA_BOOTSTRAP_SERVERS": place},
        "a stamping service": {"BRIDGE_STAMPING_URLS": f"http://{place}"},
    }[what]
    try:
        environment = {"BRIDGE_DATABASE_URL": url, "BRIDGE_START_TIMEOUT_S": limit_s, **missing}
        async with starting("all", **environment) as process:
            _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
            assert process.returncode == 3
            said = errors.decode()
            assert said.startswith(f"omninode-bridge: {what} was not there in {limit_s} s (BRIDGE_START_TIMEOUT_S)")
            assert place in said
    finally:
        await servers["embedded"].drop(url)


@pytest.mark.parametrize(
    ("role", "environment", "names"),
    [
        ("relay", {}, "BRIDGE_KAFKA_BOOTSTRAP_SERVERS"),
        ("relay", {"BRIDGE_KAFKA_BOOTSTRAP_SERVERS": "kafka:many"}, "BRIDGE_KAFKA_BOOTSTRAP_SERVERS"),
        (
            "all",
            {"BRIDGE_STAMPING_URLS": "http://ok:1,http://user:hunter2@host:many"},
            "BRIDGE_STAMPING_URLS: number 2",
        ),
        ("all", {"BRIDGE_KAFKA_CLIENT": json.dumps({"sasl.password": ["hunter2"]})}, "BRIDGE_KAFKA_CLIENT"),
        ("all", {"BRIDGE_KAFKA_CLIENT": "hunter2"}, "BRIDGE_KAFKA_CLIENT"),
    ],
)
async def test_settings_that_can_not_be_meant_end_it_at_once_with_2_and_a_sentence(
    role: str, environment: dict[str, str], names: str
) -> None:
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    async with starting(role, BRIDGE_DATABASE_URL=nowhere, **environment) as process:
        output, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (process.returncode, output) == (2, b"")  # nothing was waited for
    (sentence,) = errors.decode().splitlines()
    assert names in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    ("servers", "places"),
    [
        ("kafka", [("kafka", 9092)]),
        ("kafka:", [("kafka", 9092)]),
        ("kafka:9093", [("kafka", 9093)]),
        (" kafka-1:1 , kafka-2 ,", [("kafka-1", 1), ("kafka-2", 9092)]),
        ("PLAINTEXT://host:9092", [("host", 9092)]),
        ("SASL_SSL://host:9093,ssl://host", [("host", 9093), ("host", 9092)]),
        ("[::1]:9094", [("::1", 9094)]),
        ("[::1]", [("::1", 9092)]),
        ("::1", [("::1", 9092)]),
        ("SASL_PLAINTEXT://[fe80::1]:9094", [("fe80::1", 9094)]),
        ("PLAINTEXT://", [("localhost", 9092)]),
    ],
)
def test_kafkas_addresses_are_read_as_its_client_reads_them(servers: str, places: list[tuple[str, int]]) -> None:
    assert kafka_places(servers) == places


@pytest.mark.parametrize("servers", ["kafka:many", "kafka:0", "kafka:65536", "kafka:-1", "http://kafka:9092", " , "])
async def test_an_address_of_kafka_that_is_none_is_refused_before_anything_is_waited_for(servers: str) -> None:
    settings = Settings(
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none", kafka_bootstrap_servers=servers
    )
    said: list[str] = []
    with pytest.raises(InvalidInput, match="BRIDGE_KAFKA_BOOTSTRAP_SERVERS"):
        await wait_for_dependencies(settings, "relay", said.append)
    assert said == []


@pytest.mark.parametrize("start_timeout_s", [0, 20])
@pytest.mark.parametrize("form", ["{place}", "PLAINTEXT://{place}", "{hangs},{hangs},{nobody},SASL_SSL://{place}"])
async def test_kafka_is_there_when_one_of_its_addresses_takes_a_connection(
    form: str, start_timeout_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CONNECT_S_MAX", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, hanging() as hangs:
        place = Place("127.0.0.1", listener.getsockname()[1])
        servers = form.format(place=place, hangs=hangs, nobody=f"127.0.0.1:{free_port()}")
        settings = Settings(kafka_bootstrap_servers=servers, start_timeout_s=start_timeout_s)
        said: list[str] = []
        async with asyncio.timeout(10.0):  # below what one that hangs may take
            await wait_for_dependencies(settings, "relay", said.append)
        assert said == []


async def test_the_limit_ends_a_look_at_many_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "CONNECT_S_MAX", 60.0)
    with hanging() as hangs:
        settings = Settings(kafka_bootstrap_servers=",".join([str(hangs)] * 40), start_timeout_s=1.0)
        async with asyncio.timeout(20.0):  # below what one of them may take, and all of them one by one
            with pytest.raises(ServiceUnavailable, match=rf"Kafka was not there in 1 s .*{hangs}.*no answer"):
                await wait_for_dependencies(settings, "relay", lambda _: None)


async def test_the_limit_ends_a_look_at_a_database_that_takes_connections_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT_S", 60)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/none"
        async with asyncio.timeout(20.0):  # below what a connect may take
            with pytest.raises(ServiceUnavailable, match=r"PostgreSQL was not there in 0\.5 s"):
                await wait_for_dependencies(Settings(database_url=url, start_timeout_s=0.5), "api", lambda _: None)


@contextmanager
def hanging() -> Iterator[Place]:
    """A place whose queue of connections is full: whoever comes is neither taken nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        place = Place("127.0.0.1", listener.getsockname()[1])
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(place)
        yield place
