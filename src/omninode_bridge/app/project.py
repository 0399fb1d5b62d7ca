"""The reducer's loop: read what directly follows, fold it, save state and position in one transaction.

The rule: a record is folded only if it is the direct successor of the last one folded in its shard. The log
in PostgreSQL has no gaps (law 2), so a misfit there is a broken law and stops the loop, loudly. Any number of
projectors may run at once: positions move by compare-and-set, so each record is folded once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol

from omninode_bridge.domain.errors import BridgeError, CorruptEvent, LawBroken, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.domain.reduction import Groupings, Item, fold, read_item
from omninode_bridge.ports import DeadLetter, EventSource, Generation, StateStore, fingerprint, foreign_state

BATCH_EVENTS_MAX = 2000
"""Events a transaction: large enough that the upsert of the totals costs nothing an event."""
SWAP_TRIES_MAX = 1000
"""A try fails when another rebuild was swapped in meanwhile, or where nothing can hold the live state still."""
POLL_S = 0.2
"""How long to wait for a hint before looking anyway."""


type Heads = Mapping[ShardKey, Head]

_log = logging.getLogger(__name__)


class FoldMeter(Protocol):
    """What counts folded events, and the loop's failures."""

    def folded(self, events: int) -> None: ...

    def failed(self, error: Exception) -> None: ...


class _NoMeter:
    def folded(self, events: int) -> None: ...

    def failed(self, error: Exception) -> None: ...


class Projector:
    """Folds the log into one generation of the state: the live one, or one that is being built."""

    def __init__(
        self,
        source: EventSource,
        state: StateStore,
        groupings: Groupings,
        *,
        building: Generation | None = None,
        batch_max: int = BATCH_EVENTS_MAX,
        batch_s: float = 0.0,
        meter: FoldMeter | None = None,
    ) -> None:
        self._source = source
        self._state = state
        self._groupings = groupings
        self._building = building
        self._batch_max = batch_max
        self._batch_s = batch_s
        self._meter = meter or _NoMeter()
        self.trouble: Exception | None = None
        """What the loop's last turn failed with; None when it went well."""
        self._generation: Generation | None = building
        self._positions: dict[ShardKey, Head] | None = None
        self._turn = asyncio.Lock()  # the loop and the readers that wait for it share one projector
        self.wake = asyncio.Event()
        """Set it as a hint that there is news."""

    async def step(self, until: Heads | None = None) -> int:
        """Fold one batch, up to the given heads if any; return the number of records that moved the positions.

        0: nothing is left, or another projector was first (then `catch_up` looks again).
        """
        async with self._turn:
            return await self._step(until)

    async def _step(self, until: Heads | None) -> int:
        generation = await self._current()
        if self._positions is None:
            self._positions = await self._state.positions(generation)
        records = await self._source.read(self._positions, self._batch_max)
        try:
            moves, accepted = self._advance(records, until)
        except LawBroken:
            # Or else others folded on since the positions were read, or replaced the generation, and retention deleted
            # what they had folded.
            unmoved = await self._state.positions(generation) == self._positions
            if unmoved and await self._state.apply(generation, {}, {}):
                raise
            return self._displaced()
        if not moves:
            return 0
        letters: list[DeadLetter] = []
        delta = fold(_items(accepted, generation.namespace, letters), self._groupings)
        if not await self._state.apply(generation, delta, moves, letters):
            return self._displaced()
        self._positions |= {key: to for key, (_, to) in moves.items()}
        self._meter.folded(len(accepted))
        if letters:
            place = letters[0].record
            _log.error(
                "%d events can't be read and became dead letters, the first is %s shard %d position %d",
                len(letters), place.topic, place.shard, place.position,
            )  # fmt: skip
        return len(accepted)

    async def catch_up(self, heads: Heads, *, exactly: bool = False) -> None:
        """Fold until the positions have reached the heads; `exactly`: and not beyond."""
        while not await self.reached(heads):
            if not await self.step(heads if exactly else None):
                self._forget()  # somebody else is ahead of us, or the generation changed: look again

    async def reached(self, heads: Heads) -> bool:
        """Tell whether the positions are at or beyond the heads."""
        if self._positions is None:
            self._positions = await self._state.positions(await self._current())
        positions = self._positions
        return all(positions.get(key, START).position >= head.position for key, head in heads.items())

    async def run(self) -> None:
        """Fold for ever; wait for a hint or a poll when there is nothing. Ends by cancellation.

        While events come, each transaction has those of `batch_s`, or as many as one may have. Readers that wait for
        the state don't wait for that.
        Whatever goes wrong is logged, counted and tried again, more and more slowly: the positions tell where to go on,
        and readers, who fold what they wait for, are told the reason.
        """
        pause, clock = POLL_S, asyncio.get_running_loop().time
        while True:
            began_s = clock()
            try:
                folded = await self.step()
                pause = POLL_S
                self._goes_on()
            except Exception as error:
                self._fails(error)
                self._forget()
                folded, pause = 0, min(pause * 2, 5.0)
            if not folded:
                with suppress(TimeoutError):  # that is the poll
                    await asyncio.wait_for(self.wake.wait(), pause)
                self.wake.clear()
            elif folded < self._batch_max:
                await asyncio.sleep(began_s + self._batch_s - clock())

    def _fails(self, error: Exception) -> None:
        self._meter.failed(error)
        # The like of it again, every few seconds for as long as PostgreSQL is away, is no news.
        if type(error) is not type(self.trouble):
            known = isinstance(error, ServiceUnavailable)
            _log.log(
                logging.WARNING if known else logging.ERROR,
                "the reducer can't fold: %s",
                error.message if isinstance(error, BridgeError) else type(error).__name__,
                exc_info=None if known else error,
            )
        self.trouble = error

    def _goes_on(self) -> None:
        if self.trouble is not None:
            _log.info("the reducer folds again")
            self.trouble = None

    async def _current(self) -> Generation:
        if self._generation is None:
            live = await live_generation(self._state, self._groupings)
            if live.fingerprint != fingerprint(self._groupings):
                raise foreign_state(live.number)
            self._generation = live
        return self._generation

    def _displaced(self) -> int:
        """Look again, because somebody else moved the positions. A state that is being built has one builder."""
        if self._building is not None:
            raise ServiceUnavailable("somebody else dropped the state that is being rebuilt: start the rebuild again")
        self._forget()
        return 0

    def _forget(self) -> None:
        """Read generation and positions again at the next step."""
        self._positions = None
        self._generation = self._building

    def _advance(
        self, records: Iterable[Record], until: Heads | None
    ) -> tuple[dict[ShardKey, tuple[Head, Head]], list[Record]]:
        assert self._positions is not None
        by_shard: dict[ShardKey, list[Record]] = defaultdict(list)
        for record in records:
            by_shard[record.topic, record.shard].append(record)
        moves: dict[ShardKey, tuple[Head, Head]] = {}
        accepted: list[Record] = []
        for key, chain in by_shard.items():
            head, due = self._positions.get(key, START), chain
            if until is not None:
                end = until.get(key, START).position
                due = [record for record in chain if record.position <= end]
            follows, misfit = follow(head, due)
            if misfit is not None:
                raise LawBroken(
                    f"the event log of {key[0]} shard {key[1]} does not continue after position "
                    f"{follows[-1].position if follows else head.position}: found {misfit.position} after "
                    f"{misfit.previous_id}; run `omninode-bridge audit`"
                )
            if follows:
                moves[key] = (head, follows[-1].head)
                accepted += follows
        return moves, accepted


