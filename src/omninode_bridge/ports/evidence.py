"""What an audit looks at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import State
from omninode_bridge.ports.state import Generation


class HistoryShape(msgspec.Struct, frozen=True):
    """Workflows that went the same way. `shape` is JSON: [[trigger or null, state], …]."""

    shape: str | None
    state: str
    example: str
    workflows: int


class AuditedEvent(msgspec.Struct, frozen=True):
    """A record, what the tables say of its workflow, and whether the live state should include it.

    `kept` has the columns of the workflow's stamp or failure under the names that the event's data has for them:
    digests as hexadecimal digits, JSON as text, times as datetimes, durations (`…_us`) as integer microseconds.
    It is empty where the tables know of neither.
    """

    record: Record
    kept: dict[str, Any]
    folded: bool


class Evidence(Protocol):
    """What an audit looks at, all of one moment. Faults are sentences; none is the good answer."""

    async def chain_faults(self) -> list[str]: ...

    async def count_faults(self) -> list[str]: ...

    async def position_faults(self) -> list[str]: ...

    async def histories(self) -> list[HistoryShape]: ...

    async def live(self) -> Generation | None: ...

    def events(self, live: Generation | None) -> AsyncIterator[AuditedEvent]: ...

    async def state(self) -> State: ...
