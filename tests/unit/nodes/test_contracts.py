"""Contracts decide: what an edited contract says is what the nodes do."""

import asyncio
from pathlib import Path

import pytest
from omnibase_core.models.container.model_onex_container import ModelONEXContainer

from omninode_bridge.domain.breaker import BreakerLimits, CallPolicy
from omninode_bridge.domain.log import ShardKey
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.domain.workflow import final_state
from omninode_bridge.nodes.contracts import load_contracts, load_orchestrator, load_reducer, shipped_text
from omninode_bridge.nodes.reducer.v1_0_0.node import NodeBridgeReducer
from tests.making import completed, request, stamp
from tests.unit.nodes.assembly import REMOVED, Bench, ScriptedHasher, ScriptedIntelligence, edited, move, state

FSM = "config.state_machine"
WITH_HASHED = {
    f"{FSM}.states[4]": state("hashed"),
    f"{FSM}.transitions": [
        move("start", "pending", "processing"),
        move("hashed", "processing", "hashed"),
        move("complete", "hashed", "completed"),
        move("fail", "processing", "failed"),
        move("fail_late", "hashed", "failed", "fail"),
    ],
    "config.steps[0].trigger": "hashed",
}


def test_the_shipped_contracts_compile_to_the_domain() -> None:
    contracts = load_contracts()
    plan, reducer = contracts.orchestrator.plan, contracts.reducer
    assert [step.name for step in plan.steps] == ["hash", "intelligence", "stamp"]
    assert (plan.completed_topic, plan.failed_topic) == ("workflow.stamping.completed", "workflow.stamping.failed")
    assert final_state(plan) == "completed"
    assert reducer.groupings == Groupings(metadata_fields=("project",))
    assert reducer.names == ("namespace", "content_type", "size_bucket", "time_window", "workflow", "metadata.project")
    assert reducer.fsm == contracts.orchestrator.fsm
    assert contracts.orchestrator.has_intelligence


def test_a_contract_is_loaded_from_text_or_file_and_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(shipped_text("reducer"))
    assert (
        load_reducer(path).fingerprint
        == load_reducer().fingerprint
        == load_reducer(shipped_text("reducer")).fingerprint
    )
    assert load_reducer(shipped_text("reducer") + "\n").fingerprint != load_reducer().fingerprint
    assert load_reducer(str(path)).groupings == load_reducer().groupings


async def test_an_added_state_is_gone_through() -> None:
    bench = Bench(load_orchestrator(edited("orchestrator", WITH_HASHED)))
    node = await bench.node()
    asked = request()
    assert (await node.run(asked)).workflow_state == "completed"
    assert bench.states(asked.workflow_id) == ["pending", "processing", "hashed", "completed"]


async def test_a_failure_before_an_added_state_does_not_claim_to_have_reached_it() -> None:
    bench = Bench(load_orchestrator(edited("orchestrator", WITH_HASHED)))
    node = await bench.node(hasher=ScriptedHasher(ValueError("broken")))
    asked = request()
    await node.run_many([asked])
    assert bench.states(asked.workflow_id) == ["pending", "processing", "failed"]


async def test_a_workflow_may_start_in_two_moves() -> None:
    edits = {
        f"{FSM}.states[4]": state("queued"),
        f"{FSM}.transitions[0]": move("queue", "pending", "queued"),
        f"{FSM}.transitions[3]": move("start", "queued", "processing"),
        "config.triggers.start": ["queue", "start"],
    }
    bench = Bench(load_orchestrator(edited("orchestrator", edits)))
    asked = request()
    await (await bench.node()).run(asked)
    assert bench.states(asked.workflow_id) == ["pending", "queued", "processing", "completed"]


async def test_a_renamed_topic_is_where_events_go() -> None:
    topics = ["acme.stamped", "acme.not-stamped"]
    contracts = load_contracts(
        edited("orchestrator", {"yaml_published_events": topics}), edited("reducer", {"yaml_consumed_events": topics})
    )
    bench = Bench(contracts.orchestrator)
    node = await bench.node(hasher=ScriptedHasher(ValueError("broken")))
    await node.run_many([request()])
    await node.run(request())
    assert bench.topics() == {"acme.stamped": 1, "acme.not-stamped": 1}
    assert contracts.reducer.completed_topic == "acme.stamped"
    key: ShardKey = ("acme.stamped", 0)
    assert b'"type":"acme.stamped"' in bench.store.log[key][0].body


