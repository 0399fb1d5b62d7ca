"""Erasing a namespace and pruning the event log: what may be done to the records themselves, and only so.

The adapter keeps the laws; here the live state is folded first, so that nobody waits for long, and a pruning goes on
batch after batch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

import msgspec

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.migrations import migrate, require_current
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.adapters.postgres.upkeep import Erasure, PostgresUpkeep, Prunable
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app.database import database
from omninode_bridge.app.project import Heads, Projector
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import ForeignState, InvalidInput
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.nodes.contracts import load_contracts
from omninode_bridge.ports import Clock, EventSource, StateStore

__all__ = ["Erasure", "Pruning", "Upkeep", "age_of", "upkeep"]

AGE_MAX = timedelta(days=36_500)
_AGE = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """What a pruning deleted, or would. `held` events were old enough, but `held_for` has not read them yet."""

    events: int
    octets: int
    shards: int
    held: int
    held_for: str | None
    dry_run: bool


class Upkeep:
    """`actor` is who does it, by the log of acts."""

    def __init__(
        self,
        records: PostgresUpkeep,
        source: EventSource,
        state: StateStore,
        projector: Projector,
        clock: Clock,
        *,
        actor: str,
        fold_timeout_s: float,
    ) -> None:
        self._records = records
        self._source = source
        self._state = state
        self._projector = projector
        self._clock = clock
        self._actor = actor
        self._fold_timeout_s = fold_timeout_s

    async def erase(self, namespace: str) -> Erasure:
        """Erase all of a namespace: stamps, workflows, inputs, file facts, totals, dead letters, content of events.

        All or nothing, beside writers and reducers at work. Raises NotFound when there is nothing, StateBehind when the
        live state is not folded in time, ServiceUnavailable when locks can't be had: nothing is erased then.
        """
        tenant = check_namespace(namespace)
        await self._fold(await self._source.heads())
        return await self._records.erase(tenant, actor=self._actor, now=self._clock(), catch_up=self._fold)

    async def prune(self, older_than: timedelta, *, dry_run: bool = False) -> Pruning:
        """Delete events that are older and that every consumer has read; what they add up to is kept.

        Ended at any moment, what is deleted so far is deleted whole; the next pruning goes on.
        """
        before = self._clock() - older_than
        await self._fold(await self._source.heads())
        parts = await self._records.prunable(before)
        held = max(parts, key=lambda part: part.held, default=None)
        done = [(part.events, part.octets) for part in parts] if dry_run else await self._prune(parts, before)
        return Pruning(
            events=sum(events for events, _ in done),
            octets=sum(octets for _, octets in done),
            shards=sum(events > 0 for events, _ in done),
            held=sum(part.held for part in parts),
            held_for=held.consumer if held and held.held else None,
            dry_run=dry_run,
        )

    async def _prune(self, parts: Sequence[Prunable], before: datetime) -> list[tuple[int, int]]:
        done = []
        actor: str | None = self._actor  # one act, one row of the log
        for part in parts:
            events = octets = 0
            while events < part.events:
                deleted, freed = await self._records.prune(part, before, actor=actor)
                if not deleted:
                    break
                actor, events, octets = None, events + deleted, octets + freed
            done.append((events, octets))
        return done

    async def _fold(self, heads: Heads) -> None:
        # A state that another contract keeps is folded by its own reducers; whoever can't wait for them says so.
        with suppress(ForeignState, TimeoutError):
            async with asyncio.timeout(self._fold_timeout_s):
                await self._projector.catch_up(heads)


@asynccontextmanager
async def upkeep(settings: Settings) -> AsyncIterator[Upkeep]:
    """Open the upkeep of the settings' database; an embedded one is brought up to date first."""
    groupings = load_contracts(settings.orchestrator_contract, settings.reducer_contract).reducer.groupings
    async with database(settings) as url:
        session = await connection.connect(url)
        try:
            await (migrate(session) if settings.database_url is None else require_current(session))
        finally:
            await session.close()
        async with connection.pool(url) as pool:
            source, state = PostgresEventSource(pool), PostgresStateStore(pool)
            await state.sweep()  # what a killed rebuild left would hold up both
            yield Upkeep(
                PostgresUpkeep(pool),
                source,
                state,
                Projector(source, state, groupings),
                utc_now,
                actor=settings.stamped_by,
                fold_timeout_s=settings.state_timeout_s,
            )


def age_of(text: str) -> timedelta:
    """Return how long `30d`, `12h`, `2w`, `90m` or `0s` is; InvalidInput for anything else."""
    match = _AGE.fullmatch(text)
    age = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None
    if age is None or age > AGE_MAX:
        raise InvalidInput(
            f"{ascii(text)[:80]} is no age: use a number and s, m, h, d or w, such as 30d, up to {AGE_MAX.days}d",
            field="events_older_than",
        )
    return age
