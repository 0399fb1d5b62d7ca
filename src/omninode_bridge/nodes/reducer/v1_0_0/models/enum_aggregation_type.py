"""The ways to group stamps as ONEX names them, and which grouping of the contract each is."""

from __future__ import annotations

from enum import StrEnum, unique


@unique
class EnumAggregationType(StrEnum):
    NAMESPACE_GROUPING = "namespace_grouping"
    TIME_WINDOW = "time_window"
    FILE_TYPE_GROUPING = "file_type_grouping"
    SIZE_BUCKETS = "size_buckets"
    WORKFLOW_GROUPING = "workflow_grouping"
    CUSTOM = "custom"

    @classmethod
    def of_grouping(cls, name: str) -> EnumAggregationType:
        """Return the type of a contract's grouping; `metadata.KEY` is CUSTOM."""
        return _TYPES.get(name, cls.CUSTOM)


_TYPES = {
    "namespace": EnumAggregationType.NAMESPACE_GROUPING,
    "time_window": EnumAggregationType.TIME_WINDOW,
    "content_type": EnumAggregationType.FILE_TYPE_GROUPING,
    "size_bucket": EnumAggregationType.SIZE_BUCKETS,
    "workflow": EnumAggregationType.WORKFLOW_GROUPING,
}
