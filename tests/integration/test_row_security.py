"""Law 4 in the database itself: what the tenant's role can do, whatever SQL it is given.

The catalogue is walked (`catalogue.py`), the walk is shown to find what it should, and then every table is attacked.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres.connection import SERVICE, TENANT, connect, given
from omninode_bridge.adapters.postgres.diagnosis import examine
from omninode_bridge.adapters.postgres.migrations import migrate
from omninode_bridge.app.administration import administration
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.stamp import Inline
from tests.conftest import Server
from tests.integration.catalogue import BY_NAMESPACE, GUARDED, SERVICES, TENANTS, faults

OURS, THEIRS = "acme.a", "globex.b"
OLD_FILE = os.__file__
"""Facts are kept of files that have not just been written."""
EVERY_TABLE = sorted({*SERVICES, "schema_migrations"})
WRITABLE = {
    privilege: sorted(table for table in BY_NAMESPACE if privilege in TENANTS[table])
    for privilege in ("INSERT", "UPDATE", "DELETE")
}


async def fill(database_url: str) -> None:
    """Leave something of both tenants in every table."""
    settings = Settings.read(database_url=database_url)
    async with Bridge.connect(database_url) as bridge:
        for namespace in (OURS, THEIRS):
            await bridge.stamp(b"the same bytes", file_path="same.txt", namespace=namespace)
            await bridge.accept(bridge.request(Inline(b"later"), file_path="later.txt", namespace=namespace))
            async for _ in bridge.stamp_tree(OLD_FILE, namespace=namespace):
                pass
        await bridge.state(OURS)
    async with administration(settings) as desk:
        for namespace in (OURS, THEIRS):
            await desk.create_token(namespace, namespaces=[namespace], scopes=["read"])


@pytest_asyncio.fixture
async def tenant(database_url: str) -> AsyncIterator[Connection]:
    """A session of the tenant's role on a database of two tenants."""
    await fill(database_url)
    session = await connect(database_url, role=TENANT)
    yield session
    await session.close()


@pytest_asyncio.fixture
async def owner(database_url: str) -> AsyncIterator[Connection]:
    session = await connect(database_url)
    yield session
    await session.close()


async def test_the_catalogue_is_as_it_was_designed(owner: Connection) -> None:
    assert await faults(owner) == []


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE fsm_states NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE event_log DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE api_tokens DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenant ON metadata_stamps",
        "DROP POLICY service ON admin_log",
        "CREATE POLICY more ON metadata_stamps USING (true)",
        "CREATE POLICY tenant ON dead_letters TO omninode_bridge_tenant USING (true)",
        "ALTER POLICY tenant ON event_log TO PUBLIC",
        "ALTER POLICY tenant ON event_log USING (true)",
        "ALTER POLICY tenant ON event_log WITH CHECK (true)",
        "ALTER POLICY tenant ON state_generations USING (true)",
        "ALTER POLICY service ON bridge_state TO omninode_bridge_service, omninode_bridge_tenant",
        "CREATE TABLE notes (namespace text)",
        "CREATE TABLE notes (said text)",
        "ALTER TABLE log_heads ADD COLUMN namespace text",
        "CREATE VIEW stamps AS SELECT * FROM metadata_stamps",
        "CREATE MATERIALIZED VIEW stamps AS SELECT * FROM metadata_stamps",
        "CREATE SCHEMA aside; CREATE TABLE aside.stamps AS SELECT * FROM metadata_stamps",
        "CREATE FUNCTION stamps() RETURNS SETOF metadata_stamps LANGUAGE sql AS 'TABLE metadata_stamps'",
        "GRANT UPDATE ON metadata_stamps TO omninode_bridge_tenant",
        "GRANT TRUNCATE ON event_log TO omninode_bridge_tenant",
        "GRANT SELECT ON api_tokens TO omninode_bridge_tenant",
        "GRANT SELECT (secret_hash) ON api_tokens TO omninode_bridge_tenant",
        "GRANT SELECT ON dead_letters TO PUBLIC",
        "GRANT DELETE ON admin_log TO omninode_bridge_service",
        "ALTER TABLE bridge_state OWNER TO omninode_bridge_tenant",
        "ALTER SCHEMA public OWNER TO omninode_bridge_service",
        "GRANT CREATE ON SCHEMA public TO omninode_bridge_tenant",
        "ALTER ROLE omninode_bridge_tenant BYPASSRLS",
        "ALTER ROLE omninode_bridge_service SUPERUSER",
        "ALTER ROLE omninode_bridge_tenant LOGIN",
        "GRANT omninode_bridge_service TO omninode_bridge_tenant",
        "GRANT pg_read_all_data TO omninode_bridge_tenant",
    ],
)
async def test_the_walk_finds_what_is_not(owner: Connection, damage: str) -> None:
    assert await faults(owner) == []
    undone = owner.transaction()
    await undone.start()
    try:
        await owner.execute(damage)
        assert len(await faults(owner)) >= 1
    finally:
        await undone.rollback()


