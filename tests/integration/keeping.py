"""What tests of upkeep share: an upkeep of a test's books, and reducers that are slower than it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.postgres.upkeep import PostgresUpkeep
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app.project import Projector
from omninode_bridge.app.upkeep import Upkeep
from omninode_bridge.domain.log import Head, ShardKey
from omninode_bridge.domain.reduction import Groupings, State
from omninode_bridge.ports import DeadLetter, Generation
from tests.integration.books import Books
from tests.making import GROUPINGS


def keeper(books: Books, opened: Pool | None = None, groupings: Groupings = GROUPINGS, **more: Any) -> Upkeep:
    use = opened or books.pool
    source, state = PostgresEventSource(use), PostgresStateStore(use)
    return Upkeep(
        PostgresUpkeep(use, **more),
        source,
        state,
        Projector(source, state, groupings),
        utc_now,
        actor="ann",
        fold_timeout_s=20,
    )


def forget(books: Books, namespace: str) -> None:
    """Strike what was acknowledged in a namespace out of the books: it was erased."""
    books._stamps = {key: stamp for key, stamp in books._stamps.items() if stamp.namespace != namespace}
    books._failed = {key: failed for key, failed in books._failed.items() if key[0] != namespace}


async def chain(books: Books) -> list[Any]:
    return await books.pool.fetch(
        "SELECT topic, shard, position, event_id, previous_id FROM event_log ORDER BY topic, shard, position"
    )


async def acts(books: Books) -> list[tuple[str, str, str, dict[str, Any]]]:
    found = await books.pool.fetch("SELECT actor, act, subject, details FROM admin_log ORDER BY id")
    return [(row["actor"], row["act"], row["subject"], json.loads(row["details"])) for row in found]


async def waiting(books: Books, count: int) -> bool:
    """Tell whether so many sessions wait for a lock."""
    # As who logged in: a session of the service may not look at what others wait for.
    connection = await asyncpg.connect(books.url)
    try:
        found: int = await connection.fetchval(
            """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
    finally:
        await connection.close()
    return found >= count


async def is_clean(books: Books) -> None:
    await books.catch_up()
    broken = [finding for finding in await books.audit() if not finding.holds]
    assert not broken, broken


class SlowState(PostgresStateStore):
    """A state store whose first batch waits before it is applied."""

    def __init__(self, opened: Pool) -> None:
        super().__init__(opened)
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def apply(
        self,
        generation: Generation,
        delta: State,
        moves: Mapping[ShardKey, tuple[Head, Head]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> bool:
        self.waiting.set()
        await self.go.wait()
        return await super().apply(generation, delta, moves, dead_letters)
