"""The embedded PostgreSQL as a user meets it: real servers, real processes, real `kill -9`.

The laws: one program at a time owns a data directory; its server never outlives it; whatever is killed and
whenever, the folder can be used again and has every committed row; a folder that is not ours is left as it was.
"""

# Looking at files and starting processes from a test's coroutine blocks nobody but the test.

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest

from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.domain.errors import DataDirectoryError, ServiceUnavailable

PATIENCE_S = 30.0

# Starts a server, tells its facts in one line, and stops it when its standard input closes.
HOLDER = """
import asyncio, json, sys
from pathlib import Path
from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.domain.errors import BridgeError

async def main(folder, kind, binaries):
    try:
        server = await EmbeddedPostgres.start(Path(folder), kind=kind, binaries=Path(binaries) if binaries else None)
    except BridgeError as error:
        print(json.dumps({"error": str(error), "code": error.code}), flush=True)
        return
    async with server:
        facts = {"dsn": server.dsn, "pid": server.pid, "attached": server.attached}
        print(json.dumps(facts), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main(*sys.argv[1:4]))
"""

# Enters a user namespace before running HOLDER; its arguments are the uid to be, and whether further ones are refused.
IN_NAMESPACE = """
import os, sys
uid, refused = int(sys.argv.pop(1)), sys.argv.pop(1) == "refused"
outside = os.getuid(), os.getgid()
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
for name, text in ("setgroups", "deny"), ("gid_map", f"{uid} {outside[1]} 1"), ("uid_map", f"{uid} {outside[0]} 1"):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
if refused:
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
"""

# Enters a namespace that has all users but refuses further ones, as many containers do. Only root may make it.
IN_CONTAINER = """
import os, sys
entered, mapped = os.pipe(), os.pipe()
container = os.getpid()
if os.fork() == 0:
    os.read(entered[0], 1)
    for name in "uid_map", "gid_map":
        with open(f"/proc/{container}/{name}", "w") as file:
            file.write("0 0 65536")
    os.write(mapped[1], b".")
    os._exit(0)
os.unshare(os.CLONE_NEWUSER)
os.write(entered[1], b".")
os.read(mapped[0], 1)
os.wait()
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
"""

