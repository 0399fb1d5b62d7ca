"""The reducer reduces purely, by what the contract says, and stores only what has a place in the log."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.enums.enum_reducer_types import EnumReductionType
from omnibase_core.models.common.model_reducer_metadata import ModelReducerMetadata
from omnibase_core.models.container.model_onex_container import ModelONEXContainer
from omnibase_core.models.contracts.model_contract_reducer import ModelContractReducer
from omnibase_core.models.errors.model_onex_error import ModelOnexError
from omnibase_core.models.reducer import ModelReducerInput

from omninode_bridge.adapters.memory import MemoryStateStore, MemoryStore
from omninode_bridge.domain.events import decode
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.reduction import Item, fold
from omninode_bridge.nodes.container import build_container
from omninode_bridge.nodes.reducer.v1_0_0.models import (
    EnumAggregationType,
    ModelReducerOutputState,
    ModelStampMetadataInput,
)
from omninode_bridge.nodes.reducer.v1_0_0.node import NodeBridgeReducer
from omninode_bridge.ports import fingerprint
from tests.making import NAMESPACE, NOW, chain, completed, failed, hash_of, request, stamp
from tests.unit.nodes.assembly import V1, Bench, ScriptedHasher


def item(n: int, **fields: Any) -> ModelStampMetadataInput:
    given = {
        "stamp_id": f"stamp-{n:04}",
        "file_hash": hash_of(b"%d" % n),
        "file_path": f"{n}.txt",
        "file_size": 100 * n,
        "workflow_id": uuid4(),
        "namespace": f"ns.{n % 2}",
        "content_type": "text/plain" if n % 3 else "image/png",
        "created_at": NOW + timedelta(seconds=n),
        "processing_time_ms": 1.5,
        **fields,
    }
    return ModelStampMetadataInput.model_validate(given)


def failure(n: int, **fields: Any) -> ModelStampMetadataInput:
    return item(n, workflow_state="failed", file_hash="", file_size=0, **fields)


def contract(
    *fields: str, config: dict[str, Any] | None = None, windowing: bool = False, **more: Any
) -> ModelContractReducer:
    """A contract as an ONEX caller writes one: groupings and little else; without any, no aggregation section."""
    aggregation: dict[str, Any] = {
        "version": V1,
        "aggregation_functions": ["count"],
        "grouping": {"version": V1, "grouping_fields": list(fields)},
    }
    if windowing:
        aggregation["windowing"] = {"version": V1, "windowing_enabled": True, "window_size_ms": 2000}
    given = {
        "name": "asked",
        "contract_version": V1,
        "description": "asked",
        "input_model": "ModelStampMetadataInput",
        "output_model": "ModelReducerOutputState",
        **({"aggregation": aggregation} if fields else {}),
        **({"config": config} if config else {}),
        **more,
    }
    return ModelContractReducer.model_validate(given)


def bringing(asked: ModelContractReducer, **input_state: Any) -> ModelContractReducer:
    return asked.model_copy(update={"input_state": input_state})


def untimed(output: ModelReducerOutputState) -> dict[str, Any]:
    """All of an output that does not depend on the clock or on fresh ids."""
    shown = output.model_dump(exclude={"aggregation_duration_ms", "items_per_second", "intents"})
    return {**shown, "intents": [intent.payload.model_dump() for intent in output.intents]}  # type: ignore[attr-defined]


@pytest.fixture
def node() -> NodeBridgeReducer:
    return NodeBridgeReducer(ModelONEXContainer())


async def test_five_good_and_three_failed_are_eight(node: NodeBridgeReducer) -> None:
    items = [*(item(n) for n in range(5)), *(failure(n) for n in range(3))]
    output = await node.execute_reduction(bringing(node.contract, items=items))
    assert output.total_items == 8
    assert output.total_size_bytes == 1000
    assert output.namespaces == ["ns.0", "ns.1"]
    totals = output.aggregations
    assert [totals[ns]["total_stamps"] for ns in output.namespaces] == [3, 2]
    assert [totals[ns]["failed"] for ns in output.namespaces] == [2, 1]
    assert totals["ns.0"]["file_types"] == ["image/png", "text/plain"]
    assert len(totals["ns.0"]["workflow_ids"]) == 5
    assert sorted(output.fsm_states.values()) == ["completed"] * 5 + ["failed"] * 3
    assert output.items_per_second > 0


async def test_models_dicts_and_streams_are_the_same_to_it(node: NodeBridgeReducer) -> None:
    items = [item(n) for n in range(40)]

    async def stream() -> AsyncIterator[Any]:
        for each in items:
            yield each

    asked = contract("namespace", "content_type")
    from_models = await node.execute_reduction(bringing(asked, items=items))
    from_dicts = await node.execute_reduction(bringing(asked, items=[each.model_dump(mode="json") for each in items]))
    from_stream = await node.execute_reduction(asked, stream())
    small = contract("namespace", "content_type")
    assert small.aggregation is not None
    small.aggregation.performance.batch_size = 7
    from_batches = await node.execute_reduction(small, stream())
    assert untimed(from_models) == untimed(from_dicts) == untimed(from_stream) == untimed(from_batches)


@pytest.mark.parametrize(
    ("grouping", "kind", "keys"),
    [
        ("namespace", EnumAggregationType.NAMESPACE_GROUPING, {"ns.0"}),
        ("time_window", EnumAggregationType.TIME_WINDOW, {"2026-03-01T12:00:00Z", "2026-03-01T12:00:02Z"}),
        ("content_type", EnumAggregationType.FILE_TYPE_GROUPING, {"text/plain", "image/png"}),
        ("size_bucket", EnumAggregationType.SIZE_BUCKETS, {"0..199", "200.."}),
        ("metadata.project", EnumAggregationType.CUSTOM, {"x", "y"}),
    ],
)
async def test_each_aggregation_type_really_groups(
    node: NodeBridgeReducer, grouping: str, kind: EnumAggregationType, keys: set[str]
) -> None:
    items = [item(0, metadata={"project": "x"}), item(2, metadata={"project": "y"})]
    asked = contract(grouping, config={"size_buckets": [200]}, windowing=True)
    output = await node.execute_reduction(bringing(asked, items=items))
    groups = output.aggregations["ns.0"]["groups"][grouping]
    assert output.aggregation_type is kind
    assert set(groups) == keys
    assert sum(group["total_stamps"] for group in groups.values()) == 2
    assert sum(group["total_size_bytes"] for group in groups.values()) == 200


async def test_workflows_are_groups_too_failed_ones_included(node: NodeBridgeReducer) -> None:
    good, bad = item(2), failure(4)
    output = await node.execute_reduction(bringing(contract("workflow"), items=[good, bad]))
    assert output.aggregation_type is EnumAggregationType.WORKFLOW_GROUPING
    groups = output.aggregations["ns.0"]["groups"]["workflow"]
    assert groups[str(good.workflow_id)]["total_size_bytes"] == 200
    assert groups[str(bad.workflow_id)]["failed"] == 1


async def test_without_an_aggregation_section_it_groups_by_namespace(node: NodeBridgeReducer) -> None:
    output = await node.execute_reduction(bringing(contract(), items=[item(1), item(2)]))
    assert output.aggregation_type is EnumAggregationType.NAMESPACE_GROUPING
    assert set(output.aggregations["ns.1"]["groups"]) == {"namespace"}


async def test_both_doors_add_up_to_the_same(node: NodeBridgeReducer) -> None:
    items = [*(item(n, metadata={"project": "x"}) for n in range(30)), *(failure(n) for n in range(5))]
    good = [i for i in items if i.file_hash]
    plain = node.reduce(
        [
            *(
                Item(i.stamp_id, i.created_at, i.namespace, True, i.content_type, i.file_size, 1500, i.metadata)
                for i in good
            ),
            *(Item(i.stamp_id, i.created_at, i.namespace, False) for i in items if not i.file_hash),
        ]
    )
    output = await node.execute_reduction(bringing(node.contract, items=items))
    for (namespace, grouping, key), totals in plain.items():
        group = output.aggregations[namespace]["groups"][grouping][key]
        assert group["total_stamps"] == totals.total_stamps
        assert group["failed"] == totals.failed
        assert group["total_size_bytes"] == totals.total_size_bytes
        assert group["processing_time_us_sum"] == totals.processing_time_us_sum
    grouped = {
        (ns, grouping, key)
        for ns, aggregation in output.aggregations.items()
        for grouping, groups in aggregation["groups"].items()
        for key in groups
        if grouping != "workflow"
    }
    assert grouped == set(plain)


async def test_events_and_items_of_the_same_workflows_reduce_alike(node: NodeBridgeReducer) -> None:
    events = [completed(stamp(file_size=9)), completed(stamp(content_type="image/png")), failed()]
    assert node.reduce(events)[NAMESPACE, "namespace", NAMESPACE].total_stamps == 2
    assert node.reduce(events)[NAMESPACE, "namespace", NAMESPACE].failed == 1


async def test_an_unended_workflow_is_tracked_and_not_counted(node: NodeBridgeReducer) -> None:
    running = item(2, workflow_state="processing")
    ended = item(2, workflow_id=running.workflow_id)
    output = await node.execute_reduction(bringing(contract("namespace"), items=[ended, running]))
    assert output.total_items == 2
    assert output.aggregations["ns.0"]["total_stamps"] == 1
    assert output.fsm_states == {str(running.workflow_id): "completed"}


async def test_a_workflow_that_both_completed_and_failed_is_impossible(node: NodeBridgeReducer) -> None:
    good = item(1)
    bad = failure(1, workflow_id=good.workflow_id)
    with pytest.raises(ModelOnexError) as refused:
        await node.execute_reduction(bringing(contract(), items=[good, bad]))
    assert refused.value.error_code == EnumCoreErrorCode.INVALID_STATE


@pytest.mark.parametrize(
    ("input_state", "field"),
    [
        ({"items": [{"stamp_id": "a"}]}, "items[0].file_hash"),
        ({"items": [item(1).model_dump() | {"file_size": -1}]}, "items[0].file_size"),
        ({"items": [item(1), "text"]}, "items[1]"),
        ({"items": [item(1).model_dump() | {"metadata": {"a": object()}}]}, "items[0].metadata"),
        ({"items": "text"}, "input_state.items"),
        ({"records": [1]}, "input_state.records"),
        ({"records": [], "items": []}, "input_state.records"),
        ({"other": []}, "input_state"),
    ],
)
async def test_bad_input_is_named(node: NodeBridgeReducer, input_state: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelOnexError) as refused:
        await node.execute_reduction(bringing(contract(), **input_state))
    assert refused.value.error_code == EnumCoreErrorCode.VALIDATION_ERROR
    assert refused.value.context["additional_context"]["field"] == field


async def test_a_grouping_there_is_none_of_is_named(node: NodeBridgeReducer) -> None:
    with pytest.raises(ModelOnexError, match=r"grouping_fields\[0\].*'mime' is no grouping") as refused:
        await node.execute_reduction(bringing(contract("mime"), items=[]))
    assert refused.value.error_code == EnumCoreErrorCode.CONTRACT_VALIDATION_ERROR


class TestPersistence:
    async def test_a_bare_container_gets_an_intent(self, node: NodeBridgeReducer) -> None:
        output = await node.execute_reduction(bringing(contract("namespace"), items=[item(2)]))
        (intent,) = output.intents
        assert (intent.intent_type, intent.target) == ("persist_state", "bridge_state")
        data = intent.payload.model_dump()["state_data"]  # type: ignore[attr-defined]
        assert [(row["namespace"], row["total_stamps"]) for row in data["rows"]] == [("ns.0", 1)]
        assert data["heads"] == []
        assert (await node.execute_reduction(bringing(contract(), items=[]))).intents == []

    async def test_records_are_folded_into_the_store_exactly_once(self) -> None:
        store = MemoryStateStore(MemoryStore())
        node = NodeBridgeReducer(await build_container(state_store=store))
        records = chain(10)
        for batch in (records[:4], records[:6], records[4:], records, list(reversed(records))):
            output = await node.execute_reduction(bringing(node.contract, records=batch))
            assert output.intents == []
            assert output.total_items == len(batch)
        assert await store.rows("namespace") == {
            key: totals for key, totals in node.reduce(events(records)).items() if key[1] == "namespace"
        }

    async def test_two_nodes_folding_the_same_records_count_them_once(self) -> None:
        memory = MemoryStore()
        store = MemoryStateStore(memory)
        container = await build_container(state_store=store)
        nodes = [NodeBridgeReducer(container) for _ in range(4)]
        records = [*chain(50), *chain(30, shard=1)]
        await asyncio.gather(
            *(
                n.execute_reduction(bringing(n.contract, records=records[:i]))
                for i in range(0, 80, 10)
                for n in nodes[:2]
            )
        )
        await asyncio.gather(*(n.execute_reduction(bringing(n.contract, records=records)) for n in nodes))
        rows = await store.rows("namespace")
        assert rows[NAMESPACE, "namespace", NAMESPACE].total_stamps == 80

    async def test_a_gap_changes_nothing(self) -> None:
        store = MemoryStateStore(MemoryStore())
        node = NodeBridgeReducer(await build_container(state_store=store))
        records = chain(5)
        with pytest.raises(ModelOnexError, match=r"record 4 of .* does not follow 2") as refused:
            await node.execute_reduction(bringing(node.contract, records=[*records[:2], *records[3:]]))
        assert refused.value.error_code == EnumCoreErrorCode.INVALID_STATE
        assert await store.rows("namespace") == {}

    async def test_items_never_reach_the_store(self) -> None:
        store = MemoryStateStore(MemoryStore())
        node = NodeBridgeReducer(await build_container(state_store=store))
        output = await node.execute_reduction(bringing(node.contract, items=[item(1)]))
        assert len(output.intents) == 1
        assert await store.live() is None

    async def test_other_groupings_than_the_stored_ones_are_refused(self) -> None:
        store = MemoryStateStore(MemoryStore())
        node = NodeBridgeReducer(await build_container(state_store=store))
        await store.begin(fingerprint(node.bridge_contract.groupings))
        with pytest.raises(ModelOnexError, match="rebuild") as refused:
            await node.execute_reduction(bringing(contract("namespace"), records=chain(1)))
        assert refused.value.error_code == EnumCoreErrorCode.INVALID_STATE

    async def test_records_without_a_store_come_back_with_their_place(self, node: NodeBridgeReducer) -> None:
        records = chain(3)
        (intent,) = (await node.execute_reduction(bringing(node.contract, records=records))).intents
        (head,) = intent.payload.model_dump()["state_data"]["heads"]  # type: ignore[attr-defined]
        assert (head["position"], head["event_id"]) == (3, records[2].event_id)

    async def test_a_corrupt_record_is_an_error_and_not_a_total(self, node: NodeBridgeReducer) -> None:
        torn = Record("t", 0, 1, "e", "p", NAMESPACE, "w", b"{")
        with pytest.raises(ModelOnexError) as refused:
            await node.execute_reduction(bringing(node.contract, records=[torn]))
        assert refused.value.error_code == EnumCoreErrorCode.VALIDATION_ERROR

    async def test_what_the_orchestrator_records_the_reducer_folds(self) -> None:
        bench = Bench()
        orchestrator = await bench.node(hasher=ScriptedHasher(ValueError("broken")))
        await orchestrator.run_many([request("lost.txt")])
        await orchestrator.run_many([request(f"{n}.txt", b"%d" % n) for n in range(9)])
        node = NodeBridgeReducer(await build_container(state_store=MemoryStateStore(bench.store)))
        records = [record for shard in bench.store.log.values() for record in shard]
        await node.execute_reduction(bringing(node.contract, records=records))
        (totals,) = (await MemoryStateStore(bench.store).rows("namespace")).values()
        assert (totals.total_stamps, totals.failed) == (9, 1)
        assert fold((Item("e", NOW, "n", True),), node.bridge_contract.groupings)


def events(records: list[Record]) -> list[Any]:
    return [decode(record.body) for record in records]


class TestProcess:
    async def test_it_moves_the_given_workflow_and_reduces_the_data(self, node: NodeBridgeReducer) -> None:
        items = [item(n) for n in range(6)]
        output = await node.process(reducer_input(items, trigger="start"))
        assert output.fsm_metadata is not None
        assert (output.fsm_metadata.fsm_previous_state, output.fsm_metadata.fsm_state) == ("pending", "processing")
        through_the_other_door = await node.execute_reduction(bringing(node.contract, items=items))
        assert untimed(output.result) == untimed(through_the_other_door)
        assert output.items_processed == 6
        assert "persist_state" in {intent.intent_type for intent in output.intents}

    async def test_many_workflows_on_one_node_do_not_disturb_each_other(self, node: NodeBridgeReducer) -> None:
        async def run(ending: str) -> str:
            state = "pending"
            for trigger in ("start", ending):
                output = await node.process(reducer_input([], trigger=trigger, fsm_state=state))
                assert output.fsm_metadata is not None
                state = output.fsm_metadata.fsm_state
                await asyncio.sleep(0)
            return state

        endings = await asyncio.gather(*(run("complete" if n % 2 else "fail") for n in range(40)))
        assert endings == ["completed" if n % 2 else "failed" for n in range(40)]
        assert node.get_current_fsm_state() == "pending"
        assert node.get_fsm_state_history() == []

    @pytest.mark.parametrize(
        ("trigger", "state"), [("complete", "pending"), ("fail", "completed"), (None, "pending"), ("start", "limbo")]
    )
    async def test_an_illegal_move_raises_and_changes_nothing(
        self, node: NodeBridgeReducer, trigger: str | None, state: str
    ) -> None:
        with pytest.raises(ModelOnexError) as refused:
            await node.process(reducer_input([], trigger=trigger, fsm_state=state))
        assert refused.value.error_code == EnumCoreErrorCode.INVALID_STATE
        assert (await node.process(reducer_input([], trigger="start"))).fsm_metadata is not None

    async def test_it_leaves_the_root_logger_alone(self, node: NodeBridgeReducer) -> None:
        before = list(logging.root.handlers)
        logging.root.handlers.clear()
        try:
            await node.process(reducer_input([], trigger="start"))
            assert logging.root.handlers == []
        finally:
            logging.root.handlers[:] = before

    async def test_core_and_the_compiled_machine_give_the_same_verdicts(self, node: NodeBridgeReducer) -> None:
        machine = node.bridge_contract.fsm.machine
        for state in machine.states():
            for trigger in ("start", "complete", "fail", "process"):
                expected = machine.table.get((state, trigger))
                try:
                    output = await node.process(reducer_input([], trigger=trigger, fsm_state=state))
                    assert output.fsm_metadata is not None
                    assert output.fsm_metadata.fsm_state == expected
                except ModelOnexError:
                    assert expected is None


def reducer_input(items: list[ModelStampMetadataInput], **metadata: Any) -> ModelReducerInput[ModelStampMetadataInput]:
    return ModelReducerInput(
        data=items,
        reduction_type=EnumReductionType.AGGREGATE,
        metadata=ModelReducerMetadata(**metadata),
        timestamp=datetime.now(UTC),
    )
