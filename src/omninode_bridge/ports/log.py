"""The event log: who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.domain.windows import Extent, Sight, Window

READ_BYTES_MAX = 32 * 1024**2
"""Bytes of event bodies in one read of the log: what a reader holds, however large the events and many the shards."""


class EventSource(Protocol):
    def seen_by(self, visible: Visible) -> EventSource:
        """Return the same source, limited to the records of namespaces that someone may see."""
        ...

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        """Return records beyond the given heads, each shard's in order; shards not named, from the start.

        At most `limit` records and READ_BYTES_MAX bytes of bodies in all, a fair share of each shard; one record
        at least where there is any.
        """
        ...

    async def heads(self) -> dict[ShardKey, Head]:
        """Return where each shard of each topic ends now."""
        ...

    async def extents(self) -> dict[ShardKey, Extent]:
        """Return from where to where the records of each shard lie now."""
        ...

    async def look(self, windows: Mapping[ShardKey, Window], *, records_max: int, bytes_max: int) -> Sight:
        """Return the records in windows of some shards that may be seen, each shard's in order.

        What is looked through is bounded by the windows, however little of it may be seen; what is returned by
        `records_max` and `bytes_max`, but for the first record. Raises EventsExpired when a window begins below its
        shard's floor.
        """
        ...

    async def event_ids(self, places: Mapping[ShardKey, int]) -> dict[ShardKey, str]:
        """Return which event each of some positions holds, whoever may see it; nothing for those that hold none now."""
        ...
