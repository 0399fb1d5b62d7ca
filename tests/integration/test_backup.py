"""Backups taken while stamps are made, and what is restored of them, on real servers and with the real command.

The law: a backup holds everything that was acknowledged before it began, of one moment; what is restored of it keeps
every law and goes on from there; what is no whole backup is not restored, and half of one is no data directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from omninode_bridge import Bridge
from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.embedded.binaries import find_binaries
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.tokens import PostgresTokens
from omninode_bridge.app import bootstrap
from omninode_bridge.app.access import hash_of
from omninode_bridge.app.administration import administration
from omninode_bridge.app.backups import back_up, restore
from omninode_bridge.app.database import database
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import BridgeError, DataDirectoryError, InvalidInput, NotFound, ServiceUnavailable
from omninode_bridge.domain.stamp import Stamp
from tests.conftest import POSTGRES_15, Server

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
NAMESPACE = "legal.docs"


def settings(folder: Path, binaries: Path | None = None) -> Settings:
    return Settings.read(data_dir=folder, postgres_binaries=binaries)


@pytest.fixture(params=["folder", "dump"])
def dump(request: pytest.FixtureRequest) -> bool:
    return request.param == "dump"


async def fill(folder: Path, count: int = 5, binaries: Path | None = None) -> None:
    async with bootstrap.embedded(folder, settings(folder, binaries)) as bridge:
        for number in range(count):
            await bridge.stamp(b"%d" % number, file_path=f"{number}", namespace=NAMESPACE, metadata={"project": "p"})
        await bridge.query.up_to_date()


@asynccontextmanager
async def stamping(bridge: Bridge) -> AsyncIterator[list[Stamp]]:
    """Stamp one after another, each a new version of one of ten paths, until the end; gives what is acknowledged."""
    told: list[Stamp] = []
    stop = asyncio.Event()

    async def stamp() -> None:
        while not stop.is_set():
            number = len(told)
            told.append(await bridge.stamp(b"%d" % number, file_path=f"{number % 10}", namespace=NAMESPACE))

    task = asyncio.create_task(stamp())
    try:
        yield told
    finally:
        stop.set()
        await task


async def check(bridge: Bridge, before: list[Stamp], after: list[Stamp]) -> None:
    """Fail unless a restored bridge has all of `before`, beyond it a beginning of `after`, and goes on from there."""
    await bridge.query.up_to_date()
    assert all(finding.holds for finding in await bridge.audit())
    state = await bridge.state(NAMESPACE)
    assert len(before) <= state.total_stamps <= len(after)
    found = {stamp.stamp_id for path in range(10) for stamp in await bridge.history(f"{path}", NAMESPACE)}
    assert found == {stamp.stamp_id for stamp in after[: state.total_stamps]}
    for path in ("0", "new"):
        known = [stamp.version for stamp in after[: state.total_stamps] if stamp.file_path == path]
        assert (await bridge.stamp(b"again", file_path=path, namespace=NAMESPACE)).version == len(known) + 1
    await bridge.query.up_to_date()
    assert all(finding.holds for finding in await bridge.audit())
    await bridge.rebuild()
    assert (await bridge.state(NAMESPACE)).total_stamps == state.total_stamps + 2


async def test_a_backup_taken_while_stamps_are_made_is_restored_and_goes_on(tmp_path: Path, dump: bool) -> None:
    source, taken, target = tmp_path / "data", tmp_path / "taken", tmp_path / "restored"
    async with administration(settings(source)) as opened:
        issued = await opened.create_token("ci", namespaces=["legal.*"], scopes=["write"])
    async with bootstrap.embedded(source, settings(source), "all") as bridge, stamping(bridge) as told:
        await _until(lambda: len(told) >= 30, "there are some stamps")
        before = list(told)
        done = await back_up(settings(source), taken, dump=dump)
        await _until(lambda: len(told) > len(before) + 5, "stamping goes on")
    assert done.octets > 10_000
    assert (taken.is_dir(), taken.stat().st_mode & 0o077) == (not dump, 0)
    await restore(settings(target), taken)
    async with bootstrap.embedded(target, settings(target), "all") as bridge:
        await check(bridge, before, told)
    async with database(settings(target)) as url, pool(url) as opened_pool:
        _, tokens = await PostgresTokens(opened_pool).look([hash_of(issued.secret)])
    assert [token.name for token in tokens.values()] == ["ci"]
    # What it was taken of has not noticed.
    async with bootstrap.embedded(source, settings(source)) as bridge:
        await bridge.query.up_to_date()
        assert all(finding.holds for finding in await bridge.audit())
        assert (await bridge.state(NAMESPACE)).total_stamps == len(told)


async def test_a_backup_is_not_written_where_something_is(tmp_path: Path, dump: bool) -> None:
    source = tmp_path / "data"
    await fill(source)
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    for target, sentence in ((taken, "is there already"), (source / "backup", "inside the data directory")):
        with pytest.raises(InvalidInput, match=sentence):
            await back_up(settings(source), target, dump=dump)
    assert [path.name for path in taken.iterdir()] == ["inside"]
    with pytest.raises(NotFound, match="no data to back up"):
        await back_up(settings(tmp_path / "none"), tmp_path / "new", dump=dump)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ServiceUnavailable, match="can't be written"):
        await back_up(settings(source), tmp_path / "file" / "below", dump=dump)
    with pytest.raises(InvalidInput, match="pg_dump"):
        await back_up(Settings.read(database_url="postgresql://somewhere/x"), tmp_path / "new", dump=dump)


async def test_of_two_backups_to_one_place_at_once_one_is_whole_and_the_other_refused(
    tmp_path: Path, dump: bool
) -> None:
    await fill(tmp_path / "data")
    source = settings(tmp_path / "data")
    async with bootstrap.embedded(tmp_path / "data", source, "all"):
        outcomes = await asyncio.gather(
            *(back_up(source, tmp_path / "taken", dump=dump) for _ in range(2)), return_exceptions=True
        )
    assert sum(isinstance(outcome, InvalidInput) for outcome in outcomes) == 1
    await restore(settings(tmp_path / "restored"), tmp_path / "taken")
    assert not list(tmp_path.glob("*.part"))


async def test_only_an_empty_folder_is_restored_into(tmp_path: Path, dump: bool) -> None:
    await fill(tmp_path / "data")
    await back_up(settings(tmp_path / "data"), tmp_path / "taken", dump=dump)
    foreign, bridges, empty = tmp_path / "foreign", tmp_path / "bridges", tmp_path / "empty"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    await fill(bridges, count=1)
    for folder in (foreign, bridges):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(DataDirectoryError, match="is not empty"):
            await restore(settings(folder), tmp_path / "taken")
        assert sorted(path.name for path in folder.iterdir()) == before
    async with bootstrap.embedded(bridges, settings(bridges)) as bridge:
        assert (await bridge.state(NAMESPACE)).total_stamps == 1
    empty.mkdir()
    outcomes = await asyncio.gather(
        *(restore(settings(empty), tmp_path / "taken") for _ in range(2)), return_exceptions=True
    )
    assert sum(isinstance(outcome, DataDirectoryError) for outcome in outcomes) == 1
    async with bootstrap.embedded(empty, settings(empty)) as bridge:
        assert (await bridge.state(NAMESPACE)).total_stamps == 5


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a file": (lambda folder: _flip(_largest(folder)), "is not what was backed up"),
    "a file is shorter": (lambda folder: os.truncate(_largest(folder), 100), "is not what was backed up"),
    "a file is gone": (lambda folder: _largest(folder).unlink(), "is missing"),
    "a file too many": (lambda folder: (folder / "pgdata/base/x").touch(), "was not backed up"),
    "the manifest": (lambda folder: _flip(folder / "pgdata/backup_manifest"), "backup_manifest|manifest|copied"),
    "the manifest is gone": (lambda folder: (folder / "pgdata/backup_manifest").unlink(), "backup_manifest"),
    "the end": (lambda folder: (folder / "backup.json").unlink(), "no whole backup"),
    "what says so": (lambda folder: (folder / "backup.json").write_text("{"), "no backup that can be read"),
    "what says so is empty": (lambda folder: (folder / "backup.json").write_text("{}"), "no backup that can be read"),
    "the log that makes it whole": (
        lambda folder: [path.unlink() for path in (folder / "pgdata/pg_wal").glob("0*")],
        "PostgreSQL did not start",
    ),
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder backup that nobody changes."""
    folder = tmp_path_factory.mktemp("taken")

    async def take() -> None:
        await fill(folder / "data")
        await back_up(settings(folder / "data"), folder / "taken")
        await back_up(settings(folder / "data"), folder / "taken.dump", dump=True)

    asyncio.run(take())
    return folder


