"""How far the log was forwarded, on a session of its own that holds the locks of the shards it forwards.

The positions move in that same session: when it is lost, so are the locks, and no position moves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres import rows
from omninode_bridge.adapters.postgres.connection import SERVICE, Pool, abandon, connect, translated, usable
from omninode_bridge.adapters.postgres.positions import move
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.log import Head, ShardKey
from omninode_bridge.ports import DeadLetter
from omninode_bridge.ports.transport import Unsent

CONSUMER = "relay"
RELAY_LOCK_CLASS = 0x0B21D6F
"""First key of the advisory locks on the shards that are forwarded; the second is the shard."""

_SQL = load("relay")


async def transport_key(pool: Pool) -> bytes:
    """Return the key that records are sealed with on their way."""
    with translated("reading the transport's key"):
        return bytes(await pool.fetchval(_SQL["key"]))


class PostgresForwarding:
    """The relay's side of the log. Its session is opened when it is needed, and again after it was lost."""

    def __init__(self, url: str, pool: Pool) -> None:
        self._url = url
        self._pool = pool
        self._session: Connection | None = None
        self._held: frozenset[int] = frozenset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    async def hold(self) -> frozenset[int]:
        if self._session is None or not usable(self._session):
            await self.release()
            self._session = await connect(self._url, by_key=True, role=SERVICE)
        async with self._using("taking shards to forward") as session:
            found = await session.fetch(_SQL["hold"], RELAY_LOCK_CLASS, sorted(self._held))
            self._held |= {row["shard"] for row in found}
            if found:
                await session.execute(_SQL["begin"], CONSUMER)
        return self._held

    async def release(self) -> None:
        self._drop()

    async def positions(self) -> dict[ShardKey, Head]:
        with translated("reading how far the log was forwarded"):
            found = await self._pool.fetch(_SQL["positions"], CONSUMER)
        return {(row["topic"], row["shard"]): rows.head_of(row) for row in found}

    async def forwarded(self, moves: Mapping[ShardKey, tuple[Head, Head]], refused: Sequence[DeadLetter]) -> bool:
        if self._session is None or self._session.is_closed():
            return False
        async with self._using("saving how far the log was forwarded") as session:
            try:
                async with session.transaction():
                    if refused:
                        await session.execute(_SQL["keep_out_erasure"])
                    if not await move(session, CONSUMER, moves):
                        raise _Moved
                    if refused:
                        letters = [
                            (letter.record.topic, letter.record.shard, letter.record.position, letter.reason)
                            for letter in refused
                        ]
                        await session.execute(_SQL["refuse"], *map(list, zip(*letters, strict=True)))
            except _Moved:
                return False
        return True

    async def unsent(self, limit: int) -> list[Unsent]:
        async with self._using("reading dead letters") as session:
            found = await session.fetch(_SQL["unsent"], limit, sorted(self._held))
        return [Unsent(row["id"], DeadLetter(record=rows.record_of(row), reason=row["reason"])) for row in found]

    async def sent(self, letters: Sequence[Unsent]) -> None:
        async with self._using("noting sent dead letters") as session:
            await session.execute(_SQL["sent"], [letter.number for letter in letters])

    @asynccontextmanager
    async def _using(self, doing: str) -> AsyncIterator[Connection]:
        """Give the session that holds the locks. One that fails is given up: nobody knows what it still holds."""
        session = self._session
        if session is None:
            raise ServiceUnavailable(f"the session with PostgreSQL was lost before {doing}: it is opened again")
        try:
            with translated(doing):
                yield session
        except ServiceUnavailable as error:
            self._drop(error)
            raise

    def _drop(self, why: BaseException | None = None) -> None:
        if self._session is not None:
            abandon(self._session, why)
        self._session, self._held = None, frozenset()


class _Moved(Exception):
    """Another relay moved a position: roll back."""
