"""What administrators do to the database itself, each act with its row in the log of acts.

It needs no ledger and no reducer: a pool of the service's sessions is all it opens.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.migrations import migrate, require_current
from omninode_bridge.adapters.postgres.tokens import PostgresTokens
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.app.access import hash_of, new_secret
from omninode_bridge.app.database import database
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, LimitExceeded
from omninode_bridge.domain.tenancy import (
    PATTERNS_MAX,
    SCOPES,
    Limits,
    Scope,
    Token,
    check_pattern,
    check_token_name,
)
from omninode_bridge.ports import Clock, IdSource, Tokens, TokenUse

__all__ = ["Administration", "IssuedToken", "WantedToken", "administration", "lifetime_of", "wanted_token"]

LIFETIME_MAX = timedelta(days=3650)
LIMIT_MAX = 2**31 - 1
"""Of requests a second."""
QUOTA_MAX = 2**63 - 1
"""Of a day's stamps and bytes: what the table's columns hold."""

_LIFETIME = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class WantedToken(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is to be, checked."""

    name: str
    namespaces: tuple[str, ...]
    scopes: tuple[Scope, ...]
    limits: Limits
    lifetime: timedelta | None


class IssuedToken(msgspec.Struct, frozen=True):
    """A new token with its secret, which nobody can tell a second time."""

    token: Token
    secret: str

    def __repr__(self) -> str:
        return f"IssuedToken({self.token!r})"


class Administration:
    """The acts. `actor` is who does them, by the log."""

    def __init__(self, tokens: Tokens, clock: Clock, ids: IdSource, actor: str) -> None:
        self._tokens = tokens
        self._clock = clock
        self._ids = ids
        self._actor = actor

    async def create_token(
        self,
        name: str,
        *,
        namespaces: Iterable[str],
        scopes: Iterable[str],
        limits: Limits | None = None,
        lifetime: timedelta | None = None,
    ) -> IssuedToken:
        """Make a token; InvalidInput names what is wrong with it, or that its name is taken."""
        return await self.issue(
            wanted_token(name, namespaces=namespaces, scopes=scopes, limits=limits, lifetime=lifetime)
        )

    async def issue(self, wanted: WantedToken) -> IssuedToken:
        """Make a token; InvalidInput when its name is taken."""
        now = self._clock()
        token = Token(
            token_id=self._ids(1)[0],
            name=wanted.name,
            scopes=wanted.scopes,
            namespaces=wanted.namespaces,
            limits=wanted.limits,
            created_at=now,
            expires_at=None if wanted.lifetime is None else now + wanted.lifetime,
        )
        issued = IssuedToken(token, new_secret())
        await self._tokens.create(token, hash_of(issued.secret), actor=self._actor)
        return issued

    async def tokens(self) -> list[tuple[Token, TokenUse]]:
        """Return all tokens, by name, with what each used since midnight UTC."""
        return await self._tokens.every(self._clock().date())

    async def revoke_token(self, name: str) -> tuple[Token, bool]:
        """Revoke a token, for good; return it, and whether it was not revoked before. NotFound when there is none."""
        return await self._tokens.revoke(name, actor=self._actor)


@asynccontextmanager
async def administration(settings: Settings) -> AsyncIterator[Administration]:
    """Open the administration of the settings' database; an embedded one is brought up to date first."""
    async with database(settings) as url:
        session = await connection.connect(url)
        try:
            await (migrate(session) if settings.database_url is None else require_current(session))
        finally:
            await session.close()
        async with connection.pool(url) as pool:
            yield Administration(PostgresTokens(pool), utc_now, uuid7_batch, settings.stamped_by)


def wanted_token(
    name: str,
    *,
    namespaces: Iterable[str],
    scopes: Iterable[str],
    limits: Limits | None = None,
    lifetime: timedelta | None = None,
) -> WantedToken:
    """Return what a token is to be; InvalidInput names what is wrong with it. What is given twice counts once."""
    return WantedToken(
        name=check_token_name(name),
        namespaces=_patterns(namespaces),
        scopes=_scopes(scopes),
        limits=_limits(limits or Limits()),
        lifetime=lifetime,
    )


def lifetime_of(text: str) -> timedelta:
    """Return how long `30d`, `12h`, `2w`, `90m` or `45s` is; InvalidInput for anything else."""
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{ascii(text)[:80]} is no lifetime: use a number and s, m, h, d or w, such as 30d", field="expires"
        )
    lifetime = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if lifetime > LIFETIME_MAX:
        raise LimitExceeded(
            f"a lifetime of {text} is longer than {LIFETIME_MAX.days} days: use a shorter one, or none", field="expires"
        )
    return lifetime


def _scopes(given: Iterable[str]) -> tuple[Scope, ...]:
    wanted = set(given)
    if foreign := sorted(wanted - set(SCOPES)):
        raise InvalidInput(
            f"scope {ascii(foreign[0])[:80]} is none: use {', '.join(SCOPES[:-1])} or {SCOPES[-1]}", field="scope"
        )
    if not wanted:
        raise InvalidInput("a token without a scope can do nothing: give it one with --scope", field="scope")
    return tuple(scope for scope in SCOPES if scope in wanted)


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    patterns = tuple(dict.fromkeys(map(check_pattern, given)))
    if not patterns:
        raise InvalidInput("a token without a namespace sees nothing: give it one with -n", field="namespace")
    if len(patterns) > PATTERNS_MAX:
        raise LimitExceeded(
            f"{len(patterns)} namespaces are given; {PATTERNS_MAX} is the limit of a token: use patterns such as "
            "acme.*, or several tokens",
            field="namespace",
        )
    return patterns


def _limits(given: Limits) -> Limits:
    for name, least, most in (
        ("requests_per_s", 1, LIMIT_MAX),
        ("stamps_per_day", 0, QUOTA_MAX),
        ("bytes_per_day", 0, QUOTA_MAX),
    ):
        limit: int | None = getattr(given, name)
        if limit is not None and not least <= limit <= most:
            raise InvalidInput(f"{name} = {limit} is not allowed: use {least} to {most}, or leave it out", field=name)
    return given
