"""Reads the topics, each with a reader of its own.

In one group they would be shared out together, evenly by number: one process may then get all partitions of the topic
that nearly all events are on, and the next those of the other. So each topic has its own members of the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from omninode_bridge.adapters.kafka.client import KafkaSettings
from omninode_bridge.adapters.kafka.reader import QUEUE_RECORDS_MAX, TopicReader
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.log import ShardKey
from omninode_bridge.ports.transport import Arrived


class KafkaSubscription:
    """This process's part of the topics."""

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], *, queue_records_max: int = QUEUE_RECORDS_MAX
    ) -> None:
        self._readers = {name: TopicReader(settings, name, queue_records_max=queue_records_max) for name in topics}
        self._turns = list(self._readers.values())

    async def __aenter__(self) -> Self:
        try:
            for reader in self._turns:
                reader.open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await asyncio.gather(*(reader.close() for reader in self._turns))

    def hints(self, hint: Callable[[], None]) -> None:
        """Have `hint` called on the event loop when something has arrived."""
        for reader in self._turns:
            reader.hint = hint

    def take(self, limit: int) -> list[Arrived]:
        self._turns.append(self._turns.pop(0))  # none may starve another
        taken: list[Arrived] = []
        for reader in self._turns:
            taken += reader.take(limit - len(taken))
        return taken

    def owns(self, key: ShardKey) -> bool:
        topic, shard = key
        reader = self._readers.get(topic)
        return reader is None or reader.owns(shard)

    def done(self, offsets: Mapping[tuple[str, int], int]) -> None:
        for name, reader in self._readers.items():
            reader.done({partition: offset for (topic, partition), offset in offsets.items() if topic == name})

    @property
    def waiting(self) -> int:
        """How many records have arrived and were not taken."""
        return sum(reader.waiting for reader in self._turns)

    @property
    def owned(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that are ours now."""
        return frozenset((reader.topic, partition) for reader in self._turns for partition in reader.owned)

    @property
    def strays(self) -> int:
        """Messages that are none of our records."""
        return sum(reader.strays for reader in self._turns)

    @property
    def trouble(self) -> ServiceUnavailable | None:
        """What the broker could not be read for, last; None since it was read again."""
        return next((reader.trouble for reader in self._readers.values() if reader.trouble is not None), None)
