"""Start the data directory's PostgreSQL, or find the one that `up` runs there; stop it, or tell that it died.

In order: the folder is ours, nobody else uses it, no server of it lives, the cluster exists, the server takes
connections, the database exists. Each step can be cut by `kill -9` and is found and finished by the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from omninode_bridge.adapters.embedded import postmaster
from omninode_bridge.adapters.embedded.binaries import Binaries, find_binaries
from omninode_bridge.adapters.embedded.child import Refusal
from omninode_bridge.adapters.embedded.configuration import DATABASE, PORT, USER, initdb_arguments, server_arguments
from omninode_bridge.adapters.embedded.folder import DataFolder
from omninode_bridge.adapters.embedded.identity import identities
from omninode_bridge.adapters.embedded.lock import FolderLock, Holder, Kind
from omninode_bridge.adapters.embedded.process import Process, order_for
from omninode_bridge.adapters.embedded.wire import Refused, ask
from omninode_bridge.domain.errors import DataDirectoryError, ServiceUnavailable

__all__ = ["EmbeddedPostgres"]

# Recovery replays up to max_wal_size after a crash, on a slow disk too; a server that dies is noticed at once.
_READY_S = 300.0
_INITDB_S = 120.0
# Between two looks at a folder in use, and at a server coming up: flock(2) can't be awaited with a deadline.
_PAUSE_MIN_S = 0.01
_PAUSE_MAX_S = 0.25

type MakeCluster = Callable[[Path], None]
"""Makes a cluster at a path, whole and written through to the disk, as initdb does. Runs in a thread."""

_STARTING_OR_STOPPING = {"57P01", "57P02", "57P03"}


class EmbeddedPostgres:
    """A running server of a data directory: ours, or (`attached`) the one a live `up` runs there.

    `dsn` is a libpq URL of the database `bridge` on a unix socket, as its superuser `bridge`. `pid` is the server's;
    for an attached one it is the pid of the `up` that runs it. Made by `start`; an async context manager that stops.
    """

    def __init__(self, folder: DataFolder, kind: Kind, make_cluster: MakeCluster | None = None) -> None:
        self._folder = folder
        self._kind = kind
        self._make_cluster = make_cluster
        self._restoring = False
        self._lock = FolderLock(folder.path)
        self._sockets = ""
        self._log_start = 0
        self._process: Process | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.dsn = ""
        self.pid = 0
        self.attached = False

    @classmethod
    async def start(
        cls,
        data_dir: Path,
        *,
        kind: Kind = "command",
        binaries: Path | None = None,
        wait_s: float = 10.0,
        make_cluster: MakeCluster | None = None,
    ) -> EmbeddedPostgres:
        """Return a server that takes connections, making the folder and its cluster where there is none.

        A folder in use is waited for up to `wait_s` seconds, unless its holder is an `up` whose server answers: the
        handle is attached to that one. `binaries` is a folder with PostgreSQL's programs (default: the wheel's).

        A `restore` needs an empty folder, for a cluster that `make_cluster` or initdb makes; `stop` empties it again
        unless `finish_restore` was called before.

        Raises DataDirectoryError when the folder is in use, foreign, newer, of another PostgreSQL major, or not to be
        written or reached; ServiceUnavailable when there are no binaries or the server does not start.
        """
        folder = DataFolder(data_dir, restoring=kind == "restore")
        server = cls(folder, kind, make_cluster)
        deadline = time.monotonic() + wait_s
        try:
            with folder.translated():
                folder.open()
                previous = await server._take_or_attach(deadline)
                if previous is not None:
                    await server._run(previous, find_binaries(binaries), deadline)
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def data_dir(self) -> Path:
        return self._folder.path

    @property
    def log(self) -> Path:
        return self._folder.log

    async def died(self) -> ServiceUnavailable:
        """Wait until the server has ended without `stop` being called; return what to tell about it.

        Waits for ever where that does not happen, and for an attached server, whose end its connections tell.
        """
        if self._process is not None:
            status = await asyncio.shield(self._process.ended)
            if self._stopping is None:
                return ServiceUnavailable(
                    f"PostgreSQL of {self.data_dir} ended by itself ({_outcome(status)}): "
                    f"{self._folder.log_tail(self._log_start)}; its log is {self.log}; start again: it recovers",
                    data_dir=str(self.data_dir),
                )
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def finish_restore(self) -> None:
        """Let others use the folder from the end of this server on: it has all that was to be restored."""
        with self._folder.translated():
            self._folder.finish_restore()
        self._restoring = False

    async def stop(self) -> None:
        """Shut the server down (fast, at the latest by force after 25 s) and free the folder. Again is fine."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _stop(self) -> None:
        try:
            if self._process is not None:
                await self._process.stop()
        finally:
            self._folder.drop_sockets(self._sockets)
            if self._restoring:
                self._folder.drop_restore()
            self._lock.release()

    async def _take_or_attach(self, deadline: float) -> Holder | None:
        """Own the folder and return its previous holder, or attach and return None."""
        pause = _PAUSE_MIN_S
        while (previous := self._lock.take(self._kind)) is None:
            holder = self._lock.holder()
            if holder and await self._attach(holder):
                return None
            if time.monotonic() >= deadline:
                who = f"process {holder.pid} (omninode-bridge {holder.kind})" if holder else "another process"
                raise DataDirectoryError(
                    f"{self.data_dir} is in use by {who}: wait for it to end or stop it, "
                    "or choose another folder with --data-dir or BRIDGE_DATA_DIR",
                    data_dir=str(self.data_dir),
                    holder_pid=holder.pid if holder else None,
                )
            pause = await _rest(pause, deadline)
        return previous

    async def _attach(self, holder: Holder) -> bool:
        if self._kind == "restore" or holder.kind != "up" or not holder.dsn:
            return False
        try:
            await ask(_socket(holder.sockets), DATABASE)
        except (OSError, Refused):
            return False
        # The note may be a dead predecessor's, and the server its successor's, who had written his own note before.
        if self._lock.holder() != holder:
            return False
        self.attached, self.dsn, self.pid = True, holder.dsn, holder.pid
        return True

    async def _run(self, previous: Holder, binaries: Binaries, deadline: float) -> None:
        await self._outlive_orphan(deadline)
        folder = self._folder
        folder.settle(binaries)
        self._restoring = self._kind == "restore"
        self._sockets = folder.make_sockets(previous)
        self._lock.note(Holder(os.getpid(), self._kind, sockets=self._sockets))
        if not folder.has_cluster():
            await (self._initdb(binaries) if self._make_cluster is None else self._made(self._make_cluster, binaries))
        postmaster.clear_stale(folder.pgdata)
        log_start = folder.log_bytes()
        process = await self._launch([binaries.program("postgres"), *server_arguments(self._sockets)])
        await self._until_ready(process, log_start)
        self._log_start = folder.log_bytes()
        self.pid = process.pid
        self.dsn = f"postgresql://{USER}@/{DATABASE}?host={quote(self._sockets, safe='')}&port={PORT}"
        self._lock.note(Holder(os.getpid(), self._kind, self.dsn, self._sockets))

    async def _outlive_orphan(self, deadline: float) -> None:
        """Wait until no server of this folder lives: a killed predecessor's is shutting down, or is told to."""
        pgdata = self._folder.pgdata
        pause = _PAUSE_MIN_S
        told = False
        while True:
            free = self._lock.take_server()
            pid = postmaster.running_pid(pgdata)
            if free and pid is None:
                return
            if not free and pid and not told:
                # Its owner is dead, as `lock` is ours. It had the death signal; where there is none, it gets it now.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                told = True
            if time.monotonic() >= deadline:
                who = f"PostgreSQL (process {pid})" if pid else "a process left by a killed predecessor"
                raise DataDirectoryError(
                    f"{who} still runs on {self.data_dir}: wait for it to end or stop it, "
                    "or choose another folder with --data-dir or BRIDGE_DATA_DIR",
                    data_dir=str(self.data_dir),
                    holder_pid=pid,
                )
            if free:
                self._lock.give_server_back()
            pause = await _rest(pause, deadline)

    async def _initdb(self, binaries: Binaries) -> None:
        folder = self._folder
        log_start = folder.log_bytes()
        process = await self._launch(
            [binaries.program("initdb"), *initdb_arguments(binaries.major, folder.pgdata_new.name)]
        )
        await asyncio.wait({process.ended}, timeout=_INITDB_S)
        if not process.ended.done() or process.ended.result() != 0:
            raise self._failed("initdb", log_start)
        folder.install_cluster()

    async def _made(self, make_cluster: MakeCluster, binaries: Binaries) -> None:
        # Launching something settles whose the folder is to be, before there is a cluster in it.
        process = await self._launch([binaries.program("postgres"), "--version"])
        await process.ended
        making = asyncio.create_task(asyncio.to_thread(make_cluster, self._folder.pgdata_new))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait({making})  # a thread can't be stopped, and must not write into what is removed
            raise
        self._folder.give_to_owner(self._folder.pgdata_new)
        self._folder.install_cluster()

    async def _launch(self, program: list[str]) -> Process:
        """Run `program` in the folder as somebody it accepts; return once it runs."""
        folder = self._folder
        order = order_for(folder.path, folder.log, program)
        refusal: Refusal | None = None
        for identity in identities(*folder.owner()):
            process = self._process = Process(
                identity.applied_to(order), hold=self._lock.server_fd, on_tick=folder.bound_log
            )
            refusal = await process.execed()
            if refusal is None:
                return process
            if refusal["step"] != "namespace":
                break
        assert refusal is not None
        if refusal["step"] == "namespace" and os.geteuid() == 0:
            folder.give_to_nobody()
            return await self._launch(program)
        raise self._unable(refusal, program[0])

    def _unable(self, refusal: Refusal, program: str) -> DataDirectoryError:
        what = {
            "user": "become its folder's owner",
            "reach": f"reach {self.data_dir}",
            "log": f"write {self.log}",
        }.get(refusal["step"], f"run {program}")
        return DataDirectoryError(
            f"PostgreSQL, which never runs as root, can't {what}: {refusal['error']}; run as an ordinary user, "
            "or choose a folder (and an installation) that the folder's owner can reach",
            data_dir=str(self.data_dir),
        )

    async def _until_ready(self, process: Process, log_start: int) -> None:
        deadline = time.monotonic() + _READY_S
        pause = _PAUSE_MIN_S
        while not process.ended.done() and time.monotonic() < deadline:
            if postmaster.is_ready(self._folder.pgdata, process.pid) and await self._serves():
                return
            await asyncio.wait({process.ended}, timeout=pause)
            pause = min(pause * 1.5, _PAUSE_MAX_S)
        raise self._failed("PostgreSQL", log_start)

    async def _serves(self) -> bool:
        """Return whether the database answers, making it first if need be."""
        socket = _socket(self._sockets)
        try:
            if not await ask(socket, "postgres", f"SELECT FROM pg_database WHERE datname = '{DATABASE}'"):
                await ask(socket, "postgres", f"CREATE DATABASE {DATABASE}")
            await ask(socket, DATABASE)
        except OSError:
            return False
        except Refused as error:
            if error.sqlstate in _STARTING_OR_STOPPING:
                return False
            raise ServiceUnavailable(
                f"PostgreSQL in {self.data_dir} refuses the bridge: {error} ({error.sqlstate}); its log is {self.log}",
                data_dir=str(self.data_dir),
            ) from error
        return True

    def _failed(self, program: str, log_start: int) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"{program} did not start in {self.data_dir}: {self._folder.log_tail(log_start)}; its log is {self.log}",
            data_dir=str(self.data_dir),
        )


def _socket(sockets: str) -> str:
    return f"{sockets}/.s.PGSQL.{PORT}"


async def _rest(pause: float, deadline: float) -> float:
    await asyncio.sleep(max(0.0, min(pause, deadline - time.monotonic())))
    return min(pause * 1.5, _PAUSE_MAX_S)


def _outcome(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"signal {-status}"
