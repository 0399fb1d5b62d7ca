"""The commands and their options. What they do is imported when one of them runs: `--help` owes its answer in 0.2 s.

A command returns its exit code; `running` has the list of them, and says what ended a command early.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from omninode_bridge.cli import keeping_commands
from omninode_bridge.cli.letter_commands import dead_letters
from omninode_bridge.cli.options import DatabaseUrl, DataDir, Excludes, Json, Namespace, OneNamespace, Paths
from omninode_bridge.cli.token_commands import token

PROGRAM = "omninode-bridge"

app = typer.Typer(
    name=PROGRAM,
    help="Durable, exactly-once metadata stamps for content of many tenants, with running totals.",
    epilog=(
        "Exit codes: 0 fine; 1 the answer is no (drift, invalid, not found, a file failed); 2 usage; "
        "3 a service is unavailable; 70 a fault of this program; 130 interrupted."
    ),
    # rich would double the time that help takes, and wraps what it prints.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
contract = typer.Typer(help="Work with the nodes' contracts.", rich_markup_mode=None)
app.add_typer(contract, name="contract")
app.add_typer(token, name="token")
app.add_typer(dead_letters, name="dead-letters")


class ExportFormat(StrEnum):
    """What `export` writes."""

    B3SUMS = "b3sums"
    NDJSON = "ndjson"


def main() -> int:
    """Run the command that `sys.argv` names; return its exit code."""
    try:
        code: int = app(prog_name=PROGRAM, standalone_mode=False) or 0
    except Exception as error:
        from omninode_bridge.cli.running import explain

        code = explain(error)
    if code == 130:
        typer.echo(f"{PROGRAM}: interrupted; what is recorded stays so: run it again to finish the rest", err=True)
    try:
        sys.stdout.flush()
    except OSError as error:
        from omninode_bridge.cli.running import explain_unwritten

        # The interpreter flushes once more at its end, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or explain_unwritten(error)
    return code


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from omninode_bridge import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command()
def up(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: BRIDGE_HOST, or 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for a free one. [default: BRIDGE_PORT, or 8054]")
    ] = None,
) -> int:
    """Run everything in one process.

    API, orchestrator and reducer, on embedded PostgreSQL unless a database is named. Ends with Ctrl-C.
    """
    from omninode_bridge.cli import operating

    return operating.up(data_dir, database_url, host, port)


@app.command()
def serve(
    role: Annotated[
        Literal["api", "orchestrator", "stamping", "relay", "reducer", "all"],
        typer.Option(
            help="What this process does: answer calls, run accepted workflows, hash, forward events to Kafka, "
            "fold them, or all of it."
        ),
    ],
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: BRIDGE_HOST, or 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for a free one. [default: BRIDGE_PORT, or 8054]")
    ] = None,
) -> int:
    """Run one role on a shared PostgreSQL; start as many processes of each as you need."""
    from omninode_bridge.cli import operating

    return operating.serve(role, database_url, host, port)


@app.command()
def stamp(
    paths: Paths,
    namespace: Namespace = None,
    meta: Annotated[
        list[str] | None,
        typer.Option("--meta", metavar="KEY=VALUE", help="Metadata of every stamp, as text; may be repeated."),
    ] = None,
    exclude: Excludes = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every file, also those that look unchanged (written through mmap).")
    ] = False,
    intelligence: Annotated[
        bool, typer.Option("--intelligence", help="Add what OnexTree finds in the content.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Stamp at a running bridge instead. [BRIDGE_SERVER; token: BRIDGE_TOKEN]"),
    ] = None,
) -> int:
    """Stamp files and folders, durably and exactly once.

    A path is recorded as typed, normalised: `stamp docs` records docs/a.txt. A file whose size, times, inode and
    device are those of its latest stamp is not read again. Other bytes, another content type or other metadata (also
    none, where there was some) make the path's next version. What can't be stamped is named and stops nothing; the exit
    code is then 1. Interrupted, it is finished by running it again.
    """
    from omninode_bridge.cli import stamping

    return stamping.stamp(
        paths,
        namespace=namespace,
        meta=meta or [],
        exclude=exclude or [],
        rehash=rehash,
        intelligence=intelligence,
        json=json,
        data_dir=data_dir,
        database_url=database_url,
        server=server,
    )


@app.command()
def verify(
    paths: Paths,
    namespace: Namespace = None,
    exclude: Excludes = None,
    ignore_unstamped: Annotated[
        bool, typer.Option("--ignore-unstamped", help="Files that were never stamped are no drift.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Compare files with their latest stamps.

    Every file is read and hashed again. Drift is what changed, what is missing, and what was never stamped: each is
    listed, and the exit code is then 1.
    """
    from omninode_bridge.cli import stamping

    return stamping.verify(
        paths,
        namespace=namespace,
        exclude=exclude or [],
        ignore_unstamped=ignore_unstamped,
        json=json,
        data_dir=data_dir,
        database_url=database_url,
    )


