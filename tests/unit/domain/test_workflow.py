"""The workflow FSM: its table decides, an illegal trigger raises and changes nothing."""

from collections.abc import Mapping

import msgspec
import pytest

from omninode_bridge.domain.errors import IllegalTransition
from omninode_bridge.domain.workflow import Machine, Step, Visit, advance, begin, final_state
from tests.making import MACHINE, NOW, PLAN

TRIGGERS = ("start", "complete", "fail")
LEGAL = {
    ("pending", "start"): "processing",
    ("processing", "complete"): "completed",
    ("processing", "fail"): "failed",
}


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "unheard-of"])
def test_only_what_the_table_has_is_legal(state: str, trigger: str) -> None:
    if (state, trigger) in LEGAL:
        assert MACHINE.transition(state, trigger) == LEGAL[state, trigger]
    else:
        with pytest.raises(IllegalTransition):
            MACHINE.transition(state, trigger)


def test_an_illegal_trigger_changes_nothing() -> None:
    visits = begin(MACHINE, NOW)
    before, table = msgspec.json.encode(visits), dict(MACHINE.table)
    for trigger in ("complete", "fail", "", "START"):
        with pytest.raises(IllegalTransition):
            advance(MACHINE, visits, trigger, NOW)
    assert msgspec.json.encode(visits) == before
    assert MACHINE.table == table


def test_an_illegal_trigger_is_told_what_is_legal() -> None:
    with pytest.raises(
        IllegalTransition, match=r"'start' is illegal in state 'processing'; legal here: complete, fail"
    ):
        MACHINE.transition("processing", "start")
    with pytest.raises(IllegalTransition, match="'completed' has no way out"):
        MACHINE.transition("completed", "start")


def test_a_history_keeps_each_state_with_its_trigger_and_time() -> None:
    started = advance(MACHINE, begin(MACHINE, NOW), "start", NOW)
    assert advance(MACHINE, started, "complete", NOW) == (
        Visit("pending", NOW),
        Visit("processing", NOW, "start"),
        Visit("completed", NOW, "complete"),
    )


@pytest.mark.parametrize(
    ("visits", "legal"),
    [
        (((None, "pending"),), True),
        (((None, "pending"), ("start", "processing"), ("fail", "failed")), True),
        ((), False),
        (((None, "processing"),), False),
        ((("start", "pending"),), False),
        (((None, "pending"), ("start", "completed")), False),
        (((None, "pending"), ("complete", "completed")), False),
        (((None, "pending"), (None, "processing")), False),
        (((None, "pending"), ("start", "processing"), ("complete", "completed"), ("fail", "failed")), False),
    ],
)
def test_a_machine_explains_exactly_its_own_histories(visits: tuple[tuple[str | None, str], ...], legal: bool) -> None:
    assert MACHINE.explains(visits) is legal


def test_a_machine_knows_its_states_and_which_are_terminal() -> None:
    assert MACHINE.states() == {"pending", "processing", "completed", "failed"}
    assert {state for state in MACHINE.states() if MACHINE.is_terminal(state)} == {"completed", "failed"}


def test_a_plan_ends_where_its_triggers_lead() -> None:
    assert final_state(PLAN) == "completed"


def test_a_plan_whose_steps_pull_triggers_goes_through_their_states() -> None:
    table: Mapping[tuple[str, str], str] = {
        ("pending", "start"): "processing",
        ("processing", "hashed"): "hashed",
        ("hashed", "complete"): "completed",
        ("processing", "fail"): "failed",
        ("hashed", "fail"): "failed",
    }
    machine = Machine("pending", frozenset({"completed", "failed"}), table)
    steps = (Step("hash", "compute", 1_000, 0, trigger="hashed"),)
    assert final_state(msgspec.structs.replace(PLAN, machine=machine, steps=steps)) == "completed"


def test_a_plan_that_cannot_be_run_is_found_out() -> None:
    with pytest.raises(IllegalTransition):
        final_state(msgspec.structs.replace(PLAN, start=("start", "start")))


def test_a_plan_finds_its_steps_by_name() -> None:
    found = PLAN.step("stamp")
    assert found is not None
    assert found.retries == 5
    assert PLAN.step("embed") is None
