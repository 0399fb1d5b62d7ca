"""A broken contract stops the program and is told where: file and field. omnibase_core lets most of these pass."""

from pathlib import Path
from typing import Any

import pytest

from omninode_bridge.domain.errors import ContractInvalid
from omninode_bridge.nodes.contracts import (
    load_contracts,
    load_orchestrator,
    load_reducer,
    shipped_text,
    validate_file,
    validate_path,
)
from tests.unit.nodes.assembly import REMOVED, V1, edited, move, state

FSM = "config.state_machine"
GRAPH = "workflow_coordination.workflow_definition.execution_graph.nodes"
STAMPING = "config.stamping"
BREAKER = f"{STAMPING}.circuit_breaker"
GROUPING = "aggregation.grouping.grouping_fields"
EXTRA_STEP = {"step_name": "notarise", "step_type": "effect", "timeout_ms": 1000, "retry_count": 0}

# edits, the field that must be named
ORCHESTRATOR: dict[str, tuple[dict[str, Any], str]] = {
    "not an orchestrator": ({"node_type": "REDUCER_GENERIC"}, "node_type"),
    "no such node type": ({"node_type": "ORCHESTRA"}, "node_type"),
    "no name": ({"name": REMOVED}, "name"),
    "a version in text": ({"contract_version": "1.0.0"}, "contract_version"),
    "another input": ({"input_model": "ModelOther"}, "input_model"),
    "another output": ({"output_model": "ModelOther"}, "output_model"),
    "no limit for one operation": ({"performance": {}}, "performance.single_operation_max_ms"),
    "unknown top key": ({"retries": 3}, "retries"),
    "misspelt key in a lenient model": (
        {"workflow_coordination.timeout_mss": 9000},
        "workflow_coordination.timeout_mss",
    ),
    "unknown config key": ({"config.step": []}, "config.step"),
    "a setting without effect": (
        {"workflow_coordination.checkpoint_interval_ms": 700},
        "workflow_coordination.checkpoint_interval_ms",
    ),
    "a rollback nobody makes": (
        {"workflow_coordination.rollback_enabled": False},
        "workflow_coordination.rollback_enabled",
    ),
    "an unknown execution mode": (
        {"workflow_coordination.execution_mode": "paralel"},
        "workflow_coordination.execution_mode",
    ),
    "no time limit": ({"workflow_coordination.timeout_ms": REMOVED}, "workflow_coordination.timeout_ms"),
    "no graph": ({"workflow_coordination.workflow_definition": REMOVED}, "workflow_coordination.workflow_definition"),
    "a graph with a cycle": (
        {f"{GRAPH}[0].depends_on": ["stamp"]},
        "workflow_coordination.workflow_definition.execution_graph",
    ),
    "a graph without a step": ({f"{GRAPH}[1]": REMOVED, f"{GRAPH}[1].depends_on": ["hash"]}, GRAPH),
    "a graph with another kind": ({f"{GRAPH}[0].node_type": "effect"}, f"{GRAPH}[0].node_type"),
    "a graph with other edges": ({f"{GRAPH}[1].depends_on": []}, f"{GRAPH}[1].depends_on"),
    "no steps": ({"config.steps": []}, "config.steps"),
    "no hash": (
        {"config.steps[0]": REMOVED, "config.steps[0].depends_on": [], "config.steps[1].depends_on": ["intelligence"]},
        "config.steps",
    ),
    "no stamp": ({"config.steps[2]": REMOVED}, "config.steps"),
    "stamp not last": (
        {
            "config.steps[3]": {**EXTRA_STEP, "step_name": "intelligence"},
            "config.steps[1]": REMOVED,
            "config.steps[1].depends_on": ["hash"],
        },
        "config.steps[1].step_name",
    ),
    "an unknown step": ({"config.steps[1].step_name": "inteligence"}, "config.steps[1].step_name"),
    "a step twice": (
        {"config.steps[1].step_name": "hash", "config.steps[1].step_type": "compute"},
        "config.steps[1].step_name",
    ),
    "an unknown step type": ({"config.steps[0].step_type": "conditional"}, "config.steps[0].step_type"),
    "a step of another kind": ({"config.steps[0].step_type": "effect"}, "config.steps[0].step_type"),
    "a step's timeout too short": ({"config.steps[1].timeout_ms": 99}, "config.steps[1].timeout_ms"),
    "a step's timeout above the workflow's": (
        {"workflow_coordination.timeout_ms": 60000},
        "config.steps[0].timeout_ms",
    ),
    "a number in text": ({"config.steps[1].timeout_ms": "5000"}, "config.steps[1].timeout_ms"),
    "a truth value for a number": ({"config.steps[2].retry_count": True}, "config.steps[2].retry_count"),
    "too many retries": ({"config.steps[2].retry_count": 11}, "config.steps[2].retry_count"),
    "retries that take too long": ({"config.steps[0].retry_count": 3}, "config.steps[0].retry_count"),
    "more retries than the policy": ({"config.retry.max_retries": 4}, "config.steps[2].retry_count"),
    "a step switched off": ({"config.steps[1].enabled": False}, "config.steps[1].enabled"),
    "an unknown step key": ({"config.steps[0].timeout": 5}, "config.steps[0].timeout"),
    "a step that depends on a later one": ({"config.steps[0].depends_on": ["stamp"]}, "config.steps[0].depends_on[0]"),
    "a trigger on stamp": ({"config.steps[2].trigger": "complete"}, "config.steps[2].trigger"),
    "a trigger that is illegal where it is pulled": ({"config.steps[0].trigger": "start"}, "config.steps[0].trigger"),
    "a step that is no mapping": ({"config.steps[0]": "hash"}, "config.steps[0]"),
    "no retry policy": ({"config.retry": REMOVED}, "config.retry"),
    "another backoff": ({"config.retry.backoff_strategy": "linear"}, "config.retry.backoff_strategy"),
    "delays upside down": ({"config.retry.base_delay_seconds": 9}, "config.retry.max_delay_seconds"),
    "an unknown retry key": ({"config.retry.jitter": 1}, "config.retry.jitter"),
    "no triggers": ({"config.triggers": REMOVED}, "config.triggers"),
    "no fail trigger": ({"config.triggers.fail": REMOVED}, "config.triggers"),
    "start is no list": ({"config.triggers.start": "start"}, "config.triggers.start"),
    "complete is illegal": ({"config.triggers.complete": "finish"}, "config.triggers.complete"),
    "complete fails": ({"config.triggers.complete": "fail"}, "config.triggers.complete"),
    "fail completes": ({"config.triggers.fail": "complete"}, "config.triggers.fail"),
    "never started": ({"config.triggers.start": []}, "config.triggers.fail"),
    "no batch limit": ({"config.batch_items_max": 0}, "config.batch_items_max"),
    "no slowest storage": ({"config.hash_mib_per_s_min": REMOVED}, "config.hash_mib_per_s_min"),
    "a storage faster than memory": ({"config.hash_mib_per_s_min": 10_001}, "config.hash_mib_per_s_min"),
    "no stamping": ({STAMPING: REMOVED}, STAMPING),
    "an unknown stamping key": ({f"{STAMPING}.retries": 3}, f"{STAMPING}.retries"),
    "stamping without a timeout": ({f"{STAMPING}.request_timeout_ms": REMOVED}, f"{STAMPING}.request_timeout_ms"),
    "a call that outlives its step": (
        {"config.steps[0].timeout_ms": 4999},
        f"{STAMPING}.request_timeout_ms",
    ),
    "no call at a time": ({f"{STAMPING}.requests_in_flight_max": 0}, f"{STAMPING}.requests_in_flight_max"),
    "more calls than connections": (
        {f"{STAMPING}.requests_in_flight_max": 1025},
        f"{STAMPING}.requests_in_flight_max",
    ),
    "no breaker": ({BREAKER: REMOVED}, BREAKER),
    "an unknown breaker key": ({f"{BREAKER}.open_seconds": 5}, f"{BREAKER}.open_seconds"),
    "a breaker switched off": ({f"{BREAKER}.enabled": False}, f"{BREAKER}.enabled"),
    "a breaker left off": ({f"{BREAKER}.enabled": REMOVED}, f"{BREAKER}.enabled"),
    "a breaker that opens at once": ({f"{BREAKER}.failure_threshold": 0}, f"{BREAKER}.failure_threshold"),
    "a threshold in text": ({f"{BREAKER}.failure_threshold": "5"}, f"{BREAKER}.failure_threshold"),
    "a breaker that hardly opens": ({f"{BREAKER}.timeout_ms": 999}, f"{BREAKER}.timeout_ms"),
    "several probes": ({f"{BREAKER}.half_open_requests": 3}, f"{BREAKER}.half_open_requests"),
    "several probes by default": ({f"{BREAKER}.half_open_requests": REMOVED}, f"{BREAKER}.half_open_requests"),
    "several successes": ({f"{BREAKER}.success_threshold": 2}, f"{BREAKER}.success_threshold"),
    "one topic": ({"yaml_published_events": ["a.completed"]}, "yaml_published_events"),
    "the same topic twice": ({"yaml_published_events": ["a", "a"]}, "yaml_published_events[1]"),
    "topics the wrong way round": ({"yaml_published_events": ["a.failed", "a.completed"]}, "yaml_published_events"),
    "an illegal topic": ({"yaml_published_events[0]": "stamping completed"}, "yaml_published_events[0]"),
    "a topic too long": ({"yaml_published_events[1]": "f" * 246}, "yaml_published_events[1]"),
    "no machine": ({FSM: REMOVED}, FSM),
    "no state": ({f"{FSM}.states": []}, f"{FSM}.states"),
    "an unknown machine key": ({f"{FSM}.initial": "pending"}, f"{FSM}.initial"),
    "an unknown initial state": ({f"{FSM}.initial_state": "new"}, f"{FSM}.initial_state"),
    "a terminal initial state": ({f"{FSM}.initial_state": "failed"}, f"{FSM}.initial_state"),
    "an unknown terminal state": ({f"{FSM}.terminal_states[2]": "gone"}, f"{FSM}.terminal_states[2]"),
    "an unknown error state": ({f"{FSM}.error_states[0]": "gone"}, f"{FSM}.error_states[0]"),
    "terminal by list only": ({f"{FSM}.states[2].is_terminal": False}, f"{FSM}.states[2].is_terminal"),
    "terminal by flag only": ({f"{FSM}.terminal_states": ["failed"]}, f"{FSM}.states[2].is_terminal"),
    "a terminal state to recover from": ({f"{FSM}.states[3].is_recoverable": True}, f"{FSM}.states[3]"),
    "a state twice": ({f"{FSM}.states[4]": state("processing")}, f"{FSM}.states[4].state_name"),
    "an unknown kind of state": ({f"{FSM}.states[0].state_type": "limbo"}, f"{FSM}.states[0].state_type"),
    "an unreachable state": (
        {f"{FSM}.states[4]": state("limbo"), f"{FSM}.transitions[3]": move("leave", "limbo", "failed")},
        f"{FSM}.states[4].state_name",
    ),
    "a dead end": (
        {f"{FSM}.states[4]": state("limbo"), f"{FSM}.transitions[3]": move("stray", "processing", "limbo")},
        f"{FSM}.states[4].state_name",
    ),
    "a wildcard": ({f"{FSM}.transitions[2].from_state": "*"}, f"{FSM}.transitions[2].from_state"),
    "a way out of a terminal state": (
        {f"{FSM}.transitions[3]": move("revive", "failed", "processing")},
        f"{FSM}.transitions[3].from_state",
    ),
    "a move from nowhere": ({f"{FSM}.transitions[1].from_state": "limbo"}, f"{FSM}.transitions[1].from_state"),
    "a move to nowhere": ({f"{FSM}.transitions[1].to_state": "limbo"}, f"{FSM}.transitions[1].to_state"),
    "two moves by one trigger": (
        {f"{FSM}.transitions[3]": move("again", "processing", "failed", "complete")},
        f"{FSM}.transitions[3].trigger",
    ),
    "a priority": ({f"{FSM}.transitions[2].priority": 1}, f"{FSM}.transitions[2].priority"),
    "two moves of one name": (
        {f"{FSM}.transitions[3]": move("start", "processing", "failed", "stop")},
        f"{FSM}.transitions[3].transition_name",
    ),
    "a condition": (
        {
            f"{FSM}.transitions[1].conditions": [
                {"condition_name": "c", "condition_type": "field_check", "expression": "a == b"}
            ]
        },
        f"{FSM}.transitions[1].conditions",
    ),
    "an action nobody runs": ({f"{FSM}.states[1].entry_actions": ["cheer"]}, f"{FSM}.states[1].entry_actions"),
    "a state without version": ({f"{FSM}.states[0].version": REMOVED}, f"{FSM}.states[0].version"),
    "states kept elsewhere": ({f"{FSM}.persistence_enabled": True}, f"{FSM}.persistence_enabled"),
}
REDUCER: dict[str, tuple[dict[str, Any], str]] = {
    "not a reducer": ({"node_type": "ORCHESTRATOR_GENERIC"}, "node_type"),
    "another input": ({"input_model": "ModelOther"}, "input_model"),
    "no aggregation": ({"aggregation": REMOVED}, "aggregation"),
    "no machine": ({"state_machine": REMOVED}, "state_machine"),
    "no state management": ({"state_management": REMOVED}, "state_management"),
    "a misspelt window": ({"aggregation.windowing.window_sise_ms": 9000}, "aggregation.windowing.window_sise_ms"),
    "a window of less than a second": (
        {"aggregation.windowing.window_size_ms": 999},
        "aggregation.windowing.window_size_ms",
    ),
    "an endless window": ({"aggregation.windowing.window_size_ms": 10**12}, "aggregation.windowing.window_size_ms"),
    "a sliding window": ({"aggregation.windowing.window_type": "sliding"}, "aggregation.windowing.window_type"),
    "late events ignored": (
        {"aggregation.windowing.late_arrival_handling": "drop"},
        "aggregation.windowing.late_arrival_handling",
    ),
    "windows switched off": ({"aggregation.windowing.windowing_enabled": False}, "aggregation.windowing"),
    "another mode": ({"aggregation.aggregation_mode": "stream"}, "aggregation.aggregation_mode"),
    "a function nobody knows": ({"aggregation.aggregation_functions[6]": "median_of_medians"}, "aggregation"),
    "a function that is not computed": (
        {"aggregation.aggregation_functions[6]": "avg"},
        "aggregation.aggregation_functions[6]",
    ),
    "a function missing": ({"aggregation.aggregation_functions": ["count"]}, "aggregation.aggregation_functions"),
    "a function twice": ({"aggregation.aggregation_functions[6]": "sum"}, "aggregation.aggregation_functions[6]"),
    "an unknown grouping": ({f"{GROUPING}[1]": "mime"}, f"{GROUPING}[1]"),
    "a metadata field without name": ({f"{GROUPING}[5]": "metadata."}, f"{GROUPING}[5]"),
    "a grouping twice": ({f"{GROUPING}[6]": "content_type"}, f"{GROUPING}[6]"),
    "no namespace": ({f"{GROUPING}[0]": REMOVED}, GROUPING),
    "a wildcard for metadata fields": ({GROUPING: ["namespace", "metadata.*"]}, f"{GROUPING}[1]"),
    "too many metadata fields": ({GROUPING: ["namespace", *(f"metadata.f{i}" for i in range(17))]}, GROUPING),
    "no bounds": ({"config": REMOVED}, "config.size_buckets"),
    "bounds that fall": ({"config.size_buckets": [1024, 512]}, "config.size_buckets[1]"),
    "a bound of zero": ({"config.size_buckets[0]": 0}, "config.size_buckets[0]"),
    "a bound in text": ({"config.size_buckets[0]": "1024"}, "config.size_buckets[0]"),
    "no list of bounds": ({"config.size_buckets": 1024}, "config.size_buckets"),
    "a batch time below 0": ({"config.batch_ms": -1}, "config.batch_ms"),
    "a batch time in text": ({"config.batch_ms": "20"}, "config.batch_ms"),
    "an unknown config key": ({"config.size_bucket": [1]}, "config.size_bucket"),
    "a batch of nothing": ({"aggregation.performance.batch_size": 0}, "aggregation.performance.batch_size"),
    "a batch too large": ({"aggregation.performance.batch_size": 10**6}, "aggregation.performance.batch_size"),
    "a batch in text": ({"aggregation.performance.batch_size": "1500"}, "aggregation.performance.batch_size"),
    "a version missing": ({"aggregation.grouping.version": REMOVED}, "aggregation.grouping.version"),
    "another storage": (
        {"state_management.persistence.storage_backend": "redis"},
        "state_management.persistence.storage_backend",
    ),
    "an unknown storage": (
        {"state_management.persistence.storage_backend": "tape"},
        "state_management.persistence.storage_backend",
    ),
    "nothing kept": (
        {"state_management.persistence.persistence_enabled": False},
        "state_management.persistence.persistence_enabled",
    ),
    "state of one node": ({"state_management.state_scope": "node_local"}, "state_management.state_scope"),
    "a section without effect": ({"streaming": {"enabled": True}}, "streaming"),
    "three topics": ({"yaml_consumed_events[2]": "a"}, "yaml_consumed_events"),
    "an illegal topic": ({"yaml_consumed_events[0]": ".."}, "yaml_consumed_events[0]"),
    "a wildcard": ({"state_machine.transitions[2].from_state": "*"}, "state_machine.transitions[2].from_state"),
    "an unknown initial state": ({"state_machine.initial_state": "new"}, "state_machine.initial_state"),
}


