"""The reducer's state: generations, positions and dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from omninode_bridge.domain.errors import ForeignState
from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.domain.reduction import Groupings, State
from omninode_bridge.domain.tenancy import EVERYTHING, Visible


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be processed, where it came from, and why."""

    record: Record
    reason: str


class Generation(msgspec.Struct, frozen=True):
    """One folding of the log: `fingerprint` tells by which groupings; `namespace` limits a partial rebuild."""

    number: int
    fingerprint: str
    namespace: str | None = None

    @property
    def consumer(self) -> str:
        return f"reducer/{self.number}"


type Finish = Callable[[Mapping[ShardKey, Head]], Awaitable[None]]
"""Folds a generation up to the given positions."""


class StateStore(Protocol):
    async def live(self) -> Generation | None:
        """Return the generation that queries read, None on a new database."""
        ...

    async def begin(self, fingerprint: str, namespace: str | None = None) -> Generation:
        """Start a generation, at the start of the log. It is live at once when there was none.

        Whoever begins one that is not live ends it by `swap` or `discard`.
        """
        ...

    async def positions(self, generation: Generation) -> dict[ShardKey, Head]:
        """Return the last record of each shard that the generation has folded."""
        ...

    async def apply(
        self,
        generation: Generation,
        delta: State,
        moves: Mapping[ShardKey, tuple[Head, Head]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> bool:
        """Merge `delta` into the state and move the positions, in one transaction.

        `moves` maps each shard to (from, to). Returns False, and changes nothing, when a position is not
        where the move starts (someone else folded these records) or the generation is retired.
        Dead letters belong to their generation: they are seen once it is live.
        """
        ...

    async def swap(self, building: Generation, finish: Finish | None = None) -> bool:
        """Make a generation the one that queries read, if its positions equal the live one's; else False.

        `finish` is called with the live positions while they are held still: what it folds into the building
        generation then is the last that is missing, however busy the live one is.

        Its dead letters take the place of the live one's, in the same transaction: one that both have stays the
        same letter, one that only the live one had is closed, because its record is folded now.
        """
        ...

    async def discard(self, building: Generation) -> None:
        """Drop a generation that was not swapped in, with its dead letters."""
        ...

    async def rows(
        self,
        aggregation_type: str | None,
        namespace: str | None = None,
        *,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        """Return the live state's groups of one aggregation type or all, of one namespace or all.

        Raises ForeignState when the live generation, at the very moment that is read, is folded by other
        groupings than `fingerprint` tells of.
        """
        ...

    async def page(
        self,
        aggregation_type: str,
        namespace: str,
        *,
        after: str | None,
        limit: int,
        fingerprint: str | None = None,
        visible: Visible = EVERYTHING,
    ) -> State:
        """As `rows`, of one namespace: the groups with the `limit` keys that follow `after`, by code points."""
        ...

    async def overview(
        self, *, after: str | None, limit: int, fingerprint: str | None = None, visible: Visible = EVERYTHING
    ) -> State:
        """As `rows`, the totals of namespaces: of the `limit` names that follow `after`, by code points."""
        ...


def fingerprint(groupings: Groupings) -> str:
    """Return the text that tells two foldings apart: equal groupings, and only those, give equal text."""
    return msgspec.json.encode(groupings).decode()


def foreign_state(generation: int) -> ForeignState:
    """Return the refusal to read or fold a state that is grouped otherwise than this process would."""
    return ForeignState(
        f"the state is kept by another reducer contract (generation {generation}): start this process with that "
        "contract, or let `omninode-bridge rebuild` fold the state by this one",
        generation=generation,
    )
