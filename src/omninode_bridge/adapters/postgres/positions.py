"""Where consumers of the log are: positions that move by compare-and-set, in the transaction of their effect."""

from __future__ import annotations

from collections.abc import Mapping

from asyncpg.connection import Connection

from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.log import START, Head, ShardKey

_SQL = load("positions")

type Moves = Mapping[ShardKey, tuple[Head, Head]]
"""From where to where each shard moves."""


async def move(connection: Connection, consumer: str, moves: Moves) -> bool:
    """Move positions; False when one is not where its move starts: then the transaction is to be rolled back."""
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
    return moved == len(ordered)
