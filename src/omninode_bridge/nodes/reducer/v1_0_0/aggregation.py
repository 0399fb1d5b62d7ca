"""From what ONEX callers hand in to the domain's fold, and from its totals to what they get.

The totals are the domain's: nothing is added up here. What is kept besides them is what an ONEX caller asks of
one reduction: which files and workflows there were, and the furthest state each workflow was seen in.
Nothing outlives the reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, NamedTuple

from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.contracts.model_contract_reducer import ModelContractReducer
from omnibase_core.models.errors.model_onex_error import ModelOnexError
from pydantic import ValidationError

from omninode_bridge.domain.errors import BridgeError, IllegalTransition
from omninode_bridge.domain.events import Event, StampingCompleted
from omninode_bridge.domain.names import check_metadata
from omninode_bridge.domain.reduction import EMPTY, Groupings, Item, State, Totals, fold, item_of, merge, merge_states
from omninode_bridge.domain.stamp import microseconds
from omninode_bridge.nodes.contract_reading import Problem, join
from omninode_bridge.nodes.contract_reducer import compile_groupings
from omninode_bridge.nodes.onex_errors import onex_error
from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState
from omninode_bridge.nodes.reducer.v1_0_0.models.enum_aggregation_type import EnumAggregationType
from omninode_bridge.nodes.reducer.v1_0_0.models.model_reducer_output_state import ModelReducerOutputState
from omninode_bridge.nodes.reducer.v1_0_0.models.model_stamp_metadata_input import ModelStampMetadataInput

_ONLY_NAMESPACE = Groupings(content_type=False, size_bucket=False, time_window=False)


class Observation(NamedTuple):
    """One workflow, seen in a state. It counts when that state is terminal."""

    item: Item
    workflow_id: str
    state: EnumWorkflowState


class GroupedBy(NamedTuple):
    """The groupings in a contract's order, and as the fold takes them."""

    names: tuple[str, ...]
    groupings: Groupings


def grouped_by(contract: ModelContractReducer, defaults: Groupings) -> GroupedBy:
    """Return what a contract groups by: the namespace alone when it has no aggregation section.

    Raises ModelOnexError CONTRACT_VALIDATION_ERROR naming the field.
    """
    if contract.aggregation is None:
        return GroupedBy(("namespace",), _ONLY_NAMESPACE)
    found: list[Problem] = []
    groupings = compile_groupings(contract.aggregation, contract.config.model_extra, defaults, found)
    if found:
        raise ModelOnexError(
            f"contract {contract.name}: {found[0]}",
            EnumCoreErrorCode.CONTRACT_VALIDATION_ERROR,
            field=found[0].field,
        )
    return GroupedBy(tuple(contract.aggregation.grouping.grouping_fields) or ("namespace",), groupings)


def observed(given: object, path: str) -> Observation:
    """Return the observation that a ModelStampMetadataInput, or its dict, is.

    Raises ModelOnexError VALIDATION_ERROR naming the field, such as `items[3].file_size`.
    """
    try:
        model = given if isinstance(given, ModelStampMetadataInput) else ModelStampMetadataInput.model_validate(given)
        metadata = check_metadata(model.metadata)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        field = join(path, *detail["loc"])
        raise ModelOnexError(f"{field}: {detail['msg']}", EnumCoreErrorCode.VALIDATION_ERROR, field=field) from error
    except BridgeError as error:
        field = join(path, error.field or "metadata")
        message = f"{field}: {error.message}"
        raise ModelOnexError(message, EnumCoreErrorCode.VALIDATION_ERROR, field=field) from error
    at = model.created_at if model.created_at.tzinfo else model.created_at.replace(tzinfo=UTC)
    workflow_id = str(model.workflow_id)
    completed = model.workflow_state is EnumWorkflowState.COMPLETED
    # A failed workflow has no content: what the fields say of one is not counted, as in the fold of events.
    item = (
        Item(
            model.stamp_id,
            at,
            model.namespace,
            True,
            model.content_type,
            model.file_size,
            microseconds(model.processing_time_ms),
            metadata,
        )
        if completed
        else Item(model.stamp_id or workflow_id, at, model.namespace, False)
    )
    return Observation(item, workflow_id, model.workflow_state)


def observed_event(event: Event) -> Observation:
    """Return the observation that an event of the log is."""
    completed = isinstance(event, StampingCompleted)
    state = EnumWorkflowState.COMPLETED if completed else EnumWorkflowState.FAILED
    return Observation(item_of(event), event.subject, state)


