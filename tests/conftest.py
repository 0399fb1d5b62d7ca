"""Real servers for the tests: the embedded PostgreSQL, Debian's 15 and Apache Kafka, one of each a session.

A test that asks for `database_url` runs on both, in a database of its own, cloned from a migrated template. A test that
asks for `bootstrap_servers` has a Kafka, in which it makes topics of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.postgres.migrations import migrate
from tests.broker import Broker

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")


@dataclass
class Server:
    """A running PostgreSQL that hands out databases. `dsn` names one that the user may connect to."""

    dsn: str
    template: str = ""
    """A database of the current schema."""

    def url(self, database: str) -> str:
        found = re.fullmatch(r"(postgres(?:ql)?://[^/?]*)(?:/[^?]*)?(\?.*)?", self.dsn)
        assert found is not None, f"{self.dsn!r} is no postgresql://… URL"
        return f"{found[1]}/{database}{found[2] or ''}"

    async def create(self, template: str | None = None, options: str = "") -> str:
        """Return the URL of a new database; the options are those of CREATE DATABASE."""
        # No number: on a server that others use, too, they count as well.
        name = f"test_{uuid4().hex}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or self.template}" {options}')
        return self.url(name)

    async def drop(self, url: str) -> None:
        name = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
        await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


SERVERS = ["embedded", "postgresql15"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("server-embedded") / "data"
    async with await EmbeddedPostgres.start(folder, wait_s=60) as running, _with_template(running.dsn) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgresql15_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("server-postgresql15") / "data"
    running = await EmbeddedPostgres.start(folder, binaries=POSTGRES_15, wait_s=60)
    async with running, _with_template(running.dsn) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def named_server() -> AsyncIterator[Server]:
    """The server that BRIDGE_TEST_DATABASE_URL names; its user may create databases and roles."""
    async with _with_template(os.environ["BRIDGE_TEST_DATABASE_URL"]) as found:
        yield found


@pytest.fixture(scope="session")
def servers(embedded_server: Server, postgresql15_server: Server) -> dict[str, Server]:
    """The embedded PostgreSQL and PostgreSQL 15, both running."""
    return dict(zip(SERVERS, (embedded_server, postgresql15_server), strict=True))


@pytest.fixture(scope="session")
def one_server(request: pytest.FixtureRequest) -> Server:
    """One PostgreSQL, for tests that need no more: the named one, or the embedded one."""
    named = os.environ.get("BRIDGE_TEST_DATABASE_URL")
    found: Server = request.getfixturevalue("named_server" if named else "embedded_server")
    return found


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


@asynccontextmanager
async def _with_template(dsn: str) -> AsyncIterator[Server]:
    """A server with a template of the current schema, which is dropped at the end."""
    found = Server(dsn)
    url = await found.create("template0")
    found.template = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
    try:
        template = await asyncpg.connect(url)
        try:
            await migrate(template)
        finally:
            await template.close()
        yield found
    finally:
        await found.drop(url)
