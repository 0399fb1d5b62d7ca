"""Laws of the FSM, for arbitrary tables and arbitrary runs of triggers."""

from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.errors import IllegalTransition
from omninode_bridge.domain.workflow import Machine, advance, begin
from tests.making import NOW

STATES = st.sampled_from(["a", "b", "c", "d"])
TRIGGERS = st.sampled_from(["go", "stop", "back"])


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    terminal = draw(st.frozensets(st.sampled_from(["c", "d"])))
    open_states = [state for state in "abcd" if state not in terminal]
    table = draw(st.dictionaries(st.tuples(st.sampled_from(open_states), TRIGGERS), STATES, max_size=9))
    return Machine("a", terminal, table)


@given(machines(), st.lists(TRIGGERS, max_size=20))
def test_any_run_of_triggers_moves_by_the_table_or_raises_and_stays(machine: Machine, run: list[str]) -> None:
    visits = begin(machine, NOW)
    for trigger in run:
        state = visits[-1].state
        try:
            moved = advance(machine, visits, trigger, NOW)
        except IllegalTransition:
            assert (state, trigger) not in machine.table
            continue
        assert moved[:-1] == visits
        assert moved[-1].state == machine.table[state, trigger]
        visits = moved
    assert machine.explains(tuple((visit.trigger, visit.state) for visit in visits))


@given(machines(), TRIGGERS)
def test_a_terminal_state_has_no_way_out(machine: Machine, trigger: str) -> None:
    for state in machine.terminal:
        try:
            machine.transition(state, trigger)
        except IllegalTransition:
            continue
        raise AssertionError(f"{trigger} left the terminal state {state}")


@given(machines(), st.lists(st.tuples(TRIGGERS, STATES), min_size=1, max_size=6))
def test_a_history_is_explained_exactly_when_the_table_has_each_of_its_moves(
    machine: Machine, moves: list[tuple[str, str]]
) -> None:
    states = ["a", *(state for _, state in moves)]
    legal = all(machine.table.get((states[n], trigger)) == state for n, (trigger, state) in enumerate(moves))
    assert machine.explains(((None, "a"), *moves)) is legal
