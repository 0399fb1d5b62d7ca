"""How many accepted workflows may wait: what is accepted faster than it is run must not fill the disk.

The count is that of all processes, as of AGE_S ago at most, and what this process accepted since. So it may be exceeded
by what the others accept in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from omninode_bridge.domain.errors import Overloaded
from omninode_bridge.ports import WorkQueue

AGE_S = 1.0


class Backlog:
    """The accepted workflows that have not ended."""

    def __init__(
        self, queue: WorkQueue, *, count_max: int, bytes_max: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._monotonic = monotonic
        self._looking = asyncio.Lock()
        self._count = self._bytes = 0
        self._looked_at = float("-inf")

    async def take(self, content_bytes: int) -> None:
        """Make room for one more; Overloaded when there is none."""
        if self._is_old():
            async with self._looking:
                if self._is_old():  # else another caller has just looked
                    looked_at = self._monotonic()
                    self._count, self._bytes = await self._queue.size()
                    self._looked_at = looked_at
        if self._count >= self._count_max or self._bytes + content_bytes > self._bytes_max:
            raise Overloaded(
                f"{self._count} accepted workflows of {self._bytes} bytes wait to be run; {self._count_max} and "
                f"{self._bytes_max} are the limits: start another orchestrator, or try again later"
            )
        self._count += 1
        self._bytes += content_bytes

    def _is_old(self) -> bool:
        return self._monotonic() - self._looked_at >= AGE_S
