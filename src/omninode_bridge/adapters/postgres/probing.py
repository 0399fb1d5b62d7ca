"""Whether the database could do its work now: asked often, so it costs a few milliseconds and changes nothing."""

from __future__ import annotations

from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.migrations import require_current
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import ServiceUnavailable

DEAD_LETTERS_COUNTED_MAX = 10_000

_SQL = load("probing")


class PostgresProbe:
    """Looks by a pool of the service's sessions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def require_writable(self) -> None:
        with translated("asking whether it can be written to"):
            if not await self._pool.fetchval(_SQL["writable"]):
                raise ServiceUnavailable("PostgreSQL is read-only: connect to the primary")

    async def require_schema(self) -> None:
        with translated("looking at the schema"):
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                # The service's role has no business with migrations; whoever the URL names may look.
                await connection.execute("SET LOCAL ROLE NONE")
                await require_current(connection)

    async def dead_letters(self) -> int:
        with translated("counting dead letters"):
            found: int = await self._pool.fetchval(_SQL["dead_letters"], DEAD_LETTERS_COUNTED_MAX)
        return found