class Reduction:
    """The running result of one reduction: feed it batches, then ask for the output."""

    def __init__(self, by: GroupedBy) -> None:
        self.state: State = {}
        self._by = by
        self._total_items = 0
        self._states: dict[str, EnumWorkflowState] = {}
        self._file_types: dict[str, set[str]] = {}
        self._workflows: dict[str, dict[str, Totals]] = {}

    def add(self, batch: Sequence[Observation]) -> None:
        """Fold a batch in. Raises ModelOnexError INVALID_STATE for states that no machine goes through."""
        for _, workflow_id, state in batch:
            self._states[workflow_id] = _furthest(workflow_id, self._states.get(workflow_id, state), state)
        self._total_items += len(batch)
        ended = [seen for seen in batch if seen.state.is_terminal()]
        self.state = merge_states(self.state, fold((seen.item for seen in ended), self._by.groupings))
        for seen in batch:
            item = seen.item
            types = self._file_types.setdefault(item.namespace, set())
            if item.completed:
                types.add(item.content_type)
            workflows = self._workflows.setdefault(item.namespace, {})
            workflows.setdefault(seen.workflow_id, EMPTY)
        if "workflow" in self._by.names:
            for item, workflow_id, _ in ended:
                # The same fold, of one item: by what a workflow adds up to is decided in one place.
                alone = fold((item,), _ONLY_NAMESPACE)[item.namespace, "namespace", item.namespace]
                workflows = self._workflows[item.namespace]
                workflows[workflow_id] = merge(workflows[workflow_id], alone)

    def output(self, took_s: float, **more: Any) -> ModelReducerOutputState:
        """Return the totals of all that was added. `took_s` is seconds."""
        return ModelReducerOutputState(
            aggregation_type=EnumAggregationType.of_grouping(self._by.names[0]),
            total_items=self._total_items,
            total_size_bytes=sum(
                totals.total_size_bytes for (_, kind, _), totals in self.state.items() if kind == "namespace"
            ),
            namespaces=sorted(self._workflows),
            aggregations={namespace: self._aggregation(namespace) for namespace in sorted(self._workflows)},
            fsm_states={workflow_id: state.value for workflow_id, state in sorted(self._states.items())},
            aggregation_duration_ms=took_s * 1000,
            items_per_second=self._total_items / took_s if took_s > 0 else 0.0,
            **more,
        )

    def _aggregation(self, namespace: str) -> dict[str, Any]:
        groups: dict[str, dict[str, Any]] = {name: {} for name in self._by.names}
        for (owner, kind, key), totals in sorted(self.state.items()):
            if owner == namespace and kind in groups:
                groups[kind][key] = totals_dict(totals)
        workflows = self._workflows[namespace]
        if "workflow" in groups:
            groups["workflow"] = {key: totals_dict(totals) for key, totals in sorted(workflows.items())}
        return {
            **totals_dict(self.state.get((namespace, "namespace", namespace), EMPTY)),
            "file_types": sorted(self._file_types[namespace]),
            "workflow_ids": sorted(workflows),
            "groups": groups,
        }


def totals_dict(totals: Totals) -> dict[str, Any]:
    """Return totals as JSON values, under the names of a row of state."""
    return {
        "total_stamps": totals.total_stamps,
        "failed": totals.failed,
        "total_size_bytes": totals.total_size_bytes,
        "processing_time_us_sum": totals.processing_time_us_sum,
        "processing_time_us_min": totals.processing_time_us_min,
        "processing_time_us_max": totals.processing_time_us_max,
        "first_at": totals.first[0].isoformat() if totals.first else None,
        "last_at": totals.last[0].isoformat() if totals.last else None,
    }


def rows(state: State) -> list[dict[str, Any]]:
    """Return a state as rows of JSON values, by key."""
    return [
        {"namespace": namespace, "aggregation_type": kind, "group_key": key, **totals_dict(totals)}
        for (namespace, kind, key), totals in sorted(state.items())
    ]


def _reachable(state: EnumWorkflowState) -> frozenset[EnumWorkflowState]:
    following = {target for target in EnumWorkflowState if state.can_transition_to(target)}
    return frozenset(following.union(*(_reachable(target) for target in following)))


_AFTER: Mapping[EnumWorkflowState, frozenset[EnumWorkflowState]] = {
    state: _reachable(state) for state in EnumWorkflowState
}


def _furthest(workflow_id: str, a: EnumWorkflowState, b: EnumWorkflowState) -> EnumWorkflowState:
    """Return the later of two states a workflow was seen in, in whichever order the news came."""
    if a is b or b in _AFTER[a]:
        return b
    if a in _AFTER[b]:
        return a
    illegal = IllegalTransition(f"workflow {workflow_id} is said to be {a.value} and {b.value}: no machine does that")
    raise onex_error(illegal) from illegal


def observe_all(given: Iterable[object], path: str, start: int = 0) -> list[Observation]:
    """Return the observations in a list of models or dicts, the first of which is number `start` of `path`."""
    return [observed(item, join(path, index)) for index, item in enumerate(given, start)]
