"""How a process does: each part of it looked at, and what was found put in words and in numbers.

The rules this file obeys:

1. A part is down when it does not do its work, degraded when it does it late or in part. The process is ready while
   all parts are up that its role needs; the others are told, and keep nobody from being served.
2. A look changes nothing, ends in bounded time, and begins after it was asked for: nobody is told what was true before.
   Those who wait for one share it.
3. Whoever asks is not known: no tenant's name, no digest and no address of another service is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from omninode_bridge.app.telemetry import Reading, reading
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.stamp import Time
from omninode_bridge.ports import Clock

__all__ = ["Component", "Finding", "Health", "Part", "Report", "Status"]

LOOK_S_MAX = 5.0
"""How long a part may take to be looked at."""
SPACING_S = 0.25
"""From the beginning of one look to the next, at least: whoever asks too soon waits, however many they are."""

type Status = Literal["ok", "degraded", "down"]
_WORTH: dict[Status, float] = {"ok": 1.0, "degraded": 0.5, "down": 0.0}
_log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """What a part was found to be. `gauges` are told by the metrics too."""

    status: Status = "ok"
    reason: str | None = None
    gauges: Sequence[Reading] = ()


class Part(NamedTuple):
    """Something to look at. `needed`: without it the process is not ready. `asks`: of the database.

    The check may raise ServiceUnavailable: then the part is down, and the error says why.
    """

    name: str
    check: Callable[[], Awaitable[Finding]]
    needed: bool = False
    asks: bool = False


class Component(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part as it is told. `since` is when this process first saw it so."""

    name: str
    status: Status
    needed: bool
    since: Time
    reason: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a process, and how it does as a whole: down when a part is that it needs to do its work."""

    status: Status
    components: list[Component]


class Health:
    """The health of one process."""

    def __init__(self, parts: Sequence[Part], clock: Clock) -> None:
        self._parts = parts
        self._clock = clock
        self._turn = asyncio.Lock()
        self._began_s = -SPACING_S
        self._findings: dict[str, Finding] = {}
        self._errors: dict[str, ServiceUnavailable] = {}
        self._since: dict[str, tuple[Status, datetime]] = {}
        self._stopping: ServiceUnavailable | None = None

    def stop(self) -> None:
        """Be ready for nothing any more: the process ends."""
        self._stopping = ServiceUnavailable("the server is shutting down: ask another one")

    async def report(self) -> Report:
        """Look at each part and tell."""
        await self._look()
        components = [self._component(part) for part in self._parts]
        down = any(component.needed and component.status == "down" for component in components)
        well = all(component.status == "ok" for component in components)
        return Report(status="down" if down or self._stopping else "ok" if well else "degraded", components=components)

    async def require_ready(self) -> None:
        """Raise ServiceUnavailable with the reason while the process could not do its work."""
        if self._stopping is not None:
            raise self._stopping
        await self._look()
        for part in self._parts:
            found = self._findings[part.name]
            if part.needed and found.status == "down":
                raise self._errors.get(part.name) or ServiceUnavailable(found.reason or f"{part.name} is down")

    async def gauges(self) -> list[Reading]:
        """Look at each part and return its numbers."""
        await self._look()
        worth = [((part.name,), _WORTH[self._findings[part.name].status]) for part in self._parts]
        status = Reading("component_status", "1: well, 0.5: degraded, 0: down.", worth, ("component",))
        ready = not any(part.needed and self._findings[part.name].status == "down" for part in self._parts)
        return [
            status,
            reading("ready", "1 while the process can do its work.", float(ready and self._stopping is None)),
            *(gauge for found in self._findings.values() for gauge in found.gauges),
        ]

    def _component(self, part: Part) -> Component:
        found = self._findings[part.name]
        since = self._since[part.name][1]
        return Component(name=part.name, status=found.status, needed=part.needed, since=since, reason=found.reason)

    async def _look(self) -> None:
        asked_s = time.monotonic()
        async with self._turn:
            if self._began_s >= asked_s:
                return
            await asyncio.sleep(max(0.0, self._began_s + SPACING_S - time.monotonic()))
            self._began_s = time.monotonic()
            blind = False
            for part in self._parts:
                if blind and part.asks:
                    self._note(part, Finding("down", "not known: PostgreSQL can't be asked"))
                elif not await self._look_at(part):
                    blind = blind or part.asks

    async def _look_at(self, part: Part) -> bool:
        """Look at a part; tell whether that could be done."""
        try:
            async with asyncio.timeout(LOOK_S_MAX):
                found = await part.check()
        except ServiceUnavailable as error:
            self._note(part, Finding("down", error.message), error)
        except TimeoutError:
            self._note(part, Finding("down", f"no answer within {LOOK_S_MAX:g} s"))
        except Exception:
            _log.exception("%s can't be looked at", part.name)
            self._note(part, Finding("down", "it can't be looked at: the log says why"))
        else:
            self._note(part, found)
            return True
        return False

    def _note(self, part: Part, found: Finding, error: ServiceUnavailable | None = None) -> None:
        self._findings[part.name] = found
        self._errors.pop(part.name, None)
        if error is not None:
            self._errors[part.name] = error
        before = self._since.get(part.name)
        if before is None or before[0] != found.status:
            self._since[part.name] = found.status, self._clock()
            if before is not None or found.status != "ok":
                level = logging.INFO if found.status == "ok" else logging.WARNING
                _log.log(level, "%s is %s%s", part.name, found.status, f": {found.reason}" if found.reason else "")
