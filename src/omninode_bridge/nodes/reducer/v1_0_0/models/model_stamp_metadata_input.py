"""One stamp, or one failed workflow, as ONEX callers hand it to the reducer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from omninode_bridge.domain.names import DEFAULT_CONTENT_TYPE, DEFAULT_NAMESPACE
from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState

# Ids come as objects or, from JSON, as text; stamps are told apart by the text.
_IdText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, UUID) else value)]


class ModelStampMetadataInput(BaseModel):
    """What the fold takes of a workflow's end.

    `file_hash` is empty for a failed workflow, which has no content: it counts by namespace and time window
    only. A time without a zone is taken as UTC.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    stamp_id: _IdText
    file_hash: str = Field(pattern="^([0-9a-f]{64})?$")
    file_path: str
    file_size: int = Field(ge=0)
    workflow_id: UUID = Field(strict=False)
    namespace: str = DEFAULT_NAMESPACE
    content_type: str = DEFAULT_CONTENT_TYPE
    workflow_state: EnumWorkflowState = Field(default=EnumWorkflowState.COMPLETED, strict=False)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), strict=False)
    processing_time_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    metadata: dict[str, Any] = Field(default_factory=dict)
