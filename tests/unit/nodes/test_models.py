"""The models at the ONEX door: strict, closed, and with the defaults that callers rely on."""

from datetime import UTC
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ValidationError

from omninode_bridge.nodes.orchestrator.v1_0_0.models import (
    EnumWorkflowState,
    ModelStampRequestInput,
    ModelStampResponseOutput,
)
from omninode_bridge.nodes.reducer.v1_0_0.models import (
    EnumAggregationType,
    ModelReducerOutputState,
    ModelStampMetadataInput,
)

REQUEST = {"file_path": "a", "file_content": b"x", "content_type": "text/plain"}
ITEM = {"stamp_id": "s", "file_hash": "a" * 64, "file_path": "a", "file_size": 1, "workflow_id": uuid4()}


def test_a_request_needs_three_fields() -> None:
    request = ModelStampRequestInput(file_path="a", file_content=b"x", content_type="text/plain")
    assert request.namespace == "omninode.services.metadata"
    assert (request.op_id, request.enable_onextree_intelligence) == (None, False)
    assert (request.intelligence_context, request.metadata) == ({}, {})


def test_an_item_needs_five_fields() -> None:
    item = ModelStampMetadataInput.model_validate(ITEM)
    assert item.workflow_state is EnumWorkflowState.COMPLETED
    assert (item.namespace, item.content_type) == ("omninode.services.metadata", "application/octet-stream")
    assert item.created_at.tzinfo is UTC
    assert item.processing_time_ms == 0


@pytest.mark.parametrize("missing", REQUEST)
def test_a_request_without_a_required_field_is_refused(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        ModelStampRequestInput.model_validate({key: value for key, value in REQUEST.items() if key != missing})


@pytest.mark.parametrize("missing", ITEM)
def test_an_item_without_a_required_field_is_refused(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        ModelStampMetadataInput.model_validate({key: value for key, value in ITEM.items() if key != missing})


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ModelStampRequestInput, REQUEST | {"file_content": "text"}),
        (ModelStampRequestInput, REQUEST | {"file_path": 1}),
        (ModelStampRequestInput, REQUEST | {"op_id": "no-uuid"}),
        (ModelStampRequestInput, REQUEST | {"enable_onextree_intelligence": "yes"}),
        (ModelStampRequestInput, REQUEST | {"filepath": "a"}),
        (ModelStampMetadataInput, ITEM | {"file_size": -1}),
        (ModelStampMetadataInput, ITEM | {"file_size": "1"}),
        (ModelStampMetadataInput, ITEM | {"file_hash": "abc"}),
        (ModelStampMetadataInput, ITEM | {"processing_time_ms": -0.1}),
        (ModelStampMetadataInput, ITEM | {"processing_time_ms": float("nan")}),
        (ModelStampMetadataInput, ITEM | {"workflow_state": "done"}),
        (ModelStampMetadataInput, ITEM | {"workflow_id": "no-uuid"}),
    ],
)
def test_wrong_types_unknown_fields_and_values_out_of_range_are_refused(
    model: type[BaseModel], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(fields)


def test_ids_come_as_objects_or_as_text() -> None:
    op = uuid4()
    assert ModelStampRequestInput.model_validate(REQUEST | {"op_id": str(op)}).op_id == op
    assert ModelStampMetadataInput.model_validate(ITEM | {"stamp_id": op}).stamp_id == str(op)
    assert isinstance(ModelStampMetadataInput.model_validate(ITEM | {"workflow_id": str(op)}).workflow_id, UUID)


def test_a_failed_workflow_has_no_hash() -> None:
    item = ModelStampMetadataInput.model_validate(ITEM | {"file_hash": "", "workflow_state": "failed"})
    assert item.workflow_state is EnumWorkflowState.FAILED


def test_models_are_frozen_and_survive_json() -> None:
    item = ModelStampMetadataInput.model_validate(ITEM)
    with pytest.raises(ValidationError):
        item.file_size = 2  # type: ignore[misc]
    assert ModelStampMetadataInput.model_validate_json(item.model_dump_json()) == item


def test_states_go_only_forward() -> None:
    legal = {(a.value, b.value) for a in EnumWorkflowState for b in EnumWorkflowState if a.can_transition_to(b)}
    assert legal == {("pending", "processing"), ("processing", "completed"), ("processing", "failed")}
    assert [state.value for state in EnumWorkflowState if state.is_terminal()] == ["completed", "failed"]


def test_every_grouping_has_its_aggregation_type() -> None:
    pairs = {
        "namespace": "namespace_grouping",
        "time_window": "time_window",
        "content_type": "file_type_grouping",
        "size_bucket": "size_buckets",
        "workflow": "workflow_grouping",
        "metadata.anything": "custom",
    }
    assert {name: EnumAggregationType.of_grouping(name).value for name in pairs} == pairs
    assert {kind.value for kind in EnumAggregationType} == set(pairs.values())


def test_outputs_have_the_fields_callers_read() -> None:
    assert {
        "stamp_id", "stamped_by", "workflow_id", "op_id", "namespace", "file_path", "file_hash", "hash_algorithm",
        "digest_origin", "file_size", "content_type", "version", "metadata_version", "metadata", "intelligence",
        "workflow_state", "deduplicated", "created_at", "completed_at", "processing_time_ms",
        "hash_generation_time_ms", "workflow_steps_executed", "stamped_content", "stamp_metadata",
        "intelligence_data",
    } == set(ModelStampResponseOutput.model_fields)  # fmt: skip
    assert {
        "aggregation_type", "total_items", "total_size_bytes", "namespaces", "aggregations", "fsm_states", "intents",
        "aggregation_duration_ms", "items_per_second",
    } == set(ModelReducerOutputState.model_fields)  # fmt: skip
