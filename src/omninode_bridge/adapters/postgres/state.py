"""The reducer's projection: state and position in one transaction; and the event log as its source."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import asyncpg
import msgspec
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import LONG_TIMEOUT_S, seeing, translated
from omninode_bridge.adapters.postgres.positions import Moves, move
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import CorruptEvent, ForeignState, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, Record, ShardKey, shares
from omninode_bridge.domain.reduction import Groupings, Item, State, fold, read_item
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.domain.windows import Extent, Sight, Window, events_expired
from omninode_bridge.ports import READ_BYTES_MAX, DeadLetter, Finish, Generation, foreign_state

FINISH_TIMEOUT_S = 20.0
"""How long a swap may hold the live state's reducers up; an idle transaction would be ended after 30 s."""
BUILD_LEASE_S = 600.0
"""How long a generation is left to its builder after its last batch, which took milliseconds."""

_SQL = load("state")


class PostgresEventSource:
    """Reads `event_log`: a primary-key range scan a shard, which can skip nothing. `visible` None: all is seen."""

    def __init__(self, pool: Pool, visible: Visible | None = None) -> None:
        self._pool = pool
        self._visible = visible

    def seen_by(self, visible: Visible) -> PostgresEventSource:
        return PostgresEventSource(self._pool, None if visible == EVERYTHING else visible)

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        ends = await self.heads()
        starts = {key: after.get(key, START).position for key in ends}
        taken = shares([max(0, end.position - starts[key]) for key, end in ends.items()], limit)
        news = [(*key, starts[key], share) for key, share in zip(ends, taken, strict=True) if share]
        if not news:
            return []
        with translated("reading the event log"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(_SQL["read_log"], *map(list, zip(*news, strict=True)), READ_BYTES_MAX)
        return [rows.record_of(row) for row in found]

    async def heads(self) -> dict[ShardKey, Head]:
        with translated("reading the log's heads"):
            found = await self._pool.fetch(_SQL["heads"])
        return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}

    async def extents(self) -> dict[ShardKey, Extent]:
        with translated("reading the log's extents"):
            found = await self._pool.fetch(_SQL["extents"])
        return {(row["topic"], row["shard"]): Extent(row["floor"], rows.head_of(row)) for row in found}

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        asked = [(*key, *window) for key, window in windows.items()]
        if not asked:
            return Sight([], {})
        with translated("reading the event log"):
            async with seeing(self._pool, self._visible) as connection:
                found = await connection.fetch(
                    _SQL["look"], *map(list, zip(*asked, strict=True)), records_max, bytes_max
                )
        if found and found[0]["body"] is None:
            raise events_expired()
        records = [rows.record_of(row) for row in found]
        if len(found) < records_max and (not found or len(found) == found[0]["found"]):
            return Sight(records, {key: until for key, (_, until) in windows.items()})
        # Cut short: beyond its last record a shard may have others in its window.
        reached = {key: after for key, (after, _) in windows.items()}
        reached |= {(record.topic, record.shard): record.position for record in records}
        return Sight(records, reached)

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        asked = [(*key, position) for key, position in places.items()]
        if not asked:
            return {}
        with translated("looking events up by position"):
            found = await self._pool.fetch(_SQL["event_ids"], *map(list, zip(*asked, strict=True)))
        return {(row["topic"], row["shard"]): str(row["event_id"]) for row in found}


