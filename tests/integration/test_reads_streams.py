"""Long results at their reader's pace, on real servers: pauses and slow statements end nothing, and nobody else waits.

Time limits are lowered by setting them; that a limit has passed is seen by something else that it ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from omninode_bridge.adapters.postgres import connection, migrations
from omninode_bridge.adapters.postgres.connection import seeing
from omninode_bridge.adapters.postgres.migrations import Migration, migrate
from omninode_bridge.adapters.postgres.reads import CURSOR_ROWS, STREAMS_MAX
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.query import Query
from omninode_bridge.domain.errors import Overloaded, ServiceUnavailable
from omninode_bridge.domain.log import NIL_ID
from omninode_bridge.domain.reduction import Totals
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import fingerprint
from tests.conftest import Server
from tests.integration.books import PATIENCE_S, Books, eventually, opened_books
from tests.making import GROUPINGS, NAMESPACE, NOW, draft, failure, hash_of, new_id, paths

NAMES = [f"{number:05d}" for number in range(2 * CURSOR_ROWS + 500)]
COMMAND_S = 2.0
"""What a command may take, where one is to take longer: enough for those that do not wait."""


# A reader that pauses


async def test_a_listing_survives_a_reader_who_pauses_longer_than_a_transaction_may_idle(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.record(books.session(), *map(draft, NAMES))
    monkeypatch.setitem(connection._SETTINGS, "idle_in_transaction_session_timeout", "300")
    async with opened_books(books.url) as reader:
        async with aclosing(reader.reads.latest_under(NAMESPACE)) as listing:
            found = [await anext(listing)]
            await _idle_transactions_have_ended(reader)
            found += [stamp async for stamp in listing]
        assert paths(found) == NAMES


async def test_reading_workflows_holds_no_connection_while_its_reader_pauses(books: Books) -> None:
    await books.record(books.session(), *map(draft, NAMES))
    async with AsyncExitStack() as stack:
        readings = [
            await stack.enter_async_context(aclosing(books.reads.workflows()))
            for _ in range(connection.POOL_CONNECTIONS_MAX)
        ]
        for reading in readings:
            await anext(reading)
        assert await books.count("metadata_stamps") == len(NAMES)
        assert len([prior async for prior in readings[0]]) == len(NAMES) - 1


# A statement that takes long


async def test_a_listing_may_take_longer_than_a_command(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    await books.record(books.session(), draft("a"))
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", COMMAND_S)
    async with opened_books(books.url) as reader:
        async with _locked(books.url, "metadata_stamps"):
            listing = asyncio.create_task(_listed(reader))
            await eventually(lambda: _waits_for_a_lock(reader), "the listing waits")
            with pytest.raises(TimeoutError):
                await reader.count("metadata_stamps")
            assert not listing.done()
        assert await listing == ["a"]


async def test_a_migration_may_take_longer_than_a_command(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", COMMAND_S)
    url = await server.create()
    session = await connection.connect(url)
    try:
        slow = Migration(9999, "9999_slow.sql", "CREATE TABLE made AS SELECT * FROM bridge_state", "0" * 64)
        shipped = migrations.known()
        monkeypatch.setattr(migrations, "known", lambda: [*shipped, slow])
        async with opened_books(url) as books:
            async with _locked(url, "bridge_state"):
                migrating = asyncio.create_task(migrate(session))
                await eventually(lambda: _waits_for_a_lock(books), "the migration waits")
                with pytest.raises(TimeoutError):
                    await books.count("bridge_state")
                assert not migrating.done()
            assert await migrating == ["9999_slow.sql"]
    finally:
        await session.close()
        await server.drop(url)


# Nobody else waits


async def test_listings_leave_connections_for_others(books: Books) -> None:
    await books.record(books.session(), *map(draft, NAMES))
    async with AsyncExitStack() as stack:
        for _ in range(STREAMS_MAX):
            listing = await stack.enter_async_context(aclosing(books.reads.latest_under(NAMESPACE)))
            await anext(listing)
        for reads in (books.reads, books.reads.seen_by(Visible((NAMESPACE,)))):
            with pytest.raises(Overloaded, match=f"{STREAMS_MAX} listings"):
                await anext(reads.latest_under(NAMESPACE))
        await books.catch_up()
    assert len([stamp async for stamp in books.reads.latest_under(NAMESPACE)]) == len(NAMES)


async def test_a_reader_who_finds_all_connections_busy_is_told_so(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(connection.POOL_CONNECTIONS_MAX):
            await stack.enter_async_context(books.service.acquire())
        with monkeypatch.context() as lowered:
            lowered.setattr(connection, "ACQUIRE_TIMEOUT_S", 0.1)
            with pytest.raises(Overloaded, match="connections to PostgreSQL were busy"):
                await books.reads.history(NAMESPACE, "a")
    assert await books.reads.history(NAMESPACE, "a") == []


async def test_one_audit_at_a_time_holds_a_connection(books: Books) -> None:
    async with Bridge.connect(books.url) as bridge:
        async with _locked(books.url, "metadata_stamps"):
            auditing = asyncio.create_task(bridge.audit())
            await eventually(lambda: _waits_for_a_lock(books), "the audit waits")
            with pytest.raises(Overloaded, match="audit is under way"):
                await bridge.audit()
        assert all(finding.holds for finding in await auditing)


async def test_a_state_whose_log_cannot_be_read_in_time_is_refused_in_time(books: Books) -> None:
    parts = books.source, books.state, books.reads, books.projector(), GROUPINGS
    async with _locked(books.url, "log_heads"), asyncio.timeout(PATIENCE_S):
        with pytest.raises(ServiceUnavailable, match=r"heads in 0\.2 s"):
            await Query(*parts, timeout_s=0.2).up_to_date()
    await Query(*parts, timeout_s=PATIENCE_S).up_to_date()


# What is not asked for is not read


async def test_deduplicated_workflows_are_not_met_when_the_counted_ones_are_read(books: Books) -> None:
    session = books.session()
    await books.record(session, draft("a"), failure("b"), *(draft("a") for _ in range(500)), draft("a", namespace="z"))
    assert len([prior async for prior in books.reads.workflows(NAMESPACE)]) == 2
    arguments = (NAMESPACE, NIL_ID, NAMESPACE, CURSOR_ROWS + 1)
    assert await _rows_met(books, load("reads")["counted_workflows"], *arguments) <= 2 * 2


async def test_a_digest_that_all_tenants_share_costs_each_only_its_own_stamps(books: Books) -> None:
    session = books.session()
    await books.record(session, *map(draft, NAMES), *(draft(f"{n}", b"%d" % n, namespace="small") for n in range(500)))
    mine = await books.stamp(session, draft("mine", namespace="small"))
    digest = hash_of(b"a")
    assert [stamp.stamp_id for stamp in await books.reads.by_hash(digest, ["small"])] == [mine.stamp_id]
    statement, arguments = load("reads")["by_hash_in"], (bytes.fromhex(digest), 10)
    assert await _rows_met(books, statement, *arguments, ["small"]) <= 3
    assert await _rows_met(books, statement, *arguments, [NAMESPACE, "small"]) <= 10 + 1 + 2


@pytest.mark.parametrize("visible", [None, Visible(("small", "a.*"))])
async def test_a_page_of_state_meets_no_rows_but_its_own(books: Books, visible: Visible | None) -> None:
    generation = await books.state.begin(fingerprint(GROUPINGS))
    moment = (NOW, new_id())
    one = Totals(1, 0, 1, 1, 1, 1, moment, moment)
    keys = [f"{number:04d}" for number in range(2_000)]
    groups = [("small", "content_type", key) for key in keys] + [(f"a.{key}", "namespace", f"a.{key}") for key in keys]
    assert await books.state.apply(generation, dict.fromkeys(groups, one), {})
    at, few = keys[1_500], 10
    sql = load("state")
    for statement, after, key in (("page", at, ("small", "content_type")), ("overview", f"a.{at}", ())):
        met = await _rows_met(books, sql[statement], generation.fingerprint, after, after, few, *key, visible=visible)
        assert met <= few + 2  # one that is left out, and the generation
    first = await books.state.page("content_type", "small", after=at, limit=few, visible=visible or EVERYTHING)
    assert [group[2] for group in first] == keys[1_501:1_511]


@asynccontextmanager
async def _locked(url: str, table: str) -> AsyncIterator[None]:
    """Keep everybody else off a table."""
    holder = await asyncpg.connect(url)
    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await holder.close()


async def _listed(books: Books) -> list[str]:
    return [stamp.file_path async for stamp in books.reads.latest_under(NAMESPACE)]


async def _waits_for_a_lock(books: Books) -> bool:
    waits: bool = await books.pool.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE NOT l.granted AND d.datname = current_database())"
    )
    return waits


async def _idle_transactions_have_ended(books: Books) -> None:
    """Wait until a transaction that was begun now has been ended by the server for its idleness."""
    idle = await connection.connect(books.url)
    await idle.execute("BEGIN")

    async def ended() -> bool:
        return bool(idle.is_closed())

    await eventually(ended, "an idle transaction is ended")


async def _rows_met(books: Books, statement: str, *arguments: Any, visible: Visible | None = None) -> float:
    """Run a statement with a plan made for any arguments; return how many rows its scans found or threw away."""
    async with seeing(books.service, visible) as session:
        # Only what is prepared in SQL may have such a plan: EXPLAIN of a statement with parameters plans for these.
        await session.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await session.execute(f"PREPARE asked AS {statement}")
        asked = f"EXECUTE asked ({', '.join(map(_literal, arguments))})"
        (plan,) = json.loads(await session.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked}"))
        await session.execute("DEALLOCATE asked")
    met = 0.0
    for node in _nodes(plan["Plan"]):
        if "Relation Name" in node:
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            met += rows * node["Actual Loops"]
    return met


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"'\\x{value.hex()}'"
        case list():
            return f"ARRAY[{', '.join(map(_literal, value))}]"
        case _:
            return f"'{value}'"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)
