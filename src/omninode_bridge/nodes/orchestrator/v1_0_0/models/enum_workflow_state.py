"""The states of a stamping workflow as ONEX callers see them.

A contract may name further states; each is shown by its part in the workflow: the initial one is PENDING, a
terminal one COMPLETED or FAILED, any other PROCESSING.
"""

from __future__ import annotations

from enum import StrEnum, unique


@unique
class EnumWorkflowState(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"

    def can_transition_to(self, target: EnumWorkflowState) -> bool:
        """Tell whether a workflow may go from this state to `target` in one move."""
        return target in _NEXT[self]

    def is_terminal(self) -> bool:
        """Tell whether a workflow ends here."""
        return not _NEXT[self]


_NEXT: dict[EnumWorkflowState, frozenset[EnumWorkflowState]] = {
    EnumWorkflowState.PENDING: frozenset({EnumWorkflowState.PROCESSING}),
    EnumWorkflowState.PROCESSING: frozenset({EnumWorkflowState.COMPLETED, EnumWorkflowState.FAILED}),
    EnumWorkflowState.COMPLETED: frozenset(),
    EnumWorkflowState.FAILED: frozenset(),
}
