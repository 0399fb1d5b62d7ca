"""Callers as tasks: each acts again and again on a connection of its own; cut off, it goes on at the next API."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from tests.chaos.wire import Connection, Lost
from tests.load.caller import Answer, Ask, Caller, Circle, Steps
from tests.load.fleet import Fleet
from tests.load.reckoning import Told

TENANTS, CALLERS = 4, 24
THINKING_S_MAX = 0.2
"""Some time between two acts, so that whoever is started again gets to run."""
WORKFLOW_SHARE = 40
RETRY_AFTER_S_MAX = 0.5
"""They come back sooner than they are asked to: the service has to bear that as well."""
PROGRESS_S_MAX = 60.0
CALM_S = 1.0
END_S_MAX = 130.0
"""Longer than a caller's own patience: its complaint tells more."""


class Crowd:
    """Callers of several tenants, and what they were told."""

    def __init__(self, ports: Sequence[int], tokens: Sequence[str], seed: str, count: int = CALLERS) -> None:
        self.told = Told()
        self.circle = Circle(self.told, retry_after_s_max=RETRY_AFTER_S_MAX)
        self.slowest = (0.0, "nothing")
        """How long somebody waited for an answer, at most, and for which; known once all have ended."""
        self._ports = ports
        self._rng = random.Random(seed)
        self._over = asyncio.Event()
        self._lines: list[_Line] = []
        names = [[f"tenant-{number}.docs", f"tenant-{number}.media"] for number in range(len(tokens))]
        callers = [
            Caller(
                *(self.circle, f"{seed}-{n}", tokens[n % len(tokens)]),
                *(names[n % len(names)], names[(n + 1) % len(names)]),
                workflow_share=WORKFLOW_SHARE,
            )
            for n in range(count)
        ]
        self._tasks = [asyncio.create_task(self._live(caller, n)) for n, caller in enumerate(callers)]

    @classmethod
    async def gather(cls, fleet: Fleet, seed: str, count: int = CALLERS) -> Crowd:
        """Let a crowd act on the APIs of a fleet from now on."""
        tokens = await fleet.tokens([f"tenant-{number}.*" for number in range(TENANTS)])
        return cls([process.port for process in fleet.of("api")], tokens, seed, count)

    async def progress(self) -> None:
        """Wait until there are acknowledgements that were not there before: whoever tries again is answered."""
        before = len(self.told.stamped)
        async with asyncio.timeout(PROGRESS_S_MAX):
            while len(self.told.stamped) < before + len(self._tasks):  # noqa: ASYNC110 - the books tell nobody
                await asyncio.sleep(0.01)

    async def calm(self) -> None:
        """Wait until nobody has waited long for an answer."""
        async with asyncio.timeout(PROGRESS_S_MAX):
            while any(line.waited_s > CALM_S for line in self._lines):  # noqa: ASYNC110 - the lines tell nobody
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Let everybody end what he is at: every request gets its answer."""
        self._over.set()
        async with asyncio.timeout(END_S_MAX):
            await asyncio.gather(*self._tasks)

    async def give_up(self) -> None:
        """Cut everybody off, where the test has failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _live(self, caller: Caller, number: int) -> None:
        line = _Line(self._ports, number)
        self._lines.append(line)
        try:
            while not self._over.is_set():
                await _perform(caller.act(), line)
                await asyncio.sleep(self._rng.uniform(0, THINKING_S_MAX))
        finally:
            self.slowest = max(self.slowest, line.slowest)
            line.close()


async def _perform(steps: Steps[None], line: _Line) -> None:
    back: Answer | None = None
    while True:
        try:
            step = steps.send(back)
        except StopIteration:
            return
        if isinstance(step, Ask):
            back = await line.ask(step)
        else:
            await asyncio.sleep(step.seconds)
            back = None


class _Line:
    """A caller's way to the service: one connection at a time, to one of the APIs."""

    def __init__(self, ports: Sequence[int], number: int) -> None:
        self._ports = ports
        self._at = number
        self._connection: Connection | None = None
        self.slowest = (0.0, "nothing")
        self._asked_at_s: float | None = None

    @property
    def waited_s(self) -> float:
        """How long there is no answer to what it asked last; 0 when there is one."""
        return 0.0 if self._asked_at_s is None else time.monotonic() - self._asked_at_s

    async def ask(self, ask: Ask) -> Answer | None:
        """Send a request; None when there was no answer."""
        try:
            if self._connection is None:
                self._connection = await Connection.open(self._ports[self._at % len(self._ports)])
            self._asked_at_s = time.monotonic()
            answer = await self._connection.ask(ask)
            self.slowest = max(self.slowest, (self.waited_s, f"{ask.name}: {answer.status}"))
        except Lost:
            self._at += 1
            self.close()
            return None
        finally:
            self._asked_at_s = None
        if self._connection.closing:
            self.close()
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