async def test_without_the_intelligence_step_nobody_is_asked() -> None:
    graph = "workflow_coordination.workflow_definition.execution_graph.nodes"
    edits = {
        "config.steps[1]": REMOVED,
        "config.steps[1].depends_on": ["hash"],
        f"{graph}[1]": REMOVED,
        f"{graph}[1].depends_on": ["hash"],
    }
    bench = Bench(load_orchestrator(edited("orchestrator", edits)))
    intelligence = ScriptedIntelligence()
    node = await bench.node(intelligence=intelligence)
    assert (await node.run(request(enable_intelligence=True))).intelligence is None
    assert intelligence.asked == []
    assert not bench.contract.has_intelligence


def test_how_stamping_services_are_called_is_the_contracts() -> None:
    edits = {
        "config.hash_mib_per_s_min": 2,
        "config.stamping.request_timeout_ms": 700,
        "config.stamping.requests_in_flight_max": 8,
        "config.stamping.circuit_breaker.failure_threshold": 3,
        "config.stamping.circuit_breaker.timeout_ms": 1500,
    }
    policy = load_orchestrator(edited("orchestrator", edits)).stamping
    assert policy == CallPolicy(700, 8, 2, BreakerLimits(3, 1.5))
    assert policy.timeout_s(5 * 1024**2) == 0.7 + 2.5


async def test_the_batch_limit_is_the_contracts() -> None:
    from omninode_bridge.domain.errors import LimitExceeded

    limits = {"config.batch_items_max": 2, "config.queue.in_flight_max": 2}
    bench = Bench(load_orchestrator(edited("orchestrator", limits)))
    node = await bench.node()
    with pytest.raises(LimitExceeded, match="3 requests in one batch; 2 is the contract's limit"):
        await node.run_many([request() for _ in range(3)])
    assert len(await node.run_many([request(), request()])) == 2


def reducer(edits: dict[str, object]) -> NodeBridgeReducer:
    return NodeBridgeReducer(ModelONEXContainer(), load_reducer(edited("reducer", edits)))


def kinds(node: NodeBridgeReducer) -> set[str]:
    return {kind for _, kind, _ in node.reduce([completed(stamp(metadata={"project": "x", "team": "y"}))])}


def test_a_dropped_grouping_is_not_grouped_by() -> None:
    field = "aggregation.grouping.grouping_fields"
    assert kinds(reducer({})) == {"namespace", "content_type", "size_bucket", "time_window", "metadata.project"}
    assert kinds(reducer({field: ["namespace", "size_bucket"]})) == {"namespace", "size_bucket"}
    assert kinds(reducer({field: ["namespace", "metadata.team"]})) == {"namespace", "metadata.team"}


def test_a_changed_window_and_changed_bounds_make_other_groups() -> None:
    def keys(node: NodeBridgeReducer, kind: str) -> set[str]:
        return {key for _, name, key in node.reduce([completed(stamp(file_size=7))]) if name == kind}

    assert keys(reducer({}), "time_window") == {"2026-03-01T12:00:00Z"}
    day = reducer({"aggregation.windowing.window_size_ms": 24 * 3600 * 1000, "config.size_buckets": [5, 9]})
    assert keys(day, "time_window") == {"2026-03-01T00:00:00Z"}
    assert keys(day, "size_bucket") == {"5..8"}


def test_what_was_compiled_does_not_follow_the_mutable_models() -> None:
    contract = load_reducer()
    assert contract.model.aggregation is not None
    contract.model.aggregation.grouping.grouping_fields.clear()
    assert "content_type" in contract.names
    assert contract.groupings.content_type


def test_loading_works_inside_and_outside_a_running_loop() -> None:
    async def inside() -> str:
        return load_contracts().orchestrator.fingerprint

    assert asyncio.run(inside()) == load_orchestrator().fingerprint