class PostgresStateStore:
    """`bridge_state` and `consumer_positions`, by generation."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def live(self) -> Generation | None:
        with translated("reading the live generation"):
            row = await self._pool.fetchrow(_SQL["live"])
        return None if row is None else _generation(row)

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        await self.sweep()
        begun: Generation | None = None
        try:
            with translated("starting a generation"):
                async with self._pool.acquire() as connection, connection.transaction():
                    row = None
                    while row is None:  # ends at the second turn: then there is a live one to build beside
                        row = await connection.fetchrow(_SQL["begin"], fingerprint, namespace)
                    begun = _generation(row)
                    await _start_from_base(connection, begun)
        except BaseException:
            if begun is not None:  # the commit may have been made, and nobody would know of it
                with suppress(ServiceUnavailable):
                    await self.discard(begun)
            raise
        return begun

    async def positions(self, generation: Generation) -> dict[ShardKey, Head]:
        with translated("reading positions"):
            found = await self._pool.fetch(_SQL["positions"], generation.consumer)
        return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}

    async def apply(
        self, generation: Generation, delta: State, moves: Moves, dead_letters: Sequence[DeadLetter] = ()
    ) -> bool:
        with translated("saving the state"):
            async with self._pool.acquire() as connection:
                try:
                    async with connection.transaction():
                        await self._apply(connection, generation, delta, moves, dead_letters)
                except _Refused:
                    return False
                except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                    return False
        return True

    async def _apply(
        self,
        connection: Connection,
        generation: Generation,
        delta: State,
        moves: Moves,
        dead_letters: Sequence[DeadLetter],
    ) -> None:
        if await connection.fetchval(_SQL["hold_generation"], generation.number) is None:
            raise _Refused
        if not await move(connection, generation.consumer, moves):
            raise _Refused
        if delta:
            await connection.execute(_SQL["merge_state"], rows.state_rows(generation.number, delta))
        if dead_letters:
            records = rows.record_rows([letter.record for letter in dead_letters])
            reasons = [letter.reason for letter in dead_letters]
            await connection.execute(_SQL["insert_dead_letters"], generation.number, records, reasons)

    async def swap(self, building: Generation, finish: Finish | None = None) -> bool:
        with translated("swapping the state in"):
            async with self._pool.acquire() as connection, connection.transaction():
                if finish is not None:
                    row = await connection.fetchrow(_SQL["hold_live_alone"])
                    if row is None:
                        return False  # another rebuild was swapped in while we waited
                    async with asyncio.timeout(FINISH_TIMEOUT_S):
                        await finish(await _positions(connection, _generation(row)))
                await connection.execute(_SQL["join_generations"])
                held = {row["generation"]: row for row in await connection.fetch(_SQL["hold_generations_alone"])}
                live = next((number for number, row in held.items() if row["status"] == "live"), None)
                if live is None or live == building.number or building.number not in held:
                    return False
                replaced = Generation(live, held[live]["fingerprint"])
                if await _positions(connection, replaced) != await _positions(connection, building):
                    return False
                if building.namespace is not None and replaced.fingerprint != building.fingerprint:
                    return False
                await _replace(connection, replaced, building)
        return True

    async def discard(self, building: Generation) -> None:
        with translated("dropping a generation"):
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_SQL["abandon"], building.number) is not None:
                    await _clear(connection, building)

    async def sweep(self) -> None:
        """Drop the generations whose builders died: nothing was heard of them for BUILD_LEASE_S."""
        with translated("dropping generations that nobody builds any more"):
            async with self._pool.acquire() as connection, connection.transaction():
                for row in await connection.fetch(_SQL["lapse"], BUILD_LEASE_S):
                    await _clear(connection, _generation(row))

    async def rows(
        self,
        aggregation_type: str | None,
        namespace: str | None = None,
        *,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        return await self._rows("rows", visible, fingerprint, aggregation_type, namespace)

    async def page(
        self,
        aggregation_type: str,
        namespace: str,
        *,
        after: str | None,
        limit: int,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        return await self._rows("page", visible, fingerprint, after or "", after, limit, namespace, aggregation_type)

    async def overview(
        self, *, after: str | None, limit: int, fingerprint: str | None = None, visible: Visible = EVERYTHING
    ) -> State:
        return await self._rows("overview", visible, fingerprint, after or "", after, limit)

    async def _rows(
        self, statement: str, visible: Visible, fingerprint: str | None, *wanted: str | int | None
    ) -> State:
        with translated("reading the state"):
            async with seeing(self._pool, None if visible == EVERYTHING else visible) as connection:
                found = await connection.fetch(_SQL[statement], fingerprint, *wanted)
        if found and not found[0]["ours"]:
            raise foreign_state(found[0]["live"])
        return {
            (row["namespace"], row["aggregation_type"], row["group_key"]): rows.totals_of(row)
            for row in found
            if row["group_key"] is not None
        }


def groupings_of(generation: Generation) -> Groupings:
    """Return the groupings that a generation is folded by, as its fingerprint tells them."""
    return msgspec.json.decode(generation.fingerprint, type=Groupings)


def _told(groupings: Groupings) -> str:
    bounds = ", ".join(map(str, groupings.size_bounds))
    more = {"size_bucket": f" at {bounds} bytes", "time_window": f" of {groupings.window_ms} ms"}
    return ", ".join(name + more.get(name, "") for name in groupings.names())


def _generation(row: rows.Row) -> Generation:
    return Generation(row["generation"], row["fingerprint"], row["namespace"])


async def _start_from_base(connection: Connection, begun: Generation) -> None:
    """Give a new generation what retention folded, which the log does not have any more."""
    row = await connection.fetchrow(_SQL["base"])
    if row is None:
        return
    base = _generation(row)
    if base.fingerprint != begun.fingerprint:
        raise ForeignState(
            "the events that retention deleted are kept as totals, which another reducer contract folded "
            f"({_told(groupings_of(base))}): start this process with that contract; by this one only a backup "
            "from before can be folded",
            generation=base.number,
        )
    await connection.execute(_SQL["copy_state"], base.number, begun.number, begun.namespace, timeout=LONG_TIMEOUT_S)
    await connection.execute(_SQL["copy_positions"], base.consumer, begun.consumer)
    await connection.execute(_SQL["copy_letters"], begun.number, begun.namespace)


async def _replace(connection: Connection, live: Generation, building: Generation) -> None:
    """Put what was built in the place of the live generation, or of one namespace of it."""
    namespace = building.namespace
    await _read_again(connection, live, building)
    for statement, *arguments in (
        ("clear_state", live.number, namespace),
        ("settle_letters", live.number, building.number, namespace),
        ("drop_repeated_letters", live.number, building.number),
    ):
        await connection.execute(_SQL[statement], *arguments, timeout=LONG_TIMEOUT_S)
    replaced, kept = (live, building) if namespace is None else (building, live)
    await connection.execute(_SQL["adopt_state"], replaced.number, kept.number, timeout=LONG_TIMEOUT_S)
    await connection.execute(_SQL["adopt_letters"], replaced.number, kept.number, timeout=LONG_TIMEOUT_S)
    await connection.execute(_SQL["retire"], replaced.number)
    await connection.execute(_SQL["make_live"], kept.number)
    await connection.execute(_SQL["clear_positions"], replaced.consumer)


async def _read_again(connection: Connection, live: Generation, building: Generation) -> None:
    """Fold what the building generation came by before it was mended, and was replayed into the live one since.

    No replay is under way: it shares the live generation, which whoever swaps holds alone.
    """
    items: list[Item] = []
    read: list[int] = []
    for row in await connection.fetch(_SQL["replayed_meanwhile"], live.number, building.number):
        with suppress(CorruptEvent):  # damaged again: the letter is open again
            items.append(read_item(rows.record_of(row)))
            read.append(row["id"])
    if read:
        delta = fold(items, groupings_of(building))
        await connection.execute(_SQL["merge_state"], rows.state_rows(building.number, delta))
        await connection.execute(_SQL["drop_letters"], read)


async def _clear(connection: Connection, retired: Generation) -> None:
    await connection.execute(_SQL["clear_state"], retired.number, None, timeout=LONG_TIMEOUT_S)
    await connection.execute(_SQL["clear_letters"], retired.number)
    await connection.execute(_SQL["clear_positions"], retired.consumer)


class _Refused(Exception):
    """A position was not where the move starts, or the generation is retired: roll back."""


async def _positions(connection: Connection, generation: Generation) -> dict[ShardKey, Head]:
    found = await connection.fetch(_SQL["positions"], generation.consumer)
    return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}
