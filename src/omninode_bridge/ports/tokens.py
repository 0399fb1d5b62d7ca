"""API tokens and what they used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Protocol

import msgspec

from omninode_bridge.domain.tenancy import Token


class TokenUse(msgspec.Struct, frozen=True):
    """What a token used on a day of UTC: stamps that it asked for, and bytes of content that it sent for them."""

    stamps: int = 0
    content_bytes: int = 0

    def __add__(self, other: TokenUse) -> TokenUse:
        return TokenUse(self.stamps + other.stamps, self.content_bytes + other.content_bytes)


type UseKey = tuple[str, date]
"""A token's id and a day of UTC."""


class Tokens(Protocol):
    """API tokens, without their secrets, and what they used. Whoever changes one leaves a row in the log of acts."""

    async def look(self, secret_hashes: Sequence[bytes]) -> tuple[bool, dict[bytes, Token]]:
        """Return whether any token was ever created, and those with one of the hashes, revoked and expired ones too."""
        ...

    async def use(self, uses: Mapping[UseKey, TokenUse]) -> dict[UseKey, TokenUse]:
        """Add to what tokens used, all at once; return the sums. A token that is not there any more has none."""
        ...

    async def create(self, token: Token, secret_hash: bytes, *, actor: str) -> None:
        """Keep a new token; InvalidInput when its name is taken, also by a revoked one."""
        ...

    async def revoke(self, name: str, *, actor: str) -> tuple[Token, bool]:
        """Revoke a token; return it, and whether it was not revoked before. NotFound when there is none."""
        ...

    async def every(self, day: date) -> list[tuple[Token, TokenUse]]:
        """Return all tokens by name, with what each used on a day."""
        ...