@app.command()
def show(
    wanted: Annotated[str, typer.Argument(metavar="HASH|ID|PATH", help="A digest, a stamp id, or a path.")],
    namespace: Namespace = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Show a stamp: by digest, id or path.

    A digest shows all stamps that have it, a path its latest version. Without -n a digest and an id are looked for in
    all namespaces, a path in the default one.
    """
    from omninode_bridge.cli import reading

    return reading.show(wanted, namespace, json, data_dir, database_url)


@app.command()
def history(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The path as it was stamped.")],
    namespace: Namespace = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """List all versions of a path, newest first."""
    from omninode_bridge.cli import reading

    return reading.history(path, namespace, json, data_dir, database_url)


@app.command()
def state(
    namespace: OneNamespace = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPING",
            help="namespace, content_type, size_bucket, time_window, workflow or metadata.KEY. [default: namespace]",
        ),
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Show the totals, of one namespace or all.

    They include every stamp acknowledged before the call.
    """
    from omninode_bridge.cli import reading

    return reading.state(namespace, by or "namespace", json, data_dir, database_url)


@app.command()
def workflow(
    workflow_id: Annotated[str, typer.Argument(metavar="ID", help="The workflow's id (op_id).")],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NS", help="Needed only where several namespaces have this id."),
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Show where a workflow is, and why.

    Its state, history and error.
    """
    from omninode_bridge.cli import reading

    return reading.workflow(workflow_id, namespace, json, data_dir, database_url)


@app.command()
def export(
    format: Annotated[
        ExportFormat, typer.Option("--format", help="b3sums: what `b3sum --check` reads; ndjson: one stamp a line.")
    ],
    namespace: Namespace = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file, whole or not at all.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Write stamps for other tools.

    The latest one of every path of a namespace, streamed.
    """
    from omninode_bridge.cli import exporting

    return exporting.export(namespace, format.value, output, data_dir, database_url)


@app.command()
def audit(json: Json = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Check the laws on the live data.

    By code that shares nothing with what it checks: exactly once, a gapless log, legal transitions, state as a fold.
    """
    from omninode_bridge.cli import operating

    return operating.audit(json, data_dir, database_url)


@app.command()
def rebuild(
    namespace: OneNamespace = None,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Compute the totals anew from the events.

    Beside the live ones, which are then replaced at once.
    """
    from omninode_bridge.cli import operating

    return operating.rebuild(namespace, json, data_dir, database_url)


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name what would be applied.")] = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Bring the database's schema up to date."""
    from omninode_bridge.cli import operating

    return operating.migrate(dry_run, json, data_dir, database_url)


@app.command()
def doctor(json: Json = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Check each dependency, with the remedy."""
    from omninode_bridge.cli import operating

    return operating.doctor(json, data_dir, database_url)


keeping_commands.add_to(app)


@contract.command("validate")
def contract_validate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A contract.yaml, or a folder with some in it.")],
    json: Json = False,
) -> int:
    """Validate contracts as the program does when it starts.

    Each fault is listed with the field it is in; the exit code is then 1.
    """
    from omninode_bridge.cli import operating

    return operating.validate(path, json)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]", help="Some of them; all without it.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny data, one turn: that they run, not how fast.")] = False,
    json: Json = False,
) -> int:
    """Run the benchmarks of a source checkout.

    Each against its counterpart, on the same data; prints machine, versions, ratios and a hash of each result.
    """
    from omninode_bridge.cli import operating

    return operating.bench(names or [], smoke, json)
