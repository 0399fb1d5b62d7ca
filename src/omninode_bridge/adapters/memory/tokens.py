"""API tokens, what they used, and the log of acts, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import msgspec

from omninode_bridge.domain.errors import InvalidInput, NotFound
from omninode_bridge.domain.tenancy import Token
from omninode_bridge.ports import Clock, TokenUse, UseKey


class MemoryTokens:
    """`clock` takes the place of the server's."""

    def __init__(self, clock: Clock) -> None:
        self.acts: list[tuple[str, str, str]] = []
        """Actor, act and subject."""
        self._clock = clock
        self._tokens: dict[bytes, Token] = {}
        self._uses: dict[UseKey, TokenUse] = {}

    async def look(self, secret_hashes: Sequence[bytes]) -> tuple[bool, dict[bytes, Token]]:
        return bool(self._tokens), {name: self._tokens[name] for name in secret_hashes if name in self._tokens}

    async def use(self, uses: Mapping[UseKey, TokenUse]) -> dict[UseKey, TokenUse]:
        ids = {token.token_id for token in self._tokens.values()}
        counted = {key: self._uses.get(key, TokenUse()) + use for key, use in uses.items() if key[0] in ids}
        self._uses |= counted
        return counted

    async def create(self, token: Token, secret_hash: bytes, *, actor: str) -> None:
        if any(token.name == other.name for other in self._tokens.values()):
            raise InvalidInput(f"there is a token {token.name!r}, or was one: use another name", field="name")
        self._tokens[secret_hash] = token
        self.acts.append((actor, "token.create", token.name))

    async def revoke(self, name: str, *, actor: str) -> tuple[Token, bool]:
        found = next((key for key, token in self._tokens.items() if token.name == name), None)
        if found is None:
            raise NotFound(f"there is no token {name!r}", field="name")
        if self._tokens[found].revoked_at is not None:
            return self._tokens[found], False
        self._tokens[found] = msgspec.structs.replace(self._tokens[found], revoked_at=self._clock())
        self.acts.append((actor, "token.revoke", name))
        return self._tokens[found], True

    async def every(self, day: date) -> list[tuple[Token, TokenUse]]:
        tokens = sorted(self._tokens.values(), key=lambda token: token.name)
        return [(token, self._uses.get((token.token_id, day), TokenUse())) for token in tokens]
