"""The relay's loop: read what directly follows, publish it, move the position once it is kept.

A shard has one relay at a time, by a lock in PostgreSQL; one that lost it without knowing can only repeat what was
sent, and its position does not move. Repeats harm nobody: readers fold direct successors only. A relay that fails lets
its shards go, so that one that still reaches the transport takes them. What the transport refuses for itself becomes a
dead letter in the transaction that moves the position: the relay neither stops there nor skips it.

One fault does not stop the others: a shard whose log does not continue, or whose partition takes nothing, is left out,
and dead letters that their topics don't take wait, each said by `/health`, while all else is forwarded.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Protocol

from omninode_bridge.domain.errors import BridgeError, LawBroken, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.ports import DeadLetter, EventSource
from omninode_bridge.ports.transport import Forwarding, Outcome, Publisher

BATCH_EVENTS_MAX = 4000
"""Events sent together: the position moves once a batch."""
LETTERS_MAX = 100
LEFT_OUT_MAX = 5
"""Shards that are left out and named, at most."""
POLL_S = 0.2
"""How long to wait for a hint before looking anyway; and for a shard that another relay leaves."""
PAUSE_S_MAX = 5.0
PREPARE_S = 10.0
"""How often to see to the topics: somebody may have deleted them, or have given them partitions."""
LOOK_S = 5.0
"""How often to look at the shards again that are left out, at most."""
PAUSES = 10
"""What was not taken waits as many times longer than that took: all else waits while it is tried."""

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
        self._prepare_at_s = self._look_at_s = self._bury_at_s = 0.0
        self._failure: Exception | None = None
        self._left_out: dict[ShardKey, BridgeError] = {}
        self.burial: Exception | None = None
        """What dead letters could not be sent for; None since they were."""
        self.held: frozenset[int] = frozenset()
        """The shards that this relay forwards."""
        self.wake = asyncio.Event()
        """Set it as a hint that there is news."""

    @property
    def trouble(self) -> Exception | None:
        """What keeps the relay from forwarding: why shards are left out, or what the last turn failed with."""
        if not self._left_out:
            return self._failure
        reasons = dict.fromkeys(self._left_out[key].message for key in sorted(self._left_out)[:LEFT_OUT_MAX])
        broken = any(isinstance(error, LawBroken) for error in self._left_out.values())
        return (LawBroken if broken else ServiceUnavailable)("; ".join(reasons))

    async def step(self) -> int:
        """Forward a batch; return the number of records that moved the positions."""
        now_s = _now_s()
        if now_s >= self._prepare_at_s:
            await self._publisher.prepare()
            self._prepare_at_s = now_s + PREPARE_S
        self.held = await self._forwarding.hold()
        self._left_out = {key: error for key, error in self._left_out.items() if key[1] in self.held}
        if not self.held:
            self.burial = None  # others' business now
            return 0
        sent = await self._forward()
        if _now_s() >= self._bury_at_s:
            await self._bury()
        return sent

    async def _forward(self) -> int:
        heads = await self._source.heads()
        after = await self._forwarding.positions()
        wanted = self._wanted(heads)
        # Others' shards are read from their ends, which is not at all.
        starts = {key: after.get(key, START) if key in wanted else head for key, head in heads.items()}
        found = await self._source.read(starts, self._batch_max)
        moves, misfits = _moves(starts, [record for record in found if (record.topic, record.shard) in wanted])
        if misfits:
            # Another relay may have gone on meanwhile, and retention have deleted what it had forwarded.
            now = await self._forwarding.positions()
            for key in [key for key in misfits if now.get(key) != after.get(key)]:
                del misfits[key]
                moves.pop(key, None)
        records = [
            record for record in found
            if (move := moves.get((record.topic, record.shard))) and record.position <= move[1].position
        ]  # fmt: skip
        began_s = _now_s()
        outcomes = await self._publish(records) if records else []
        kept, refused, unsent = _parted(records, outcomes)
        moves = {key: (moves[key][0], head) for key, head in kept.items()}
        done = (moves.keys() | {key for key, head in heads.items() if head == after.get(key, START)}) - unsent.keys()
        self._leave_out({**misfits, **unsent}, (self._left_out.keys() & heads.keys()) - (wanted & done), began_s)
        if not moves:
            return 0
        if not await self._forwarding.forwarded(moves, refused):
            return 0  # another relay was there before: what was sent twice is dropped by its readers
        sent = sum(end.position - start.position for start, end in moves.values())
        self._meter.forwarded(sent, len(refused))
        if refused:
            place = refused[0].record
            _log.error(
                "%d events could not be forwarded and became dead letters, the first is %s shard %d position %d: %s",
                len(refused), place.topic, place.shard, place.position, refused[0].reason,
            )  # fmt: skip
        return sent

    async def _publish(self, records: Sequence[Record]) -> list[Outcome]:
        try:
            return await self._publisher.publish(records)
        except ServiceUnavailable as error:
            # Of shards that are left out it is no news, and no reason to leave the others.
            if all((record.topic, record.shard) in self._left_out for record in records):
                return [error] * len(records)
            raise

    def _wanted(self, keys: Iterable[ShardKey]) -> set[ShardKey]:
        """Return which of the shards to read: those that are held, and not left out until it is time to look again."""
        resting = self._left_out.keys() if _now_s() < self._look_at_s else ()
        return {key for key in keys if key[1] in self.held and key not in resting}

    def _leave_out(self, found: Mapping[ShardKey, BridgeError], still: Set[ShardKey], began_s: float) -> None:
        """Note the shards that are left out: those just found, and of those known before the ones `still`."""
        before = self._left_out
        self._left_out = {key: before[key] for key in still} | dict(found)
        if found:
            self._look_at_s = _now_s() + max(LOOK_S, PAUSES * (_now_s() - began_s))
        for key in self._left_out.keys() - before.keys():
            error = self._left_out[key]
            level = logging.ERROR if isinstance(error, LawBroken) else logging.WARNING
            _log.log(level, "the relay leaves %s shard %d out: %s", *key, error.message)
        for topic, shard in before.keys() - self._left_out.keys():
            _log.info("the relay does not leave %s shard %d out any more", topic, shard)

    async def _bury(self) -> None:
        began_s = _now_s()
        while letters := await self._forwarding.unsent(LETTERS_MAX):
            try:
                await self._publisher.bury([one.letter for one in letters])
            except Exception as error:
                if type(error) is not type(self.burial):
                    _tell("dead letters can't be sent, and wait", error)
                self.burial = error
                self._bury_at_s = _now_s() + max(PAUSE_S_MAX, PAUSES * (_now_s() - began_s))
                return
            await self._forwarding.sent(letters)
        if self.burial is not None:
            _log.info("dead letters are sent again")
            self.burial = None

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
        if type(error) is not type(self._failure):
            _tell("the relay can't forward", error)
        self._failure = error

    def _goes_on(self) -> None:
        if self._failure is not None:
            _log.info("the relay forwards again")
            self._failure = None


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _tell(what: str, error: Exception) -> None:
    known = isinstance(error, ServiceUnavailable)
    _log.log(
        logging.WARNING if known else logging.ERROR,
        "%s: %s",
        *(what, error.message if isinstance(error, BridgeError) else type(error).__name__),
        exc_info=None if known else error,
    )


def _parted(
    records: Sequence[Record], outcomes: Sequence[Outcome]
) -> tuple[dict[ShardKey, Head], list[DeadLetter], dict[ShardKey, ServiceUnavailable]]:
    """Return how far each shard was sent, what of that was refused, and the shards of which the rest was not sent."""
    kept: dict[ShardKey, Head] = {}
    refused: list[DeadLetter] = []
    unsent: dict[ShardKey, ServiceUnavailable] = {}
    for record, outcome in zip(records, outcomes, strict=True):
        key = record.topic, record.shard
        if key in unsent:
            continue
        if isinstance(outcome, ServiceUnavailable):
            unsent[key] = outcome
            continue
        kept[key] = record.head
        if outcome is not None:
            refused.append(DeadLetter(record=record, reason=f"not forwarded: {outcome}"))
    return kept, refused, unsent


def _moves(
    starts: Mapping[ShardKey, Head], records: Sequence[Record]
) -> tuple[dict[ShardKey, tuple[Head, Head]], dict[ShardKey, LawBroken]]:
    """Return how far each shard can be forwarded, and where its log does not continue."""
    moves: dict[ShardKey, tuple[Head, Head]] = {}
    misfits: dict[ShardKey, LawBroken] = {}
    by_shard: dict[ShardKey, list[Record]] = defaultdict(list)
    for record in records:
        by_shard[record.topic, record.shard].append(record)
    for key, chain in by_shard.items():
        start = starts.get(key, START)
        accepted, misfit = follow(start, chain)
        if accepted:
            moves[key] = start, accepted[-1].head
        if misfit is not None:
            misfits[key] = LawBroken(
                f"the event log of {key[0]} shard {key[1]} does not continue before position {misfit.position}: run "
                "`omninode-bridge audit`"
            )
    return moves, misfits
