"""Erasure of a namespace, and retention of the event log. Both keep every law, with writers and reducers at work.

The rules this file keeps:

1. The log stays gapless (law 2). An erased event leaves a tombstone in its place; retention deletes from the log's
   start only, and the floor and the base move in the same transaction.
2. State is a fold (law 6). A batch that was read before an erasure can't be applied after it: the live generation has
   passed all that the log holds when records are erased, and positions never go back. A generation that is being built
   is dropped: its builder is told, and begins anew. Retention adds what it deletes to the base, which every new
   generation begins with.
3. Writers wait only for the last, short part of an erasure: what was written while the first part ran.
4. One transaction each: a death at any moment leaves all or nothing.

    erase   tombstones, stamps, workflows ─▶ writers wait ─▶ reducers catch up ─▶ the rest, totals, letters ─▶ COMMIT
    prune   generations stand still ─▶ read, fold ─▶ base, floor, delete ─▶ COMMIT, a shard and a batch at a time
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import datetime

import asyncpg
import msgspec
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import LONG_TIMEOUT_S, SERVICE, TENANT, translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.adapters.postgres.state import groupings_of
from omninode_bridge.domain.errors import (
    CorruptEvent,
    LawBroken,
    NotFound,
    Overloaded,
    ServiceUnavailable,
    StateBehind,
)
from omninode_bridge.domain.events import encode, erased
from omninode_bridge.domain.log import NIL_ID, START, Head, Record, ShardKey
from omninode_bridge.domain.names import uuid7
from omninode_bridge.domain.reduction import Item, fold, read_item
from omninode_bridge.ports import READ_BYTES_MAX, Finish, Generation

BATCH_EVENTS_MAX = 5000
"""Events in one transaction of a pruning, and in one statement of an erasure."""
LOCK_TIMEOUT_MS = 2000
"""How long others are held up behind one who waits for a lock; then they are let by, and it is tried again. Longer
than PostgreSQL takes to end an autovacuum that is in the way: 1 s."""
LOCK_TRIES_MAX = 10
CATCH_UP_TIMEOUT_S = 5.0
"""How long an erasure lets writers wait for the reducers; they give up after 10 s."""
CATCH_UP_LOOK_S = 0.02
_LOCK = 0x0B21D6E_0002
"""Any fixed number, of this program alone."""
BASE = 0
"""The generation that holds what retention folded."""

_SQL = load("upkeep")
_STATE = load("state")


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What was erased: rows of each kind. `events` have tombstones in their places now."""

    stamps: int = 0
    workflows: int = 0
    inputs: int = 0
    events: int = 0
    file_facts: int = 0
    dead_letters: int = 0
    groups: int = 0


class Prunable(msgspec.Struct, frozen=True, kw_only=True):
    """What retention may delete of a shard; `held` events are old enough, but `consumer` has yet to read them."""

    topic: str
    shard: int
    events: int
    octets: int
    held: int
    consumer: str


class PostgresUpkeep:
    """Erases and prunes, on a pool of the service's sessions."""

    def __init__(self, pool: Pool, *, batch_max: int = BATCH_EVENTS_MAX) -> None:
        self._pool = pool
        self._batch_max = batch_max

    async def erase(self, namespace: str, *, actor: str, now: datetime, catch_up: Finish) -> Erasure:
        """Erase all of a namespace, and write down who did.

        `catch_up` lets the live state fold up to the given heads; it may leave that to others. Raises NotFound where
        there is nothing, StateBehind when no reducer comes in time, Overloaded or ServiceUnavailable when the locks
        can't be had. Nothing is erased then.
        """
        with translated(f"erasing {namespace}"):
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(_SQL["alone"], _LOCK)
                await connection.execute(_SQL["read_whole_tables"])
                erasure = _Erasure(connection, namespace, now)
                await erasure.erase_what_stands()
                await self._erase_the_rest(connection, erasure, catch_up)
                done = erasure.counted()
                if done == Erasure():
                    raise NotFound(f"nothing of {namespace} is there to erase", field="namespace")
                details = msgspec.json.encode(done).decode()
                await connection.execute(_SQL["write_down"], actor, "namespace.erase", namespace, details)
        return done

    async def prunable(self, before: datetime) -> list[Prunable]:
        """Return what retention may delete of each shard that has something: older than `before`, and read by all."""
        with translated("looking at what may be pruned"):
            async with self._pool.acquire() as connection:
                found = await connection.fetch(_SQL["passed"])
                return [await _measured(connection, row, before) for row in found]

    async def prune(self, part: Prunable, before: datetime, *, actor: str | None = None) -> tuple[int, int]:
        """Delete a batch of a shard's oldest records, and return how many, and their bytes; (0, 0): none is left.

        With an `actor` it is written down who does it. Raises ServiceUnavailable while a state is being rebuilt.
        """
        for left in reversed(range(LOCK_TRIES_MAX)):
            with translated("pruning the event log"):
                try:
                    async with self._pool.acquire() as connection, connection.transaction():
                        return await self._prune(connection, part, before, actor)
                except asyncpg.LockNotAvailableError:
                    if not left:
                        raise
            await _pause()
        raise AssertionError("unreachable")

    async def _prune(
        self, connection: Connection, part: Prunable, before: datetime, actor: str | None
    ) -> tuple[int, int]:
        await connection.execute(_SQL["alone"], _LOCK)
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        await connection.execute(_SQL["keep_generations"])
        if await connection.fetchval(_SQL["building"]):
            raise ServiceUnavailable("the state is being rebuilt from the log: prune it when that is done")
        done = await _prune(connection, part, before, self._batch_max)
        if actor is not None and done[0]:
            details = msgspec.json.encode({"before": before}).decode()
            await connection.execute(_SQL["write_down"], actor, "events.prune", "event_log", details)
        return done

    async def _erase_the_rest(self, connection: Connection, erasure: _Erasure, catch_up: Finish) -> None:
        # In savepoints: the locks of one that failed are given back, and what was done before stays.
        for left in reversed(range(LOCK_TRIES_MAX)):
            try:
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                    await connection.execute(_SQL["look_up_by_key"])
                    await connection.execute(_SQL["keep_writers_out"])
                    heads = await _heads(connection)
                    await _until_folded(connection, heads, catch_up)
                    await connection.execute(_SQL["keep_generations"])
                    if await _behind(connection, heads):
                        raise _Overtaken  # a new database's first generation was begun meanwhile
                    await erasure.erase_the_rest(heads)
                return
            except (asyncpg.DeadlockDetectedError, _Overtaken) as error:
                if not left:
                    raise Overloaded(
                        "others kept changing what was to be erased: try again when it is calmer"
                    ) from error
            except asyncpg.LockNotAvailableError:
                if not left:
                    raise
            await _pause()


