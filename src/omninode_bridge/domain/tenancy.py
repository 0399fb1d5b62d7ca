"""Who may see and do what: namespace patterns, scopes, principals, their limits.

The rules this file obeys:

1. A pattern is a namespace (`legal.contracts`), all below one (`acme.*`, without `acme` itself), or `*`.
2. What a principal may not see is answered like what does not exist; what it may not do is Forbidden, whether or
   not there is anything. So neither answer tells whether something is there.
3. `admin` includes both others; `write` does not include `read`: a collector of stamps need not read them.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal, get_args

import msgspec

from omninode_bridge.domain.errors import Forbidden, InvalidInput
from omninode_bridge.domain.names import check_namespace

type Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope.__value__)

TOKEN_PREFIX = "obt_"  # noqa: S105 - what every token begins with, so that leaked ones can be found by scanners
TOKEN_NAME_CHARACTERS_MAX = 255
PATTERNS_MAX = 100
"""Patterns of one token: each read looks at all of them."""


class Visible(msgspec.Struct, frozen=True):
    """The namespaces that a principal's patterns name."""

    patterns: tuple[str, ...]

    def sees(self, namespace: str) -> bool:
        return any(
            namespace.startswith(pattern[:-1]) if pattern.endswith("*") else namespace == pattern
            for pattern in self.patterns
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The patterns that name one namespace each."""
        return tuple(pattern for pattern in self.patterns if not pattern.endswith("*"))

    @property
    def wildcards(self) -> tuple[str, ...]:
        """The patterns that name all namespaces with a common beginning."""
        return tuple(pattern for pattern in self.patterns if pattern.endswith("*"))


EVERYTHING = Visible(("*",))


class Limits(msgspec.Struct, frozen=True):
    """What a token may use. None: as much as there is. A day is one of UTC."""

    requests_per_s: int | None = None
    stamps_per_day: int | None = None
    bytes_per_day: int | None = None


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `name` is recorded as `stamped_by`; `token_id` is None where the server knows no tokens."""

    name: str
    visible: Visible
    scopes: frozenset[Scope]
    token_id: str | None = None
    limits: Limits = Limits()

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the principal has a scope."""
        if not self.may(scope):
            raise Forbidden(f"token {self.name!r} has no scope {scope!r}: use one that has it")

    def require_write(self, namespace: str) -> None:
        """Raise Forbidden unless the principal may write to a namespace."""
        self.require("write")
        if not self.visible.sees(namespace):
            raise Forbidden(
                f"token {self.name!r} may not write to {namespace}: use a token whose namespaces include it",
                field="namespace",
            )


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An API token as it is kept: all but its secret."""

    token_id: str
    name: str
    scopes: tuple[Scope, ...]
    namespaces: tuple[str, ...]
    limits: Limits = Limits()
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def principal(self) -> Principal:
        return Principal(self.name, Visible(self.namespaces), frozenset(self.scopes), self.token_id, self.limits)


def local_principal(name: str) -> Principal:
    """Return who asks a server that knows no tokens and listens to this machine alone."""
    return Principal(name, EVERYTHING, frozenset(SCOPES))


def secret_hash(secret: str) -> bytes:
    """Return what is kept of a token's secret. It has 256 random bits: nothing slower than SHA-256 is needed."""
    return hashlib.sha256(secret.encode()).digest()


def check_pattern(value: str) -> str:
    """Return a legal namespace pattern, or raise InvalidInput."""
    if value == "*":
        return value
    try:
        check_namespace(value.removesuffix(".*"))
    except InvalidInput as error:
        raise InvalidInput(
            f"namespace pattern {ascii(value)[:80]} is not allowed: use a namespace, one with .* at its end, or *",
            field="namespace",
        ) from error
    return value


def check_token_name(value: str) -> str:
    """Return a legal token name: 1-255 printable characters."""
    if not 1 <= len(value) <= TOKEN_NAME_CHARACTERS_MAX or not value.isprintable() or value != value.strip():
        raise InvalidInput(
            f"token name {ascii(value)[:80]} is not allowed: use 1 to {TOKEN_NAME_CHARACTERS_MAX} printable characters",
            field="name",
        )
    return value
