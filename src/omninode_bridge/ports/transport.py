"""The transport of events, such as Kafka: who publishes what the log has, and who reads it there.

PostgreSQL is the truth, the transport is a way to many readers: what it loses, repeats or mixes up is repaired from
the log, by the rule of direct successors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.ports.state import DeadLetter


class Unsent(msgspec.Struct, frozen=True):
    """A dead letter that the transport's own topic of dead letters has yet to get."""

    number: int
    letter: DeadLetter


type Outcome = str | ServiceUnavailable | None
"""Of a record that was sent: None, it is kept; a text, why it never will be; an error, why that is not known."""


class Publisher(Protocol):
    """Sends records to the transport."""

    async def prepare(self) -> None:
        """See to the topics: make those that are missing. Raises ServiceUnavailable saying what is missing."""
        ...

    async def publish(self, records: Sequence[Record]) -> list[Outcome]:
        """Send records, each shard's in order; return what became of each.

        Raises ServiceUnavailable when that is known of none: some may be kept, and are sent again.
        """
        ...

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Send dead letters to the topics of dead letters, `<topic>.dlq`; without the body one that is too large."""
        ...


class Forwarding(Protocol):
    """How far the log was forwarded, and who may forward which shard: one at a time."""

    async def hold(self) -> frozenset[int]:
        """Take the shards that nobody forwards; return all that are held. ServiceUnavailable: none is held."""
        ...

    async def release(self) -> None:
        """Let all go, for another to take."""
        ...

    async def positions(self) -> dict[ShardKey, Head]:
        """Return the last record of each shard that was forwarded, or that retention deleted before."""
        ...

    async def forwarded(self, moves: Mapping[ShardKey, tuple[Head, Head]], refused: Sequence[DeadLetter]) -> bool:
        """Move the positions and keep what was refused, in one transaction.

        Returns False, and changes nothing, when a position is not where its move starts, or nothing is held any more.
        """
        ...

    async def unsent(self, limit: int) -> list[Unsent]:
        """Return dead letters of the shards that are held."""
        ...

    async def sent(self, letters: Sequence[Unsent]) -> None: ...


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A record as it came over the transport, and where it stood there."""

    record: Record
    partition: int
    offset: int


class Subscription(Protocol):
    """This reader's part of the topics; the parts move as readers come and go."""

    def take(self, limit: int) -> list[Arrived]:
        """Return what has arrived, at most `limit`, without waiting."""
        ...

    def owns(self, key: ShardKey) -> bool:
        """Tell whether the shard is part of ours now."""
        ...

    def done(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell up to where (topic, partition) was dealt with, the offset excluded. It is a hint, and no more."""
        ...