async def make_roles(connection: Connection) -> None:
    """Make the roles that the schema names, where the server has not got them: before a dump is restored."""
    with translated("making the program's roles"):
        for role in (TENANT, SERVICE):
            if not await connection.fetchval(_SQL["role_exists"], role):
                await connection.execute(f"CREATE ROLE {role} NOLOGIN NOBYPASSRLS")


class _Overtaken(Exception):
    """What was looked at changed before it could be held."""


class _Erasure:
    """One erasure under way: what it has counted, and up to where it has buried events."""

    def __init__(self, connection: Connection, namespace: str, now: datetime) -> None:
        self._connection = connection
        self._namespace = namespace
        self._now = now
        self._buried: Mapping[ShardKey, Head] = {}
        self._counts: dict[str, int] = {}

    async def erase_what_stands(self) -> None:
        """Erase what is recorded and will never change, beside writers: most of it."""
        heads = await _heads(self._connection)
        await self._bury(heads)
        self._buried = heads
        await self._delete("stamps", "erase_stamps")
        await self._delete("workflows", "erase_settled_workflows")

    async def erase_the_rest(self, heads: Mapping[ShardKey, Head]) -> None:
        """Erase everything that is left, with nobody writing."""
        before = dict(self._counts)
        try:
            for row in await self._connection.fetch(_SQL["drop_unfinished"]):
                await self._drop(row["generation"])
            await self._bury(heads)
            await self._delete("stamps", "erase_stamps")
            for statement in ("erase_counted_workflows", "erase_repeated_workflows", "erase_waiting_workflows"):
                await self._delete("workflows", statement)
            await self._delete("inputs", "erase_inputs")
            await self._delete("file_facts", "erase_facts")
            await self._delete("dead_letters", "erase_letters")
            await self._delete("groups", "erase_state")
        except BaseException:
            self._counts = before
            raise

    def counted(self) -> Erasure:
        return Erasure(**self._counts)

    async def _bury(self, heads: Mapping[ShardKey, Head]) -> None:
        """Put tombstones in the places of the namespace's events, from where it was left off up to the heads."""
        ranges = [(*key, self._buried.get(key, START).position, head.position) for key, head in heads.items()]
        if not ranges:
            return
        graves: list[Record] = []
        async for row in self._connection.cursor(
            _SQL["places"],
            self._namespace,
            *map(list, zip(*ranges, strict=True)),
            prefetch=BATCH_EVENTS_MAX,
            timeout=LONG_TIMEOUT_S,
        ):
            graves.append(_grave(row, self._now))
            if len(graves) == BATCH_EVENTS_MAX:
                await self._put(graves)
                graves = []
        if graves:
            await self._put(graves)

    async def _put(self, graves: list[Record]) -> None:
        done = await self._connection.execute(_SQL["bury"], rows.record_rows(graves), timeout=LONG_TIMEOUT_S)
        self._count("events", done)

    async def _delete(self, what: str, statement: str) -> None:
        self._count(what, await self._connection.execute(_SQL[statement], self._namespace, timeout=LONG_TIMEOUT_S))

    async def _drop(self, generation: int) -> None:
        await self._connection.execute(_STATE["clear_state"], generation, None, timeout=LONG_TIMEOUT_S)
        await self._connection.execute(_STATE["clear_letters"], generation)
        await self._connection.execute(_STATE["clear_positions"], Generation(generation, "").consumer)

    def _count(self, what: str, done: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + int(done.rsplit(" ", 1)[1])


def _grave(row: rows.Row, now: datetime) -> Record:
    place = (row["topic"], row["shard"], row["position"], str(row["event_id"]), str(row["previous_id"]))
    return Record(*place, "", NIL_ID, encode(erased(*place, now)))


async def _pause() -> None:
    """Let those by who queued up behind a lock that could not be had."""
    await asyncio.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - no secret


async def _heads(connection: Connection) -> dict[ShardKey, Head]:
    found = await connection.fetch(_STATE["heads"])
    return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}


