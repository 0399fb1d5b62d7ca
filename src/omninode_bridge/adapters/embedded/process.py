"""One PostgreSQL program (initdb, postgres) and the thread that created it.

Linux sends a death signal when the parent's *thread* ends, not its process. So the thread that creates the program
is the one that waits for it to end: it cannot go first, whichever thread asked and however long that one lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from omninode_bridge.adapters.embedded import child
from omninode_bridge.adapters.embedded.child import Order, Refusal

__all__ = ["Process", "environment", "order_for"]

# Fast shutdown writes a checkpoint of up to shared_buffers; immediate shutdown leaves that to the next start.
_STOP_STEPS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_TICK_MS = 30_000


class Process:
    """A program run as `order` says; it and its children keep the file descriptor `hold` open until the last has ended.

    `on_tick` is called in the watching thread every 30 s. Construct it inside a running event loop.
    """

    def __init__(self, order: Order, *, hold: int, on_tick: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._order = order
        self._hold = hold
        self._on_tick = on_tick
        self._popen: subprocess.Popen[bytes] | None = None
        self._execed: asyncio.Future[Refusal | None] = self._loop.create_future()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._live, name="embedded-postgres", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen else 0

    async def execed(self) -> Refusal | None:
        """Wait until the program itself runs; return why it does not, if so."""
        return await asyncio.shield(self._execed)

    async def stop(self) -> None:
        """End the program: fast, then at once, then by force. Returns when it is gone, at the latest after 25 s."""
        await self.execed()
        for number, patience_s in _STOP_STEPS:
            if self.ended.done() or self._popen is None:
                return
            self._popen.send_signal(number)
            await asyncio.wait({self.ended}, timeout=patience_s)

    def _live(self) -> None:
        try:
            self._popen = popen = subprocess.Popen(
                [sys.executable, "-I", "-S", child.__file__, json.dumps(self._order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(self._hold,),
                env=environment(),
                start_new_session=True,  # Ctrl-C is for the program that owns the folder; it stops PostgreSQL last
            )
        except OSError as error:
            self._tell(self._execed, Refusal(step="exec", error=error.strerror or str(error)))
            self._tell(self.ended, 1)
            return
        assert popen.stderr is not None
        with popen.stderr:
            report = popen.stderr.read()
        self._tell(self._execed, _parse(report))
        self._watch(popen.pid)
        self._tell(self.ended, popen.wait())

    def _watch(self, pid: int) -> None:
        # Without process descriptors (not Linux) there are no ticks.
        with contextlib.suppress(AttributeError, OSError):
            descriptor = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                while not poll.poll(_TICK_MS):
                    self._on_tick()
            finally:
                os.close(descriptor)

    def _tell[T](self, future: asyncio.Future[T], value: T) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(settle)


def _parse(report: bytes) -> Refusal | None:
    if not report:
        return None
    try:
        refusal: Refusal = json.loads(report)
    except ValueError:
        return Refusal(step="exec", error=report.decode(errors="replace").strip().rpartition("\n")[2])
    return refusal


def environment() -> dict[str, str]:
    """Return what a program of PostgreSQL is to see of this process's environment."""
    # Nothing of the caller's PG* variables or locale may decide; messages stay in English for whoever reads the log.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def order_for(folder: Path, log: Path, program: list[str]) -> Order:
    """Return the order to run `program` in `folder`, its output appended to `log`."""
    return Order(parent=os.getpid(), folder=str(folder), log=str(log), program=program)
