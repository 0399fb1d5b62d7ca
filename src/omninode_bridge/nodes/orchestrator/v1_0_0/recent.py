"""Which state a workflow is in that this node runs or ran lately, in bounded memory. The ledger knows all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from omninode_bridge.domain.errors import WorkflowFailed
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.nodes.contract_machine import Fsm
from omninode_bridge.nodes.orchestrator.v1_0_0.execution import Execution
from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState

WORKFLOWS_REMEMBERED_MAX = 10_000


class RecentStates:
    """Workflows by id. They are forgotten batch by batch: bookkeeping per workflow would cost more than its FSM."""

    def __init__(self) -> None:
        self._running: dict[str, Execution] = {}
        self._ended: dict[str, EnumWorkflowState] = {}
        self._order: deque[list[str]] = deque()
        self._entries = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def state_of(self, workflow_id: str, fsm: Fsm) -> EnumWorkflowState | None:
        execution = self._running.get(workflow_id)
        return self._ended.get(workflow_id) if execution is None else public_state(execution.state, fsm)

    def enter(self, ids: Sequence[str], execution: Execution) -> None:
        self._running.update(dict.fromkeys(ids, execution))

    def leave(self, ids: Sequence[str], execution: Execution) -> None:
        running = self._running
        for name in ids:
            if running.get(name) is execution:
                del running[name]

    def remember(self, ids: Sequence[str], verdicts: Sequence[Answer]) -> None:
        """Keep how the workflows ended. What was refused has no workflow, or is another request's."""
        completed, failed = EnumWorkflowState.COMPLETED, EnumWorkflowState.FAILED
        ended = {
            name: completed if isinstance(verdict, Stamp) else failed
            for name, verdict in zip(ids, verdicts, strict=True)
            if isinstance(verdict, Stamp | WorkflowFailed)
        }
        self._ended.update(ended)
        self._order.append(list(ended))
        self._entries += len(ended)
        while self._entries > WORKFLOWS_REMEMBERED_MAX and len(self._order) > 1:
            oldest = self._order.popleft()
            self._entries -= len(oldest)
            for name in oldest:
                self._ended.pop(name, None)


def public_state(state: str, fsm: Fsm) -> EnumWorkflowState:
    """Return what ONEX callers see of a state of the machine: its part in the workflow."""
    if state in fsm.error_states:
        return EnumWorkflowState.FAILED
    if state in fsm.machine.terminal:
        return EnumWorkflowState.COMPLETED
    return EnumWorkflowState.PENDING if state == fsm.machine.initial else EnumWorkflowState.PROCESSING
