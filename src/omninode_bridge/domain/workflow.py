"""The workflow FSM as a table, and the plan that drives it.

The rules this file obeys:

1. A machine is its table: `(state, trigger) → state`. What the table lacks is illegal.
2. An illegal trigger raises IllegalTransition and changes nothing: states are values, not cells.
3. A terminal state has no way out.
4. The plan says which trigger is pulled when; a plan is only made if every path it can take is legal.

States and triggers are strings because the contract names them; the table is compiled once at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from omninode_bridge.domain.errors import IllegalTransition

type StepKind = Literal["compute", "effect"]


class Visit(msgspec.Struct, frozen=True, gc=False):
    """One entry of a workflow's history: the state entered, when, and by which trigger (none for the first)."""

    state: str
    at: datetime
    trigger: str | None = None


class Machine(msgspec.Struct, frozen=True):
    """A finite state machine; `table` maps `(state, trigger)` to the next state."""

    initial: str
    terminal: frozenset[str]
    table: Mapping[tuple[str, str], str]

    def transition(self, state: str, trigger: str) -> str:
        """Return the state that `trigger` leads to, or raise IllegalTransition."""
        target = self.table.get((state, trigger))
        if target is None:
            legal = sorted(name for origin, name in self.table if origin == state)
            ways = f"legal here: {', '.join(legal)}" if legal else f"{state!r} has no way out"
            raise IllegalTransition(f"trigger {trigger!r} is illegal in state {state!r}; {ways}", state=state)
        return target

    def is_terminal(self, state: str) -> bool:
        return state in self.terminal

    def states(self) -> frozenset[str]:
        return frozenset({self.initial, *self.terminal, *(s for s, _ in self.table), *self.table.values()})

    def explains(self, visits: tuple[tuple[str | None, str], ...]) -> bool:
        """Tell whether (trigger, state) pairs are a legal history of this machine, from its initial state."""
        if not visits or visits[0] != (None, self.initial):
            return False
        state = self.initial
        for trigger, entered in visits[1:]:
            if trigger is None or self.table.get((state, trigger)) != entered:
                return False
            state = entered
        return True


class Retry(msgspec.Struct, frozen=True):
    """How a failed step is tried again: `min(max_delay_s, base_delay_s * 2**attempt)`, with full jitter."""

    base_delay_s: float
    max_delay_s: float


class Step(msgspec.Struct, frozen=True):
    """One step of the plan. `trigger`, when set, is pulled after the step succeeded."""

    name: str
    kind: StepKind
    timeout_ms: int
    retries: int
    depends_on: tuple[str, ...] = ()
    trigger: str | None = None


class Queue(msgspec.Struct, frozen=True):
    """How accepted workflows are run: under a lease each, so many at once in a process, so often in vain.

    Between attempts `min(pause_max_s, pause_base_s * 2**(attempt - 1))`, of which a half is left to chance.
    """

    lease_s: float = 30.0
    attempts_max: int = 8
    in_flight_max: int = 32
    pause_base_s: float = 1.0
    pause_max_s: float = 60.0


class Topics(msgspec.Struct, frozen=True):
    """The topics of a transport that the events are published on, and how those that are missing are made."""

    names: tuple[str, ...]
    partitions: int = 12
    retention_ms: int = 604_800_000


class Plan(msgspec.Struct, frozen=True):
    """What a workflow does, in order, and which triggers move its state."""

    machine: Machine
    steps: tuple[Step, ...]
    retry: Retry
    completed_topic: str
    failed_topic: str
    start: tuple[str, ...] = ("start",)
    complete: str = "complete"
    fail: str = "fail"
    queue: Queue = Queue()

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


def begin(machine: Machine, at: datetime) -> tuple[Visit, ...]:
    """Return the history of a workflow that was just accepted."""
    return (Visit(machine.initial, at),)


def advance(machine: Machine, visits: tuple[Visit, ...], trigger: str, at: datetime) -> tuple[Visit, ...]:
    """Return the history with one more move, or raise IllegalTransition and leave it as it was."""
    return (*visits, Visit(machine.transition(visits[-1].state, trigger), at, trigger))


def final_state(plan: Plan) -> str:
    """Return the state of a workflow that ran the whole plan; IllegalTransition if the plan can't be run."""
    state = plan.machine.initial
    for trigger in (*plan.start, *(step.trigger for step in plan.steps if step.trigger), plan.complete):
        state = plan.machine.transition(state, trigger)
    return state
