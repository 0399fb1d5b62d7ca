"""The description of the calls (OpenAPI 3.1), made from the same structs that read and write them."""

from __future__ import annotations

from typing import Any

import msgspec

from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.http import problems
from omninode_bridge.http.messages import Hashed, Health, LookUpParameters, RawParameters, StampBody, Stamps

_COMPONENTS = (StampBody, Stamp, Hashed, Stamps, Health, problems.Problem)
_REF = "#/components/schemas/"
_BYTES: dict[str, Any] = {"application/octet-stream": {}}
_STATUSES = {row.status: "; ".join(r.title for r in problems.ROWS if r.status == row.status) for row in problems.ROWS}
_CORRELATION = {
    "name": "X-Correlation-ID",
    "in": "header",
    "schema": {"type": "string", "maxLength": 128},
    "description": "Returned with the answer; one is made where none is sent.",
}
_TRACEPARENT = {
    "name": "traceparent",
    "in": "header",
    "schema": {"type": "string"},
    "description": "W3C Trace Context; goes into the event.",
}


def describe(title: str, version: str) -> dict[str, Any]:
    """Return the document."""
    _, schemas = msgspec.json.schema_components(_COMPONENTS, ref_template=_REF + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": "Stamps: who stamped which bytes, when, under which namespace; exactly once.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/stamp": {"post": _stamp()},
            "/stamp/{file_hash}": {"get": _look_up()},
            "/hash": {"post": _hash()},
            "/health/live": {"get": _call("live", "The process runs.", {"200": _answer("It does.", Health)})},
            "/health/ready": {
                "get": _call("ready", "Stamps can be recorded now.", {"200": _answer("They can.", Health)}, 503)
            },
        },
        "components": {"schemas": schemas},
    }


def _stamp() -> dict[str, Any]:
    answers = {
        "201": _answer("A new stamp; also when its op_id is sent again.", Stamp)
        | {"headers": {"Location": {"schema": {"type": "string"}, "description": "The stamps of its digest."}}},
        "200": _answer("The path's latest stamp already says so.", Stamp),
    }
    call = _call(
        "stamp",
        "Stamp a content: JSON; or, with `file_path` in the query, the raw body, in constant memory.",
        answers,
        *(400, 403, 408, 409, 413, 415, 422, 500, 503),
        parameters=[_TRACEPARENT, *_query(RawParameters, "Raw body only. ")],
    )
    json = {"application/json": {"schema": {"$ref": f"{_REF}{StampBody.__name__}"}}}
    return call | {"requestBody": {"required": True, "content": json | _BYTES}}


def _look_up() -> dict[str, Any]:
    pattern = {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}
    path = {"name": "file_hash", "in": "path", "required": True, "schema": pattern}
    return _call(
        "look_up",
        "The newest 100 stamps of a digest, newest first.",
        {"200": _answer("There are some.", Stamps)},
        *(404, 422, 503),
        parameters=[path, *_query(LookUpParameters)],
    )


def _hash() -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
        "required": ["file"],
    }
    call = _call(
        "hash", "The BLAKE3 digest of a body.", {"200": _answer("The digest.", Hashed)}, 400, 403, 408, 413, 422
    )
    return call | {"requestBody": {"required": True, "content": _BYTES | {"multipart/form-data": {"schema": form}}}}


def _call(
    name: str,
    summary: str,
    answers: dict[str, Any],
    *problem_statuses: int,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    refused = {str(status): _problem(_STATUSES[status]) for status in problem_statuses}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [_CORRELATION, *(parameters or [])],
        "responses": answers | refused | {"default": _problem("Anything else that goes wrong.")},
    }


def _answer(description: str, shape: type[msgspec.Struct]) -> dict[str, Any]:
    schema = {"$ref": _REF + shape.__name__}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF + problems.Problem.__name__}
    return {"description": description, "content": {problems.MEDIA_TYPE: {"schema": schema}}}


def _query(shape: type[msgspec.Struct], note: str = "") -> list[dict[str, Any]]:
    """Describe query parameters by their struct. One that makes a body raw is required only then, hence never here."""
    _, schemas = msgspec.json.schema_components([shape])
    properties: dict[str, dict[str, Any]] = schemas[shape.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": note.strip()}
        for name, schema in properties.items()
    ]