def _items(records: Iterable[Record], namespace: str | None, letters: list[DeadLetter]) -> Iterator[Item]:
    """Yield what the fold takes of the records, one after another: metadata may take far more room than its text."""
    for record in records:
        if namespace is not None and record.namespace != namespace:
            continue
        try:
            item = read_item(record)
        except CorruptEvent as error:
            letters.append(DeadLetter(record=record, reason=error.message))
        else:
            yield item


async def live_generation(state: StateStore, groupings: Groupings) -> Generation:
    """Return the live generation. A new database gets its first one, ours or that of another process starting too."""
    if (live := await state.live()) is not None:
        return live
    begun = await state.begin(fingerprint(groupings))
    live = await state.live()
    assert live is not None
    if live != begun:
        await state.discard(begun)
    return live


async def rebuild(
    source: EventSource, state: StateStore, groupings: Groupings, *, namespace: str | None = None
) -> Generation:
    """Fold the log anew, beside the live state, and swap the result in at equal positions.

    Readers see the old state until the swap and the new one after it. `namespace` limits the rebuild to one:
    ForeignState when the others are folded by another contract. What retention deleted is not folded anew: the totals
    that it kept are taken over, and ForeignState says that another contract folded those.
    """
    building = await state.begin(fingerprint(groupings), namespace)
    fresh = Projector(source, state, groupings, building=building)
    try:
        if await state.live() == building:  # the first generation of a new database, which others fold as well
            await Projector(source, state, groupings).catch_up(await source.heads())
            return building
        for _ in range(SWAP_TRIES_MAX):
            if (live := await state.live()) is None:
                break
            if building.namespace is not None and live.fingerprint != building.fingerprint:
                raise foreign_state(live.number)
            # Twice: the second time it is little, and the live state's reducers wait for it.
            await fresh.catch_up(await state.positions(live), exactly=True)
            if await state.swap(building, partial(fresh.catch_up, exactly=True)):
                return building
        raise ServiceUnavailable(
            f"the live state moved on {SWAP_TRIES_MAX} times while the rebuilt one was to be swapped in: "
            "try again when it is calmer"
        )
    except BaseException:
        await state.discard(building)
        raise
