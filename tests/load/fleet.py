"""The service as a team runs it: its roles as processes of their own, on one PostgreSQL that can be treated badly.

Every process writes to a log of its own, is ended by its own id, and is gone when the fleet is.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.app.administration import administration
from omninode_bridge.app.settings import Settings
from omninode_bridge.nodes import orchestrator

PATIENCE_S = 60.0
"""For one start, one stop or one command on a busy machine; beyond it something hangs."""
CONTRACT = Path(orchestrator.__file__).parent / "v1_0_0" / "contract.yaml"

PROGRAM = ("-m", "omninode_bridge")
"""What Python runs as the bridge's command."""
UNAVAILABLE = 3
_FAULT = re.compile(r'Traceback|"level": ?"(error|critical)"|"exception":|never retrieved|fault of the program')

type Role = Literal["api", "orchestrator", "stamping", "relay", "reducer", "all"]
type Blow = Literal["fast", "immediate", "backend"]
"""How PostgreSQL is treated: a fast shutdown, an immediate one, or one of its processes killed, and started again."""


class Postgres:
    """The embedded PostgreSQL of a folder. Its URL stays the same, whatever happens to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: EmbeddedPostgres | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await EmbeddedPostgres.start(self._folder, wait_s=PATIENCE_S)
        assert self.url in ("", self._server.dsn), "the folder's path is too long for a socket"
        self.url = self._server.dsn

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    async def suffer(self, blow: Blow) -> None:
        """End the server, and start it again; of a killed backend it recovers by itself."""
        assert self._server is not None
        if blow == "backend":
            victims = _backends(self._server.pid)
            if victims:
                with suppress(ProcessLookupError):  # its session has ended meanwhile
                    os.kill(victims[0], signal.SIGKILL)
            return
        os.kill(self._server.pid, signal.SIGINT if blow == "fast" else signal.SIGQUIT)
        async with asyncio.timeout(PATIENCE_S):
            await self._server.died()
        await self._server.stop()
        await self.start()


class Process:
    """`omninode-bridge serve` in a role, on a port that stays its own; `log` has what it says."""

    def __init__(
        self,
        role: Role,
        number: int,
        folder: Path,
        environment: Mapping[str, str],
        program: Iterable[str] = PROGRAM,
    ) -> None:
        self.role = role
        self._program = program
        self.name = f"{role}-{number}"
        self.log = folder / f"{self.name}.log"
        self.port = _free_port()
        self._command = ["serve", "--role", role, "--port", str(self.port)]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start, and wait until it serves; again, as a supervisor does, when it ends for want of PostgreSQL."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._serves():
                assert self._process is not None and self._process.returncode == UNAVAILABLE, self.log.read_text()

    async def _serves(self) -> bool:
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = await _spawn(self._command, self._environment, self._program, stdout=log, stderr=log)
        while b" serves on http" not in self.log.read_bytes()[begin:]:
            if self._process.returncode is not None:
                return False
            await asyncio.sleep(0.02)  # a file has no events to wait for
        return True

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def tell_to_stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for the end; return the exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def stop(self) -> int:
        """End in order, at the latest by force; return the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self.tell_to_stop()
            try:
                return await self.ended()
            except TimeoutError:
                await self.kill()
        return await self._process.wait()

    def log_bytes(self) -> int:
        return self.log.stat().st_size

    def complaints(self, since: int = 0) -> list[str]:
        """Return the lines of its log, from a byte on, that tell of a fault of the program."""
        said = self.log.read_bytes()[since:].decode(errors="replace").splitlines()
        return [f"{self.name}: {line}" for line in said if _FAULT.search(line)]


class Fleet:
    """Processes on one PostgreSQL."""

    def __init__(self, postgres: Postgres, folder: Path, environment: Mapping[str, str]) -> None:
        self.postgres = postgres
        self._folder = folder
        self._environment = environment
        self.processes: list[Process] = []

    @classmethod
    @asynccontextmanager
    async def sailing(cls, folder: Path, roles: Iterable[Role], **settings: str) -> AsyncIterator[Self]:
        """Run PostgreSQL and one process a role; `settings` are those of the bridge, in lower case."""
        allow_open_files()
        postgres = Postgres(folder / "data")
        await postgres.start()
        named = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
        fleet = cls(postgres, folder, named | {"BRIDGE_DATABASE_URL": postgres.url})
        try:
            await fleet.command("migrate")
            for number, role in enumerate(roles, 1):
                fleet.processes.append(Process(role, number, folder, fleet._environment))
            await asyncio.gather(*(process.start() for process in fleet.processes))
            yield fleet
        finally:
            await asyncio.gather(*(process.stop() for process in fleet.processes), return_exceptions=True)
            await postgres.stop()

    async def join(self, role: Role, *, program: Iterable[str] = PROGRAM, **settings: str) -> Process:
        """Start one more process, with settings of its own."""
        named = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
        process = Process(role, len(self.processes) + 1, self._folder, {**self._environment, **named}, program)
        self.processes.append(process)
        await process.start()
        return process

    def of(self, role: Role) -> list[Process]:
        return [process for process in self.processes if process.role == role]

    async def tokens(self, namespaces: Iterable[str]) -> list[str]:
        """Make a token for each pattern of namespaces, to read and to write; return their secrets."""
        async with administration(Settings.read(database_url=self.postgres.url)) as office:
            return [
                (await office.create_token(f"user of {name}", namespaces=[name], scopes=["read", "write"])).secret
                for name in namespaces
            ]

    async def command(self, *arguments: str, codes: Collection[int] = (0,)) -> str:
        """Run a command of the bridge on the fleet's PostgreSQL; return what it says, fail for another exit code."""
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        process = await _spawn(arguments, self._environment, **pipes)
        async with asyncio.timeout(PATIENCE_S):
            said, complained = await process.communicate()
        assert process.returncode in codes, f"{' '.join(arguments)}: {said.decode()}{complained.decode()}"
        return said.decode()

    def complaints(self) -> list[str]:
        return [line for process in self.processes for line in process.complaints()]


def hasty_contract(folder: Path, lease_ms: int) -> Path:
    """Write the orchestrator's contract with another lease; return where it is."""
    shipped = CONTRACT.read_text()
    changed = re.sub(r"lease_ms: \d+", f"lease_ms: {lease_ms}", shipped)
    assert changed != shipped
    path = folder / "orchestrator.yaml"
    path.write_text(changed)
    return path


def allow_open_files() -> None:
    """Raise the limit of open files as far as it goes, for this process and those it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _spawn(
    arguments: Iterable[str], settings: Mapping[str, str], program: Iterable[str] = PROGRAM, **streams: Any
) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *program, *arguments),
        env=clean | settings | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=asyncio.subprocess.DEVNULL,
        **streams,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _backends(postmaster: int) -> list[int]:
    """Return the server's processes that serve a session of the bridge."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    serving = [pid for pid in children if b": bridge bridge " in _title(pid)]
    return [int(pid) for pid in serving]


def _title(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