# Mounts a file system of 24 MiB, too small for a cluster, on the folder above the data directory.
ON_SMALL_DISK = """
import ctypes
from pathlib import Path
disk = str(Path(sys.argv[1]).parent).encode()
assert ctypes.CDLL(None, use_errno=True).mount(b"none", disk, b"tmpfs", 0, b"size=24m") == 0, ctypes.get_errno()
"""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Look until `condition` holds; fail after PATIENCE_S seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def running_on(folder: Path) -> list[int]:
    """Return the processes of PostgreSQL whose working directory is the cluster of `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


class Holder:
    """Another process that holds a data directory."""

    def __init__(
        self,
        folder: Path,
        kind: str = "command",
        *,
        binaries: Path | None = None,
        prelude: str = "",
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + HOLDER, *arguments, str(folder), kind, str(binaries or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def facts(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the holder ended with {self.process.wait()}"
        facts: dict[str, object] = json.loads(line)
        return facts

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def start(folder: Path, *arguments: object, **options: object) -> Holder:
        holders.append(Holder(folder, *arguments, **options))  # type: ignore[arg-type]
        return holders[-1]

    yield start
    for holder in holders:
        holder.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def postgresql_15() -> Path:
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb") if path.parts[-3] == "15"]
    assert found, "PostgreSQL 15 is needed for these tests: install it under /usr/lib/postgresql/15"
    return found[0]


@pytest.fixture(params=["embedded", "15"])
def binaries(request: pytest.FixtureRequest) -> Path | None:
    return postgresql_15() if request.param == "15" else None


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def write_row(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        await connection.execute("INSERT INTO kept VALUES ('ä')")


async def count_rows(dsn: str) -> int:
    async with connected(dsn) as connection:
        return await connection.fetchval("SELECT count(*) FROM kept WHERE value = 'ä'")


async def refusal(start: Awaitable[EmbeddedPostgres]) -> DataDirectoryError:
    with pytest.raises(DataDirectoryError) as caught:
        await start
    assert "\n" not in str(caught.value)
    return caught.value


async def test_the_first_start_makes_a_durable_utf8_database_and_the_next_one_finds_it(
    folder: Path, binaries: Path | None
) -> None:
    async with await EmbeddedPostgres.start(folder, binaries=binaries) as server:
        assert server.attached is False
        assert is_alive(server.pid)
        async with connected(server.dsn) as connection:
            settings = {
                row["name"]: row["setting"] for row in await connection.fetch("SELECT name, setting FROM pg_settings")
            }
            assert await connection.fetchrow("SELECT current_user::text, current_database()::text") == (
                "bridge",
                "bridge",
            )
            assert await connection.fetchval("SELECT 'É' ~* '^é$' AND lower('É') = 'é' AND 'a' > 'B'")
        await write_row(server.dsn)
    expected = {
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
    }
    assert {name: settings[name] for name in expected} == expected
    assert not is_alive(server.pid)
    async with await EmbeddedPostgres.start(folder, binaries=binaries) as server:
        assert await count_rows(server.dsn) == 1


async def test_the_folder_is_closed_to_others(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    async with await EmbeddedPostgres.start(folder):
        paths = [folder, *folder.rglob("*")]
        open_to_others = [path for path in paths if not path.is_socket() and stat.S_IMODE(path.lstat().st_mode) & 0o077]
        assert open_to_others == []
        assert {path.lstat().st_uid for path in paths} == {os.geteuid()}


async def test_a_folder_in_use_is_waited_for_and_then_refused_with_the_holders_pid(
    folder: Path, hold: Callable[..., Holder]
) -> None:
    holder = hold(folder)
    holder.facts()
    error = await refusal(EmbeddedPostgres.start(folder, wait_s=0.3))
    assert str(folder) in str(error)
    assert str(holder.process.pid) in str(error)
    assert error.context["holder_pid"] == holder.process.pid
    waiting = asyncio.create_task(EmbeddedPostgres.start(folder, wait_s=PATIENCE_S))
    await asyncio.to_thread(holder.close)
    async with await waiting as server:
        assert server.attached is False


async def test_a_command_attaches_to_the_server_of_a_running_up_and_leaves_it_running(
    folder: Path, hold: Callable[..., Holder]
) -> None:
    up = hold(folder, "up")  # not waited for: it may not be ready yet
    eventually(lambda: (folder / "lock").exists() and (folder / "lock").read_text(), "`up` holds the folder")
    async with await EmbeddedPostgres.start(folder, wait_s=PATIENCE_S) as command:
        facts = up.facts()
        assert (command.attached, command.dsn, command.pid) == (True, facts["dsn"], up.process.pid)
        await write_row(command.dsn)
    assert await count_rows(str(facts["dsn"])) == 1


async def test_after_a_killed_up_its_note_attaches_nobody(folder: Path, hold: Callable[..., Holder]) -> None:
    up = hold(folder, "up")
    up.facts()
    note = (folder / "lock").read_text()
    up.kill()
    assert (folder / "lock").read_text() == note
    async with await EmbeddedPostgres.start(folder, wait_s=PATIENCE_S) as server:
        assert server.attached is False
        assert json.loads((folder / "lock").read_text())["pid"] == os.getpid()


async def test_killing_the_program_ends_its_server_and_keeps_every_committed_row(
    folder: Path, binaries: Path | None, hold: Callable[..., Holder]
) -> None:
    holder = hold(folder, binaries=binaries)
    facts = holder.facts()
    await write_row(str(facts["dsn"]))
    holder.kill()
    eventually(lambda: not running_on(folder), "PostgreSQL ends by itself")
    async with await EmbeddedPostgres.start(folder, binaries=binaries) as server:
        assert await count_rows(server.dsn) == 1


async def test_a_successor_waits_for_a_killed_programs_server_and_never_runs_beside_it(
    folder: Path, hold: Callable[..., Holder]
) -> None:
    holder = hold(folder)
    server_pid = int(str(holder.facts()["pid"]))
    os.kill(server_pid, signal.SIGSTOP)  # a shutdown that takes long
    try:
        holder.kill()
        error = await refusal(EmbeddedPostgres.start(folder, wait_s=0.3))
        assert str(server_pid) in str(error)
        waiting = asyncio.create_task(EmbeddedPostgres.start(folder, wait_s=PATIENCE_S))
    finally:
        os.kill(server_pid, signal.SIGCONT)
    async with await waiting as server:
        assert not is_alive(server_pid)
        assert server.pid != server_pid


@pytest.mark.parametrize(
    "moment",
    [
        "lock",
        "bridge.json",
        "pgdata.new",
        "pgdata.new/global",
        "pgdata.new/base/1/PG_VERSION",
        "pgdata",
        "pgdata/postmaster.pid",
    ],
)
async def test_a_program_killed_during_its_first_start_leaves_a_usable_folder(
    folder: Path, moment: str, hold: Callable[..., Holder]
) -> None:
    holder = hold(folder)
    # What initdb makes is there only until it is the cluster.
    lasting = "pgdata" if moment.startswith("pgdata.new") else moment
    eventually(lambda: (folder / moment).exists() or (folder / lasting).exists(), f"{moment} appears")
    holder.kill()
    async with await EmbeddedPostgres.start(folder, wait_s=PATIENCE_S) as server:
        await write_row(server.dsn)
        assert not (folder / "pgdata.new").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
async def test_a_server_that_dies_is_told_and_recovers_at_the_next_start(folder: Path, number: signal.Signals) -> None:
    async with await EmbeddedPostgres.start(folder) as server:
        death = asyncio.create_task(server.died())
        await write_row(server.dsn)
        os.kill(server.pid, number)
        error = await asyncio.wait_for(death, PATIENCE_S)
        assert isinstance(error, ServiceUnavailable)
        assert str(server.log) in str(error)
    async with await EmbeddedPostgres.start(folder, wait_s=PATIENCE_S) as server:
        assert await count_rows(server.dsn) == 1


async def test_a_stop_is_no_death_and_may_be_asked_for_twice(folder: Path) -> None:
    server = await EmbeddedPostgres.start(folder)
    death = asyncio.create_task(server.died())
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    assert not is_alive(server.pid)
    assert not death.done()
    death.cancel()


async def test_a_cancelled_start_leaves_nothing_running(folder: Path) -> None:
    starting = asyncio.create_task(EmbeddedPostgres.start(folder))
    await asyncio.to_thread(eventually, (folder / "pgdata.new").exists, "initdb runs")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert running_on(folder) == []
    await (await EmbeddedPostgres.start(folder, wait_s=0)).stop()


async def test_a_server_started_in_a_thread_outlives_that_thread(folder: Path) -> None:
    dsns: list[str] = []
    thread = threading.Thread(target=lambda: dsns.append(asyncio.run(EmbeddedPostgres.start(folder)).dsn))
    thread.start()
    await asyncio.to_thread(thread.join)
    await write_row(dsns[0])
    # Signals are handled in one pass, shutdown first: once it has read its settings anew, no death signal was pending.
    async with connected(dsns[0]) as connection:
        before = await connection.fetchval("SELECT pg_conf_load_time() FROM pg_reload_conf()")
    async with asyncio.timeout(PATIENCE_S):
        while await _settings_read_at(dsns[0]) <= before:
            pass
    assert await count_rows(dsns[0]) == 1
    os.kill(int((folder / "pgdata" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGINT)
    eventually(lambda: not running_on(folder), "the server has ended")


async def test_a_foreign_folder_is_refused_and_left_as_it_was(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "thesis.txt").write_text("years of work")
    before = folder.stat()
    error = await refusal(EmbeddedPostgres.start(folder))
    assert "is not a bridge data directory" in str(error)
    assert "thesis.txt" in str(error)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    after = folder.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


async def test_a_path_that_is_a_file_or_lies_below_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("")
    assert "is a file" in str(await refusal(EmbeddedPostgres.start(file)))
    assert str(file) in str(await refusal(EmbeddedPostgres.start(file / "below")))


async def test_a_newer_format_is_refused_with_both_numbers(folder: Path) -> None:
    folder.mkdir()
    (folder / "bridge.json").write_text('{"format": 7, "postgresql": 18}')
    error = str(await refusal(EmbeddedPostgres.start(folder)))
    assert "format 7" in error
    assert "up to 1" in error
    assert "upgrade" in error


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "x", "postgresql": 18}'])
async def test_a_damaged_bridge_json_is_refused(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "bridge.json").write_text(text)
    assert "damaged" in str(await refusal(EmbeddedPostgres.start(folder)))


async def test_a_cluster_of_another_postgresql_major_is_refused_with_both(folder: Path) -> None:
    await (await EmbeddedPostgres.start(folder, binaries=postgresql_15())).stop()
    error = str(await refusal(EmbeddedPostgres.start(folder)))
    assert "PostgreSQL 15" in error
    assert "PostgreSQL 18" in error
    await (await EmbeddedPostgres.start(folder, binaries=postgresql_15())).stop()


async def test_binaries_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="does not run"):
        await EmbeddedPostgres.start(folder, binaries=tmp_path)


@pytest.mark.parametrize(
    "name", ["d" * 120, "with space, comma and 'quotes' \"%41\" ?&#", "naïve-ünïcode", "not-utf8-\udcff"]
)
async def test_a_folder_with_a_long_or_odd_name_works(tmp_path: Path, name: str) -> None:
    async with await EmbeddedPostgres.start(tmp_path / name) as server:
        sockets = Path(await _host(server.dsn))
        assert not sockets.is_relative_to(tmp_path)
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        await write_row(server.dsn)
    assert not sockets.exists()


async def test_the_socket_folder_of_a_killed_program_is_used_again(tmp_path: Path, hold: Callable[..., Holder]) -> None:
    folder = tmp_path / ("d" * 120)
    holder = hold(folder)
    sockets = await _host(str(holder.facts()["dsn"]))
    holder.kill()
    async with await EmbeddedPostgres.start(folder, wait_s=PATIENCE_S) as server:
        assert await _host(server.dsn) == sockets
    assert not Path(sockets).exists()


async def test_a_pid_file_whose_pid_is_a_strangers_or_a_zombies_is_not_believed(folder: Path) -> None:
    zombie = subprocess.Popen(["true"])
    eventually(lambda: not is_alive(zombie.pid), "the child has ended")  # and is not waited for
    server = await EmbeddedPostgres.start(folder)
    await write_row(server.dsn)
    left = (folder / "pgdata" / "postmaster.pid").read_text().splitlines(keepends=True)
    await server.stop()
    for pid in (1, zombie.pid):
        (folder / "pgdata" / "postmaster.pid").write_text("".join([f"{pid}\n", *left[1:]]))
        async with await EmbeddedPostgres.start(folder) as server:
            assert await count_rows(server.dsn) == 1
    zombie.wait()


async def test_a_server_somebody_started_by_hand_is_not_run_beside(folder: Path) -> None:
    server = await EmbeddedPostgres.start(folder)
    program = Path(os.readlink(f"/proc/{server.pid}/exe"))
    await server.stop()
    # Any process in the cluster's folder whose pid the file names: what it executes doesn't matter.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=folder / "pgdata") as by_hand:
        (folder / "pgdata" / "postmaster.pid").write_text(f"{by_hand.pid}\n{folder / 'pgdata'}\n")
        error = await refusal(EmbeddedPostgres.start(folder, wait_s=0.1))
        assert str(by_hand.pid) in str(error)
        assert by_hand.poll() is None
    async with await EmbeddedPostgres.start(folder) as server:
        assert Path(os.readlink(f"/proc/{server.pid}/exe")) == program


async def test_a_damaged_cluster_is_told_with_the_log(folder: Path) -> None:
    server = await EmbeddedPostgres.start(folder)
    await server.stop()
    (folder / "pgdata" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(ServiceUnavailable) as caught:
        await EmbeddedPostgres.start(folder)
    assert "pg_control" in str(caught.value)
    assert str(server.log) in str(caught.value)


async def test_a_log_that_has_grown_is_cut_and_its_end_kept(folder: Path) -> None:
    server = await EmbeddedPostgres.start(folder)
    await server.stop()
    with server.log.open("a") as log:
        log.write("noise\n" * 1_000_000 + "the end\n")
    await (await EmbeddedPostgres.start(folder)).stop()
    assert server.log.stat().st_size < 10_000
    kept = server.log.with_name("postgres.log.1").read_text()
    assert kept.endswith("the end\n")
    assert len(kept) < 1_000_000


def test_an_ordinary_user_runs_it_directly(folder: Path, hold: Callable[..., Holder]) -> None:
    holder = hold(folder, prelude=IN_NAMESPACE, arguments=("1000", "allowed"))
    facts = holder.facts()
    assert facts["attached"] is False, facts
    namespaces = {Path(f"/proc/{pid}/ns/user").readlink() for pid in (facts["pid"], holder.process.pid)}
    assert len(namespaces) == 1
    holder.kill()
    eventually(lambda: not running_on(folder), "PostgreSQL ends by itself")


if os.geteuid() == 0:  # only root can be somebody else; anybody else's tests are those above

    @pytest.fixture
    def reachable_folder() -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            yield Path(name) / "data"

    def test_root_in_a_container_without_namespaces_runs_it_as_nobody(
        reachable_folder: Path, hold: Callable[..., Holder]
    ) -> None:
        for _ in range(2):
            holder = hold(reachable_folder, binaries=postgresql_15(), prelude=IN_CONTAINER)
            facts = holder.facts()
            assert Path(f"/proc/{facts.get('pid')}").owner() == "nobody", facts
            holder.kill()
            eventually(lambda: not running_on(reachable_folder), "PostgreSQL ends by itself")

    def test_root_in_a_container_is_told_when_nobody_could_not_reach_the_folder(
        folder: Path, hold: Callable[..., Holder]
    ) -> None:
        facts = hold(folder, binaries=postgresql_15(), prelude=IN_CONTAINER).facts()
        assert facts["code"] == "data_directory"
        assert "closed to others" in str(facts["error"])
        assert folder.owner() == "root"

    def test_root_runs_a_folder_of_somebody_else_as_that_somebody_and_leaves_it_his(
        reachable_folder: Path, hold: Callable[..., Holder]
    ) -> None:
        reachable_folder.mkdir(mode=0o700)
        shutil.chown(reachable_folder, "daemon", "daemon")
        facts = hold(reachable_folder, binaries=postgresql_15()).facts()
        assert Path(f"/proc/{facts.get('pid')}").owner() == "daemon", facts
        assert {path.owner() for path in reachable_folder.rglob("*")} == {"daemon"}


def test_root_without_namespaces_and_without_a_nobody_is_told_what_to_do(
    folder: Path, hold: Callable[..., Holder]
) -> None:
    facts = hold(folder, prelude=IN_NAMESPACE, arguments=("0", "refused")).facts()
    assert facts["code"] == "data_directory"
    assert "never runs as root" in str(facts["error"])
    assert "ordinary user" in str(facts["error"])


def test_a_full_disk_is_told_and_the_folder_is_usable_when_there_is_room(
    folder: Path, hold: Callable[..., Holder]
) -> None:
    holder = hold(folder, prelude=IN_NAMESPACE + ON_SMALL_DISK, arguments=("0", "allowed"))
    facts = holder.facts()
    assert facts["code"] == "service_unavailable"
    assert "No space left on device" in str(facts["error"])


async def _host(dsn: str) -> str:
    async with connected(dsn) as connection:
        return await connection.fetchval("SHOW unix_socket_directories")


async def _settings_read_at(dsn: str) -> datetime:
    async with connected(dsn) as connection:
        return await connection.fetchval("SELECT pg_conf_load_time()")
