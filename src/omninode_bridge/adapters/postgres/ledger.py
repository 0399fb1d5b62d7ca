"""The ledger: one session owns one shard and commits groups of outcomes, one transaction a group.

What happens to a group:

    BEGIN ─▶ read ─▶ decide ─▶ heads, op ids, stamps, events ─▶ facts ─▶ COMMIT ─▶ answer
     ▲                           │                                         │
     └── lost race ◀─────────────┘ (rolled back)     connection lost ──────┘
     └── the old backend no longer holds the shard: it is gone ◀───────────┘

* A transaction sees and writes the namespaces of its group, and no others (row-level security).

* The head is the fence. It is held in memory and moved by compare-and-set; two would-be owners of a shard
  can't both move it from the same place.
* A lost race (another writer made the version, or used the op id) rolls back and starts anew from reading.
* A group that is refused for its content is halved until the offender stands alone.
* When the connection dies in COMMIT, nobody knows the outcome until the shard's lock is ours again, or
  another session's: that proves that the old backend has ended, one way or the other. Then the group is run
  anew, now looking up its own op ids: what was committed is found there and answered as it was; what was not
  is committed now.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import asyncpg
import msgspec
from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import (
    TENANT,
    abandon,
    connect,
    connection_lost,
    given,
    translated,
    usable,
)
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import BridgeError, InvalidInput, OutcomeUnknown, Overloaded, ServiceUnavailable
from omninode_bridge.domain.log import NIL_ID, SHARDS_MAX, Head
from omninode_bridge.domain.recording import Decision, OpKey, PathKey, Prior, Verdict, decide, op_key, path_key
from omninode_bridge.domain.stamp import Draft, Outcome, Stamp
from omninode_bridge.domain.workflow import Plan
from omninode_bridge.ports import Clock, IdSource

SHARD_LOCK_CLASS = 0x0B21D6E
"""First key of the advisory locks on shards; the second is the shard."""
RERUNS_MAX = 50
"""Lost races in a row before the caller is asked to try again. Each needs another writer to have won."""
SETTLE_TIMEOUT_S = 15.0
"""How long to wait for proof that a lost backend has ended; beyond it the answer is `outcome_unknown`."""
_HOLDER_LOOK_S = 1.0
"""How long to wait in one go: the shard may have got another owner meanwhile, which is proof as well."""

_SQL = load("ledger")

_LOST_RACE = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)


class _HeadMoved(Exception):
    """The compare-and-set found another head than ours: somebody else wrote to this shard."""


class _LeaseMoved(Exception):
    """A workflow of the group was leased anew since it was read."""


class _CommitLost(Exception):
    """The connection died while COMMIT was under way."""


class PostgresLedgerSession:
    """The owner of one shard. `commit` is called by one task at a time.

    A session opens its connection at the first commit and again after it was lost.
    """

    def __init__(
        self,
        database_url: str,
        plan: Plan,
        clock: Clock,
        ids: IdSource,
        *,
        settle_timeout_s: float = SETTLE_TIMEOUT_S,
    ) -> None:
        self._database_url = database_url
        self._plan = plan
        self._clock = clock
        self._ids = ids
        self._settle_timeout_s = settle_timeout_s
        self._connection: Connection | None = None
        self._backend_pid: int | None = None
        self._shard: int | None = None
        # Empty: to be read before they are used.
        self._heads: dict[str, Head] = {}
        # The op ids of a group whose COMMIT may or may not have reached the server.
        self._unsettled: frozenset[OpKey] = frozenset()

    @property
    def shard(self) -> int | None:
        return self._shard

    async def commit(self, group: Sequence[Outcome]) -> list[Verdict]:
        """Record a group durably and return the answers, in order.

        Raises ServiceUnavailable when nothing was recorded, OutcomeUnknown when that can't be known yet.
        """
        try:
            return await self._commit(group)
        except asyncio.CancelledError:
            if self._shard is not None:
                # The statement under way may be COMMIT: the next commit settles it.
                self._unsettled |= set(map(op_key, group))
            self._drop()
            raise

    async def close(self) -> None:
        """End the session; its shard is free for others."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                await connection.close(timeout=2)
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    async def _commit(self, group: Sequence[Outcome]) -> list[Verdict]:
        rerun = False
        unknown = not self._unsettled.isdisjoint(map(op_key, group))
        for attempt in range(RERUNS_MAX):
            try:
                connection = await self._open()
                with translated("recording stamps"):
                    return await self._attempt(connection, group, rerun)
            except (*_LOST_RACE, _LeaseMoved):
                await asyncio.sleep(random.uniform(0, 0.002 * min(attempt, 25)))  # noqa: S311 - no secret
            except _HeadMoved:
                self._heads = {}
            except _CommitLost as lost:
                self._unsettled, unknown = frozenset(map(op_key, group)), True
                self._drop(lost)
            except ServiceUnavailable as error:
                self._drop(error)
                if unknown:
                    raise _unknown(error, group) from error
                raise
            except _REFUSED as error:
                return await self._isolate(group, error)
            rerun = True
        raise Overloaded(f"lost {RERUNS_MAX} races in a row on the same paths or op ids: try again")

    async def _isolate(self, group: Sequence[Outcome], error: Exception) -> list[Verdict]:
        """Halve a refused group until the offender stands alone; the others are recorded."""
        if len(group) == 1:
            path = group[0].request.file_path
            return [InvalidInput(f"{path!r} was refused by PostgreSQL: {error}", field="metadata")]
        middle = len(group) // 2
        verdicts = await self._commit(group[:middle])
        rest = group[middle:]
        try:
            return [*verdicts, *await self._commit(rest)]
        # What is recorded is answered: this is the other half's answer only, whatever it is.
        except OutcomeUnknown as unknown:
            return [*verdicts, *(_unknown(unknown.__cause__ or unknown, [outcome]) for outcome in rest)]
        except Exception as failed:
            down: BridgeError = ServiceUnavailable(f"PostgreSQL failed while recording stamps: {failed}")
            if isinstance(failed, BridgeError):
                down = failed
            return [*verdicts, *[down] * len(rest)]

    async def _attempt(self, connection: Connection, group: Sequence[Outcome], rerun: bool) -> list[Verdict]:
        assert self._shard is not None
        if not self._heads:
            await self._read_heads(connection)
        namespaces = sorted({outcome.request.namespace for outcome in group})
        # The lock, which writers share, keeps out an erasure until the end: between what is read here and its commit.
        try:
            await connection.execute(f"BEGIN; LOCK TABLE fsm_states IN ROW EXCLUSIVE MODE; {given(namespaces)}")
            decision = await self._decide(connection, group, rerun)
            await self._write(connection, decision)
        except BaseException as error:
            if not connection_lost(error) and not connection.is_closed() and isinstance(error, Exception):
                await connection.execute("ROLLBACK")
            raise
        try:
            ended = await connection.execute("COMMIT")
        except Exception as error:
            raise _CommitLost from error
        if ended != "COMMIT":
            raise _CommitLost
        for (topic, _), head in decision.heads.items():
            self._heads[topic] = head
        return decision.verdicts

    async def _decide(self, connection: Connection, group: Sequence[Outcome], rerun: bool) -> Decision:
        assert self._shard is not None
        priors = await self._priors(connection, [op_key(o) for o in group if rerun or o.request.op_id_given])
        latest = await self._latest(connection, {path_key(o) for o in group if isinstance(o, Draft)})
        return decide(
            self._plan,
            group,
            priors=priors,
            latest=latest,
            heads=self._heads,
            shard=self._shard,
            ids=iter(self._ids(2 * len(group))),
            now=self._clock(),
        )

    async def _write(self, connection: Connection, decision: Decision) -> None:
        if decision.ended:
            await self._end(connection, decision)
        # Sorted, so that writers who meet wait for one another and don't lock each other out.
        moves = [
            (topic, *msgspec.structs.astuple(self._heads[topic]), *msgspec.structs.astuple(head))
            for (topic, _), head in sorted(decision.heads.items())
        ]
        fits = await connection.fetchval(
            _SQL["record"],
            *([list(column) for column in zip(*moves, strict=True)] or [[]] * 5),
            self._shard,
            rows.workflow_rows(sorted(decision.workflows, key=lambda w: (w.workflow_id, w.namespace))),
            rows.stamp_rows(sorted(decision.stamps, key=lambda s: (s.namespace, s.file_path, s.version))),
            rows.record_rows(decision.records),
        )
        if not fits:
            raise _HeadMoved
        if decision.inputs:
            await connection.execute(_SQL["insert_inputs"], rows.input_rows(decision.inputs))
        if decision.facts:
            facts = sorted(decision.facts, key=lambda f: f.path_hash)
            await connection.execute(_SQL["upsert_facts"], rows.facts_rows(facts))

    async def _end(self, connection: Connection, decision: Decision) -> None:
        """End accepted workflows: only while their leases are still those that they were run under."""
        ended = sorted(decision.ended, key=lambda end: (end[0].workflow_id, end[0].namespace))
        keys = [(w.workflow_id, w.namespace, fence) for w, fence in ended]
        deleted = await connection.execute(_SQL["delete_inputs"], *map(list, zip(*keys, strict=True)))
        if deleted != f"DELETE {len(keys)}":
            raise _LeaseMoved
        await connection.execute(_SQL["end_workflows"], rows.workflow_rows([workflow for workflow, _ in ended]))

    async def _priors(self, connection: Connection, keys: list[OpKey]) -> dict[OpKey, Prior]:
        if not keys:
            return {}
        found = await connection.fetch(_SQL["workflows"], [k[0] for k in keys], [k[1] for k in keys])
        workflows = [rows.workflow_of(row) for row in found]
        stamp_ids = [w.stamp_id for w in workflows if w.stamp_id]
        stamps: dict[str, Stamp] = {}
        if stamp_ids:
            for row in await connection.fetch(_SQL["stamps_by_id"], stamp_ids):
                stamp = rows.stamp_of(row)
                stamps[stamp.stamp_id] = stamp
        waiting = map(rows.waiting_of, found)
        return {
            (w.namespace, w.workflow_id): Prior(w, stamps.get(w.stamp_id or ""), held)
            for w, held in zip(workflows, waiting, strict=True)
        }

    async def _latest(self, connection: Connection, keys: set[PathKey]) -> dict[PathKey, Stamp]:
        if not keys:
            return {}
        found = await connection.fetch(_SQL["latest_stamps"], sorted(keys))
        return {row["path_hash"]: rows.stamp_of(row) for row in found}

    async def _open(self) -> Connection:
        """Return the session's connection, with its shard locked."""
        if self._connection is not None:
            if usable(self._connection):
                return self._connection
            self._drop()
        connection = await connect(self._database_url, by_key=True, role=TENANT)
        try:
            with translated("opening a shard"):
                take = self._settle if self._unsettled else self._take_shard
                self._shard = await take(connection)
                self._backend_pid = await connection.fetchval(_SQL["backend_pid"])
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._heads = {}
        self._unsettled = frozenset()
        return connection

    async def _settle(self, connection: Connection) -> int:
        """Wait until the lost backend has ended; return the shard that is ours now, the old one if it can be."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settle_timeout_s
        look_ms = round(1000 * min(_HOLDER_LOOK_S, self._settle_timeout_s))
        await connection.execute(f"SET lock_timeout = {look_ms}")
        while True:
            holder = await connection.fetchval(_SQL["shard_holder"], SHARD_LOCK_CLASS, self._shard)
            if holder not in (None, self._backend_pid):
                break
            try:
                await connection.fetchval(_SQL["wait_for_shard"], SHARD_LOCK_CLASS, self._shard)
                break
            except asyncpg.LockNotAvailableError:
                if loop.time() >= deadline:
                    raise
        await connection.execute("RESET lock_timeout")
        return await self._take_shard(connection)

    async def _take_shard(self, connection: Connection) -> int:
        """Lock a shard that nobody owns: the one owned before, another, or a new one."""
        existing: list[int] = [row["shard"] for row in await connection.fetch(_SQL["shards"])]
        if self._shard is not None:
            existing.sort(key=lambda shard: shard != self._shard)
        new = [shard for shard in range(SHARDS_MAX) if shard not in set(existing)]
        for shard in [*existing, *new]:
            if await connection.fetchval(_SQL["try_shard"], SHARD_LOCK_CLASS, shard):
                await connection.execute(_SQL["create_heads"], self._topics(), shard, NIL_ID)
                return shard
        raise Overloaded(f"all {SHARDS_MAX} shards have a writer: stop some writers, or try again later")

    async def _read_heads(self, connection: Connection) -> None:
        with translated("reading a shard's heads"):
            found = await connection.fetch(_SQL["heads"], self._topics(), self._shard)
        self._heads = {row["topic"]: rows.head_of(row) for row in found}

    def _topics(self) -> list[str]:
        return sorted({self._plan.completed_topic, self._plan.failed_topic})

    def _drop(self, why: BaseException | None = None) -> None:
        if self._connection is not None:
            abandon(self._connection, why)
            self._connection = None


def _unknown(error: BaseException, group: Sequence[Outcome]) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"the connection to PostgreSQL was lost during COMMIT ({error}): whether it was recorded is not known yet; "
        "try again with the same op_id, which is safe",
        op_ids=[outcome.request.workflow_id for outcome in group],
    )
