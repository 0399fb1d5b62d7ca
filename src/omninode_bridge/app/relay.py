"""The relay's loop: read what directly follows, publish it, move the position once it is kept.

A shard has one relay at a time, by a lock in PostgreSQL; one that lost it without knowing can only repeat what was
sent, and its position does not move. Repeats harm nobody: readers fold direct successors only. A relay that fails lets
its shards go, so that one that still reaches the transport takes them. What the transport refuses for itself becomes a
dead letter in the transaction that moves the position: the relay neither stops there nor skips it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from omninode_bridge.domain.errors import BridgeError, LawBroken, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.ports import DeadLetter, EventSource
from omninode_bridge.ports.transport import Forwarding, Publisher

BATCH_EVENTS_MAX = 4000
"""Events sent together: the position moves once a batch."""
LETTERS_MAX = 100
POLL_S = 0.2
"""How long to wait for a hint before looking anyway; and for a shard that another relay leaves."""
PAUSE_S_MAX = 5.0
PREPARE_S = 10.0
"""How often to see to the topics: somebody may have deleted them, or have given them partitions."""

_log = logging.getLogger(__name__)


class RelayMeter(Protocol):
    """What counts what was forwarded."""

    def forwarded(self, events: int, refused: int) -> None: ...


class Relay:
    """Forwards the log's records to a transport, for ever."""

    def __init__(
        self,
        source: EventSource,
        forwarding: Forwarding,
        publisher: Publisher,
        *,
        meter: RelayMeter,
        batch_max: int = BATCH_EVENTS_MAX,
    ) -> None:
        self._source = source
        self._forwarding = forwarding
        self._publisher = publisher
        self._meter = meter
        self._batch_max = batch_max
        self._prepare_at_s = 0.0
        self.trouble: Exception | None = None
        """What the loop's last turn failed with; None when it went well."""
        self.held: frozenset[int] = frozenset()
        """The shards that this relay forwards."""
        self.wake = asyncio.Event()
        """Set it as a hint that there is news."""

    async def step(self) -> int:
        """Forward a batch; return the number of records that moved the positions."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._prepare_at_s:
            await self._publisher.prepare()
            self._prepare_at_s = now_s + PREPARE_S
        self.held = await self._forwarding.hold()
        if not self.held:
            return 0
        sent = await self._forward()
        await self._bury()
        return sent

    async def _forward(self) -> int:
        heads = await self._source.heads()
        after = await self._forwarding.positions()
        # Others' shards are read from their ends, which is not at all.
        starts = {key: after.get(key, START) if key[1] in self.held else head for key, head in heads.items()}
        found = await self._source.read(starts, self._batch_max)
        records = [record for record in found if record.shard in self.held]
        try:
            moves = _moves(starts, records)
        except LawBroken:
            if await self._forwarding.positions() != after:
                return 0  # another relay went on meanwhile, and retention deleted what it had forwarded
            raise
        if not records:
            return 0
        outcomes = await self._publisher.publish(records)
        refused = [
            DeadLetter(record=record, reason=f"not forwarded: {why}")
            for record, why in zip(records, outcomes, strict=True)
            if why is not None
        ]
        if not await self._forwarding.forwarded(moves, refused):
            return 0  # another relay was there before: what was sent twice is dropped by its readers
        self._meter.forwarded(len(records), len(refused))
        if refused:
            place = refused[0].record
            _log.error(
                "%d events could not be forwarded and became dead letters, the first is %s shard %d position %d: %s",
                len(refused), place.topic, place.shard, place.position, refused[0].reason,
            )  # fmt: skip
        return len(records)

    async def _bury(self) -> None:
        while letters := await self._forwarding.unsent(LETTERS_MAX):
            await self._publisher.bury([one.letter for one in letters])
            await self._forwarding.sent(letters)

    async def run(self) -> None:
        """Forward for ever; whatever goes wrong is logged once and tried again, more and more slowly."""
        pause = POLL_S
        while True:
            try:
                sent = await self.step()
                pause = POLL_S
                self._goes_on()
            except Exception as error:
                self._fails(error)
                await self._forwarding.release()
                self.held, self._prepare_at_s = frozenset(), 0.0
                pause = min(pause * 2, PAUSE_S_MAX)
                await asyncio.sleep(pause)  # news are no reason to try sooner
                continue
            if not sent:
                with suppress(TimeoutError):  # that is the poll
                    await asyncio.wait_for(self.wake.wait(), pause)
                self.wake.clear()

    def _fails(self, error: Exception) -> None:
        # The like of it again, every few seconds for as long as the broker is away, is no news.
        if type(error) is not type(self.trouble):
            known = isinstance(error, ServiceUnavailable)
            _log.log(
                logging.WARNING if known else logging.ERROR,
                "the relay can't forward: %s",
                error.message if isinstance(error, BridgeError) else type(error).__name__,
                exc_info=None if known else error,
            )
        self.trouble = error

    def _goes_on(self) -> None:
        if self.trouble is not None:
            _log.info("the relay forwards again")
            self.trouble = None


def _moves(starts: Mapping[ShardKey, Head], records: Sequence[Record]) -> dict[ShardKey, tuple[Head, Head]]:
    by_shard: dict[ShardKey, list[Record]] = defaultdict(list)
    for record in records:
        by_shard[record.topic, record.shard].append(record)
    for key, chain in by_shard.items():
        _, misfit = follow(starts.get(key, START), chain)
        if misfit is not None:
            raise LawBroken(
                f"the event log of {key[0]} shard {key[1]} does not continue before position {misfit.position}: run "
                "`omninode-bridge audit`"
            )
    return {key: (starts.get(key, START), chain[-1].head) for key, chain in by_shard.items()}