@asynccontextmanager
async def transaction(tenant: Connection, names: list[str], patterns: list[str] | None = None) -> AsyncIterator[None]:
    """A transaction that was given namespaces; rolled back when something is refused in it."""
    async with tenant.transaction():
        await tenant.execute(given(names, patterns or []))
        yield


async def denied(
    tenant: Connection, sql: str, *arguments: object, names: list[str], patterns: list[str], why: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=why):
        async with transaction(tenant, names, patterns):
            await tenant.execute(sql, *arguments)


async def seen(tenant: Connection, table: str) -> set[str]:
    return {row[0] for row in await tenant.fetch(f"SELECT DISTINCT namespace FROM {table}")}


@pytest.mark.parametrize(
    ("names", "patterns", "expected"),
    [
        ([OURS], [], {OURS}),
        ([], ["acme.*"], {OURS}),
        ([OURS, THEIRS], [], {OURS, THEIRS}),
        (["acme.c"], ["acme.*", "globex.b.*"], {OURS}),
        ([], ["*"], {OURS, THEIRS}),
        ([], [], set()),
        (["acme"], ["acme.a.*", "a.*"], set()),
        (["*", "%", "acme._", "", "acme.a' OR true --"], [], set()),
    ],
)
async def test_a_transaction_sees_the_namespaces_it_was_given(
    tenant: Connection, names: list[str], patterns: list[str], expected: set[str]
) -> None:
    for table in sorted(BY_NAMESPACE):
        async with transaction(tenant, names, patterns):
            assert await seen(tenant, table) == expected, table


async def test_a_session_that_is_handed_on_takes_nothing_along(tenant: Connection) -> None:
    async with transaction(tenant, [OURS], ["globex.*"]):
        assert await seen(tenant, "event_log") == {OURS, THEIRS}
    for table in BY_NAMESPACE:
        assert await seen(tenant, table) == set()


def copied(table: str, changes: str) -> str:
    """SQL that inserts what is visible of a table once more, with some columns changed."""
    return f"INSERT INTO {table} SELECT (jsonb_populate_record(t, {changes})).* FROM {table} AS t"


@pytest.mark.parametrize("table", WRITABLE["INSERT"])
async def test_nobody_writes_into_a_namespace_that_his_transaction_was_not_given(
    tenant: Connection, table: str
) -> None:
    for names, patterns in (([OURS], []), ([OURS], ["globex.*"]), ([OURS], ["*"])):
        theirs = copied(table, f"jsonb_build_object('namespace', '{THEIRS}')")
        await denied(tenant, theirs, names=names, patterns=patterns, why="row-level security")
    async with transaction(tenant, [OURS]):
        with pytest.raises(asyncpg.UniqueViolationError):  # not refused: only there already
            await tenant.execute(copied(table, f"jsonb_build_object('namespace', '{OURS}')"))


@pytest.mark.parametrize("table", WRITABLE["UPDATE"])
async def test_nobody_changes_anothers_rows_nor_moves_his_own_to_another(
    tenant: Connection, owner: Connection, table: str
) -> None:
    async with transaction(tenant, [OURS]):
        changed = await tenant.execute(f"UPDATE {table} SET stamp_id = NULL WHERE false OR namespace <> '{OURS}'")
        assert changed == "UPDATE 0"
        own = await owner.fetchval(f"SELECT count(*) FROM {table} WHERE namespace = $1", OURS)
        assert await tenant.execute(f"UPDATE {table} SET stamp_id = gen_random_uuid()") == f"UPDATE {own}"
    for names, patterns, what in (
        ([OURS], [], f"namespace = '{THEIRS}'"),
        ([OURS], ["globex.*"], "stamp_id = gen_random_uuid()"),  # what may be read is not what may be written
    ):
        await denied(tenant, f"UPDATE {table} SET {what}", names=names, patterns=patterns, why="row-level security")


async def test_an_upsert_does_not_reach_anothers_row(tenant: Connection, owner: Connection) -> None:
    theirs = await owner.fetchval("SELECT path_hash FROM file_facts WHERE namespace = $1", THEIRS)
    upsert = copied("file_facts", "jsonb_build_object('path_hash', $1::bytea)")
    upsert += " ON CONFLICT (path_hash) DO UPDATE SET size = EXCLUDED.size"
    await denied(tenant, upsert, theirs, names=[OURS], patterns=[], why="row-level security")