@pytest.mark.parametrize("what", DAMAGE)
async def test_a_damaged_backup_is_refused_and_leaves_nothing(taken: Path, tmp_path: Path, what: str) -> None:
    damage, sentence = DAMAGE[what]
    shutil.copytree(taken / "taken", tmp_path / "taken")
    damage(tmp_path / "taken")
    with pytest.raises(BridgeError, match=sentence):
        await restore(settings(tmp_path / "data"), tmp_path / "taken")
    assert {path.name for path in (tmp_path / "data").glob("*")} <= {"lock", "server.lock"}


async def test_what_is_no_backup_is_refused(taken: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.dump"
    whole = (taken / "taken.dump").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    text = tmp_path / "text"
    text.write_text("not a dump")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "backup.json").write_text('{"format": 7, "postgresql": 18, "octets": 1}')
    for source, sentence in (
        (cut, "pg_restore failed"),
        (text, "neither"),
        (newer, "newer omninode-bridge"),
        (tmp_path / "none", "not there"),
        (taken / "data", "no backup.json"),
    ):
        with pytest.raises(BridgeError, match=sentence):
            await restore(settings(tmp_path / "data"), source)
    await restore(settings(tmp_path / "data"), taken / "taken.dump")
    with pytest.raises(InvalidInput, match="pg_dump"):
        await restore(Settings.read(database_url="postgresql://somewhere/x"), taken / "taken")


