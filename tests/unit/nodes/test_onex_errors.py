"""Every error of the bridge has a code at the ONEX door, and keeps its message."""

import pickle
from collections.abc import Iterator

import pytest
from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.errors.model_onex_error import ModelOnexError

from omninode_bridge.domain import errors
from omninode_bridge.nodes.onex_errors import EnumBridgeErrorCode, onex_error


def family(kind: type[errors.BridgeError]) -> Iterator[type[errors.BridgeError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


@pytest.mark.parametrize("kind", sorted(set(family(errors.BridgeError)), key=lambda kind: kind.__name__))
def test_every_error_is_translated(kind: type[errors.BridgeError]) -> None:
    translated = onex_error(kind("what happened", field="here", timestamp="kept out", status="kept out"))
    assert isinstance(translated, ModelOnexError)
    assert translated.message == "what happened"
    assert translated.error_code is not None
    assert pickle.loads(pickle.dumps(translated)).message == "what happened"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.LimitExceeded("x"), EnumCoreErrorCode.VALIDATION_ERROR),
        (errors.ContractInvalid("x"), EnumCoreErrorCode.CONTRACT_VALIDATION_ERROR),
        (errors.IllegalTransition("x"), EnumCoreErrorCode.INVALID_STATE),
        (errors.Overloaded("x"), EnumCoreErrorCode.SERVICE_UNAVAILABLE),
        (errors.NotFound("x"), EnumCoreErrorCode.NOT_FOUND),
        (errors.InProgress("x"), EnumBridgeErrorCode.IN_PROGRESS),
        (errors.Conflict("x"), EnumBridgeErrorCode.OP_ID_CONFLICT),
        (errors.WorkflowFailed("x", error_code="timeout"), EnumCoreErrorCode.TIMEOUT),
        (errors.WorkflowFailed("x", error_code="step_failed"), EnumCoreErrorCode.OPERATION_FAILED),
    ],
)
def test_codes_are_the_nearest_of_onex(error: errors.BridgeError, code: object) -> None:
    assert onex_error(error).error_code == code


def test_our_own_codes_describe_themselves() -> None:
    assert [code.get_number() for code in EnumBridgeErrorCode] == [1, 2]
    assert all(code.get_description() and code.get_component() == "OMNINODE_BRIDGE" for code in EnumBridgeErrorCode)
