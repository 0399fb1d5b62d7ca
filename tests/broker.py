"""A real Apache Kafka for the tests: one node on loopback that can be stopped, killed, paused and started again.

It is made of the jars that scripts/kafka.sh sees to, and dies with the process that started it. Its ports and its
folder stay the same from start to start. Nothing in it belongs to an event loop: one broker serves the tests of a
session, which have a loop each.

It listens twice. Who comes by `bootstrap_servers` is told to stay there. Who comes by `upstream` is sent to
`advertised`, where a fault proxy may listen that passes on to `upstream`: such a client never gets past the proxy, and
the node's talk with itself never gets into it.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
KAFKA = ROOT / "scripts" / "kafka.sh"
SETTINGS = ROOT / "deploy" / "kafka" / "server.properties"

START_S = 90
"""Takes some 4 s alone on two cores; this is for a machine that has much else to do."""
STOP_S = 20
_TAIL_CHARS = 4000
_STARTED = b"Kafka Server started"

# Asks the kernel for SIGKILL when the parent dies, who may have died before, and execs. It is a program of its own
# because a process with threads must not run Python between fork and exec.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Broker:
    """A broker in a folder of its own, an async context manager. `advertised` is a free port by default."""

    def __init__(self, folder: Path, *, advertised: str | None = None) -> None:
        self.folder = folder
        self.log = folder / "broker.log"
        ports = free_ports()
        self.bootstrap_servers = f"127.0.0.1:{next(ports)}"
        """Where clients go."""
        self.upstream = f"127.0.0.1:{next(ports)}"
        """Where a proxy goes."""
        self._controller = f"127.0.0.1:{next(ports)}"
        self.advertised = advertised or f"127.0.0.1:{next(ports)}"
        """Where a proxy listens, and the clients go that shall meet it."""
        self._properties = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start, and return when it serves. RuntimeError with the end of its log when it does not."""
        assert self._process is None, "it runs already"
        if not self._properties.exists():
            await self._prepare()
        process = self._spawn()
        started = Future[bool]()
        self._reader = Thread(target=self._read, args=(process, started), name="broker-log", daemon=True)
        self._reader.start()
        self._process = process
        done, _ = await asyncio.wait([asyncio.wrap_future(started)], timeout=START_S)
        if not done or not started.result():
            await self.kill()
            what = f"ended with {process.returncode}" if done else f"does not serve after {START_S} s"
            raise RuntimeError(f"the broker {what}; {self.log} ends with:\n{self._tail()}")

    async def stop(self) -> None:
        """End it in order, as SIGTERM does; kill it when that takes too long."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            await self._end(STOP_S)

    async def kill(self) -> None:
        """End it at once, as SIGKILL does; what it has acknowledged is with the kernel."""
        if self._process is not None:
            self._process.kill()
            await self._end(None)

    def pause(self) -> None:
        """Let it hang: connections stay open, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _prepare(self) -> None:
        """See to the jars, write the properties and format the storage."""
        await _run(KAFKA, "jars")
        lines = [f"{name}={value}" for name, value in self._settings().items()]
        prepared = self._properties.with_suffix(".new")
        prepared.write_text("\n".join([SETTINGS.read_text(encoding="utf-8"), *lines, ""]), encoding="utf-8")
        # 16 bytes in base64, as Kafka has them; one that begins with a dash would look like an option.
        cluster = "t" + secrets.token_urlsafe(16)[1:]
        formatting = ["format", "--standalone", "-t", cluster, "-c", str(prepared), *self._formatting()]
        await _run(KAFKA, "java", "kafka.tools.StorageTool", *formatting)
        prepared.rename(self._properties)

    def _settings(self) -> dict[str, object]:
        """Return what is told to the node beside the settings that every node on a desk has."""
        return {
            "listeners": f"DIRECT://{self.bootstrap_servers},FRONTED://{self.upstream},CONTROLLER://{self._controller}",
            "advertised.listeners": f"DIRECT://{self.bootstrap_servers},FRONTED://{self.advertised}",
            "listener.security.protocol.map": "DIRECT:PLAINTEXT,FRONTED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "DIRECT",
            "controller.quorum.bootstrap.servers": self._controller,
            "log.dirs": self.folder / "data",
        }

    def _formatting(self) -> list[str]:
        """Return what the storage is formatted with beside."""
        return []

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Not in a thread: the death signal comes when the thread ends that forked.
        program = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        return subprocess.Popen(
            [*program, str(KAFKA), "java", "kafka.Kafka", str(self._properties)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the tests, which then stop it.
            start_new_session=True,
        )

    def _read(self, process: subprocess.Popen[bytes], started: Future[bool]) -> None:
        """Pass its log on to the file until its end; tell when it has started, or that it never will."""
        assert process.stdout is not None
        with process.stdout, self.log.open("ab", buffering=0) as log:
            for line in process.stdout:
                log.write(line)
                if not started.done() and _STARTED in line:
                    started.set_result(True)
        process.wait()
        if not started.done():
            started.set_result(False)

    async def _end(self, timeout_s: float | None) -> None:
        assert self._process is not None
        assert self._reader is not None
        await asyncio.to_thread(self._reader.join, timeout_s)
        if self._reader.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._reader.join)
        self._process = self._reader = None

    def _tail(self) -> str:
        # What it says about shutting down would hide why it did.
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if " INFO " not in line)[-_TAIL_CHARS:]


def free_ports() -> Iterator[int]:
    """Yield free ports of loopback that nobody gets by chance.

    They are below those that the kernel hands out to connections (32768 and up): else, while the broker is away, a
    client that tries and tries may be given the broker's port as its own, and then talks to itself.
    """
    ports = list(range(15_000, 32_000))
    # Not of the seed that tests set: processes that test side by side would all choose the same.
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


async def _run(*command: str | Path) -> None:
    run = await asyncio.to_thread(
        subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
