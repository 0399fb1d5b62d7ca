"""Looking at the event log through windows: for readers who may see little of it, and go on where they were."""

from __future__ import annotations

import msgspec

from omninode_bridge.domain.errors import EventsExpired
from omninode_bridge.domain.log import Head, Record, ShardKey


class Extent(msgspec.Struct, frozen=True, gc=False):
    """Where the records of a shard lie: beyond the floor, up to the head."""

    floor: int
    head: Head


type Window = tuple[int, int]
"""A range of positions: the first is not in it, the second is."""


class Sight(msgspec.Struct, frozen=True):
    """What was seen in windows of the log: records, and up to which position each shard was looked through."""

    records: list[Record]
    reached: dict[ShardKey, int]


def events_expired() -> EventsExpired:
    """Return the refusal to go on from a position that retention has passed."""
    return EventsExpired(
        "events after this id were dropped by retention: begin without Last-Event-ID, with the oldest that are kept",
        field="Last-Event-ID",
    )
