"""What a reduction gives: the totals by namespace, the states seen, and what is left to persist."""

from __future__ import annotations

from typing import Any

from omnibase_core.models.reducer.model_intent import ModelIntent
from pydantic import BaseModel, ConfigDict, Field

from omninode_bridge.nodes.reducer.v1_0_0.models.enum_aggregation_type import EnumAggregationType


class ModelReducerOutputState(BaseModel):
    """Totals of the items of one reduction.

    `total_items` counts all items, failed workflows included. `aggregations` maps each namespace to
    total_stamps, failed, total_size_bytes, processing times in microseconds, first_at and last_at, file_types,
    workflow_ids, and `groups`: for each grouping of the contract a map from group key to the same totals.
    `intents` are the writes nobody has made yet; empty when a state store took them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    aggregation_type: EnumAggregationType = Field(strict=False)
    total_items: int = Field(ge=0)
    total_size_bytes: int = Field(ge=0)
    namespaces: list[str]
    aggregations: dict[str, dict[str, Any]]
    fsm_states: dict[str, str] = Field(default_factory=dict)
    intents: list[ModelIntent] = Field(default_factory=list)
    aggregation_duration_ms: float = Field(default=0.0, ge=0)
    items_per_second: float = Field(default=0.0, ge=0)