@pytest.mark.parametrize(("edits", "field"), ORCHESTRATOR.values(), ids=ORCHESTRATOR)
def test_a_broken_orchestrator_contract_is_refused_at_its_field(
    tmp_path: Path, edits: dict[str, Any], field: str
) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(edited("orchestrator", edits))
    with pytest.raises(ContractInvalid) as refused:
        load_orchestrator(path)
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{path}: {field}: ")


@pytest.mark.parametrize(("edits", "field"), REDUCER.values(), ids=REDUCER)
def test_a_broken_reducer_contract_is_refused_at_its_field(tmp_path: Path, edits: dict[str, Any], field: str) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(edited("reducer", edits))
    with pytest.raises(ContractInvalid) as refused:
        load_reducer(path)
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{path}: {field}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n", "duplicate"),
        ("- a\n- b\n", "mapping"),
        ("name: [\n", "is no YAML"),
        ("name: !!python/object:os.system {}\n", "is no YAML"),
        ("1: a\n", "must be text"),
        ("name: a\nself: &a\n  b: *a\n", "is no YAML"),
        ("#" * 300_000 + "\n", "is larger than"),
    ],
    ids=["duplicate key", "a list", "unfinished", "a tag", "a number as key", "contains itself", "too large"],
)
def test_a_text_that_is_no_contract_is_refused(text: str, says: str) -> None:
    for load in (load_orchestrator, load_reducer):
        with pytest.raises(ContractInvalid) as refused:
            load(text)
        assert says.lower() in refused.value.message.lower()


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    with pytest.raises(ContractInvalid, match="can't be read: No such file"):
        load_reducer(path)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(ContractInvalid, match="is no YAML"):
        load_reducer(str(path))


