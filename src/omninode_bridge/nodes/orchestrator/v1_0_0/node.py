"""NodeBridgeOrchestrator: runs stamping workflows.

Two doors, one room. The plain door, `run` and `run_many`, takes domain values and is what HTTP, the command line
and the Python API use. The ONEX door, `execute_stamping_workflow`, speaks pydantic models and ModelOnexError
and goes through the plain one. What a workflow does is in `execution`, by the contract's plan.

`process()`, inherited from NodeOrchestrator, runs nothing: it plans, and emits the actions of the plan that
the executor runs.
"""

# mypy: disable-error-code="type-abstract"
# Ports are Protocols, and as keys of the container their classes are passed as values.

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
from omnibase_core.enums import EnumNodeType
from omnibase_core.models.container.model_onex_container import ModelONEXContainer
from omnibase_core.models.contracts.subcontracts.model_coordination_rules import ModelCoordinationRules
from omnibase_core.models.contracts.subcontracts.model_execution_graph import ModelExecutionGraph
from omnibase_core.models.contracts.subcontracts.model_workflow_definition import ModelWorkflowDefinition
from omnibase_core.models.contracts.subcontracts.model_workflow_definition_metadata import (
    ModelWorkflowDefinitionMetadata,
)
from omnibase_core.models.contracts.subcontracts.model_workflow_node import ModelWorkflowNode
from omnibase_core.models.orchestrator import ModelOrchestratorOutput
from omnibase_core.models.orchestrator.model_orchestrator_input import ModelOrchestratorInput
from omnibase_core.nodes.node_orchestrator import NodeOrchestrator

from omninode_bridge.domain.errors import AttemptFailed, BridgeError, LimitExceeded, WorkflowFailed
from omninode_bridge.domain.names import (
    check_content_type,
    check_file_path,
    check_metadata,
    check_namespace,
)
from omninode_bridge.domain.recording import Answer, Workflow
from omninode_bridge.domain.stamp import Acceptance, Digest, Failure, Inline, Stamp, StampRequest
from omninode_bridge.domain.workflow import begin
from omninode_bridge.nodes.container import resolve, resolve_if_any
from omninode_bridge.nodes.contracts import OrchestratorContract, load_orchestrator
from omninode_bridge.nodes.onex_errors import onex_error
from omninode_bridge.nodes.orchestrator.v1_0_0.execution import Execution, content_bytes
from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState
from omninode_bridge.nodes.orchestrator.v1_0_0.models.model_stamp_request_input import ModelStampRequestInput
from omninode_bridge.nodes.orchestrator.v1_0_0.models.model_stamp_response_output import ModelStampResponseOutput
from omninode_bridge.nodes.orchestrator.v1_0_0.recent import RecentStates, public_state
from omninode_bridge.nodes.quiet import root_logger_untouched
from omninode_bridge.ports import Clock, Hasher, IdSource, Intelligence, Ledger

STAMPED_BY_ONEX = "onex"
_NODE_TYPES = {"compute": EnumNodeType.COMPUTE_GENERIC, "effect": EnumNodeType.EFFECT_GENERIC}
_NOT_STAMPED: dict[type[BridgeError], str] = {WorkflowFailed: "failed", AttemptFailed: "postponed"}
# What a stamp asserts about its content, in the order in which people read it.
_ASSERTED = (
    "stamp_id",
    "stamped_by",
    "namespace",
    "file_path",
    "file_hash",
    "hash_algorithm",
    "digest_origin",
    "file_size",
    "content_type",
    "version",
    "metadata_version",
    "metadata",
    "completed_at",
)


class _Ports(msgspec.Struct, frozen=True):
    ledger: Ledger
    hasher: Hasher
    intelligence: Intelligence | None
    clock: Clock


