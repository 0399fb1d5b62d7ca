"""What this process knows of tokens: nothing that is older than 2 s, and no more than fits.

The rules it keeps:

1. Age counts from before the question was put. So what was revoked is refused everywhere within AGE_S_MAX.
2. Questions that come while one is with the storage go with the next one, all together. A flood of tokens that
   nobody knows costs one session, and one look-up each.
3. Tokens that exist and those that don't are kept apart: a flood of the latter drives none of the former out.
4. Once there was a token, there is no way back: this process asks for one until it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.tenancy import Principal, Token
from omninode_bridge.ports import Tokens

AGE_S_MAX = 2.0
"""How long a revoked token may still be taken for a good one."""
KEPT_MAX = 10_000
"""Tokens that exist, and as many hashes that belong to none."""

type Monotonic = Callable[[], float]

_ANY = b""
"""Put in the place of a hash, it asks whether there is any token at all. It is nobody's hash."""


class Known:
    """A token, as it was at `looked_at`, and what it may still ask in this second."""

    __slots__ = ("_left", "_left_at", "looked_at", "principal", "token", "used")

    def __init__(self, token: Token, looked_at: float) -> None:
        self.token = token
        self.principal: Principal = token.principal()
        self.looked_at = looked_at
        self.used = True
        self._left = float(token.limits.requests_per_s or 0)
        self._left_at = looked_at

    def take(self, now: float) -> float:
        """Take one request out of the token's bucket; return 0, or in how many seconds there will be one.

        The bucket holds what may be asked in a second, and fills at that rate.
        """
        rate = self.token.limits.requests_per_s
        if rate is None:
            return 0.0
        self._left = min(float(rate), self._left + (now - self._left_at) * rate)
        self._left_at = now
        if self._left < 1:
            return (1 - self._left) / rate
        self._left -= 1
        return 0.0


class KnownTokens:
    """Tokens by the hash of their secret. `asked_for`: whether there is, or ever was, one."""

    def __init__(self, tokens: Tokens, monotonic: Monotonic = time.monotonic) -> None:
        self.asked_for = False
        self._tokens = tokens
        self._monotonic = monotonic
        self._none_at = float("-inf")
        self._none_used = False
        # Both in the order of their last use, or look-up.
        self._known: dict[bytes, Known] = {}
        self._unknown: dict[bytes, float] = {}
        self._hashes: dict[str, bytes] = {}
        # Questions that wait, those that are with the storage, and since when.
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def find(self, secret_hash: bytes, age_s_max: float = AGE_S_MAX) -> Known | None:
        """Return the token with this hash; None when there is none. ServiceUnavailable when nobody can say."""
        since = self._monotonic() - age_s_max
        while True:
            known = self._known.get(secret_hash)
            if known is not None and known.looked_at > since:
                if not known.used:
                    known.used = True
                    self._known[secret_hash] = self._known.pop(secret_hash)
                return known
            if self._unknown.get(secret_hash, since) > since:
                return None
            await self._ask(secret_hash, since)

    async def find_id(self, token_id: str, age_s_max: float = AGE_S_MAX) -> Known | None:
        """Return a token that was found by its hash before; None also for one that was not asked for in long."""
        secret_hash = self._hashes.get(token_id)
        return None if secret_hash is None else await self.find(secret_hash, age_s_max)

    async def are_asked_for(self, age_s_max: float = AGE_S_MAX) -> bool:
        """Return whether calls need a token."""
        since = self._monotonic() - age_s_max
        self._none_used = True
        while not self.asked_for and self._none_at <= since:
            await self._ask(_ANY, since)
        return self.asked_for

    def look_again(self) -> None:
        """Ask about what was used since the last time, before it is too old: then nobody has to wait for that."""
        again = [secret_hash for secret_hash, known in self._known.items() if known.used]
        for secret_hash in again:
            self._known[secret_hash].used = False
        if self._none_used and not self.asked_for:
            again.append(_ANY)
        self._none_used = False
        for secret_hash in again:
            self._question(secret_hash)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking
        _fail([*self._asked.values(), *self._waiting.values()], ServiceUnavailable("the bridge is shutting down"))

    async def _ask(self, secret_hash: bytes, since: float) -> None:
        # What one caller gives up, others wait for.
        if secret_hash in self._asked and self._asked_at > since:
            await asyncio.shield(self._asked[secret_hash])
        else:
            await asyncio.shield(self._question(secret_hash))

    def _question(self, secret_hash: bytes) -> asyncio.Future[None]:
        future = self._waiting.get(secret_hash)
        if future is None:
            future = self._waiting[secret_hash] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._put_questions(), name="tokens")
        return future

    async def _put_questions(self) -> None:
        while self._waiting:
            self._asked, self._waiting = self._waiting, {}
            self._asked_at = self._monotonic()
            hashes = [secret_hash for secret_hash in self._asked if secret_hash != _ANY]
            try:
                any_token, found = await self._tokens.look(hashes)
            except Exception as error:  # whoever waits gets it
                _fail(self._asked.values(), error)
            else:
                self._learn(any_token, hashes, found)
                for future in self._asked.values():
                    if not future.done():
                        future.set_result(None)
            self._asked = {}

    def _learn(self, any_token: bool, hashes: Iterable[bytes], found: dict[bytes, Token]) -> None:
        at = self._asked_at
        self.asked_for = self.asked_for or any_token
        self._none_at = at
        for secret_hash in hashes:
            token = found.get(secret_hash)
            known = self._known.get(secret_hash)
            self._unknown.pop(secret_hash, None)
            if token is None:
                self._unknown[secret_hash] = at
                if known is not None:
                    self._forget(secret_hash)
            elif known is None:
                self._known[secret_hash] = Known(token, at)
                self._hashes[token.token_id] = secret_hash
            else:
                known.token, known.looked_at = token, at
        while len(self._known) > KEPT_MAX:
            self._forget(next(iter(self._known)))
        while len(self._unknown) > KEPT_MAX:
            del self._unknown[next(iter(self._unknown))]

    def _forget(self, secret_hash: bytes) -> None:
        del self._hashes[self._known.pop(secret_hash).token.token_id]


def _fail(futures: Iterable[asyncio.Future[None]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # nobody may be waiting any more
