"""What watches a process: its metrics, its health, and the look-out for those who follow its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from omninode_bridge.app import parts
from omninode_bridge.app.following import Tail
from omninode_bridge.app.health import Health, Part
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.app.project import Projector
from omninode_bridge.app.telemetry import Telemetry
from omninode_bridge.ports import Clock, EventSource, StateStore, WorkQueue


class Monitor(NamedTuple):
    """All three, as HTTP asks them."""

    telemetry: Telemetry
    health: Health
    tail: Tail


class Duty(NamedTuple):
    """What a process is there for: it is ready while it can do that."""

    records: bool
    folds: bool


def watch(
    *,
    duty: Duty,
    telemetry: Telemetry,
    tail: Tail,
    probe: parts.Probe,
    ledger: Ingest,
    source: EventSource,
    state: StateStore,
    queue: WorkQueue,
    projector: Projector | None,
    in_flight: Callable[[], int] | None,
    services: Callable[[], Sequence[parts.Service]] | None,
    door: parts.Door,
    clock: Clock,
    more: Sequence[Part] = (),
) -> Monitor:
    """Return the monitor of a process. What it does not do itself is None: a reducer, a worker, remote services."""
    looked_at = [
        parts.postgresql(probe),
        parts.schema(probe),
        parts.ledger(ledger, needed=duty.records),
        parts.reducer(source, state, probe, clock, projector, needed=duty.folds),
        parts.workflows(queue, in_flight),
        parts.tokens(door),
    ]
    if services is not None:
        looked_at.append(parts.stamping(services))
    return Monitor(telemetry, Health([*looked_at, *more], clock), tail)
