"""Who may come in: tokens become principals, within their rate and their quota.

    secret ─▶ SHA-256 ─▶ known for less than 2 s? ─▶ live? ─▶ rate ─▶ Principal
                                └─ no: looked up

The rules it keeps:

1. While there was never a token, whoever reaches the server is the local user. From the first one on every call needs a
   token, for as long as this process lives: also when all are revoked.
2. A token that is unknown, revoked, expired or malformed is refused in the same words.
3. When the storage can't be asked, and nothing fresh is known, nobody comes in: ServiceUnavailable.
4. No secret is kept here, only hashes.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from omninode_bridge.app.known_tokens import AGE_S_MAX, Known, KnownTokens, Monotonic
from omninode_bridge.app.quotas import FLUSH_S, Quotas
from omninode_bridge.domain.errors import TooManyRequests, Unauthenticated
from omninode_bridge.domain.tenancy import TOKEN_PREFIX, Principal, secret_hash
from omninode_bridge.ports import Clock, Tokens, TokenUse

__all__ = ["SECRET_PATTERN", "STILL_S", "Access", "hash_of", "new_secret"]

SECRET_BYTES = 32
STILL_S = 1.0
"""How often an answer that goes on for long asks whether its caller may still have it."""
LAST_FLUSH_S_MAX = 5.0
"""How long the end may take to add up what tokens used."""
SECRET_PATTERN = TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}"
"""A token as its owner has it: the prefix, and 32 random bytes in base64url."""

_SECRET = re.compile(SECRET_PATTERN)


def new_secret() -> str:
    """Return a secret that nobody had before."""
    return TOKEN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def hash_of(secret: str) -> bytes:
    """Return what a secret is known by; Unauthenticated when it is none."""
    if not _SECRET.fullmatch(secret):
        raise _refused()
    return secret_hash(secret)


class Access:
    """The door of one process. A context manager: what tokens used is added up while it is open, and at its end."""

    def __init__(
        self, tokens: Tokens, clock: Clock, local: Principal, *, monotonic: Monotonic = time.monotonic
    ) -> None:
        self._local = local
        self._clock = clock
        self._monotonic = monotonic
        self._known = KnownTokens(tokens, monotonic)
        self._quotas = Quotas(tokens, clock, monotonic)
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick(), name="access")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
        await self._known.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_S_MAX):
                await self._quotas.flush()

    async def admit(self, secret_hash: bytes | None) -> Principal:
        """Return who asks, by the hash of the token that was sent; None: none was.

        Raises Unauthenticated, TooManyRequests, and ServiceUnavailable when it can't be known.
        """
        if secret_hash is None:
            if await self.asks_for_tokens():
                raise Unauthenticated(
                    "this server asks for a token: send it as `Authorization: Bearer …`; "
                    "`omninode-bridge token create` makes one"
                )
            return self._local
        known = await self._known.find(secret_hash)
        if known is None or not self._is_live(known):
            raise _refused()
        wait_s = known.take(self._monotonic())
        if wait_s:
            raise TooManyRequests(
                f"token {known.token.name!r} may ask {known.token.limits.requests_per_s} times a second: "
                "ask less often, or share one commit by POST /stamp/batch",
                retry_after_s=math.ceil(wait_s),
            )
        return known.principal

    async def asks_for_tokens(self) -> bool:
        """Return whether every call needs a token: whether one was ever created, as of 2 s ago at most."""
        return await self._known.are_asked_for()

    async def still(self, principal: Principal) -> bool:
        """Return whether someone who was let in would be so again: for answers that go on for long.

        To be asked every STILL_S, so that a revocation holds for them too within AGE_S_MAX: what is known is believed
        for the rest of that time. Takes nothing of the token's rate.
        """
        believed_s = AGE_S_MAX - STILL_S
        if principal.token_id is None:
            return not await self._known.are_asked_for(believed_s)
        known = await self._known.find_id(principal.token_id, believed_s)
        return known is not None and self._is_live(known)

    async def charge(self, principal: Principal, *, stamps: int, content_bytes: int) -> None:
        """Count stamps that are asked for, and the bytes of their contents; QuotaExceeded when it is too much today.

        To be called before anything is recorded. What is refused later on stays counted.
        """
        await self._quotas.charge(principal, TokenUse(stamps, content_bytes))

    async def afford(self, principal: Principal, *, stamps: int, content_bytes: int) -> None:
        """Raise what `charge` would raise, and count nothing: before a long content is read."""
        await self._quotas.charge(principal, TokenUse(stamps, content_bytes), reserve=False)

    def _is_live(self, known: Known) -> bool:
        return known.token.is_live(self._clock())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._known.look_again()
            await self._quotas.flush()


def _refused() -> Unauthenticated:
    return Unauthenticated(
        "the token is unknown, expired or revoked: send one that is good as `Authorization: Bearer …`; "
        "`omninode-bridge token list` has them all"
    )
