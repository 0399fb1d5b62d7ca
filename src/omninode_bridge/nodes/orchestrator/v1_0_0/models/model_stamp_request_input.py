"""A request for one stamp, as ONEX callers make it. Names are checked by the node, by the rules of `domain.names`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from omninode_bridge.domain.names import DEFAULT_NAMESPACE


class ModelStampRequestInput(BaseModel):
    """The bytes to stamp and what they are. `op_id` makes a retry safe: the same id gets the first answer."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file_path: str
    file_content: bytes
    content_type: str
    namespace: str = DEFAULT_NAMESPACE
    # A UUID in text, as it comes from JSON, is as good as the object.
    op_id: UUID | None = Field(default=None, strict=False)
    enable_onextree_intelligence: bool = False
    intelligence_context: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