class NodeBridgeOrchestrator(NodeOrchestrator):
    """Runs any number of workflows at a time; they share nothing but the ports, counters and recent states."""

    def __init__(self, container: ModelONEXContainer, contract: OrchestratorContract | None = None) -> None:
        """Make the node from a loaded contract, or from the one that ships with it (ContractInvalid)."""
        self.bridge_contract = contract or load_orchestrator()
        self.contract = self.bridge_contract.model
        super().__init__(container)
        # NodeOrchestrator sets this to None itself, whatever was there before.
        self.workflow_definition = _definition(self.bridge_contract)
        self._ports: _Ports | None = None
        self._recent = RecentStates()
        self._counts: Counter[str] = Counter()
        self._hashing_bytes = 0
        self._busy_s = 0.0
        self._longest_s = 0.0

    async def run(self, request: StampRequest) -> Stamp:
        """Return the stamp of one request, or raise the BridgeError that is its answer."""
        (verdict,) = await self.run_many((request,))
        if isinstance(verdict, BridgeError):
            raise verdict
        return verdict

    async def run_many(self, requests: Sequence[StampRequest]) -> list[Answer]:
        """Return the answer to each of the requests, in order: its stamp, or the error that is its alone.

        A content that can't be read is answered by ContentUnavailable, and no workflow is recorded. Raises
        LimitExceeded above the contract's batch_items_max; ServiceUnavailable when nothing could be
        recorded; OutcomeUnknown when that can't be told: trying again with the same op ids is safe. A
        missing port is ModelOnexError DEPENDENCY_UNAVAILABLE.
        """
        contract = self.bridge_contract
        if not requests:
            return []
        if len(requests) > contract.batch_items_max:
            raise LimitExceeded(
                f"{len(requests)} requests in one batch; {contract.batch_items_max} is the contract's limit: send less",
                field="config.batch_items_max",
            )
        ports = await self._resolved()
        size = sum(map(content_bytes, requests))
        self._hashing_bytes += size
        execution = Execution(
            contract.plan,
            timeout_ms=contract.timeout_ms,
            # With what other batches still hash: they may come first.
            hashing_s=self._hashing_bytes / (contract.hash_mib_per_s_min * 1024**2),
            ledger=ports.ledger,
            hasher=ports.hasher,
            intelligence=ports.intelligence,
            clock=ports.clock,
            counts=self._counts,
        )
        started = time.perf_counter()
        ids = [request.workflow_id for request in requests]
        self._recent.enter(ids, execution)
        try:
            verdicts = await execution.run(requests)
        except BaseException:
            self._counts["requests_unanswered"] += len(requests)
            raise
        finally:
            self._hashing_bytes -= size
            self._recent.leave(ids, execution)
        self._recent.remember(ids, verdicts)
        self._count(verdicts, time.perf_counter() - started)
        return verdicts

    async def accept(self, request: StampRequest, digest: Digest) -> Workflow:
        """Record a workflow that a worker will run, with its content, which must be in memory; `digest` is that of it.

        Returns the workflow as it stands once it is durable, also when it was accepted before. Raises Conflict when
        the op id was used with another request, ServiceUnavailable as `run_many` does.
        """
        ports = await self._resolved()
        visits = begin(self.bridge_contract.plan.machine, ports.clock())
        (verdict,) = await ports.ledger.record([Acceptance(request=request, visits=visits, digest=digest)])
        if isinstance(verdict, BridgeError):
            raise verdict
        assert isinstance(verdict, Workflow)
        return verdict

    async def give_up(self, request: StampRequest, *, code: str, message: str) -> Answer:
        """End an accepted workflow, which is held by its lease, as failed in its last step."""
        assert request.lease is not None
        ports = await self._resolved()
        step = self.bridge_contract.plan.steps[-1].name
        failure = Failure(
            request=request, visits=request.lease.visits, step=step, error_code=code, error_message=message
        )
        (verdict,) = await ports.ledger.record([failure])
        assert not isinstance(verdict, Workflow)
        return verdict

    async def execute_stamping_workflow(self, request: ModelStampRequestInput) -> ModelStampResponseOutput:
        """Stamp one content. Raises ModelOnexError, from the bridge's own error.

        The codes: VALIDATION_ERROR for a bad name, OPERATION_FAILED, TIMEOUT or SERVICE_UNAVAILABLE for a workflow
        that is now recorded as failed, SERVICE_UNAVAILABLE when nothing could be recorded,
        EnumBridgeErrorCode for an op id used before.
        """
        await self._resolved()
        ids = await resolve(self.container, IdSource)
        clock = await resolve(self.container, Clock)
        try:
            stamp = await self.run(
                StampRequest(
                    workflow_id=str(request.op_id) if request.op_id else ids(1)[0],
                    namespace=check_namespace(request.namespace),
                    file_path=check_file_path(request.file_path),
                    content=Inline(request.file_content),
                    created_at=clock(),
                    content_type=check_content_type(request.content_type),
                    metadata=check_metadata(request.metadata),
                    stamped_by=STAMPED_BY_ONEX,
                    op_id_given=request.op_id is not None,
                    enable_intelligence=request.enable_onextree_intelligence,
                    intelligence_context=request.intelligence_context,
                )
            )
        except BridgeError as error:
            raise onex_error(error) from error
        return _response(stamp, self.bridge_contract)

    def get_workflow_state(self, workflow_id: UUID | str) -> EnumWorkflowState | None:
        """Return the state of a workflow that this node runs or ran lately; None for one it does not know."""
        return self._recent.state_of(str(workflow_id), self.bridge_contract.fsm)

    def get_stamping_metrics(self) -> dict[str, int | float]:
        """Return this node's counters since it was made, and the time its batches took, in milliseconds."""
        counts = self._counts
        names = (
            "batches",
            "requests",
            "stamped",
            "deduplicated",
            "failed",
            "postponed",
            "refused",
            "requests_unanswered",
        )
        return {
            **{name: counts[name] for name in (*names, "retries", "intelligence_missing", "slow_batches")},
            "batch_time_ms_sum": self._busy_s * 1000,
            "batch_time_ms_max": self._longest_s * 1000,
            "workflows_remembered": len(self._recent),
        }

    def plan_input(self, workflow_id: UUID | None = None) -> ModelOrchestratorInput:
        """Return what makes `process()` plan the contract's steps."""
        return ModelOrchestratorInput(workflow_id=workflow_id or uuid4(), steps=list(self.bridge_contract.steps))

    async def process(self, input_data: ModelOrchestratorInput) -> ModelOrchestratorOutput:
        """Return the plan as actions, running nothing; without steps in the input, the contract's."""
        if not input_data.steps:
            input_data = input_data.model_copy(update={"steps": list(self.bridge_contract.steps)})
        with root_logger_untouched():
            return await super().process(input_data)

    async def _resolved(self) -> _Ports:
        if self._ports is None:
            self._ports = _Ports(
                await resolve(self.container, Ledger),
                await resolve(self.container, Hasher),
                await resolve_if_any(self.container, Intelligence),
                await resolve(self.container, Clock),
            )
        return self._ports

    def _count(self, verdicts: Sequence[Answer], took_s: float) -> None:
        counts = self._counts
        counts["batches"] += 1
        counts["requests"] += len(verdicts)
        for verdict in verdicts:
            if isinstance(verdict, Stamp):
                counts["deduplicated" if verdict.deduplicated else "stamped"] += 1
            else:
                counts[_NOT_STAMPED.get(type(verdict), "refused")] += 1
        counts["slow_batches"] += took_s * 1000 > self.bridge_contract.slow_ms
        self._busy_s += took_s
        self._longest_s = max(self._longest_s, took_s)


