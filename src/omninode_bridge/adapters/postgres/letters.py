"""Dead letters: looked at, replayed into the totals, sent once more, discarded.

The rules it keeps:

1. A replay is one transaction: the live generation is shared, as reducers share it, the letter is held, the event is
   read as the log has it, its totals are merged, the letter is closed. So no replay counts twice, and a swap comes
   before it or after it. (What a rebuild read before the event was mended is read again by its swap.)
2. Totals are folded by the generation's own groupings, whatever contract this process has.
3. What retention deleted is counted in the base as well, from which every new generation begins. Nobody may begin one
   or prune meanwhile: such a replay takes the generations alone.
"""

from __future__ import annotations

import msgspec
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.adapters.postgres.state import groupings_of
from omninode_bridge.adapters.postgres.tokens import record_act
from omninode_bridge.domain.errors import Conflict, CorruptEvent, LawBroken, NotFound
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import Item, fold
from omninode_bridge.ports import HISTORY_MAX, ActName, Generation, Letter, LetterAct, LetterStatus, ReadItem

_SQL = load("letters")
_STATE = load("state")
_UPKEEP = load("upkeep")

_history = msgspec.json.Decoder(tuple[LetterAct, ...])


class PostgresLetters:
    """ports.Letters on a pool of the service's sessions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(self, namespace: str | None, *, settled: bool, after: int, limit: int) -> list[Letter]:
        with translated("listing dead letters"):
            found = await self._pool.fetch(_SQL["page"], after, namespace, settled, limit)
        return [_letter_of(row) for row in found]

    async def get(self, number: int) -> Letter:
        with translated("reading a dead letter"):
            row = await self._pool.fetchrow(_SQL["get"], number)
        if row is None:
            raise _not_found(number)
        return _letter_of(row)

    async def record(self, number: int) -> Record:
        with translated("reading a dead letter's event"):
            row = await self._pool.fetchrow(_SQL["stands"], number)
        return (await self.get(number)).record if row is None else rows.record_of(row)

    async def fold(self, number: int, read: ReadItem, *, actor: str) -> tuple[Letter, bool]:
        try:
            return await self._fold(number, read, actor, alone=False)
        except _Pruned:
            return await self._fold(number, read, actor, alone=True)

    async def forwarded(self, number: int, refusal: str | None, *, actor: str) -> tuple[Letter, bool]:
        with translated("closing a dead letter"):
            async with self._pool.acquire() as connection, connection.transaction():
                letter = await _held(connection, number, None)
                if letter.status == "replayed":
                    return letter, False
                if refusal is not None:
                    return await _write(connection, letter, letter.status, "replay", actor, refusal), False
                return await _write(connection, letter, "replayed", "replay", actor), True

    async def discard(self, number: int, reason: str, *, actor: str) -> tuple[Letter, bool]:
        with translated("discarding a dead letter"):
            async with self._pool.acquire() as connection, connection.transaction():
                letter = await _held(connection, number, await _live(connection, alone=False))
                if letter.status == "replayed":
                    raise Conflict(f"dead letter {number} was replayed: its event can't be discarded any more")
                if letter.status == "discarded":
                    return letter, False
                return await _write(connection, letter, "discarded", "discard", actor, reason), True

    async def _fold(self, number: int, read: ReadItem, actor: str, *, alone: bool) -> tuple[Letter, bool]:
        with translated("replaying a dead letter"):
            async with self._pool.acquire() as connection, connection.transaction():
                live = await _live(connection, alone=alone)
                letter = await _held(connection, number, live)
                assert live is not None and letter.source == "reducer", "no total lacks the event of another letter"
                if letter.status == "replayed":
                    return letter, False
                row = await connection.fetchrow(_SQL["stands"], number)
                if row is None:
                    raise LawBroken(
                        f"the event log lacks the event of dead letter {number}: run `omninode-bridge audit`"
                    )
                if row["pruned"] and not alone:
                    raise _Pruned
                try:
                    item = read(rows.record_of(row))
                except CorruptEvent as error:
                    return await _write(connection, letter, letter.status, "replay", actor, error.message), False
                await _count(connection, item, live)
                if row["pruned"]:
                    await _count(connection, item, await _base(connection))
                return await _write(connection, letter, "replayed", "replay", actor), True


class _Pruned(Exception):
    """Retention deleted the event: roll back, and begin again alone."""


async def _live(connection: Connection, *, alone: bool) -> Generation | None:
    """Hold the live generation, shared with reducers or alone; None on a new database."""
    if alone:
        await connection.execute(_UPKEEP["keep_generations"])
        row = await connection.fetchrow(_SQL["live"])
        return None if row is None else _generation(row)
    await connection.execute(_STATE["join_generations"])
    # A swap that was waited for leaves no row to that statement: the next one sees the new one.
    while (row := await connection.fetchrow(_SQL["share_live"])) is None:
        if await connection.fetchrow(_SQL["live"]) is None:
            return None
    return _generation(row)


async def _held(connection: Connection, number: int, live: Generation | None) -> Letter:
    row = await connection.fetchrow(_SQL["hold"], number, None if live is None else live.number)
    if row is None:
        raise _not_found(number)
    return _letter_of(row)


async def _base(connection: Connection) -> Generation:
    row = await connection.fetchrow(_STATE["base"])
    if row is None:
        raise LawBroken("events were deleted, and what they add up to is gone: run `omninode-bridge audit`")
    return _generation(row)


async def _count(connection: Connection, item: Item, generation: Generation) -> None:
    if delta := fold([item], groupings_of(generation)):
        await connection.execute(_STATE["merge_state"], rows.state_rows(generation.number, delta))


async def _write(
    connection: Connection, letter: Letter, status: LetterStatus, act: ActName, actor: str, reason: str | None = None
) -> Letter:
    """Enter an act into the letter's history and into the log of acts."""
    at = await connection.fetchval("SELECT clock_timestamp()")
    entry = LetterAct(at=at, actor=actor, act=act, status=status, reason=reason)
    history = (*letter.history, entry)[-HISTORY_MAX:]
    await connection.execute(_SQL["write"], letter.number, status, msgspec.json.encode(history).decode())
    record = letter.record
    details = {
        "topic": record.topic,
        "shard": record.shard,
        "position": record.position,
        "event_id": record.event_id,
        "status": status,
        # Why an event can't be read may quote it, and this row outlives an erasure.
        **({"reason": reason} if act == "discard" else {}),
    }
    await record_act(connection, actor, f"letter.{act}", str(letter.number), details)
    return msgspec.structs.replace(letter, status=status, history=history)


def _generation(row: rows.Row) -> Generation:
    return Generation(row["generation"], row["fingerprint"], row["namespace"])


def _letter_of(row: rows.Row) -> Letter:
    return Letter(
        number=row["id"],
        source="relay" if row["generation"] is None else "reducer",
        status=row["status"],
        record=rows.record_of(row),
        octets=row["octets"],
        reason=row["reason"],
        since=row["created_at"],
        history=_history.decode(row["history"]),
    )


def _not_found(number: int) -> NotFound:
    return NotFound(
        f"there is no dead letter {number}: `omninode-bridge dead-letters list --all` has them all", field="id"
    )
