"""Dead letters as an operator meets them: looked at, replayed, discarded.

The reducer's letter is of an event that it could not read: every total lacks it until it is replayed. The relay's
letter is of an event that the transport refused: no total lacks it. Letters of a state being built are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import Item

type LetterStatus = Literal["open", "replayed", "discarded"]
type ActName = Literal["replay", "discard", "rebuild"]

HISTORY_MAX = 100
"""Acts that a letter remembers; the oldest go first. The log of acts has them all."""


class LetterAct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was done with a letter, and what it was afterwards. A rebuild may settle letters too."""

    at: datetime
    actor: str
    act: ActName
    status: LetterStatus
    reason: str | None = None
    """Why it was discarded, or why the replay did not succeed."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter. `record` is what could not be processed; in lists its body is left out, `octets` are its bytes."""

    number: int
    source: Literal["reducer", "relay"]
    status: LetterStatus
    record: Record
    octets: int
    reason: str
    since: datetime
    history: tuple[LetterAct, ...] = ()


type ReadItem = Callable[[Record], Item]
"""Reads a record; raises CorruptEvent where it can't be read."""


class Letters(Protocol):
    """Every act leaves an entry in the letter's history and a row in the log of acts, in the transaction of its effect.

    The acts return the letter as it is afterwards, and whether that is their doing: a letter that somebody else
    settled the same way is left alone. All raise NotFound where there is no such letter.
    """

    async def page(self, namespace: str | None, *, settled: bool, after: int, limit: int) -> list[Letter]:
        """Return letters with a higher number than `after`, by number; with `settled` not only the open ones."""
        ...

    async def get(self, number: int) -> Letter:
        """Return a letter with its body."""
        ...

    async def record(self, number: int) -> Record:
        """Return the letter's record as the log has it now; as the letter has it where retention deleted it."""
        ...

    async def fold(self, number: int, read: ReadItem, *, actor: str) -> tuple[Letter, bool]:
        """Count the event of a reducer's letter, as the log has it now, and close the letter.

        Where it still can't be read the letter stays what it was, with the new reason in its history.
        """
        ...

    async def forwarded(self, number: int, refusal: str | None, *, actor: str) -> tuple[Letter, bool]:
        """Close a relay's letter, which was sent once more; with a `refusal` it stays what it was."""
        ...

    async def discard(self, number: int, reason: str, *, actor: str) -> tuple[Letter, bool]:
        """Settle a letter without its event. Conflict where it was replayed."""
        ...