def test_both_contracts_must_agree_about_topics_and_states() -> None:
    renamed = edited("orchestrator", {"yaml_published_events": ["acme.done", "acme.not_done"]})
    with pytest.raises(ContractInvalid) as refused:
        load_contracts(renamed)
    assert refused.value.field == "yaml_consumed_events"
    other = edited(
        "reducer",
        {"state_machine.states[4]": state("held"), "state_machine.transitions[3]": move("hold", "pending", "held"),
         "state_machine.transitions[4]": move("drop", "held", "failed")},
    )  # fmt: skip
    with pytest.raises(ContractInvalid) as refused:
        load_contracts(None, other)
    assert refused.value.field == "state_machine"


def test_validating_a_file_tells_everything_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        edited("reducer", {f"{GROUPING}[1]": "mime", "config.size_buckets": [3, 2], "streaming": {}, "x": 1})
    )
    kind, problems = validate_file(path)
    assert kind == "reducer"
    assert [problem.field for problem in problems] == ["x"]  # omnibase_core refuses the whole for it
    path.write_text(edited("reducer", {f"{GROUPING}[1]": "mime", "config.size_buckets": [3, 2]}))
    assert {problem.field for problem in validate_file(path)[1]} == {f"{GROUPING}[1]", "config.size_buckets[1]"}
    path.write_text("name: a\nnode_type: EFFECT_GENERIC\n")
    assert [problem.field for problem in validate_file(path)[1]] == ["node_type"]
    assert validate_file(path)[0] == "unknown"


