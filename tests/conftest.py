"""Real servers for the tests: the embedded PostgreSQL, Debian's 15 and Apache Kafka, one of each a session.

A test that asks for `database_url` runs on both, in a database of its own, cloned from a migrated template. A test that
asks for `bootstrap_servers` has a Kafka, in which it makes topics of its own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.postgres.migrations import migrate
from tests.broker import Broker

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
TEMPLATE = "bridge_template"


@dataclass
class Server:
    """A running PostgreSQL that hands out databases."""

    dsn: str
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        return self.dsn.replace("/bridge?", f"/{database}?")

    async def create(self, template: str = TEMPLATE) -> str:
        """Return the URL of a new database."""
        name = f"test_{next(self._numbers)}"
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        finally:
            await connection.close()
        return self.url(name)

    async def drop(self, url: str) -> None:
        name = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        finally:
            await connection.close()


SERVERS = ["embedded", "postgresql15"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Server]]:
    """The embedded PostgreSQL and PostgreSQL 15, both running."""
    async with AsyncExitStack() as stack:
        found = {}
        for name in SERVERS:
            binaries = POSTGRES_15 if name == "postgresql15" else None
            folder = tmp_path_factory.mktemp(f"server-{name}") / "data"
            running = await EmbeddedPostgres.start(folder, binaries=binaries, wait_s=60)
            found[name] = await _with_template(await stack.enter_async_context(running))
        yield found


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


@pytest_asyncio.fixture
async def database_url(server: Server) -> AsyncIterator[str]:
    """A database of the test's own, with the current schema."""
    url = await server.create()
    yield url
    await server.drop(url)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """A broker that a test may stop, when it starts it again."""
    async with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def bootstrap_servers(request: pytest.FixtureRequest) -> str:
    """A Kafka to use and not to stop: the one that BRIDGE_TEST_KAFKA_BOOTSTRAP_SERVERS names, or `broker`."""
    if named := os.environ.get("BRIDGE_TEST_KAFKA_BOOTSTRAP_SERVERS"):
        return named
    running: Broker = request.getfixturevalue("broker")
    return running.bootstrap_servers


async def _with_template(running: EmbeddedPostgres) -> Server:
    found = Server(running.dsn)
    connection = await asyncpg.connect(found.url("postgres"))
    await connection.execute(f'CREATE DATABASE "{TEMPLATE}"')
    await connection.close()
    template = await asyncpg.connect(found.url(TEMPLATE))
    await migrate(template)
    await template.close()
    return found
