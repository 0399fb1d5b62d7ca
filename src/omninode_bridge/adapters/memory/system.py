"""A clock and ids that tests and simulations hold in their hands."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from omninode_bridge.domain.names import uuid7


class FixedClock:
    """A clock that starts at `start` and moves by `step` at each reading."""

    def __init__(
        self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC), step: timedelta = timedelta(milliseconds=1)
    ) -> None:
        self.now = start
        self.step = step

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


class SeededIds:
    """UUIDv7s that depend on the seed alone, each later than the one before."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, count: int) -> list[str]:
        return [self._next() for _ in range(count)]

    def _next(self) -> str:
        self._count += 1
        entropy = hashlib.blake2b(b"%d %d" % (self._seed, self._count), digest_size=10).digest()
        return uuid7(1_767_225_600_000 + self._count, entropy)
