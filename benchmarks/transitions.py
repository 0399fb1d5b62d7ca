"""One move of the workflow FSM: our compiled table against omnibase_core's executor on the same contract."""

from __future__ import annotations

import itertools
import logging

from omnibase_core.errors import ModelOnexError
from omnibase_core.models.contracts.subcontracts.model_fsm_subcontract import ModelFSMSubcontract
from omnibase_core.utils.util_fsm_executor import execute_transition

from benchmarks.measure import Debt, Row, Run, result_hash, take_turns, timed
from benchmarks.place import Place
from omninode_bridge.domain.errors import IllegalTransition
from omninode_bridge.domain.workflow import Machine
from omninode_bridge.nodes.contract_reading import parse
from omninode_bridge.nodes.contracts import load_reducer, shipped_text

ILLEGAL_TRIGGER = "no-such-trigger"
_THEIR_SHARE = 100
"""The executor takes some hundred times as long: it makes fewer moves in a run."""


async def fsm(place: Place) -> list[Row]:
    """Make legal moves, one after another; the verdicts on all pairs of state and trigger are compared."""
    logging.getLogger("omnibase").setLevel(logging.WARNING)
    machine = load_reducer().fsm.machine
    contract = ModelFSMSubcontract.model_validate(
        parse(shipped_text("reducer").encode(), "reducer").raw["state_machine"]
    )
    triggers = sorted({trigger for _, trigger in machine.table} | {ILLEGAL_TRIGGER})
    pairs = list(itertools.product(sorted(machine.states()), triggers))
    legal = sorted(machine.table)

    our_moves = list(itertools.islice(itertools.cycle(legal), place.size.transitions))
    their_moves = our_moves[: max(len(legal), place.size.transitions // _THEIR_SHARE)]

    async def ours() -> Run:
        transition = machine.transition
        with timed() as watch:
            for state, trigger in our_moves:
                transition(state, trigger)
        return Run(len(our_moves) / watch.seconds, result_hash(_ruled(machine, *pair) for pair in pairs))

    async def theirs() -> Run:
        with timed() as watch:
            for state, trigger in their_moves:
                await execute_transition(contract, state, trigger, {})
        return Run(len(their_moves) / watch.seconds, result_hash([await _executed(contract, *pair) for pair in pairs]))

    turns = await take_turns("fsm", place.size.pairs, ours, theirs)
    return [
        Row(
            name="fsm",
            what=f"legal moves of the workflow FSM; verdicts on all {len(pairs)} pairs of state and trigger compared",
            against="omnibase_core's execute_transition",
            unit="moves/s",
            ours=turns.ours,
            theirs=turns.theirs,
            ratios=turns.ratios,
            owed=[Debt("ratio", "≥", 10.0)],
            result=turns.result,
        )
    ]


def _ruled(machine: Machine, state: str, trigger: str) -> str:
    try:
        return f"{state} {trigger} → {machine.transition(state, trigger)}"
    except IllegalTransition:
        return f"{state} {trigger} illegal"


async def _executed(contract: ModelFSMSubcontract, state: str, trigger: str) -> str:
    try:
        result = await execute_transition(contract, state, trigger, {})
    except ModelOnexError:
        return f"{state} {trigger} illegal"
    return f"{state} {trigger} → {result.new_state}" if result.success else f"{state} {trigger} illegal"
