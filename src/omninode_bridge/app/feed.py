"""The reducer's source where there is a transport: what arrives there, and what is missing from the log.

    transport ─▶ waiting, by shard ─▶ direct successors that the log knows ─▶ the projector
                        │ a gap, a foreign record, or nothing for a while
                        └──────────▶ the log in PostgreSQL ─▶ the projector

What arrives is believed only where it directly follows what was folded, and where the log has the last of it under its
id: the chain of ids between holds the rest. So records that the transport lost, repeated, mixed up, refused or forgot,
and those of another log (an older database's, another bridge's), change no total: what counts comes from the log then.
That a record says what the relay sent is the subscription's to see to, by its seal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby, islice
from operator import attrgetter

from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.domain.windows import Extent, Sight, Window
from omninode_bridge.ports import READ_BYTES_MAX, EventSource
from omninode_bridge.ports.transport import Arrived, Subscription

LATE_S = 2.0
"""How long a shard may be behind the log's head without a move, before what is missing is read from the log."""
BUSY_LATE_S = 3 * LATE_S
"""The same while there is always more that has arrived: it may be among that."""
WAITING_RECORDS_MAX = 50_000
WAITING_BYTES_MAX = 64 * 1024**2
"""Records that wait here, behind a gap or for their turn; more stay with the transport."""
WARN_S = 60.0
"""How often to tell of records that are not this log's."""

_log = logging.getLogger(__name__)


