"""The commands of `token` and their options. What they do is imported when one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from omninode_bridge.cli.options import DatabaseUrl, DataDir, Json

token = typer.Typer(help="Give and take the right to use the HTTP service.", rich_markup_mode=None)


@token.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; recorded as `stamped_by`.")],
    namespaces: Annotated[
        list[str],
        typer.Option(
            "--namespace", "-n", metavar="PATTERN", help="legal.contracts, acme.* (all below acme) or *; repeatable."
        ),
    ],
    scopes: Annotated[
        list[str],
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="read, write or admin; repeatable. write does not include read, admin includes both.",
        ),
    ],
    requests_per_s: Annotated[int | None, typer.Option(metavar="N", help="Requests a second, at most.")] = None,
    stamps_per_day: Annotated[int | None, typer.Option(metavar="N", help="Stamps a day of UTC, at most.")] = None,
    bytes_per_day: Annotated[int | None, typer.Option(metavar="N", help="Bytes of content a day, at most.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is good: 30d, 12h, 2w. [default: until revoked]")
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Make a token, and show it once.

    From the first one on, every call of the HTTP service needs a token, and the service may listen on addresses that
    other machines reach. What is kept of a token is a hash: nobody can show it a second time.
    """
    from omninode_bridge.cli import tokens
    from omninode_bridge.domain.tenancy import Limits

    return tokens.create(
        name,
        namespaces=namespaces,
        scopes=scopes,
        limits=Limits(requests_per_s, stamps_per_day, bytes_per_day),
        expires=expires,
        json=json,
        data_dir=data_dir,
        database_url=database_url,
    )


@token.command("list")
def every(json: Json = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """List all tokens, revoked ones too.

    With their scopes, namespaces and limits, and what each used since midnight UTC; without their secrets.
    """
    from omninode_bridge.cli import tokens

    return tokens.every(json, data_dir, database_url)


@token.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")],
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Revoke a token, for good.

    Every server refuses it within 2 seconds, also in answers that are under way. Its name is not free again.
    """
    from omninode_bridge.cli import tokens

    return tokens.revoke(name, json, data_dir, database_url)
