"""`token create`, `token list` and `token revoke`: who may use the HTTP service."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omninode_bridge.cli.output import complain, count, moment, say, say_json, size, table
from omninode_bridge.cli.running import FINE, read_settings, run
from omninode_bridge.domain.tenancy import Limits, Token

if TYPE_CHECKING:
    from omninode_bridge.ports import TokenUse


def create(
    name: str,
    *,
    namespaces: list[str],
    scopes: list[str],
    limits: Limits,
    expires: str | None,
    json: bool,
    data_dir: Path | None,
    database_url: str | None,
) -> int:
    """Print the new token's secret, and nothing else, on standard output."""
    from omninode_bridge.app.administration import administration, lifetime_of, wanted_token

    settings = read_settings(data_dir, database_url)
    lifetime = None if expires is None else lifetime_of(expires)
    wanted = wanted_token(name, namespaces=namespaces, scopes=scopes, limits=limits, lifetime=lifetime)

    async def work() -> int:
        async with administration(settings) as opened:
            issued = await opened.issue(wanted)
        if json:
            say_json(_told(issued.token) | {"token": issued.secret})
        else:
            say(issued.secret)
        complain(f"this is the only time that the token of {name!r} is shown: keep it where only its user can read it")
        return FINE

    return run(work())


def every(json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print a line a token, by name, with what it used today."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.administration import administration

        async with administration(settings) as opened:
            found = await opened.tokens()
        now = datetime.now(UTC)
        if json:
            say_json(*(_told(token) | {"status": _status(token, now), "used_today": use} for token, use in found))
        elif found:
            header = ["NAME", "STATUS", "SCOPES", "NAMESPACES", "LIMITS", "USED TODAY", "CREATED", "EXPIRES"]
            table(header, [_line(token, use, now) for token, use in found])
        else:
            say("there are no tokens: `omninode-bridge token create` makes one")
        return FINE

    return run(work())


def revoke(name: str, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Say that the token is revoked, now or since when."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.administration import administration

        async with administration(settings) as opened:
            token, now = await opened.revoke_token(name)
        if json:
            say_json(_told(token) | {"status": "revoked"})
        elif now:
            say(f"the token of {name!r} is revoked: within 2 seconds every server refuses it")
        else:
            say(f"the token of {name!r} was revoked at {moment(token.revoked_at)} already")
        return FINE

    return run(work())


def _told(token: Token) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "name": token.name,
        "scopes": token.scopes,
        "namespaces": token.namespaces,
        "requests_per_s": token.limits.requests_per_s,
        "stamps_per_day": token.limits.stamps_per_day,
        "bytes_per_day": token.limits.bytes_per_day,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


def _line(token: Token, use: TokenUse, now: datetime) -> list[str]:
    limits = token.limits
    told = [
        *([f"{count(limits.requests_per_s)} requests/s"] if limits.requests_per_s is not None else []),
        *([f"{count(limits.stamps_per_day, 'stamp')}/day"] if limits.stamps_per_day is not None else []),
        *([f"{size(limits.bytes_per_day)}/day"] if limits.bytes_per_day is not None else []),
    ]
    return [
        token.name,
        _status(token, now),
        " ".join(token.scopes),
        " ".join(token.namespaces),
        ", ".join(told) or "-",
        f"{count(use.stamps, 'stamp')}, {size(use.content_bytes)}",
        moment(token.created_at),
        moment(token.expires_at),
    ]


def _status(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "live" if token.is_live(now) else "expired"
