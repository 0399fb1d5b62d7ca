"""The contracts that ship are whole: valid, in agreement with each other and with the code that stands on them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from omninode_bridge.domain.reduction import Groupings, Totals
from omninode_bridge.nodes import contract_reducer
from omninode_bridge.nodes.contract_orchestrator import STEP_KINDS
from omninode_bridge.nodes.contracts import load_contracts, shipped_text, validate_path
from omninode_bridge.nodes.orchestrator.v1_0_0.models import EnumWorkflowState
from omninode_bridge.nodes.reducer.v1_0_0.models import EnumAggregationType

NODES = Path(contract_reducer.__file__).parent


def test_the_shipped_contracts_are_valid_and_agree() -> None:
    reports = validate_path(NODES)
    assert [(report.kind, list(report.problems)) for report in reports] == [("orchestrator", []), ("reducer", [])]


def test_the_public_states_are_those_of_the_contract() -> None:
    fsm = load_contracts().orchestrator.fsm
    assert {state.value for state in EnumWorkflowState} == fsm.machine.states()
    legal = {(a.value, b.value) for a in EnumWorkflowState for b in EnumWorkflowState if a.can_transition_to(b)}
    assert legal == {(origin, target) for (origin, _), target in fsm.machine.table.items()}
    assert {state.value for state in EnumWorkflowState if state.is_terminal()} == fsm.machine.terminal


def test_both_machines_are_written_alike() -> None:
    orchestrator, reducer = (yaml.safe_load(shipped_text(kind)) for kind in ("orchestrator", "reducer"))
    assert orchestrator["config"]["state_machine"] == reducer["state_machine"]


def test_every_step_and_grouping_of_the_contracts_is_one_the_code_has() -> None:
    contracts = load_contracts()
    assert {step.name for step in contracts.orchestrator.plan.steps} == set(STEP_KINDS)
    stored = set(contracts.reducer.groupings.names())
    assert stored | {"workflow"} == set(contracts.reducer.names)
    assert {EnumAggregationType.of_grouping(name) for name in contracts.reducer.names} == set(EnumAggregationType)


def test_the_functions_in_the_contract_are_what_a_group_has() -> None:
    assert set(contract_reducer.FUNCTIONS) == {"count", "sum", "min", "max", "first", "last"}
    assert set(Totals.__struct_fields__) == {
        "total_stamps", "failed", "total_size_bytes", "processing_time_us_sum", "processing_time_us_min",
        "processing_time_us_max", "first", "last",
    }  # fmt: skip


def test_the_domains_defaults_are_the_contracts_values() -> None:
    shipped, default = load_contracts().reducer.groupings, Groupings()
    assert (shipped.size_bounds, shipped.window_ms) == (default.size_bounds, default.window_ms)


@pytest.mark.parametrize("folder", ["orchestrator", "reducer"])
def test_models_are_one_a_file_and_named_after_it(folder: str) -> None:
    for path in (NODES / folder / "v1_0_0" / "models").glob("*.py"):
        if path.stem != "__init__":
            name = "".join(part.capitalize() for part in path.stem.split("_"))
            public = [line for line in path.read_text().splitlines() if line.startswith("class ")]
            assert [line.split("(")[0] for line in public] == [f"class {name}"]


def test_importing_the_nodes_sets_up_no_logging_and_says_nothing() -> None:
    program = (
        "import logging; before = list(logging.root.handlers); "
        "import omninode_bridge.nodes.orchestrator.v1_0_0.node, omninode_bridge.nodes.reducer.v1_0_0.node; "
        "assert logging.root.handlers == before"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
