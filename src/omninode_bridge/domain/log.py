"""The event log's arithmetic: shards, heads, records, and who directly follows whom.

A topic is split into shards. Each shard of each topic is a chain: positions 1, 2, 3, … without a hole, each
record naming the id of the one before it. `follow` is the only rule by which a reader may move forward, so
a repeat, a gap or a foreign record can't change a total.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

NIL_ID = "00000000-0000-0000-0000-000000000000"
"""The previous id of the record at position 1."""

SHARDS_MAX = 256


class Head(msgspec.Struct, frozen=True, gc=False):
    """A place in a chain: the position, and the id of the event there. Position 0 is before the first."""

    position: int = 0
    event_id: str = NIL_ID


START = Head()

type ShardKey = tuple[str, int]
"""(topic, shard)."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event as the log holds it; `body` is the encoded CloudEvent."""

    topic: str
    shard: int
    position: int
    event_id: str
    previous_id: str
    namespace: str
    workflow_id: str
    body: bytes

    @property
    def head(self) -> Head:
        return Head(self.position, self.event_id)


def follow(head: Head, records: Iterable[Record]) -> tuple[list[Record], Record | None]:
    """Return the records of one shard that directly succeed `head`, one after another, and the first misfit.

    Records at or below the head are repeats and are dropped. The misfit is a record that lies beyond a gap,
    or that names another predecessor: it must not be folded before the log was read in between.
    """
    accepted: list[Record] = []
    position, event_id = head.position, head.event_id
    for record in records:
        if record.position <= position:
            continue
        if record.position != position + 1 or record.previous_id != event_id:
            return accepted, record
        accepted.append(record)
        position, event_id = record.position, record.event_id
    return accepted, None


def shares(waiting: Sequence[int], limit: int) -> list[int]:
    """Divide `limit` records among shards in which so many wait: evenly, and what one does not need to the others.

    Where the limit is below the number of shards, those with most waiting come first: none is left out for ever.
    """
    taken = [0] * len(waiting)
    left = limit
    for done, shard in enumerate(sorted(range(len(waiting)), key=waiting.__getitem__)):
        taken[shard] = min(waiting[shard], left // (len(waiting) - done))
        left -= taken[shard]
    return taken
