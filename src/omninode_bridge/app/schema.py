"""Bring the database's schema up to date, before anything else can use it."""

from __future__ import annotations

from omninode_bridge.adapters.postgres import connection, migrations
from omninode_bridge.app.database import database
from omninode_bridge.app.settings import Settings


async def migrate(settings: Settings, *, dry_run: bool = False) -> list[str]:
    """Apply what is pending to the settings' database and return the names; `dry_run` only names it.

    Raises ServiceUnavailable when the server can't be reached, SchemaMismatch when its schema is newer or was edited.
    """
    async with database(settings) as url:
        session = await connection.connect(url)
        try:
            return await migrations.migrate(session, dry_run=dry_run)
        finally:
            await session.close()