def _definition(contract: OrchestratorContract) -> ModelWorkflowDefinition:
    """Return the plan as NodeOrchestrator wants it: another class than the contract's, which it does not read."""
    version = contract.model.contract_version
    nodes = [
        ModelWorkflowNode(
            version=version,
            node_id=step.step_id,
            node_type=_NODE_TYPES[step.step_type],
            dependencies=list(step.depends_on),
        )
        for step in contract.steps
    ]
    return ModelWorkflowDefinition(
        version=version,
        workflow_metadata=ModelWorkflowDefinitionMetadata(
            version=version,
            workflow_name=contract.workflow_name,
            workflow_version=version,
            description=contract.description,
            execution_mode="sequential",
            timeout_ms=contract.timeout_ms,
        ),
        execution_graph=ModelExecutionGraph(version=version, nodes=nodes),
        coordination_rules=ModelCoordinationRules(version=version, parallel_execution_allowed=False),
    )


def _response(stamp: Stamp, contract: OrchestratorContract) -> ModelStampResponseOutput:
    fields: dict[str, Any] = msgspec.structs.asdict(stamp)
    asserted = {name: fields[name] for name in _ASSERTED}
    fields["workflow_state"] = public_state(stamp.workflow_state, contract.fsm)
    return ModelStampResponseOutput(
        **fields,
        stamp_metadata={**asserted, "completed_at": stamp.completed_at.isoformat()},
        intelligence_data=stamp.intelligence,
    )