class Feed:
    """An EventSource for one projector. It reads the shards that are this reader's part of the transport."""

    def __init__(self, log: EventSource, arrivals: Subscription) -> None:
        self._log = log
        self._arrivals = arrivals
        self._waiting: dict[ShardKey, deque[Arrived]] = {}
        self._count = self._bytes = 0
        self._ends: dict[tuple[str, int], int] = {}
        self._seen: dict[ShardKey, Head] = {}
        self._came: set[ShardKey] = set()
        self._catching_up: set[ShardKey] = set()
        self._emptied = False
        self._look_at_s = self._warn_at_s = 0.0
        self.filled = 0
        """Records that were read from the log, because the transport did not bring them in order."""
        self.strange = 0
        """Records that arrived and are not the log's."""

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
        self._emptied = False
        if self._count < WAITING_RECORDS_MAX and self._bytes < WAITING_BYTES_MAX:
            self._receive(after, limit)
        gaps = {key for key in list(self._waiting) if self._misfits(key, after.get(key, START))}
        gaps |= await self._late(after)
        gaps |= {key for key in self._catching_up if self._arrivals.owns(key)}
        chains = self._chains(after, gaps, limit // 2 if gaps else limit)
        self._tell()
        gaps |= await self._unknown(chains)
        found = [record for chain in chains.values() for record in chain]
        if gaps:
            found += await self._fill(gaps, after, limit - len(found))
        return found

    def _receive(self, after: Mapping[ShardKey, Head], limit: int) -> None:
        taken = self._arrivals.take(max(limit, 1))
        self._emptied = len(taken) < limit
        for (topic, shard, partition), group in groupby(taken, _place):
            row = list(group)
            if row[-1].record.position > after.get((topic, shard), START).position:
                self._came.add((topic, shard))
            self._waiting.setdefault((topic, shard), deque()).extend(row)
            self._ends[topic, partition] = row[-1].offset + 1
            self._count += len(row)
            self._bytes += sum(len(one.record.body) for one in row)

    def _misfits(self, key: ShardKey, head: Head) -> bool:
        """Forget what of a shard is folded; tell whether what comes next does not follow."""
        chain = self._waiting[key]
        while chain and chain[0].record.position <= head.position:
            self._forget(chain.popleft())
        if not chain:
            del self._waiting[key]
            return False
        first = chain[0].record
        return (first.position, first.previous_id) != (head.position + 1, head.event_id)

    def _chains(
        self, after: Mapping[ShardKey, Head], gaps: Collection[ShardKey], limit: int
    ) -> dict[ShardKey, list[Record]]:
        """Return direct successors, at most `limit` of all shards but those with gaps."""
        chains: dict[ShardKey, list[Record]] = {}
        room = READ_BYTES_MAX
        for key in [key for key in self._waiting if key not in gaps]:
            if limit <= 0 or room <= 0:
                break
            chain = self._waiting[key] = self._waiting.pop(key)  # whose turn it was comes last the next time
            chains[key], _ = follow(after.get(key, START), _within(chain, limit, room))
            limit -= len(chains[key])
            room -= sum(len(record.body) for record in chains[key])
        return chains

    async def _unknown(self, chains: dict[ShardKey, list[Record]]) -> set[ShardKey]:
        """Drop the chains whose last record the log has not got; return their shards."""
        if not chains:
            return set()
        ids = await self._log.event_ids({key: chain[-1].position for key, chain in chains.items()})
        unknown = {key for key, chain in chains.items() if ids.get(key) != chain[-1].event_id}
        for key in unknown:
            del chains[key]
            self._drop(key)
        return unknown

    async def _late(self, after: Mapping[ShardKey, Head]) -> set[ShardKey]:
        """Return the shards of ours that are behind the log and did not move since the last look."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._look_at_s + (0.0 if self._emptied else BUSY_LATE_S - LATE_S):
            return set()
        heads = await self._log.heads()
        behind = {
            key: after.get(key, START)
            for key, head in heads.items()
            if head.position > after.get(key, START).position and self._arrivals.owns(key)
        }
        # What still comes may reach us yet; what only repeats the past does not.
        late = {key for key, at in behind.items() if self._seen.get(key) == at and key not in self._came}
        self._seen, self._look_at_s = behind, now_s + LATE_S
        self._came.clear()
        return late

    async def _fill(self, gaps: Collection[ShardKey], after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        heads = await self._log.heads()
        for key in set(gaps) & self._waiting.keys():
            if heads.get(key, START).position <= after.get(key, START).position:
                self._drop(key)  # it goes on where the log does not
        starts = {key: after.get(key, START) if key in gaps else head for key, head in heads.items()}
        records = [record for record in await self._log.read(starts, limit) if (record.topic, record.shard) in gaps]
        ends = {(record.topic, record.shard): record.head for record in records}
        for key in ends:
            self._seen.pop(key, None)
        # Far behind: it goes on at once from here, until it has caught up, or something arrives.
        self._catching_up = {
            key
            for key, head in ends.items()
            if head.position < heads.get(key, START).position and key not in self._waiting
        }
        self.filled += len(records)
        return records

    def _drop(self, key: ShardKey) -> None:
        strange = self._waiting.pop(key)
        for one in strange:
            self._forget(one)
        self.strange += len(strange)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._warn_at_s:
            self._warn_at_s = now_s + WARN_S
            _log.warning(
                "%d records of %s shard %d from position %d are not in the event log: dropped; is the topic shared "
                "with another bridge, or older than the database?", len(strange), *key, strange[0].record.position,
            )  # fmt: skip

    def _forget(self, arrived: Arrived) -> None:
        self._count -= 1
        self._bytes -= len(arrived.record.body)

    def _tell(self) -> None:
        """Tell the transport up to where everything was folded; what was handed out last is seen folded next time."""
        ends = dict(self._ends)
        for (topic, _), chain in self._waiting.items():
            place = topic, chain[0].partition
            ends[place] = min(ends.get(place, chain[0].offset), chain[0].offset)
        self._arrivals.done(ends)


def _within(chain: Iterable[Arrived], limit: int, room: int) -> Iterator[Record]:
    """Yield the first records, so many and so many bytes at most, but one at least."""
    for arrived in islice(chain, limit):
        yield arrived.record
        room -= len(arrived.record.body)
        if room <= 0:
            return


_place = attrgetter("record.topic", "record.shard", "partition")
