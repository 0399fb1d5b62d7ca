"""The reducer's source where there is a transport: what arrives there, and what is missing from the log.

    transport ─▶ waiting, by shard ─▶ direct successors ─▶ the projector
                        │ a gap, a foreign record, or nothing for a while
                        └──────────▶ the log in PostgreSQL ─▶ the projector

What arrives is believed only where it directly follows what was folded. So records that the transport lost, repeated,
mixed up, refused or forgot change no total: they come from the log, which has them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from itertools import islice

from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.domain.windows import Extent, Sight, Window
from omninode_bridge.ports import EventSource
from omninode_bridge.ports.transport import Arrived, Subscription

LATE_S = 2.0
"""How long a shard may be behind the log's head without a move, before what is missing is read from the log."""
WAITING_RECORDS_MAX = 50_000
"""Records that wait here behind a gap; more stay with the transport."""

_log = logging.getLogger(__name__)


class Feed:
    """An EventSource for one projector. It reads the shards that are this reader's part of the transport."""

    def __init__(self, log: EventSource, arrivals: Subscription) -> None:
        self._log = log
        self._arrivals = arrivals
        self._waiting: dict[ShardKey, deque[Arrived]] = {}
        self._count = 0
        self._ends: dict[tuple[str, int], int] = {}
        self._seen: dict[ShardKey, Head] = {}
        self._look_at_s = 0.0
        self.filled = 0
        """Records that were read from the log, because the transport did not bring them in order."""

    def seen_by(self, visible: Visible) -> EventSource:
        return self._log.seen_by(visible)

    async def heads(self) -> dict[ShardKey, Head]:
        return await self._log.heads()

    async def extents(self) -> dict[ShardKey, Extent]:
        return await self._log.extents()

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        return await self._log.look(windows, records_max=records_max, bytes_max=bytes_max)

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        return await self._log.event_ids(places)

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        """Return direct successors of `after`, of any shard that arrived and of those of ours that are late."""
        if self._count < WAITING_RECORDS_MAX:
            self._receive(limit)
        found: list[Record] = []
        gaps: set[ShardKey] = set()
        for key in list(self._waiting):
            head = after.get(key, START)
            chain = self._pending(key, head)
            if not chain:
                continue
            follows, misfit = follow(head, (one.record for one in islice(chain, limit - len(found))))
            found += follows
            if misfit is not None and not follows:
                gaps.add(key)
            if len(found) >= limit:
                break
        self._tell()
        if not found:
            gaps |= await self._late(after)
        if gaps:
            found += await self._fill(gaps, after, limit)
        return found

    def _receive(self, limit: int) -> None:
        for arrived in self._arrivals.take(max(limit, 1)):
            record = arrived.record
            self._waiting.setdefault((record.topic, record.shard), deque()).append(arrived)
            self._ends[record.topic, arrived.partition] = arrived.offset + 1
            self._count += 1

    def _pending(self, key: ShardKey, head: Head) -> deque[Arrived]:
        """Return what of a shard is not folded yet."""
        chain = self._waiting[key]
        while chain and chain[0].record.position <= head.position:
            chain.popleft()
            self._count -= 1
        if not chain:
            del self._waiting[key]
        return chain

    async def _late(self, after: Mapping[ShardKey, Head]) -> set[ShardKey]:
        """Return the shards of ours that are behind the log and did not move since the last look."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._look_at_s:
            return set()
        self._look_at_s = now_s + LATE_S
        heads = await self._log.heads()
        behind = {
            key: after.get(key, START)
            for key, head in heads.items()
            if head.position > after.get(key, START).position and self._arrivals.owns(key)
        }
        late = {key for key, at in behind.items() if self._seen.get(key) == at}
        self._seen = behind
        if late:
            self._look_at_s = 0.0  # there may be more of it
        return late

    async def _fill(self, gaps: set[ShardKey], after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        heads = await self._log.heads()
        for key in gaps & self._waiting.keys():
            if heads.get(key, START).position <= after.get(key, START).position:
                # It goes on where the log does not: not this log's. (A transport that another bridge writes to.)
                strange = self._waiting.pop(key)
                self._count -= len(strange)
                _log.warning(
                    "%d records of %s shard %d from position %d are not in the event log: dropped; is the topic shared "
                    "with another bridge?", len(strange), *key, strange[0].record.position,
                )  # fmt: skip
        starts = {key: after.get(key, START) if key in gaps else head for key, head in heads.items()}
        records = [record for record in await self._log.read(starts, limit) if (record.topic, record.shard) in gaps]
        self._seen = {}
        self.filled += len(records)
        return records

    def _tell(self) -> None:
        """Tell the transport up to where everything was folded; what was handed out last is seen folded next time."""
        ends = dict(self._ends)
        for (topic, _), chain in self._waiting.items():
            place = topic, chain[0].partition
            ends[place] = min(ends.get(place, chain[0].offset), chain[0].offset)
        self._arrivals.done(ends)
