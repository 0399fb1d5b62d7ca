"""What a server says about itself: version, durability, replication, clock, and whether a pooler stands in between.

Facts only; `app.doctor` judges them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres.connection import connect, translated
from omninode_bridge.adapters.postgres.migrations import pending
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import ServiceUnavailable

_SQL = load("diagnosis")

CLOCK_READINGS = 5
"""The one with the shortest way there and back is believed."""
POOLER_TIMEOUT_S = 5.0


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`clock_ahead_s`: the server's clock less ours, in seconds. `session_is_ours`: no pooler lends it to others.

    `inherits`: the login has the rights of the program's roles without taking one.
    """

    major: int
    version: str
    encoding: str
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    synchronous_standby_names: str
    standbys: int
    read_only: bool
    clock_ahead_s: float
    session_is_ours: bool
    inherits: bool


async def examine(database_url: str) -> ServerFacts:
    """Return the facts; ServiceUnavailable when the server can't be reached or asked."""
    session = await connect(database_url)
    try:
        with translated("asking the server about itself"):
            row = await session.fetchrow(_SQL["settings"])
            clock_ahead_s = await _clock_ahead_s(session)
            session_is_ours = await _session_is_ours(session, database_url)
        return ServerFacts(
            major=session.get_server_version().major,
            version=row["version"],
            encoding=row["encoding"],
            fsync=row["fsync"] == "on",
            full_page_writes=row["full_page_writes"] == "on",
            synchronous_commit=row["synchronous_commit"],
            synchronous_standby_names=row["synchronous_standby_names"],
            standbys=row["standbys"],
            read_only=row["read_only"],
            clock_ahead_s=clock_ahead_s,
            session_is_ours=session_is_ours,
            inherits=row["inherits"],
        )
    finally:
        await session.close()


async def pending_migrations(database_url: str) -> list[str]:
    """Return the names of the migrations still to be applied; SchemaMismatch for a newer or an edited schema."""
    session = await connect(database_url)
    try:
        return [migration.name for migration in await pending(session)]
    finally:
        await session.close()


async def _clock_ahead_s(session: Connection) -> float:
    readings: list[tuple[timedelta, timedelta]] = []
    for _ in range(CLOCK_READINGS):
        before = datetime.now(UTC)
        server = await session.fetchval(_SQL["clock"])
        after = datetime.now(UTC)
        readings.append((after - before, server - before - (after - before) / 2))
    return min(readings)[1].total_seconds()


async def _session_is_ours(session: Connection, database_url: str) -> bool:
    """Tell whether the session keeps its backend while another one is in a transaction.

    A transaction pooler would lend the idle session's backend to the other, and then has none, or another, for it.
    """
    try:
        backend = await session.fetchval(_SQL["backend"], timeout=POOLER_TIMEOUT_S)
        other = await connect(database_url)
        try:
            async with other.transaction():
                borrowed = await other.fetchval(_SQL["backend"], timeout=POOLER_TIMEOUT_S)
                again = await session.fetchval(_SQL["backend"], timeout=POOLER_TIMEOUT_S)
        finally:
            other.terminate()
    except (TimeoutError, ServiceUnavailable):
        return False
    return bool(backend == again != borrowed)
