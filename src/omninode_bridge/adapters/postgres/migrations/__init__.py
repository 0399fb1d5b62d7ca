"""Bring a database to this program's schema: numbered SQL files, each applied once, in one transaction.

The rules: files are applied in order, under an advisory lock, so that two starters don't collide. An
applied file's SHA-256 is kept, and a file that was edited after it was applied is refused. A database that
has more than this program knows is newer: refused.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

import msgspec
from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres.connection import LONG_TIMEOUT_S, POSTGRES_MAJOR_MIN, translated
from omninode_bridge.domain.errors import SchemaMismatch

_LOCK = 0x0B21D6E_0001
"""Any fixed number, of this program alone."""


class Migration(msgspec.Struct, frozen=True):
    """One numbered file. `sha256` is that of its text."""

    number: int
    name: str
    sql: str
    sha256: str


def known() -> list[Migration]:
    """Return the migrations that this program ships, in order."""
    found = sorted((f for f in files(__package__).iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    migrations = []
    for file in found:
        text = file.read_text(encoding="utf-8")
        migrations.append(Migration(int(file.name[:4]), file.name, text, hashlib.sha256(text.encode()).hexdigest()))
    return migrations


async def pending(connection: Connection) -> list[Migration]:
    """Return what is still to be applied; SchemaMismatch for a newer or an edited history."""
    with translated("reading the schema's version"):
        if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            return known()
        rows = await connection.fetch("SELECT number, name, sha256 FROM schema_migrations ORDER BY number")
    applied = {row["number"]: row for row in rows}
    shipped = {migration.number: migration for migration in known()}
    if newer := sorted(applied.keys() - shipped.keys()):
        raise SchemaMismatch(
            f"the database has migration {newer[-1]}, this program knows {max(shipped)}: use the newer omninode-bridge"
        )
    for number, row in applied.items():
        if row["sha256"] != shipped[number].sha256:
            raise SchemaMismatch(f"migration {row['name']} was edited after it was applied: restore the file")
    return [migration for number, migration in shipped.items() if number not in applied]


async def migrate(connection: Connection, *, dry_run: bool = False) -> list[str]:
    """Apply what is pending and return the names; `dry_run` only returns them."""
    with translated("migrating the schema"):
        major = connection.get_server_version().major
        if major < POSTGRES_MAJOR_MIN:
            raise SchemaMismatch(
                f"the server is PostgreSQL {major}; {POSTGRES_MAJOR_MIN} or newer is needed: upgrade it"
            )
        todo = await pending(connection)
        if dry_run or not todo:
            return [migration.name for migration in todo]
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '60s'")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=LONG_TIMEOUT_S)
            await connection.execute(
                """CREATE TABLE IF NOT EXISTS schema_migrations (
                    number integer NOT NULL PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT now())"""
            )
            todo = await pending(connection)  # again: another starter may have been first
            for migration in todo:
                await connection.execute(migration.sql, timeout=LONG_TIMEOUT_S)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, sha256) VALUES ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.sha256,
                )
        return [migration.name for migration in todo]


async def require_current(connection: Connection) -> None:
    """Raise SchemaMismatch unless the database has exactly this program's schema."""
    if missing := await pending(connection):
        raise SchemaMismatch(
            f"the database lacks migration {missing[0].name}: run `omninode-bridge migrate` with its URL"
        )
