"""The FSM section of a contract, compiled to the domain's transition table.

After omnibase_core has validated it, refused here because the bridge could not keep its laws otherwise:

1. Wildcards and conditions: the table must say by itself which moves are legal.
2. Two transitions for one state and trigger, two states of one name.
3. A terminal state that only one of `is_terminal` and `terminal_states` calls so; or that can be left.
4. A state that no path reaches, or from which no path reaches a terminal state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from omnibase_core.models.contracts.subcontracts.model_fsm_subcontract import ModelFSMSubcontract

from omninode_bridge.domain.workflow import Machine
from omninode_bridge.nodes.contract_reading import Problem, join, one_of, settings, validated

STATE_TYPES = ("operational", "terminal", "error")

_ACTED = frozenset({
    "description",
    "error_states",
    "initial_state",
    "persistence_enabled",
    "state_machine_name",
    "state_machine_version",
    "states[].description",
    "states[].is_recoverable",
    "states[].is_terminal",
    "states[].semantic_intent",
    "states[].state_name",
    "states[].state_type",
    "terminal_states",
    "transitions[].conditions",
    "transitions[].from_state",
    "transitions[].to_state",
    "transitions[].transition_name",
    "transitions[].trigger",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fsm:
    """A compiled FSM section. `error_states` are those that end a workflow as failed."""

    machine: Machine
    error_states: frozenset[str]


class _State(msgspec.Struct, frozen=True):
    state_name: str
    state_type: str
    is_terminal: bool = False


class _Transition(msgspec.Struct, frozen=True):
    transition_name: str
    from_state: str
    to_state: str
    trigger: str
    conditions: list[Any] = []


class _Section(msgspec.Struct, frozen=True):
    """The section as written: omnibase_core's own models are mutable and refuse some of it without saying where."""

    initial_state: str
    states: list[_State]
    transitions: list[_Transition]
    terminal_states: list[str] = []
    error_states: list[str] = []
    persistence_enabled: bool = True


def compile_machine(raw: object, path: str, found: list[Problem]) -> Fsm | None:
    """Return the machine of an FSM section; None, after adding what is wrong with it, when it has none."""
    if not isinstance(raw, dict):
        found.append(Problem(path, "is missing: the state machine must be in the contract"))
        return None
    objections: list[Problem] = []
    model = validated(ModelFSMSubcontract, raw, path, objections)
    if model is not None:
        settings(raw, model, path, _ACTED, objections)
    own: list[Problem] = []
    try:
        section = msgspec.convert(raw, _Section)
    except msgspec.ValidationError as error:
        found.extend(objections or [Problem(path, str(error))])
        return None
    _check(section, path, own)
    # An objection to the section as a whole repeats, without a location, what our own checks have located.
    found.extend(problem for problem in objections if problem.field != path or not own)
    found.extend(own)
    if own or objections:
        return None
    table = {(move.from_state, move.trigger): move.to_state for move in section.transitions}
    machine = Machine(section.initial_state, frozenset(section.terminal_states), table)
    return Fsm(machine, frozenset(section.error_states))


def _check(section: _Section, path: str, found: list[Problem]) -> None:
    names = [state.state_name for state in section.states]
    _check_states(section, names, path, found)
    _check_transitions(section, names, path, found)
    one_of(section.persistence_enabled, (False,), join(path, "persistence_enabled"), found)
    if not found:
        _check_paths(section, names, path, found)


def _check_states(section: _Section, names: list[str], path: str, found: list[Problem]) -> None:
    found.extend(
        Problem(join(path, "states", index, "state_name"), f"{names[index]!r} is there already")
        for index in _repeated(names)
    )
    for index, state in enumerate(section.states):
        one_of(state.state_type, STATE_TYPES, join(path, "states", index, "state_type"), found)
        listed = state.state_name in section.terminal_states
        if listed != state.is_terminal:
            says = "lists it" if listed else "does not list it"
            message = f"is {str(state.is_terminal).lower()} but terminal_states {says}: both must agree"
            found.append(Problem(join(path, "states", index, "is_terminal"), message))
    if section.initial_state not in names:
        found.append(Problem(join(path, "initial_state"), f"{section.initial_state!r} is none of the states"))
    if section.initial_state in section.terminal_states:
        message = f"{section.initial_state!r} is terminal: nothing could happen"
        found.append(Problem(join(path, "initial_state"), message))
    if not section.terminal_states:
        found.append(Problem(join(path, "terminal_states"), "is empty: a workflow could never end"))
    for key, listing in (("terminal_states", section.terminal_states), ("error_states", section.error_states)):
        for index, name in enumerate(listing):
            if name not in names:
                found.append(Problem(join(path, key, index), f"{name!r} is none of the states"))
        found.extend(
            Problem(join(path, key, index), f"{listing[index]!r} is there already") for index in _repeated(listing)
        )


def _check_transitions(section: _Section, names: list[str], path: str, found: list[Problem]) -> None:
    moves = section.transitions
    for index, move in enumerate(moves):
        here = join(path, "transitions", index)
        if move.from_state == "*":
            message = "is a wildcard, which would also leave terminal states: name each state"
            found.append(Problem(join(here, "from_state"), message))
        elif move.from_state not in names:
            found.append(Problem(join(here, "from_state"), f"{move.from_state!r} is none of the states"))
        elif move.from_state in section.terminal_states:
            found.append(Problem(join(here, "from_state"), f"{move.from_state!r} is terminal: it has no way out"))
        if move.to_state not in names:
            found.append(Problem(join(here, "to_state"), f"{move.to_state!r} is none of the states"))
        if move.conditions:
            message = "are forbidden: a guard that fails does not raise, so the table alone must decide"
            found.append(Problem(join(here, "conditions"), message))
    for index in _repeated([(move.from_state, move.trigger) for move in moves]):
        message = f"{moves[index].trigger!r} already leads out of {moves[index].from_state!r}"
        found.append(Problem(join(path, "transitions", index, "trigger"), message))
    for index in _repeated([move.transition_name for move in moves]):
        message = f"{moves[index].transition_name!r} is there already"
        found.append(Problem(join(path, "transitions", index, "transition_name"), message))


def _check_paths(section: _Section, names: list[str], path: str, found: list[Problem]) -> None:
    forward = [(move.from_state, move.to_state) for move in section.transitions]
    reached = _closure({section.initial_state}, forward)
    ending = _closure(set(section.terminal_states), [(target, origin) for origin, target in forward])
    for index, name in enumerate(names):
        here = join(path, "states", index, "state_name")
        if name not in reached:
            found.append(Problem(here, f"{name!r} is unreachable from {section.initial_state!r}"))
        elif name not in ending:
            found.append(Problem(here, f"{name!r} has no way to a terminal state"))


def _closure(known: set[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    edges = list(edges)
    while more := {target for origin, target in edges if origin in known} - known:
        known = known | more
    return known


def _repeated(values: Iterable[object]) -> list[int]:
    """Return the indexes of values that were there before."""
    seen: set[object] = set()
    again = []
    for index, value in enumerate(values):
        if value in seen:
            again.append(index)
        seen.add(value)
    return again
