"""What ONEX callers hand to the orchestrator and get from it."""

from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState
from omninode_bridge.nodes.orchestrator.v1_0_0.models.model_stamp_request_input import ModelStampRequestInput
from omninode_bridge.nodes.orchestrator.v1_0_0.models.model_stamp_response_output import ModelStampResponseOutput

__all__ = ["EnumWorkflowState", "ModelStampRequestInput", "ModelStampResponseOutput"]
