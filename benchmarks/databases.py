"""A PostgreSQL server of a run's own, and fresh databases on it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import asyncpg

from benchmarks.place import Place
from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.migrations import migrate

_TEMPLATE = "template_bridge"


class Databases:
    """A server of the run's own that hands out fresh databases."""

    def __init__(self, server: EmbeddedPostgres, admin: asyncpg.Connection) -> None:
        self._server = server
        self._admin = admin
        self._numbers = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def on(cls, place: Place, folder: str = "postgres") -> AsyncIterator[Self]:
        async with await EmbeddedPostgres.start(place.folder / folder) as server:
            admin = await asyncpg.connect(server.dsn)
            try:
                databases = cls(server, admin)
                # Left over when an earlier benchmark of this run used the same server.
                await admin.execute(f"DROP DATABASE IF EXISTS {_TEMPLATE}")
                await admin.execute(f"CREATE DATABASE {_TEMPLATE}")
                session = await postgres.connect(databases._url(_TEMPLATE))
                try:
                    await migrate(session)
                finally:
                    await session.close()
                yield databases
            finally:
                await admin.close()

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """Yield the URL of an empty database, dropped afterwards. A checkpoint gives every run the same start."""
        name = f"run_{next(self._numbers)}"
        await self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        try:
            await self._admin.execute("CHECKPOINT")
            yield self._url(name)
        finally:
            await self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _url(self, database: str) -> str:
        return self._server.dsn.replace("/bridge?", f"/{database}?")
