"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Paths = Annotated[list[str], typer.Argument(metavar="PATH", help="Files and folders.")]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", metavar="NS", help="Dotted name of the tenant. [default: omninode.services.metadata]"
    ),
]
OneNamespace = Annotated[str | None, typer.Argument(metavar="[NS]", help="One namespace; all of them without it.")]
Excludes = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Leave out what matches, by name or path; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print NDJSON: one JSON object a line.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of the embedded PostgreSQL. [default: BRIDGE_DATA_DIR, or the user's data folder]"
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Your own PostgreSQL, 15 or newer. [default: BRIDGE_DATABASE_URL, or the embedded]"
    ),
]
