"""A stamp as ONEX callers get it: the fields of the HTTP answer, under those names, and three more."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from omninode_bridge.nodes.orchestrator.v1_0_0.models.enum_workflow_state import EnumWorkflowState


class ModelStampResponseOutput(BaseModel):
    """Who stamped which bytes, when, under which namespace.

    Times in `*_ms` are milliseconds, sizes bytes, digests lower-case hexadecimal. `stamp_metadata` is what the
    stamp itself asserts, ready to be stored beside the content; `intelligence_data` equals `intelligence`;
    `stamped_content` is the content with the stamp in it, where that was asked for.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    stamp_id: str
    stamped_by: str
    workflow_id: UUID = Field(strict=False)
    op_id: UUID = Field(strict=False)
    namespace: str
    file_path: str
    file_hash: str = Field(pattern="^[0-9a-f]{64}$")
    hash_algorithm: str
    digest_origin: Literal["computed", "claimed"]
    file_size: int = Field(ge=0)
    content_type: str
    version: int = Field(ge=1)
    metadata_version: str
    metadata: dict[str, Any]
    intelligence: dict[str, Any] | None = None
    workflow_state: EnumWorkflowState = Field(strict=False)
    deduplicated: bool
    created_at: datetime = Field(strict=False)
    completed_at: datetime = Field(strict=False)
    processing_time_ms: float = Field(ge=0)
    hash_generation_time_ms: float = Field(ge=0)
    workflow_steps_executed: int = Field(ge=0)
    stamp_metadata: dict[str, Any]
    intelligence_data: dict[str, Any] | None = None
    stamped_content: bytes | None = None