async def test_nobody_deletes_anothers_rows(tenant: Connection, owner: Connection) -> None:
    assert WRITABLE["DELETE"] == ["workflow_inputs"]
    async with transaction(tenant, [OURS]):
        assert await tenant.execute("DELETE FROM workflow_inputs") == "DELETE 1"
    assert [row[0] for row in await owner.fetch("SELECT namespace FROM workflow_inputs")] == [THEIRS]


@pytest.mark.parametrize("table", EVERY_TABLE)
async def test_what_is_not_granted_is_denied(tenant: Connection, table: str) -> None:
    allowed = TENANTS.get(table, set())
    for privilege, sql in (
        ("SELECT", f"SELECT * FROM {table}"),
        ("INSERT", f"INSERT INTO {table} DEFAULT VALUES"),
        ("DELETE", f"DELETE FROM {table}"),
        ("TRUNCATE", f"TRUNCATE {table}"),
    ):
        if privilege not in allowed:
            await denied(tenant, sql, names=[OURS], patterns=["*"], why="permission denied")


async def test_of_the_generations_a_tenant_sees_which_one_is_live_and_no_namespace(
    tenant: Connection, owner: Connection
) -> None:
    await owner.execute(
        "INSERT INTO state_generations (status, fingerprint, namespace) VALUES ('building', 'x', $1)", THEIRS
    )
    found = await tenant.fetch("SELECT generation, status, fingerprint FROM state_generations")
    assert [row["status"] for row in found] == ["live"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
        await tenant.fetch("SELECT namespace FROM state_generations")


LOGINS = {
    "as the runbook says": ("NOINHERIT", f"GRANT {TENANT}, {SERVICE} TO", ""),
    # What CREATE ROLE leaves its user with: on PostgreSQL 15 the right to make himself a member, later the same as
    # an administrator of the roles, who does not inherit them.
    "that made the roles, on 15": ("NOINHERIT CREATEROLE", None, ""),
    "that made the roles": ("CREATEROLE", f"GRANT {TENANT}, {SERVICE} TO", "WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"),
    "that inherits": ("INHERIT", f"GRANT {TENANT}, {SERVICE} TO", ""),
}


@asynccontextmanager
async def migrated_by(server: Server, kind: str) -> AsyncIterator[str]:
    """A database that a login of its own was given, and migrated; its URL."""
    attributes, grant, options = LOGINS[kind]
    login = f"login_{uuid4().hex}"
    url = await server.create("template0")
    owner = await connect(url)
    try:
        await owner.execute(f"CREATE ROLE {login} LOGIN {attributes}")
        if grant is not None:
            await owner.execute(f"{grant} {login} {options}")
        database = await owner.fetchval("SELECT current_database()")
        await owner.execute(f"ALTER DATABASE {database} OWNER TO {login}; ALTER SCHEMA public OWNER TO {login}")
        own_url = url.replace("://bridge@", f"://{login}@")
        session = await connect(own_url)
        await migrate(session)
        await session.close()
        yield own_url
    finally:
        await owner.execute(f"REASSIGN OWNED BY {login} TO CURRENT_USER; DROP OWNED BY {login}; DROP ROLE {login}")
        await owner.close()
        await server.drop(url)


@pytest.mark.parametrize("kind", ["as the runbook says", "that made the roles"])
async def test_the_login_that_migrated_sees_nothing_until_it_takes_a_role(server: Server, kind: str) -> None:
    if kind == "that made the roles" and await major_of(server) < 16:
        kind += ", on 15"
    async with migrated_by(server, kind) as url:
        await fill(url)
        for role, sees in ((None, False), (SERVICE, True)):
            session = await connect(url, role=role)
            for table in sorted(GUARDED - {"dead_letters", "token_usage"}):
                assert (await session.fetchval(f"SELECT count(*) FROM {table}") > 0) == sees, (table, role)
            await session.close()
        assert not (await examine(url)).inherits


async def test_a_login_that_sees_everything_without_a_role_is_found(server: Server, database_url: str) -> None:
    async with migrated_by(server, "that inherits") as url:
        assert (await examine(url)).inherits
    assert not (await examine(database_url)).inherits  # a superuser, for whom there are no policies


async def major_of(server: Server) -> int:
    session = await connect(server.dsn)
    try:
        major: int = session.get_server_version().major
        return major
    finally:
        await session.close()
