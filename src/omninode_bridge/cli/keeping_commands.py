"""`erase`, `prune`, `backup` and `restore`, and their options. What they do is imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omninode_bridge.cli.options import DatabaseUrl, DataDir, Json

Yes = Annotated[bool, typer.Option("--yes", help="Do it without being asked: it can't be undone.")]


def erase(
    namespace: Annotated[str, typer.Argument(metavar="NAMESPACE", help="Whose records are to go: this one alone.")],
    yes: Yes = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Erase everything of a namespace, for good.

    Stamps, workflows, contents that wait, totals, and the contents of its events; of those, empty records stay. All of
    it or nothing, while others go on. Backups that were taken before still have it.
    """
    from omninode_bridge.cli import keeping

    return keeping.erase(namespace, yes, json, data_dir, database_url)


def prune(
    events_older_than: Annotated[
        str, typer.Option("--events-older-than", metavar="AGE", help="30d, 12h, 2w, 90m or 0s.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how much would be deleted.")] = False,
    yes: Yes = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Delete old events that everything has read.

    Stamps, workflows and totals stay. What can't be done any more: read those events again, or group them by a changed
    reducer contract.
    """
    from omninode_bridge.cli import keeping

    return keeping.prune(events_older_than, dry_run, yes, json, data_dir, database_url)


def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder; with --dump a new file.")],
    dump: Annotated[
        bool, typer.Option("--dump", help="A file that other PostgreSQL majors and servers can read, made by pg_dump.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Back an embedded data directory up.

    Whoever uses it goes on. Of one moment, and whole: a backup that did not come to its end can't be restored.
    """
    from omninode_bridge.cli import keeping

    return keeping.backup(target, dump, json, data_dir)


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `backup` made: a folder, or a dump.")],
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Make a data directory of a backup.

    The folder must be empty or not there. Every file is checked, and PostgreSQL is started on it once.
    """
    from omninode_bridge.cli import keeping

    return keeping.restore(source, json, data_dir)


def add_to(app: typer.Typer) -> None:
    for command in (erase, prune, backup, restore):
        app.command()(command)
