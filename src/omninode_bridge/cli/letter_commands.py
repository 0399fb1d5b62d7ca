"""The commands of `dead-letters` and their options. What they do is imported when one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from omninode_bridge.cli.options import DatabaseUrl, DataDir, Json

NUMBER_MAX = 2**63 - 1

dead_letters = typer.Typer(
    help="Look at events that could not be processed; replay or discard them.", rich_markup_mode=None
)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, max=NUMBER_MAX, help="As `list` has it.")]


@dead_letters.command("list")
def every(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NS", help="Of one namespace; all of them without it.")
    ] = None,
    settled: Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")] = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """List the open dead letters.

    The reducer's are of events that it could not read, which every total lacks; the relay's are of events that Kafka
    refused, which are in the totals.
    """
    from omninode_bridge.cli import letters

    return letters.every(namespace, settled, json, data_dir, database_url)


@dead_letters.command("show")
def show(number: Number, json: Json = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Show a dead letter.

    Its place in the log, the reason, what was done with it, and the body as it was read.
    """
    from omninode_bridge.cli import letters

    return letters.show(number, json, data_dir, database_url)


@dead_letters.command("replay")
def replay(
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]", min=1, max=NUMBER_MAX, help="As `list` has them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Process the events of dead letters after all.

    After the data was mended, or the program brought up to date: the event is read as the log has it now, and counted
    or sent to Kafka. It is counted once, however often it is replayed. A discarded letter can be replayed too. One that
    still can't be processed stays what it was, and the exit code is 1.
    """
    from omninode_bridge.cli import letters

    return letters.replay(numbers or [], everything, json, data_dir, database_url)


@dead_letters.command("discard")
def discard(
    numbers: Annotated[list[int], typer.Argument(metavar="ID", min=1, max=NUMBER_MAX, help="As `list` has them.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, in one line; it is kept.")],
    json: Json = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Settle dead letters without their events.

    The totals stay without a reducer's. Replaying it later undoes that.
    """
    from omninode_bridge.cli import letters

    return letters.discard(numbers, reason, json, data_dir, database_url)