def test_validating_a_folder_holds_its_two_contracts_against_each_other(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "r").mkdir()
    (tmp_path / "o" / "contract.yaml").write_text(shipped_text("orchestrator"))
    (tmp_path / "r" / "contract.yaml").write_text(shipped_text("reducer"))
    assert [(report.kind, report.problems) for report in validate_path(tmp_path)] == [
        ("orchestrator", ()),
        ("reducer", ()),
    ]
    (tmp_path / "r" / "contract.yaml").write_text(edited("reducer", {"yaml_consumed_events": ["a", "b"]}))
    reports = validate_path(tmp_path)
    assert [problem.field for report in reports for problem in report.problems] == ["yaml_consumed_events"]
    assert validate_path(tmp_path / "o" / "contract.yaml")[0].kind == "orchestrator"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(validate_path(empty)[0].problems) == 1


def test_more_problems_than_one_are_announced() -> None:
    with pytest.raises(ContractInvalid, match=r"and 1 more: see omninode-bridge contract validate"):
        load_reducer(edited("reducer", {f"{GROUPING}[1]": "mime", "config.size_buckets": [3, 2]}))


def test_versions_are_mappings_and_extra_ids_have_no_effect() -> None:
    with pytest.raises(ContractInvalid) as refused:
        load_orchestrator(edited("orchestrator", {"config.steps[0].step_id": "0190163d-8694-739b-aea5-966c26f8ad91"}))
    assert refused.value.field == "config.steps[0].step_id"
    assert load_reducer(edited("reducer", {"node_version": V1})).batch_size == 4000
