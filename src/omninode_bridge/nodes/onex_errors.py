"""From the bridge's errors to omnibase_core's, for callers at the ONEX door.

    raise onex_error(error) from error

The message is kept, the code is ONEX's nearest one, and the bridge's own code, field and context go along as
context. omnibase_core has no code for a conflict: EnumBridgeErrorCode adds it.
"""

from __future__ import annotations

from enum import unique
from typing import Any

from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.enums.enum_onex_error_code import EnumOnexErrorCode
from omnibase_core.models.errors.model_onex_error import ModelOnexError

from omninode_bridge.domain import errors


@unique
class EnumBridgeErrorCode(EnumOnexErrorCode):
    """What omnibase_core's codes can't say."""

    OP_ID_CONFLICT = "OMNINODE_BRIDGE_001_OP_ID_CONFLICT"
    IN_PROGRESS = "OMNINODE_BRIDGE_002_IN_PROGRESS"

    def get_component(self) -> str:
        return "OMNINODE_BRIDGE"

    def get_number(self) -> int:
        return int(self.value.split("_")[2])

    def get_description(self) -> str:
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    EnumBridgeErrorCode.OP_ID_CONFLICT: "The op id was used before with another request.",
    EnumBridgeErrorCode.IN_PROGRESS: "The first request with this op id is still running.",
}

# The first class that an error is an instance of decides: children come before their parents.
_CODES: tuple[tuple[type[errors.BridgeError], EnumOnexErrorCode], ...] = (
    (errors.ContractInvalid, EnumCoreErrorCode.CONTRACT_VALIDATION_ERROR),
    (errors.InvalidInput, EnumCoreErrorCode.VALIDATION_ERROR),
    (errors.InProgress, EnumBridgeErrorCode.IN_PROGRESS),
    (errors.Conflict, EnumBridgeErrorCode.OP_ID_CONFLICT),
    (errors.NotFound, EnumCoreErrorCode.NOT_FOUND),
    (errors.ContentUnavailable, EnumCoreErrorCode.RESOURCE_UNAVAILABLE),
    (errors.IllegalTransition, EnumCoreErrorCode.INVALID_STATE),
    (errors.LawBroken, EnumCoreErrorCode.INVALID_STATE),
    (errors.CorruptEvent, EnumCoreErrorCode.VALIDATION_ERROR),
    (errors.DataDirectoryError, EnumCoreErrorCode.DATABASE_CONNECTION_ERROR),
    (errors.SchemaMismatch, EnumCoreErrorCode.DATABASE_CONNECTION_ERROR),
    (errors.ServiceUnavailable, EnumCoreErrorCode.SERVICE_UNAVAILABLE),
)
# A failed workflow says why by the code of the step's error.
_STEP_CODES = {
    "timeout": EnumCoreErrorCode.TIMEOUT,
    errors.ServiceUnavailable.code: EnumCoreErrorCode.SERVICE_UNAVAILABLE,
    errors.Overloaded.code: EnumCoreErrorCode.SERVICE_UNAVAILABLE,
}


def onex_error(error: errors.BridgeError) -> ModelOnexError:
    """Return the ONEX error that says the same."""
    # Keywords that ModelOnexError takes for itself must not be overridden by an error's context.
    context: dict[str, Any] = {key: value for key, value in error.context.items() if key not in _RESERVED}
    return ModelOnexError(
        message=error.message, error_code=_code(error), bridge_code=error.code, field=error.field, **context
    )


_RESERVED = frozenset({"message", "error_code", "status", "correlation_id", "timestamp", "bridge_code", "field"})


def _code(error: errors.BridgeError) -> EnumOnexErrorCode:
    if isinstance(error, errors.WorkflowFailed):
        return _STEP_CODES.get(str(error.context.get("error_code")), EnumCoreErrorCode.OPERATION_FAILED)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return EnumCoreErrorCode.OPERATION_FAILED
