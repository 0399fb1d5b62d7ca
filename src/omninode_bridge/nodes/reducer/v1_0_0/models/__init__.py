"""What ONEX callers hand to the reducer and get from it."""

from omninode_bridge.nodes.reducer.v1_0_0.models.enum_aggregation_type import EnumAggregationType
from omninode_bridge.nodes.reducer.v1_0_0.models.model_reducer_output_state import ModelReducerOutputState
from omninode_bridge.nodes.reducer.v1_0_0.models.model_stamp_metadata_input import ModelStampMetadataInput

__all__ = ["EnumAggregationType", "ModelReducerOutputState", "ModelStampMetadataInput"]