@pytest.mark.parametrize("moment", ["restoring", "bridge.json", "pgdata.new", "pgdata", "pgdata/postmaster.pid"])
async def test_a_restore_killed_on_its_way_leaves_a_folder_that_nothing_starts_on(
    taken: Path, tmp_path: Path, moment: str, dump: bool
) -> None:
    folder = tmp_path / "data"
    process = _command("restore", taken / ("taken.dump" if dump else "taken"), "--data-dir", folder)
    await _until(lambda: (folder / moment).exists() or process.poll() is not None, moment)
    process.kill()
    process.wait()
    if not (folder / "restoring").exists():  # it was that fast
        assert (folder / "bridge.json").exists()
        return
    await _until(lambda: not _running_on(folder), "its server ends")
    for attempt in (
        fill(folder),
        restore(settings(folder), taken / "taken.dump"),
        back_up(settings(folder), tmp_path / "x"),
    ):
        with pytest.raises(BridgeError, match=r"has not come to its end|is not empty|no data to back up"):
            await attempt
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    await restore(settings(folder), taken / "taken.dump")


async def test_a_backup_killed_on_its_way_is_none_and_its_source_is_whole(tmp_path: Path, dump: bool) -> None:
    await fill(tmp_path / "data")
    taken = tmp_path / "taken"
    process = _command("backup", taken, "--data-dir", tmp_path / "data", *(["--dump"] if dump else []))
    await _until(lambda: any(tmp_path.glob("taken*")) or process.poll() is not None, "it writes")
    process.send_signal(signal.SIGKILL)
    process.wait()
    await _until(lambda: not _running_on(tmp_path / "data"), "its server ends")
    if not (taken / "backup.json").exists() and not taken.is_file():
        with pytest.raises(InvalidInput, match="no whole backup"):
            await restore(settings(tmp_path / "restored"), taken)
    async with bootstrap.embedded(tmp_path / "data", settings(tmp_path / "data")) as bridge:
        assert (await bridge.state(NAMESPACE)).total_stamps == 5
        assert all(finding.holds for finding in await bridge.audit())


