"""The ledger, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omninode_bridge.adapters.memory.store import MemoryStore
from omninode_bridge.domain.recording import (
    Verdict,
    decide,
    op_key,
    path_key,
)
from omninode_bridge.domain.stamp import Outcome
from omninode_bridge.domain.workflow import Plan
from omninode_bridge.ports import (
    Clock,
    IdSource,
)


class MemoryLedger:
    """Ledger and LedgerSession in one: the owner of one shard, or one of several that believe they are."""

    def __init__(self, store: MemoryStore, plan: Plan, clock: Clock, ids: IdSource, shard: int = 0) -> None:
        self._store = store
        self._plan = plan
        self._clock = clock
        self._ids = ids
        self._shard = shard

    async def record(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        return await self.commit(outcomes)

    async def commit(self, group: Sequence[Outcome]) -> list[Verdict]:
        store, plan = self._store, self._plan
        while True:
            heads = {topic: store.head((topic, self._shard)) for topic in (plan.completed_topic, plan.failed_topic)}
            priors = {key: store.prior(w) for key in map(op_key, group) if (w := store.workflows.get(key))}
            latest = {key: store.latest(key) for key in map(path_key, group)}
            await asyncio.sleep(0)  # a turn for the others, as between reading and writing in a database
            now = self._clock()
            decision = decide(
                plan,
                group,
                priors=priors,
                latest={key: stamp for key, stamp in latest.items() if stamp},
                heads=heads,
                shard=self._shard,
                ids=iter(self._ids(2 * len(group))),
                now=now,
            )
            if store.write(decision, heads, now):
                return decision.verdicts

    async def close(self) -> None:
        """Nothing is held."""
