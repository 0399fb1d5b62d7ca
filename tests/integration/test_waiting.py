"""A role waits at its start for what it needs, says so, and gives up after a limit with exit code 3."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("what", ["PostgreSQL", "Kafka", "a stamping service"])
async def test_what_does_not_come_is_named_and_ends_it_with_3(what: str, servers: dict[str, Server]) -> None:
    url = await servers["embedded"].create()
    place = f"127.0.0.1:{free_port()}"
    missing = {
        "PostgreSQL": {"BRIDGE_DATABASE_URL": f"postgresql://nobody@{place}/none"},
        "Kafka": {"BRIDGE_KAFKA_BOOTSTRAP_SERVERS": place},
        "a stamping service": {"BRIDGE_STAMPING_URLS": f"http://{place}"},
    }[what]
    try:
        environment = {"BRIDGE_DATABASE_URL": url, "BRIDGE_START_TIMEOUT_S": "0.5", **missing}
        async with starting("all", **environment) as process:
            _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
            assert process.returncode == 3
            said = errors.decode()
            assert said.startswith(f"omninode-bridge: {what} was not there in 0.5 s (BRIDGE_START_TIMEOUT_S)")
            assert place in said
    finally:
        await servers["embedded"].drop(url)
