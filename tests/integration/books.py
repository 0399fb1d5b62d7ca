"""A database under test and its books: what was acknowledged, and whether everything in the database agrees.

A test hands every answer that a caller was given to `acknowledge`; `balance` then lets the reducer catch up, runs the
shipped audit, and compares stamps and totals with those answers by plain addition.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.evidence import evidence
from omninode_bridge.adapters.postgres.ledger import SHARD_LOCK_CLASS, PostgresLedgerSession
from omninode_bridge.adapters.postgres.reads import PostgresReads
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.app.audit import LawFinding, audit
from omninode_bridge.app.project import Projector
from omninode_bridge.domain.errors import WorkflowFailed
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.domain.stamp import Outcome, Stamp, microseconds
from omninode_bridge.domain.workflow import Plan
from tests.making import GROUPINGS, MACHINE, PLAN

PATIENCE_S = 30.0


class Books:
    """One database: its ledger sessions, its reducer, its audit."""

    def __init__(self, url: str, opened: Pool, owner: Pool) -> None:
        self.url = url
        self.service = opened
        """The program's own pool."""
        self.pool = owner
        """For the test itself, which may do everything."""
        self.source = PostgresEventSource(opened)
        self.state = PostgresStateStore(opened)
        self.reads = PostgresReads(opened)
        self._sessions: list[PostgresLedgerSession] = []
        self._stamps: dict[str, Stamp] = {}
        self._failed: dict[tuple[str, str], WorkflowFailed] = {}

    def session(self, url: str | None = None, *, plan: Plan = PLAN, **settings: float) -> PostgresLedgerSession:
        """Return a ledger session, closed at the end; `url` when it is to go through a proxy."""
        session = PostgresLedgerSession(url or self.url, plan, utc_now, uuid7_batch, **settings)
        self._sessions.append(session)
        return session

    def projector(self, opened: Pool | None = None, groupings: Groupings = GROUPINGS) -> Projector:
        return Projector(
            PostgresEventSource(opened or self.service), PostgresStateStore(opened or self.service), groupings
        )

    async def record(self, session: PostgresLedgerSession, *group: Outcome) -> list[Verdict]:
        """Record a group and enter what it was answered."""
        return self.acknowledge(await session.commit(group))

    async def stamp(self, session: PostgresLedgerSession, outcome: Outcome) -> Stamp:
        (verdict,) = await self.record(session, outcome)
        assert isinstance(verdict, Stamp), verdict
        return verdict

    def acknowledge[Answers: Sequence[Verdict]](self, verdicts: Answers) -> Answers:
        """Enter answers: a stamp may be answered many times, but never in two versions of the truth."""
        for verdict in verdicts:
            if isinstance(verdict, Stamp):
                first = self._stamps.setdefault(verdict.stamp_id, verdict)
                assert (first.file_path, first.version, first.file_hash, first.completed_at) == (
                    verdict.file_path, verdict.version, verdict.file_hash, verdict.completed_at,
                )  # fmt: skip
            elif isinstance(verdict, WorkflowFailed):
                self._failed[str(verdict.context["namespace"]), str(verdict.context["workflow_id"])] = verdict
        return verdicts

    async def catch_up(self, groupings: Groupings = GROUPINGS) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.projector(groupings=groupings).catch_up(await self.source.heads())

    async def audit(self) -> list[LawFinding]:
        async with evidence(self.service) as snapshot:
            return await audit(snapshot, MACHINE)

    async def balance(self, *, groupings: Groupings = GROUPINGS) -> None:
        """Fail unless every law holds, and stamps and totals are exactly what was acknowledged."""
        await self.catch_up(groupings)
        broken = [finding for finding in await self.audit() if not finding.holds]
        assert not broken, broken
        kept = {str(row["stamp_id"]) for row in await self.pool.fetch("SELECT stamp_id FROM metadata_stamps")}
        assert kept == self._stamps.keys()
        stamps, octets, took, failed = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for stamp in self._stamps.values():
            stamps[stamp.namespace] += 1
            octets[stamp.namespace] += stamp.file_size
            took[stamp.namespace] += microseconds(stamp.processing_time_ms)
        failed.update(namespace for namespace, _ in self._failed)
        told = {
            namespace: (totals.total_stamps, totals.total_size_bytes, totals.processing_time_us_sum, totals.failed)
            for (namespace, _, _), totals in (await self.state.rows("namespace")).items()
        }
        assert told == {ns: (stamps[ns], octets[ns], took[ns], failed[ns]) for ns in stamps.keys() | failed.keys()}

    async def count(self, table: str) -> int:
        found: int = await self.service.fetchval(f"SELECT count(*) FROM {table}")
        return found

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()


@asynccontextmanager
async def opened_books(url: str) -> AsyncIterator[Books]:
    async with pool(url) as opened, asyncpg.create_pool(url, min_size=0, max_size=4) as owner:
        books = Books(url, opened, owner)
        try:
            yield books
        finally:
            await books.close()


async def eventually(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Look until `condition` holds; fail after PATIENCE_S seconds."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110 - a database has no events to wait for
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S:.0f} s: {what}") from None


async def waited(books: Books, work: asyncio.Future[object], interval: str = "1 second") -> bool:
    """Tell whether a statement has waited for a lock for so long, or the work ended without."""
    long: bool = await books.pool.fetchval(
        """SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
            AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > $1::text::interval)""",
        interval,
    )
    return long or work.done()


async def shard_is_free(books: Books, shard: int | None) -> bool:
    """Tell whether no session owns a shard: the backend of its last owner has ended."""
    held: bool = await books.pool.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = $2"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        SHARD_LOCK_CLASS,
        shard,
    )
    return not held


def stamps_of(verdicts: Iterable[Verdict]) -> list[Stamp]:
    """Return the verdicts, all of which are stamps."""
    found = []
    for verdict in verdicts:
        assert isinstance(verdict, Stamp), verdict
        found.append(verdict)
    return found
