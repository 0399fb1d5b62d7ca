"""NodeBridgeReducer: folds stamping events into totals.

Two doors, one room. The plain door, `reduce`, is the domain's fold by the contract's groupings, which is what
the projection of the log uses. The ONEX door, `execute_reduction` and `process`, speaks pydantic models and
ModelOnexError; its totals come from the same fold.

A node keeps nothing between calls: the FSM state of a workflow comes in with the call and goes out with the
answer, so that one node serves any number of workflows. (NodeReducer by itself has one state for its lifetime
and keeps a copy of every batch.)
"""

# mypy: disable-error-code="type-abstract"
# Ports are Protocols, and as keys of the container their classes are passed as values.

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterable
from typing import Any

from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.container.model_onex_container import ModelONEXContainer
from omnibase_core.models.contracts.model_contract_reducer import ModelContractReducer
from omnibase_core.models.contracts.subcontracts.model_fsm_subcontract import ModelFSMSubcontract
from omnibase_core.models.errors.model_onex_error import ModelOnexError
from omnibase_core.models.fsm.model_fsm_transition_result import ModelFSMTransitionResult
from omnibase_core.models.projectors import ModelProjectionIntent
from omnibase_core.models.reducer import ModelReducerInput, ModelReducerOutput
from omnibase_core.nodes.node_reducer import NodeReducer
from omnibase_core.types.type_fsm_context import FSMContextType
from omnibase_core.utils.util_fsm_executor import execute_transition

from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.domain.events import Event, decode
from omninode_bridge.domain.reduction import Item, State, fold, item_of
from omninode_bridge.nodes.container import resolve_if_any
from omninode_bridge.nodes.contracts import ReducerContract, load_reducer
from omninode_bridge.nodes.onex_errors import onex_error
from omninode_bridge.nodes.quiet import root_logger_untouched
from omninode_bridge.nodes.reducer.v1_0_0.aggregation import (
    GroupedBy,
    Reduction,
    grouped_by,
    observe_all,
    observed_event,
)
from omninode_bridge.nodes.reducer.v1_0_0.models.model_reducer_output_state import ModelReducerOutputState
from omninode_bridge.nodes.reducer.v1_0_0.models.model_stamp_metadata_input import ModelStampMetadataInput
from omninode_bridge.nodes.reducer.v1_0_0.persistence import in_order, intents, persist
from omninode_bridge.ports import StateStore