async def test_a_folder_of_another_major_is_told_and_moved_as_the_sentence_says(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    await fill(old, binaries=POSTGRES_15)
    installed = find_binaries().major
    with pytest.raises(DataDirectoryError) as told:
        await fill(old)
    sentence = told.value.message
    for words in (
        "PostgreSQL 15",
        f"PostgreSQL {installed}",
        "BRIDGE_POSTGRES_BINARIES",
        "backup FILE --dump",
        "restore FILE",
    ):
        assert words in sentence
    with pytest.raises(DataDirectoryError, match="PostgreSQL 15"):
        await back_up(settings(old), tmp_path / "taken.dump", dump=True)
    # As it says:
    await back_up(settings(old, POSTGRES_15), tmp_path / "taken.dump", dump=True)
    await restore(settings(new), tmp_path / "taken.dump")
    async with bootstrap.embedded(new, settings(new)) as bridge:
        assert all(finding.holds for finding in await bridge.audit())
        assert (await bridge.state(NAMESPACE)).by("metadata.project")[0].total_stamps == 5
        assert (await bridge.stamp(b"again", file_path="0", namespace=NAMESPACE)).version == 2
        await bridge.rebuild()
        assert all(finding.holds for finding in await bridge.audit())
    # A copy of the folder stays what it is.
    await back_up(settings(old, POSTGRES_15), tmp_path / "taken")
    with pytest.raises(DataDirectoryError, match="PostgreSQL 15"):
        await restore(settings(tmp_path / "copy"), tmp_path / "taken")
    await restore(settings(tmp_path / "copy", POSTGRES_15), tmp_path / "taken")
    await fill(tmp_path / "copy", binaries=POSTGRES_15)


async def test_a_clusters_own_word_on_its_major_counts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await fill(folder)
    # As somebody leaves it who upgraded the cluster by himself.
    (folder / "bridge.json").write_text('{"format": 1, "postgresql": 15}')
    await fill(folder)
    assert json.loads((folder / "bridge.json").read_text())["postgresql"] == find_binaries().major
    (folder / "pgdata" / "PG_VERSION").write_text("x\n")
    with pytest.raises(DataDirectoryError, match="PG_VERSION is damaged"):
        await fill(folder)


@pytest.mark.parametrize("major", ["15", "embedded"])
async def test_a_servers_dump_is_restored_elsewhere_as_the_runbook_says(
    servers: dict[str, Server], tmp_path: Path, major: str
) -> None:
    server = servers["postgresql15" if major == "15" else "embedded"]
    programs = find_binaries(POSTGRES_15 if major == "15" else None)
    url = await server.create()
    async with bootstrap.connect(url, role="all") as bridge, stamping(bridge) as told:
        await _until(lambda: len(told) >= 30, "there are some stamps")
        before, dumped = list(told), tmp_path / "bridge.dump"
        await _run(programs.program("pg_dump"), "--format=custom", f"--file={dumped}", f"--dbname={url}")
    await server.drop(url)
    elsewhere = await EmbeddedPostgres.start(tmp_path / "elsewhere", binaries=programs.folder)
    async with elsewhere:
        roles, create_database, schema = _statements()
        await _execute(elsewhere.dsn, roles)
        await _execute(elsewhere.dsn, create_database)
        restored = elsewhere.dsn.replace("/bridge?", "/team?")
        await _execute(restored, schema)
        options = ["--no-owner", "--role=team", "--single-transaction", "--exit-on-error"]
        await _run(programs.program("pg_restore"), *options, f"--dbname={restored}", str(dumped))
        # As the user of the URL, who owns the tables and sees no row by himself.
        async with bootstrap.connect(restored.replace("bridge@", "team@"), role="all") as bridge:
            await check(bridge, before, told)


def _statements() -> tuple[str, str, str]:
    """The runbook's SQL for a new server, for the user and database `team`."""
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    roles, _, rest = re.sub(r"\bbridge\b", "team", block).rpartition("CREATE DATABASE")
    database, schema = rest.split("\\connect team\n")
    return roles, f"CREATE DATABASE{database}", schema


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def _run(*program: str) -> None:
    process = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


def _command(*arguments: str | Path) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "omninode_bridge", *arguments],
        env=clean | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _running_on(folder: Path) -> list[str]:
    """Return the processes that work in a data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                    found.append(entry.name)
            except OSError:
                continue
    return found


async def _until(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - files and processes have no events to wait for
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S:.0f} s: {what}") from None


def _largest(folder: Path) -> Path:
    return max((folder / "pgdata" / "base").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
