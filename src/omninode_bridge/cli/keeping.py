"""`erase`, `prune`, `backup` and `restore`: what is done to the data as a whole.

What destroys asks first: on a terminal by a word to be typed, elsewhere it needs `--yes`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from omninode_bridge.cli.output import count, printable, say, say_json, size
from omninode_bridge.cli.running import FINE, NO, read_settings, run
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import check_namespace

if TYPE_CHECKING:
    from omninode_bridge.app.upkeep import Pruning


def erase(namespace: str, yes: bool, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Erase a namespace and say how much it was."""
    tenant = check_namespace(namespace)
    settings = read_settings(data_dir, database_url)
    if not _confirmed(yes, f"everything of {tenant} is erased, for good", tenant):
        return NO

    async def work() -> int:
        from omninode_bridge.app.upkeep import upkeep

        async with upkeep(settings) as opened:
            done = await opened.erase(tenant)
        if json:
            say_json({"namespace": tenant, **msgspec.structs.asdict(done)})
        else:
            told = [
                count(done.stamps, "stamp"),
                count(done.workflows, "workflow"),
                count(done.inputs, "waiting content"),
            ]
            say(f"erased {tenant}: {', '.join(told)}, and what {count(done.events, 'event')} told of it")
        return FINE

    return run(work())


def prune(
    events_older_than: str, dry_run: bool, yes: bool, json: bool, data_dir: Path | None, database_url: str | None
) -> int:
    """Prune the event log and say how much it was, and what is held back for whom."""
    settings = read_settings(data_dir, database_url)
    from omninode_bridge.app.upkeep import age_of, upkeep

    age = age_of(events_older_than)
    asked = f"events older than {events_older_than} are deleted; their totals stay"
    if not dry_run and not _confirmed(yes, asked, "prune"):
        return NO

    async def work() -> int:
        async with upkeep(settings) as opened:
            done = await opened.prune(age, dry_run=dry_run)
        if json:
            say_json({
                "pruned": done.events,
                "bytes": done.octets,
                "shards": done.shards,
                "held": done.held,
                "held_for": done.held_for,
                "dry_run": done.dry_run,
            })  # fmt: skip
        else:
            _tell(done, events_older_than)
        return FINE

    return run(work())


def backup(target: Path, dump: bool, json: bool, data_dir: Path | None) -> int:
    """Back a data directory up, and say where to."""
    settings = read_settings(data_dir, None)

    async def work() -> int:
        from omninode_bridge.app.backups import back_up

        done = await back_up(settings, target, dump=dump)
        if json:
            say_json({"backup": str(done.path), "form": done.form, "postgresql": done.major, "bytes": done.octets})
        else:
            what = "a dump" if done.major is None else f"a copy of PostgreSQL {done.major}"
            source, made = printable(str(settings.data_dir)), printable(str(done.path))
            say(f"backed up {source} to {made}: {what}, {size(done.octets)}")
        return FINE

    return run(work())


def restore(source: Path, json: bool, data_dir: Path | None) -> int:
    """Make a data directory of a backup, and say how to look at it."""
    settings = read_settings(data_dir, None)

    async def work() -> int:
        from omninode_bridge.app.backups import restore as make_of

        done = await make_of(settings, source)
        made = str(settings.data_dir.absolute())
        if json:
            say_json({"backup": str(done.path), "data_dir": made, "form": done.form})
        else:
            say(f"restored {printable(str(done.path))} into {printable(made)}: `audit` checks it")
        return FINE

    return run(work())


def _tell(done: Pruning, older_than: str) -> None:
    if done.events:
        what = f"{count(done.events, 'event')} ({size(done.octets)}) of {count(done.shards, 'shard')}"
        say(f"{'would prune' if done.dry_run else 'pruned'} {what}; every total stays")
    elif not done.held:
        say(f"there is nothing to prune: no event is older than {older_than}")
    if done.held:
        say(f"{count(done.held, 'event')} older than {older_than} stay: {done.held_for} has not read them yet")


def _confirmed(yes: bool, what: str, word: str) -> bool:
    """Tell whether to go on: `--yes` was given, or the word was typed. InvalidInput where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInput(f"{what}, which can't be undone: add --yes", field="yes")
    sys.stderr.write(f"omninode-bridge: {what}. Type {word} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() == word:
        return True
    say("nothing was done")
    return False
