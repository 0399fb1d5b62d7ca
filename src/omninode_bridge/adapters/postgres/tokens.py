"""API tokens, what they used, and the log of administrative acts.

The rules it keeps:

1. A token's secret never comes here: it is known by its SHA-256.
2. What an administrator does and the row that says so are one transaction. `record_act` is for whoever administers.
3. What tokens used is added up in one statement, its rows in one order, so that processes don't deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import msgspec
from asyncpg.connection import Connection
from asyncpg.pool import Pool

from omninode_bridge.adapters.postgres.connection import translated
from omninode_bridge.adapters.postgres.rows import Row
from omninode_bridge.adapters.postgres.sql import load
from omninode_bridge.domain.errors import InvalidInput, NotFound
from omninode_bridge.domain.tenancy import Limits, Token
from omninode_bridge.ports import TokenUse, UseKey

__all__ = ["PostgresTokens", "record_act"]

_SQL = load("tokens")


class PostgresTokens:
    """ports.Tokens on a pool of the service's sessions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def look(self, secret_hashes: Sequence[bytes]) -> tuple[bool, dict[bytes, Token]]:
        with translated("looking up tokens"):
            found = await self._pool.fetch(_SQL["look"], secret_hashes)
        tokens = {row["secret_hash"]: _token_of(row) for row in found if row["token_id"] is not None}
        return found[0]["any_token"], tokens

    async def use(self, uses: Mapping[UseKey, TokenUse]) -> dict[UseKey, TokenUse]:
        if not uses:
            return {}
        rows = [(*key, use.stamps, use.content_bytes) for key, use in sorted(uses.items(), key=lambda item: item[0])]
        with translated("counting what tokens used"):
            found = await self._pool.fetch(_SQL["use"], *map(list, zip(*rows, strict=True)))
        return {(str(row["token_id"]), row["day"]): TokenUse(row["stamps"], row["bytes"]) for row in found}

    async def create(self, token: Token, secret_hash: bytes, *, actor: str) -> None:
        limits = token.limits
        row = (
            token.token_id, token.name, secret_hash, token.scopes, token.namespaces,
            limits.requests_per_s, limits.stamps_per_day, limits.bytes_per_day, token.created_at, token.expires_at,
        )  # fmt: skip
        with translated("creating a token"):
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_SQL["create"], *row) is None:
                    raise InvalidInput(
                        f"there is a token {token.name!r}, or was one until it was revoked: "
                        "use another name, since stamps say by whom they are made",
                        field="name",
                    )
                await record_act(connection, actor, "token.create", token.name, _told(token))

    async def revoke(self, name: str, *, actor: str) -> tuple[Token, bool]:
        with translated("revoking a token"):
            async with self._pool.acquire() as connection, connection.transaction():
                row = await connection.fetchrow(_SQL["hold"], name)
                if row is None:
                    raise NotFound(
                        f"there is no token {name!r}: `omninode-bridge token list` has them all", field="name"
                    )
                if row["revoked_at"] is not None:
                    return _token_of(row), False
                row = await connection.fetchrow(_SQL["revoke"], row["token_id"])
                await record_act(connection, actor, "token.revoke", name, {"token_id": str(row["token_id"])})
        return _token_of(row), True

    async def every(self, day: date) -> list[tuple[Token, TokenUse]]:
        with translated("listing tokens"):
            found = await self._pool.fetch(_SQL["every"], day)
        return [(_token_of(row), TokenUse(row["stamps"], row["bytes"])) for row in found]


async def record_act(
    connection: Connection, actor: str, act: str, subject: str, details: Mapping[str, Any] | None = None
) -> None:
    """Leave a row about an administrative act, in the transaction that does it.

    `act` is `noun.verb` (token.create, namespace.erase, …), `subject` what it is done to; `details` becomes JSON, and
    has neither content nor secrets. The connection is one of the service's.
    """
    await connection.execute(_SQL["record_act"], actor, act, subject, msgspec.json.encode(details or {}).decode())


def _told(token: Token) -> dict[str, Any]:
    limits = {name: limit for name, limit in msgspec.structs.asdict(token.limits).items() if limit is not None}
    return {
        "token_id": token.token_id,
        "scopes": token.scopes,
        "namespaces": token.namespaces,
        "expires_at": token.expires_at,
        **limits,
    }


def _token_of(row: Row) -> Token:
    return Token(
        token_id=str(row["token_id"]),
        name=row["name"],
        scopes=tuple(row["scopes"]),
        namespaces=tuple(row["namespaces"]),
        limits=Limits(row["requests_per_s"], row["stamps_per_day"], row["bytes_per_day"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
