"""The error tree: codes are stable and unique, errors survive pickling, the drawing is the tree."""

import pickle
import re

import pytest

from omninode_bridge.domain import errors
from omninode_bridge.domain.errors import BridgeError, Conflict, InProgress, LimitExceeded, ServiceUnavailable

KINDS = [getattr(errors, name) for name in errors.__all__]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_all_it_says(kind: type[BridgeError]) -> None:
    error = pickle.loads(pickle.dumps(kind("it broke", field="op_id", op_id="x", tries=3)))
    assert type(error) is kind
    assert (error.message, error.field, error.context, str(error)) == (
        "it broke",
        "op_id",
        {"op_id": "x", "tries": 3},
        "it broke",
    )


def test_the_drawing_is_the_tree() -> None:
    drawn: list[tuple[str, str | None]] = []
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)", line)
        if match:
            level = len(match[1]) // 4
            above = [*above[:level], match[2]]
            drawn.append((match[2], above[-2] if level else None))
    real = [(kind.__name__, None if kind is BridgeError else kind.__base__.__name__) for kind in KINDS]
    assert sorted(drawn, key=str) == sorted(real, key=str)


def test_callers_can_catch_families() -> None:
    assert issubclass(InProgress, Conflict)
    assert issubclass(LimitExceeded, errors.InvalidInput)
    assert issubclass(errors.OutcomeUnknown, ServiceUnavailable)
