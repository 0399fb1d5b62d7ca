"""The reducer's projection: state and position in one transaction; and the event log as its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.log import START, Head, Record, ShardKey
from omninode_bridge.domain.reduction import State
from omninode_bridge.ports import DeadLetter, Generation

_SQL = load("state")

type Moves = Mapping[ShardKey, tuple[Head, Head]]


class PostgresEventSource:
    """Reads `event_log`: a primary-key range scan a shard, which can skip nothing."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        ends = await self.heads()
        news = [(*key, after.get(key, START).position) for key, end in ends.items()]
        news = [(topic, shard, start) for topic, shard, start in news if start < ends[topic, shard].position]
        if not news:
            return []
        with translated("reading the event log"):
            found = await self._pool.fetch(_SQL["read_log"], *map(list, zip(*news, strict=True)), limit)
        return [rows.record_of(row) for row in found]

    async def heads(self) -> dict[ShardKey, Head]:
        with translated("reading the log's heads"):
            found = await self._pool.fetch(_SQL["heads"])
        return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}


class PostgresStateStore:
    """`bridge_state` and `consumer_positions`, by generation."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def live(self) -> Generation | None:
        with translated("reading the live generation"):
            row = await self._pool.fetchrow(_SQL["live"])
        return None if row is None else _generation(row)

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        with translated("starting a generation"):
            row = None
            while row is None:  # ends at the second turn: then there is a live one to build beside
                row = await self._pool.fetchrow(_SQL["begin"], fingerprint, namespace)
        return _generation(row)

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
        await _move(connection, generation.consumer, moves)
        if delta:
            await connection.execute(_SQL["merge_state"], rows.state_rows(generation.number, delta))
        if dead_letters:
            records = rows.record_rows([letter.record for letter in dead_letters])
            await connection.execute(_SQL["insert_dead_letters"], records, [d.reason for d in dead_letters])

    async def swap(self, building: Generation) -> bool:
        with translated("swapping the state in"):
            async with self._pool.acquire() as connection, connection.transaction():
                held = {row["generation"]: row for row in await connection.fetch(_SQL["hold_generations_alone"])}
                live = next((number for number, row in held.items() if row["status"] == "live"), None)
                if live is None or live == building.number or building.number not in held:
                    return False
                replaced = Generation(live, held[live]["fingerprint"])
                if await _positions(connection, replaced) != await _positions(connection, building):
                    return False
                if building.namespace is not None and replaced.fingerprint != building.fingerprint:
                    return False
                await connection.execute(_SQL["clear_state"], live, building.namespace)
                if building.namespace is None:
                    await connection.execute(_SQL["retire"], live)
                    await connection.execute(_SQL["make_live"], building.number)
                    await connection.execute(_SQL["clear_positions"], replaced.consumer)
                else:
                    await connection.execute(_SQL["adopt_state"], building.number, live)
                    await connection.execute(_SQL["retire"], building.number)
                    await connection.execute(_SQL["clear_positions"], building.consumer)
        return True

    async def discard(self, building: Generation) -> None:
        with translated("dropping a generation"):
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_SQL["abandon"], building.number) is not None:
                    await connection.execute(_SQL["clear_state"], building.number, None)
                    await connection.execute(_SQL["clear_positions"], building.consumer)

    async def rows(self, aggregation_type: str | None, namespace: str | None = None) -> State:
        with translated("reading the state"):
            found = await self._pool.fetch(_SQL["rows"], aggregation_type, namespace)
        return {(row["namespace"], row["aggregation_type"], row["group_key"]): rows.totals_of(row) for row in found}


def _generation(row: rows.Row) -> Generation:
    return Generation(row["generation"], row["fingerprint"], row["namespace"])


class _Refused(Exception):
    """A position was not where the move starts, or the generation is retired: roll back."""


async def _move(connection: Connection, consumer: str, moves: Moves) -> None:
    ordered = sorted(moves.items())
    first = [(key, to) for key, (start, to) in ordered if start == START]
    later = [(key, start, to) for key, (start, to) in ordered if start != START]
    moved = 0
    if first:
        done = await connection.execute(
            _SQL["first_positions"],
            consumer,
            [key[0] for key, _ in first],
            [key[1] for key, _ in first],
            [to.position for _, to in first],
            [to.event_id for _, to in first],
        )
        moved += int(done.rsplit(" ", 1)[1])
    if later:
        done = await connection.execute(
            _SQL["move_positions"],
            consumer,
            [key[0] for key, _, _ in later],
            [key[1] for key, _, _ in later],
            [start.position for _, start, _ in later],
            [start.event_id for _, start, _ in later],
            [to.position for _, _, to in later],
            [to.event_id for _, _, to in later],
        )
        moved += int(done.rsplit(" ", 1)[1])
    if moved != len(ordered):
        raise _Refused


async def _positions(connection: Connection, generation: Generation) -> dict[ShardKey, Head]:
    found = await connection.fetch(_SQL["positions"], generation.consumer)
    return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}
