"""The event log as its readers see it, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest

from omninode_bridge.adapters.memory.store import MemoryStore
from omninode_bridge.domain.log import START, Head, Record, ShardKey, shares
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.domain.windows import Extent, Sight, Window
from omninode_bridge.ports import READ_BYTES_MAX


class MemoryEventSource:
    def __init__(self, store: MemoryStore, visible: Visible = EVERYTHING) -> None:
        self._store = store
        self._visible = visible

    def seen_by(self, visible: Visible) -> MemoryEventSource:
        return MemoryEventSource(self._store, visible)

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        news = [(records, after.get(key, START).position) for key, records in self._store.log.items()]
        taken = shares([max(0, len(records) - start) for records, start in news], limit)
        turns = zip_longest(
            *(records[start : start + share] for (records, start), share in zip(news, taken, strict=True))
        )
        found: list[Record] = []
        size = 0
        for record in chain.from_iterable(turns):
            if record is None or not self._visible.sees(record.namespace):
                continue
            size += len(record.body)
            if found and size > READ_BYTES_MAX:
                break
            found.append(record)
        return found

    async def heads(self) -> dict[ShardKey, Head]:
        return {key: self._store.head(key) for key in self._store.log}

    async def extents(self) -> dict[ShardKey, Extent]:
        return {key: Extent(0, head) for key, head in (await self.heads()).items()}

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        news = [self._store.log.get(key, [])[after:until] for key, (after, until) in windows.items()]
        records: list[Record] = []
        reached = {key: after for key, (after, _) in windows.items()}
        size = 0
        for record in filter(None, chain.from_iterable(zip_longest(*news))):
            if self._visible.sees(record.namespace):
                size += len(record.body)
                if records and (size > bytes_max or len(records) == records_max):
                    return Sight(records, reached)
                records.append(record)
            reached[record.topic, record.shard] = record.position
        return Sight(records, {key: until for key, (_, until) in windows.items()})

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        held = {key: self._store.log.get(key, [])[position - 1 : position] for key, position in places.items()}
        return {key: records[0].event_id for key, records in held.items() if records}