class NodeBridgeReducer(NodeReducer[ModelStampMetadataInput, ModelReducerOutputState]):
    """Reduces batches, any number at a time."""

    def __init__(self, container: ModelONEXContainer, contract: ReducerContract | None = None) -> None:
        """Make the node from a loaded contract, or from the one that ships with it (ContractInvalid)."""
        self.bridge_contract = contract or load_reducer()
        # NodeReducer looks for it while it is made: set later, the FSM would stay off.
        self.contract = self.bridge_contract.model
        super().__init__(container)

    def reduce(self, items: Iterable[Item | Event]) -> State:
        """Return the totals of items or events by the contract's groupings."""
        return fold(
            (item if isinstance(item, Item) else item_of(item) for item in items), self.bridge_contract.groupings
        )

    async def execute_reduction(
        self, contract: ModelContractReducer, input_stream: AsyncIterable[Any] | None = None
    ) -> ModelReducerOutputState:
        """Reduce what a contract brings, by what it groups by, and persist it where that is possible.

        The input is `contract.input_state["items"]` (ModelStampMetadataInput or dicts), or `input_stream` of the
        same, or both; or `contract.input_state["records"]`, records of the event log. A contract without an
        aggregation section groups by namespace; size bounds and window it leaves out are the node's own.

        With a state store in the container, records are folded into the stored state exactly once, however
        often they are handed in. Items have no place in the log by which a repetition could be told: what
        they add up to comes back as an intent, store or not, as do records without a store.

        Raises ModelOnexError: VALIDATION_ERROR naming the item and field, CONTRACT_VALIDATION_ERROR for groupings
        there are none of, INVALID_STATE for impossible states and for records that leave a gap.
        """
        by = grouped_by(contract, self.bridge_contract.groupings)
        given = contract.input_state or {}
        if "records" in given:
            if "items" in given or input_stream is not None:
                message = "hand in records or items, not both: only records have a place in the log"
                raise ModelOnexError(message, EnumCoreErrorCode.VALIDATION_ERROR, field="input_state.records")
            return await self._reduce_records(by, given["records"])
        if "items" not in given and input_stream is None:
            message = "nothing to reduce: hand in input_state['items'], input_state['records'] or input_stream"
            raise ModelOnexError(message, EnumCoreErrorCode.VALIDATION_ERROR, field="input_state")
        started = time.perf_counter()
        reduction = Reduction(by)
        items = given.get("items", ())
        if not isinstance(items, list | tuple):
            message = f"input_state['items'] must be a list of items, not {type(items).__name__}"
            raise ModelOnexError(message, EnumCoreErrorCode.VALIDATION_ERROR, field="input_state.items")
        reduction.add(observe_all(items, "items"))
        if input_stream is not None:
            await self._reduce_stream(reduction, input_stream, _batch_size(contract, self.bridge_contract))
        took_s = time.perf_counter() - started
        return reduction.output(took_s, intents=intents(reduction.state, by.groupings))

    async def process(
        self,
        input_data: ModelReducerInput[ModelStampMetadataInput],
        projection_intents: tuple[ModelProjectionIntent, ...] = (),
    ) -> ModelReducerOutput[ModelReducerOutputState]:
        """Make one move of a workflow's FSM and reduce the data, by the node's contract.

        `metadata.trigger` says which move, the extra field `metadata.fsm_state` from which state (the initial one
        without it); the new state is in the answer's `metadata` and `fsm_metadata`. An illegal trigger raises
        ModelOnexError INVALID_STATE.
        """
        started = time.perf_counter()
        by = GroupedBy(self.bridge_contract.names, self.bridge_contract.groupings)
        reduction = Reduction(by)
        reduction.add(observe_all(input_data.data, "data"))
        result = reduction.output(time.perf_counter() - started, intents=intents(reduction.state, by.groupings))
        with root_logger_untouched():
            output = await super().process(input_data, projection_intents)
        return output.model_copy(update={"result": result, "intents": (*output.intents, *result.intents)})

    async def execute_fsm_transition(
        self, fsm_contract: ModelFSMSubcontract, trigger: str, context: FSMContextType
    ) -> ModelFSMTransitionResult:
        """Return the move from the state that comes with the call; the node's own state is never used."""
        state = context.get("fsm_state") or fsm_contract.initial_state
        try:
            return await execute_transition(fsm_contract, str(state), trigger, {})
        except ModelOnexError as error:
            raise ModelOnexError(
                error.message, EnumCoreErrorCode.INVALID_STATE, state=state, trigger=trigger
            ) from error

    async def _reduce_records(self, by: GroupedBy, given: object) -> ModelReducerOutputState:
        started = time.perf_counter()
        records = in_order(given)
        reduction = Reduction(by)
        try:
            reduction.add([observed_event(decode(record.body)) for record in records])
            store = await resolve_if_any(self.container, StateStore)
            if store is not None:
                await persist(store, by.groupings, records)
        except BridgeError as error:
            raise onex_error(error) from error
        left = [] if store is not None else intents(reduction.state, by.groupings, records)
        return reduction.output(time.perf_counter() - started, intents=left)

    async def _reduce_stream(self, reduction: Reduction, stream: AsyncIterable[Any], batch_size: int) -> None:
        batch: list[Any] = []
        done = 0
        async for item in stream:
            batch.append(item)
            if len(batch) == batch_size:
                reduction.add(observe_all(batch, "input_stream", done))
                done += len(batch)
                batch.clear()
        reduction.add(observe_all(batch, "input_stream", done))


def _batch_size(contract: ModelContractReducer, own: ReducerContract) -> int:
    return contract.aggregation.performance.batch_size if contract.aggregation else own.batch_size
