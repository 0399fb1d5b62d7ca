"""What tokens use of their day's quota, shared by all processes through one table.

The rules it keeps:

1. What is asked for is reserved in memory, and refused there when it would go over: before anything is recorded.
2. Every FLUSH_S at most, what all tokens used since is added to the table in one statement, and the sums that come
   back tell what the other processes let through. So a quota may be exceeded by what they let through in that time,
   and in this process alone by nothing.
3. A sum older than SUM_AGE_S_MAX is no ground to let anything through: it is read first.
4. What could not be added is added next time. When the connection is lost while it is added, that may count it
   twice, and never not at all; a process that is killed takes what it had not added with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from datetime import datetime, timedelta

from omninode_bridge.app.known_tokens import Monotonic
from omninode_bridge.domain.errors import QuotaExceeded
from omninode_bridge.domain.tenancy import Principal
from omninode_bridge.ports import Clock, Tokens, TokenUse, UseKey

FLUSH_S = 1.0
SUM_AGE_S_MAX = 2 * FLUSH_S

_NOTHING = TokenUse()
_log = logging.getLogger(__name__)


class _Day:
    """What a token used on a day: the table's sum, what is being added to it, and what is still to be added."""

    __slots__ = ("added", "pending", "summed", "summed_at")

    def __init__(self) -> None:
        self.summed = self.added = self.pending = _NOTHING
        self.summed_at = float("-inf")

    @property
    def total(self) -> TokenUse:
        return self.summed + self.added + self.pending


class Quotas:
    """The days of all tokens that were used lately."""

    def __init__(self, tokens: Tokens, clock: Clock, monotonic: Monotonic = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._monotonic = monotonic
        self._days: dict[UseKey, _Day] = {}
        self._adding = asyncio.Lock()
        self._failing = False

    async def charge(self, principal: Principal, use: TokenUse, *, reserve: bool = True) -> None:
        """Reserve what a token asks for; QuotaExceeded when that is over its day's quota.

        Without `reserve` it is only looked whether it would go.
        """
        if principal.token_id is None:
            return
        now = self._clock()
        key = (principal.token_id, now.date())
        day = self._days.get(key)
        if day is None:
            day = self._days[key] = _Day()
        limits = principal.limits
        if limits.stamps_per_day is not None or limits.bytes_per_day is not None:
            if self._is_old(day):
                await self._sum(key, day)
            _check(principal, day.total, use, now)
        if reserve:
            day.pending += use

    async def flush(self) -> None:
        """Add what was used since the last time; what can't be added now stays for the next."""
        async with self._adding:
            moving = {key: day for key, day in self._days.items() if day.pending != _NOTHING}
            for day in moving.values():
                day.added, day.pending = day.pending, _NOTHING
            try:
                await self._add(moving)
            except Exception as error:  # this must go on for as long as the process does
                if not self._failing:
                    _log.warning("what tokens used is not recorded yet, and tried again: %s", error)
                self._failing = True
            else:
                self._failing = False
            finally:
                for day in moving.values():
                    day.pending, day.added = day.pending + day.added, _NOTHING
            self._drop_old()

    async def _sum(self, key: UseKey, day: _Day) -> None:
        async with self._adding:
            if self._is_old(day):  # else another caller has just read it
                await self._add({key: day})

    async def _add(self, days: dict[UseKey, _Day]) -> None:
        if not days:
            return
        at = self._monotonic()
        sums = await self._tokens.use({key: day.added for key, day in days.items()})
        for key, day in days.items():
            day.summed, day.added = sums.get(key, _NOTHING), _NOTHING
            day.summed_at = at

    def _is_old(self, day: _Day) -> bool:
        return self._monotonic() - day.summed_at >= SUM_AGE_S_MAX

    def _drop_old(self) -> None:
        today = self._clock().date()
        over = [key for key, day in self._days.items() if key[1] < today and day.total == day.summed]
        for key in over:
            del self._days[key]


def _check(principal: Principal, used: TokenUse, use: TokenUse, now: datetime) -> None:
    limits = principal.limits
    for limit, before, more, what in (
        (limits.stamps_per_day, used.stamps, use.stamps, "stamps"),
        (limits.bytes_per_day, used.content_bytes, use.content_bytes, "bytes"),
    ):
        if limit is not None and before + more > limit:
            raise QuotaExceeded(
                f"token {principal.name!r} may use {limit} {what} a day: {before} are used, and {more} more are asked "
                "for; its day ends at midnight UTC",
                retry_after_s=_seconds_left(now),
            )


def _seconds_left(now: datetime) -> int:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return math.ceil((midnight - now).total_seconds())
