"""`erase`, `prune`, `backup` and `restore` as a user runs them: processes, two streams, an exit code, and `kill -9`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from omninode_bridge.nodes.contracts import load_contracts
from tests.integration.books import Books, eventually
from tests.integration.keeping import forget, waiting
from tests.making import draft, failure

COMMAND = Path(sys.executable).parent / "omninode-bridge"
TIMEOUT_S = 90
# A process assembled by the shipped contract folds what the books hold.
GROUPINGS = load_contracts().reducer.groupings


@dataclass
class Said:
    code: int
    output: str
    errors: str

    @property
    def sentence(self) -> str:
        """The one sentence on standard error."""
        lines = self.errors.splitlines()
        assert len(lines) == 1 and lines[0].startswith("omninode-bridge: "), self.errors
        return lines[0].removeprefix("omninode-bridge: ")


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    return subprocess.Popen(
        [COMMAND, *arguments],
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*arguments: str | Path, **environment: str) -> Said:
    process = start(*arguments, **environment)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert b"Traceback" not in errors, errors.decode()
    return Said(process.returncode, output.decode(), errors.decode())


async def fill(books: Books) -> None:
    session = books.session()
    for namespace in ("gone", "kept"):
        group = [draft(f"{number}", namespace=namespace) for number in range(5)]
        await books.record(session, *group, failure("x", namespace=namespace))
    await books.catch_up(GROUPINGS)
    await session.close()


async def test_a_namespace_is_erased_by_one_command(books: Books) -> None:
    await fill(books)
    where = ("--database-url", books.url)
    said = run("erase", "gone", *where)
    assert (said.code, said.output) == (2, "")
    assert "--yes" in said.sentence and "gone" in said.sentence
    await books.balance(groupings=GROUPINGS)
    said = run("erase", "gone", "--yes", *where, BRIDGE_STAMPED_BY="ann")
    assert (said.code, said.errors) == (0, "")
    assert said.output == "erased gone: 5 stamps, 6 workflows, 0 waiting contents, and what 6 events told of it\n"
    forget(books, "gone")
    await books.balance(groupings=GROUPINGS)
    row = await books.pool.fetchrow("SELECT actor, act, subject FROM admin_log")
    assert tuple(row) == ("ann", "namespace.erase", "gone")
    assert run("erase", "gone", "--yes", *where).code == 1
    assert run("erase", "No Namespace", "--yes", *where).code == 2
    told = json.loads(run("erase", "kept", "--yes", "--json", *where).output)
    assert told | {"groups": 0} == {
        "namespace": "kept", "stamps": 5, "workflows": 6, "inputs": 0, "events": 6, "file_facts": 0, "dead_letters": 0,
        "groups": 0,
    }  # fmt: skip
    assert run("audit", *where).code == 0


async def test_old_events_are_pruned_by_one_command(books: Books) -> None:
    await fill(books)
    where = ("--database-url", books.url)
    assert (
        "nothing to prune: no event is older than 30d"
        in run("prune", "--events-older-than", "30d", "--yes", *where).output
    )
    said = run("prune", "--events-older-than", "0s", *where)
    assert said.code == 2 and "--yes" in said.sentence
    assert run("prune", "--events-older-than", "soon", "--yes", *where).code == 2
    said = run("prune", "--events-older-than", "0s", "--dry-run", *where)
    assert said.output.startswith("would prune 12 events (")
    assert await books.count("event_log") == 12
    told = json.loads(run("prune", "--events-older-than", "0s", "--yes", "--json", *where).output)
    size = told.pop("bytes")
    assert size > 1000
    assert told == {"pruned": 12, "shards": 2, "held": 0, "held_for": None, "dry_run": False}
    await books.balance(groupings=GROUPINGS)
    await fill(books)
    last = await books.pool.fetchrow("SELECT topic, floor FROM log_heads ORDER BY topic LIMIT 1")
    await books.pool.execute(
        "INSERT INTO consumer_positions VALUES ('relay', $1, 0, $2, gen_random_uuid())", last["topic"], last["floor"]
    )
    said = run("prune", "--events-older-than", "0s", "--yes", *where)
    assert said.output == "2 events older than 0s stay: relay has not read them yet\n"
    assert run("rebuild", *where).code == 0


async def test_data_are_backed_up_and_restored_by_two_commands(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("alpha")
    data = ("--data-dir", tmp_path / "data")
    assert run("stamp", tmp_path / "docs", "-n", "legal", *data).code == 0
    said = run("backup", tmp_path / "taken", *data)
    assert (said.code, said.errors) == (0, "")
    assert said.output.startswith(f"backed up {tmp_path / 'data'} to {tmp_path / 'taken'}: a copy of PostgreSQL ")
    told = json.loads(run("backup", tmp_path / "taken.dump", "--dump", "--json", *data).output)
    assert (told["backup"], told["form"], told["bytes"] > 1000) == (str(tmp_path / "taken.dump"), "dump", True)
    assert run("backup", tmp_path / "taken", *data).code == 2
    restored = ("--data-dir", tmp_path / "restored")
    said = run("restore", tmp_path / "taken.dump", *restored)
    assert (said.code, said.errors) == (0, "")
    assert run("audit", *restored).code == 0
    assert json.loads(run("state", "legal", "--json", *restored).output)["total_stamps"] == 1
    said = run("restore", tmp_path / "taken", *data)
    assert said.code == 3 and "is not empty" in said.sentence
    assert run("restore", tmp_path / "none", "--data-dir", tmp_path / "new").code == 2
    assert run("backup", tmp_path / "other", BRIDGE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x").code == 2


@pytest.mark.parametrize(("typed", "code", "left"), [("gone", 0, 0), ("kept", 1, 5), ("", 1, 5), ("\x04", 1, 5)])
async def test_on_a_terminal_the_word_has_to_be_typed(books: Books, typed: str, code: int, left: int) -> None:
    await fill(books)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "erase", "gone", "--database-url", books.url],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, f"{typed}\n".encode() if typed != "\x04" else b"\x04")
    output, errors = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)
    os.close(ours)
    assert process.returncode == code, errors.decode()
    assert errors.decode() == "omninode-bridge: everything of gone is erased, for good. Type gone to go on: "
    assert output.decode().startswith("erased gone" if code == 0 else "nothing was done")
    assert await books.pool.fetchval("SELECT count(*) FROM metadata_stamps WHERE namespace = 'gone'") == left


# What an erasure, or a pruning, needs next: held by somebody else, it stands right before that step.
STEPS = {
    "erase": [
        "event_log", "metadata_stamps", "fsm_states", "state_generations", "file_facts", "dead_letters", "bridge_state",
        "admin_log",
    ],
    "prune": ["state_generations", "bridge_state", "consumer_positions", "event_log", "log_heads", "admin_log"],
}  # fmt: skip


@pytest.mark.parametrize("command", STEPS)
async def test_killed_at_any_step_it_has_done_all_or_nothing_and_the_next_one_ends(books: Books, command: str) -> None:
    await fill(books)
    arguments: dict[str, list[str]] = {"erase": ["gone"], "prune": ["--events-older-than", "0s"]}
    counted = "SELECT count(*) FROM event_log WHERE namespace <> ''"
    for table in STEPS[command]:
        async with _held(books, table):
            process = start(command, *arguments[command], "--yes", "--database-url", books.url)
            await eventually(lambda: waiting(books, 1), f"it waits for {table}")
            process.send_signal(signal.SIGKILL)
            process.communicate()
        await eventually(lambda: _alone(books), "its backend has ended")
        assert await books.pool.fetchval(counted) == 12, table
        await books.balance(groupings=GROUPINGS)
    assert await asyncio.to_thread(run, command, *arguments[command], "--yes", "--database-url", books.url)
    assert await books.pool.fetchval(counted) == (6 if command == "erase" else 0)
    if command == "erase":
        forget(books, "gone")
    await books.balance(groupings=GROUPINGS)


@asynccontextmanager
async def _held(books: Books, table: str) -> AsyncIterator[None]:
    """Keep everybody from writing to a table."""
    async with books.pool.acquire() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield
        await transaction.rollback()


async def _alone(books: Books) -> bool:
    """Tell whether only the books' own sessions are left."""
    found: int = await books.pool.fetchval(
        """SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database
        WHERE datname = current_database() AND locktype = 'advisory' AND objsubid = 1"""
    )
    return found == 0
