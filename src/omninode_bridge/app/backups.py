"""Backups of the embedded data directory, and data directories made of them."""

from __future__ import annotations

from pathlib import Path

from omninode_bridge.adapters.embedded import backup
from omninode_bridge.adapters.embedded.backup import Backup
from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.upkeep import make_roles
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput

__all__ = ["Backup", "back_up", "restore"]


async def back_up(settings: Settings, target: Path, *, dump: bool = False) -> Backup:
    """Back the data directory up, beside whatever uses it: a copy of its folder, or a dump of its database."""
    _refuse_server(settings)
    form: backup.Form = "dump" if dump else "folder"
    return await backup.back_up(settings.data_dir, target, form, binaries=settings.postgres_binaries)


async def restore(settings: Settings, source: Path) -> Backup:
    """Make the data directory, which must be empty or not there, of a backup."""
    _refuse_server(settings)
    return await backup.restore(source, settings.data_dir, binaries=settings.postgres_binaries, prepare=_make_roles)


async def _make_roles(url: str) -> None:
    # A dump names the roles of the server it was taken from, and does not have them.
    session = await connection.connect(url)
    try:
        await make_roles(session)
    finally:
        await session.close()


def _refuse_server(settings: Settings) -> None:
    if settings.database_url is not None:
        raise InvalidInput(
            "this is for the embedded data directory (--data-dir): a server of your own is backed up with "
            "its own means, such as pg_dump; docs/runbook.md has the steps",
            field="database_url",
        )