async def _until_folded(connection: Connection, heads: Mapping[ShardKey, Head], catch_up: Finish) -> None:
    """Wait until the live generation has passed the heads, which stand still."""
    behind = 0
    try:
        async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
            while behind := await _behind(connection, heads):
                await catch_up(heads)
                await asyncio.sleep(CATCH_UP_LOOK_S)
    except TimeoutError as error:
        raise StateBehind(
            f"the state was {behind} events behind after {CATCH_UP_TIMEOUT_S:g} s, and nothing was erased: see that a "
            "process with the reducer's contract folds it (`omninode-bridge up`), then erase again",
            lag=behind,
        ) from error


async def _behind(connection: Connection, heads: Mapping[ShardKey, Head]) -> int:
    live = await connection.fetchrow(_STATE["live"])
    if live is None:
        return 0
    consumer = Generation(live["generation"], live["fingerprint"]).consumer
    found = await connection.fetch(_STATE["positions"], consumer)
    passed = {(row["topic"], row["shard"]): row["position"] for row in found}
    return sum(max(0, head.position - passed.get(key, 0)) for key, head in heads.items())


async def _measured(connection: Connection, row: rows.Row, before: datetime) -> Prunable:
    place = (row["topic"], row["shard"])
    size = await connection.fetchrow(
        _SQL["measure"], *place, row["floor"], row["head"], row["passed"], _first_id(before), timeout=LONG_TIMEOUT_S
    )
    return Prunable(
        topic=place[0],
        shard=place[1],
        events=size["events"],
        octets=size["octets"],
        held=size["held"],
        consumer=row["consumer"],
    )


async def _prune(connection: Connection, part: Prunable, before: datetime, batch_max: int) -> tuple[int, int]:
    place = (part.topic, part.shard)
    now = {(row["topic"], row["shard"]): row for row in await connection.fetch(_SQL["passed"])}.get(place)
    if now is None:
        return 0, 0
    found = await connection.fetch(_SQL["oldest"], *place, now["floor"], now["passed"], batch_max, READ_BYTES_MAX)
    records = _old(list(map(rows.record_of, found)), before)
    if not records:
        return 0, 0
    last = records[-1]
    span = (*place, now["floor"], last.position)
    lettered = {row["position"] for row in await connection.fetch(_SQL["lettered"], *span)}
    await _add_to_base(connection, [record for record in records if record.position not in lettered], last)
    deleted = await connection.execute(_SQL["delete_records"], *span, timeout=LONG_TIMEOUT_S)
    if deleted != f"DELETE {len(records)}" or last.position - now["floor"] != len(records):
        raise LawBroken(f"the event log of {part.topic} shard {part.shard} has holes: run `omninode-bridge audit`")
    if await connection.execute(_SQL["raise_floor"], *span) != "UPDATE 1":
        raise LawBroken(f"the head of {part.topic} shard {part.shard} is gone: run `omninode-bridge audit`")
    return len(records), sum(len(record.body) for record in records)


async def _add_to_base(connection: Connection, records: list[Record], last: Record) -> None:
    live = await connection.fetchrow(_STATE["live"])
    await connection.execute(_SQL["lay_base"], live["fingerprint"])
    row = await connection.fetchrow(_STATE["base"])
    base = Generation(row["generation"], row["fingerprint"])
    if base.fingerprint != live["fingerprint"]:
        raise LawBroken("the base and the live state are folded by two contracts: run `omninode-bridge audit`")
    if delta := fold(map(_item, records), groupings_of(base)):
        await connection.execute(_STATE["merge_state"], rows.state_rows(base.number, delta))
    await connection.execute(_SQL["move_base"], base.consumer, last.topic, last.shard, last.position, last.event_id)


def _item(record: Record) -> Item:
    try:
        return read_item(record)
    except CorruptEvent as error:
        raise LawBroken(
            f"{record.topic} shard {record.shard} position {record.position} is not readable, and no dead letter says "
            f"so ({error.message}): run `omninode-bridge audit`"
        ) from error


def _old(records: list[Record], before: datetime) -> list[Record]:
    """Return the records up to the first that is too young. Ids begin with their time (UUIDv7)."""
    young = _first_id(before)
    old = next((n for n, record in enumerate(records) if record.event_id >= young), len(records))
    return records[:old]


def _first_id(at: datetime) -> str:
    """Return the least UUIDv7 of a millisecond."""
    return uuid7(max(0, int(at.timestamp() * 1000)), bytes(10))
