"""The description of the calls (OpenAPI 3.1), made from the same structs that read and write them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from omninode_bridge.app.explaining import WorkflowReport
from omninode_bridge.app.health import Report
from omninode_bridge.app.query import StateRow
from omninode_bridge.app.validation import Validation
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.http import problems
from omninode_bridge.http.events import LAST_EVENT_ID, EventParameters
from omninode_bridge.http.messages import (
    BatchItem,
    BatchProblem,
    EmbeddedStamp,
    FileHash,
    Hashed,
    Health,
    LookUpParameters,
    Namespace,
    NamespacesPage,
    PageParameters,
    RawParameters,
    StampBody,
    Stamps,
    StampsPage,
    StampsParameters,
    StatePage,
    StateParameters,
    ValidateBody,
)
from omninode_bridge.http.wire import NDJSON

_COMPONENTS = (
    StampBody,
    Stamp,
    EmbeddedStamp,
    BatchItem,
    BatchProblem,
    Hashed,
    Stamps,
    ValidateBody,
    Validation,
    WorkflowReport,
    NamespacesPage,
    StampsPage,
    StatePage,
    StateRow,
    Health,
    Report,
    problems.Problem,
)
_REF = "#/components/schemas/"
_BYTES: dict[str, Any] = {"application/octet-stream": {}}
_ASKER = (401, 403, 421, 429)
"""What any call may be answered that needs to know who asks."""
_ANY = (400, 408, 431, 503)
"""And what any request may be, before it is known what it asks for."""
_STATUSES = {row.status: "; ".join(r.title for r in problems.ROWS if r.status == row.status) for row in problems.ROWS}
_STATUSES |= {
    400: f"This is no HTTP request; {_STATUSES[400]}",
    408: f"The headers did not come; {_STATUSES[408]}",
    431: "The headers are too large",
}
_CORRELATION = {
    "name": "X-Correlation-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Returned with the answer, if it is one: 1 to 128 of `A-Za-z0-9._:/+=@-`; else one is made.",
}
_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "Asked for by a server that has tokens; one that has none serves its own machine only.",
}
_TRACEPARENT = {
    "name": "traceparent",
    "in": "header",
    "schema": {"type": "string"},
    "description": "W3C Trace Context; goes into the event.",
}

_SENT = (("content",), ("content_base64",))
_CONTENTS: dict[type[msgspec.Struct], tuple[tuple[str, ...], ...]] = {
    StampBody: _SENT,
    ValidateBody: _SENT,
    BatchItem: (*_SENT, ("file_hash", "file_size")),
}
"""What a content can be told by: one of these ways."""
_EVENT: dict[str, Any] = {
    "description": "A block of the stream.",
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "Where to go on from, as Last-Event-ID."},
        "data": {"type": "string", "contentMediaType": "application/cloudevents+json"},
    },
    "required": ["id", "data"],
}
_NEXT = {"Link": "Where the next page is, as rel=next; left out at the end."}


def describe(title: str, version: str) -> dict[str, Any]:
    """Return the document."""
    _, schemas = msgspec.json.schema_components(_COMPONENTS, ref_template=_REF + "{name}")
    for shape, ways in _CONTENTS.items():
        schemas[shape.__name__]["oneOf"] = [{"required": list(way)} for way in ways]
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
            "/stamp/batch": {"post": _stamp_batch()},
            "/hash": {"post": _hash()},
            "/validate": {"post": _validate()},
            "/workflows": {"post": _accept()},
            "/workflows/{workflow_id}": {"get": _look_up_workflow()},
            "/namespaces": {"get": _namespaces()},
            "/namespaces/{namespace}": {"get": _totals()},
            "/namespaces/{namespace}/stamps": {"get": _stamps_of()},
            "/namespaces/{namespace}/state": {"get": _state()},
            "/events": {"get": _events()},
            "/health/live": {"get": _call("live", "The process runs.", {"200": _answer("It does.", Health)})},
            "/health/ready": {
                "get": _call("ready", "The process can do its work now.", {"200": _answer("It can.", Health)})
            },
            "/health": {"get": _health()},
            "/metrics": {"get": _call("metrics", "Metrics, as Prometheus reads them.", {"200": _text("All of them.")})},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": _TOKEN}},
    }


def _stamp() -> dict[str, Any]:
    answers = {
        "201": _answer("A new stamp; also when its op_id is sent again.", Stamp, EmbeddedStamp)
        | _headers(Location="The stamps of its digest."),
        "200": _answer("The path's latest stamp already says so.", Stamp, EmbeddedStamp),
    }
    call = _call(
        "stamp",
        "Stamp a content: JSON; or, with `file_path` in the query, the raw body, in constant memory.",
        answers,
        *(*_ASKER, 409, 413, 415, 422, 500),
        parameters=[_TRACEPARENT, *_query(RawParameters, "Raw body only. ")],
    )
    return call | _body({"application/json": _schema(StampBody)} | _BYTES)


def _stamp_batch() -> dict[str, Any]:
    items = {"type": "array", "items": {"anyOf": _refs(Stamp, EmbeddedStamp, BatchProblem)}}
    lines = {NDJSON: {"schema": {"type": "string", "description": "An item a line."}}}
    answer = {
        "description": "A stamp or a problem for each item, in order; in the form that is accepted, else as sent.",
        "content": {"application/json": {"schema": items}} | lines,
    }
    call = _call(
        "stamp_batch",
        "Stamp many contents, or digests that you computed: a JSON array or NDJSON. A bad item spoils no other.",
        {"200": answer},
        *(*_ASKER, 413, 415, 422, 500),
        parameters=[_TRACEPARENT],
    )
    sent = {"schema": {"type": "array", "items": {"$ref": _REF + BatchItem.__name__}}}
    return call | _body({"application/json": sent} | lines)


def _look_up() -> dict[str, Any]:
    return _call(
        "look_up",
        "The stamps of a digest, newest first: up to 100, as far as 4 MiB go.",
        {"200": _answer("There are some.", Stamps)},
        *(*_ASKER, 404, 422),
        parameters=[_path("file_hash", FileHash), *_query(LookUpParameters)],
    )


def _hash() -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
        "required": ["file"],
        "additionalProperties": False,
    }
    call = _call(
        "hash",
        "The BLAKE3 digest of a body.",
        {"200": _answer("The digest.", Hashed)},
        *(*_ASKER, 413, 415, 422),
    )
    # Without a body it is the digest of no bytes.
    return call | _body(_BYTES | {"multipart/form-data": {"schema": form}}, required=False)


def _validate() -> dict[str, Any]:
    call = _call(
        "validate",
        "Whether a content is what was stamped, and whether the stamps embedded in it are true.",
        {"200": _answer("The answer, whichever it is.", Validation)},
        *(*_ASKER, 413, 415, 422),
    )
    return call | _body({"application/json": _schema(ValidateBody)})


def _accept() -> dict[str, Any]:
    call = _call(
        "accept_workflow",
        "Accept a request as `POST /stamp` takes it (content up to 8 MiB, no embed), to be run by a worker.",
        {"202": _answer("It is accepted durably, now or before.", WorkflowReport) | _headers(Location="The workflow.")},
        *(*_ASKER, 409, 413, 415, 422),
        parameters=[_TRACEPARENT, *_query(RawParameters, "Raw body only. ")],
    )
    return call | _body({"application/json": _schema(StampBody)} | _BYTES)


def _look_up_workflow() -> dict[str, Any]:
    return _call(
        "look_up_workflow",
        "Where a workflow is, how it came there, and why. The namespace is needed only where the id is in several.",
        {"200": _answer("The workflow.", WorkflowReport)},
        *(*_ASKER, 404, 422),
        parameters=[_path("workflow_id", UUID), *_query(LookUpParameters)],
    )


def _namespaces() -> dict[str, Any]:
    return _call(
        "namespaces",
        "The totals of the namespaces that you may see, by name.",
        {"200": _answer("A page of them.", NamespacesPage) | _headers(**_NEXT)},
        *(*_ASKER, 422),
        parameters=_query(PageParameters),
    )


def _totals() -> dict[str, Any]:
    return _call(
        "totals",
        "A namespace's totals, with every stamp acknowledged before.",
        {"200": _answer("The totals.", StateRow)},
        *(*_ASKER, 404, 422),
        parameters=[_path("namespace", Namespace)],
    )


def _stamps_of() -> dict[str, Any]:
    return _call(
        "stamps",
        "A namespace's stamps, newest first.",
        {"200": _answer("A page of them.", StampsPage) | _headers(**_NEXT)},
        *(*_ASKER, 404, 422),
        parameters=[_path("namespace", Namespace), *_query(StampsParameters)],
    )


def _state() -> dict[str, Any]:
    return _call(
        "state",
        "A namespace's aggregates by one grouping, with every stamp acknowledged before.",
        {"200": _answer("A page of them, by group key.", StatePage) | _headers(**_NEXT)},
        *(*_ASKER, 404, 422),
        parameters=[_path("namespace", Namespace), *_query(StateParameters)],
    )


def _events() -> dict[str, Any]:
    return _call(
        "events",
        "The events that you may see, those that are there and those to come: server-sent events, one CloudEvent each.",
        {"200": {"description": "A stream.", "content": {"text/event-stream": {"schema": _EVENT}}}},
        *(*_ASKER, 410, 422),
        parameters=[LAST_EVENT_ID, *_query(EventParameters)],
    )


def _health() -> dict[str, Any]:
    answers = {"200": _answer("It can do its work.", Report), "503": _answer("Something needed is down.", Report)}
    return _call("health", "Each part of the process: how it does, since when, and why.", answers)


def _call(
    name: str,
    summary: str,
    answers: dict[str, Any],
    *problem_statuses: int,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    refused = {str(status): _problem(_STATUSES[status]) for status in sorted({*_ANY, *problem_statuses})}
    for status in answers.keys() & refused.keys():  # the call's own answer, or a problem
        refused[status] = answers[status] | {"content": answers[status]["content"] | refused[status]["content"]}
    asker: dict[str, Any] = {"security": [{"token": []}]} if set(_ASKER) <= set(problem_statuses) else {}
    return asker | {
        "operationId": name,
        "summary": summary,
        "parameters": [_CORRELATION, *(parameters or [])],
        "responses": answers | refused | {"default": _problem("Anything else that goes wrong.")},
    }


def _answer(description: str, *shapes: type[msgspec.Struct]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": _schema(*shapes)}}


def _text(description: str, media_type: str = "text/plain") -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {problems.MEDIA_TYPE: _schema(problems.Problem)}}


def _headers(**descriptions: str) -> dict[str, Any]:
    headers = {name: {"schema": {"type": "string"}, "description": text} for name, text in descriptions.items()}
    return {"headers": headers}


def _body(content: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": content}}


def _schema(*shapes: type[msgspec.Struct]) -> dict[str, Any]:
    refs = _refs(*shapes)
    return {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}


def _refs(*shapes: type[msgspec.Struct]) -> list[dict[str, str]]:
    return [{"$ref": _REF + shape.__name__} for shape in shapes]


def _path(name: str, shape: Any) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(shape)}


def _query(shape: type[msgspec.Struct], note: str = "") -> list[dict[str, Any]]:
    """Describe query parameters by their struct. One that makes a body raw is required only then, hence never here."""
    _, schemas = msgspec.json.schema_components([shape])
    properties: dict[str, dict[str, Any]] = schemas[shape.__name__]["properties"]
    more = {"description": note.strip()} if note else {}
    return [
        {"name": name, "in": "query", "required": False, "schema": _given(schema)} | more
        for name, schema in properties.items()
    ]


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is there: left out it may be, null it can't."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema
