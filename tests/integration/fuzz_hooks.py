"""What Schemathesis can't know of our calls, said to it; loaded by its configuration in test_schema_fuzz."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let right requests be right, and wrong JSON wrong: with `file_path` in the query the body is raw.

    And a cursor is nothing that one could make up.
    """
    if case.meta is None:
        return
    right = case.meta.generation.mode.is_positive
    if right and case.query:
        case.query = {name: value for name, value in case.query.items() if name != "cursor"}
    if case.path not in ("/stamp", "/workflows"):
        return
    body = case.meta.components.get(ParameterLocation.BODY)
    if case.media_type == "application/json" and (right or (body is not None and body.mode.is_negative)):
        case.query = {}
    elif right:
        case.query = {**(case.query or {}), "file_path": "fuzz.bin"}
