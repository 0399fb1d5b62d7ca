"""Errors on the wire: RFC 9457 `application/problem+json`, from one table.

The rules it keeps:

1. The first row whose class an error is an instance of decides; children stand before their parents.
2. 400: the body can't be read. 413: it is too large. 422: it was read, and a value in it is not allowed.
   401, 403: the token. 404: also what the token may not see. 409: the op id was used before. 429: the token's rate or
   quota is used up. 503: try again, with the `op_id` that the problem names: that is always safe.
   500: trying again won't help. A workflow that failed for good is one of these: it is recorded as failed, and the
   same op id gives the same answer. For want of a stamping service it is 503: a new op id may succeed later.
3. What broke inside is for the log: an unexpected error, or one about stored data, is told by its code only.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.domain import errors
from omninode_bridge.domain.errors import BridgeError, InvalidInput, LimitExceeded, ServiceUnavailable

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:omninode-bridge:problem:"


class BodyTooLarge(LimitExceeded):
    """A body over its limit."""


class BodyMalformed(InvalidInput):
    """A body that can't be read as what it is said to be."""

    code = "body_malformed"


class BodyTypeUnsupported(InvalidInput):
    """A body of a media type that the call does not take."""

    code = "body_type_unsupported"


class BodyTimeout(InvalidInput):
    """A body of which nothing came for too long."""

    code = "body_timeout"


class CrossOrigin(InvalidInput):
    """A web page of another origin asks, which may not be what the user wants."""

    code = "cross_origin"


class ForeignHost(InvalidInput):
    """A name that anybody may have pointed at this machine was used to reach a server that asks for no token."""

    code = "foreign_host"


class TokenInQuery(InvalidInput):
    """A token was sent where logs and histories keep it."""

    code = "token_in_query"


class ShuttingDown(ServiceUnavailable):
    """The server stops before the answer is there."""

    code = "shutting_down"


class Problem(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """An error as callers see it. `code` is stable; `field` is the offending input; `op_id` is safe to retry with."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    op_id: str | None = None
    workflow_id: str | None = None
    step: str | None = None
    error_code: str | None = None


class Row(NamedTuple):
    kind: type[BridgeError]
    status: int
    title: str
    retry_after_s: int | None = None
    close: bool = False
    """The connection ends with the answer, because what is left of the body would be taken for the next request."""
    challenge: bool = False
    """The answer says how to tell who asks (RFC 9110 §11.6.1, RFC 6750 §3)."""


ROWS = (
    Row(BodyMalformed, 400, "The body can't be read"),
    Row(TokenInQuery, 400, "A token does not belong into a URL"),
    Row(errors.Unauthenticated, 401, "It is not known who asks", challenge=True),
    Row(CrossOrigin, 403, "Another origin's web page may not ask"),
    Row(errors.Forbidden, 403, "The token is not good for this"),
    Row(errors.NotFound, 404, "There is no such thing"),
    Row(BodyTimeout, 408, "The body did not come", close=True),
    Row(errors.InProgress, 409, "The first request with this op_id is still running", 1),
    Row(errors.Conflict, 409, "The op_id was used before with another request"),
    Row(errors.LeaseLost, 409, "Another worker has taken the workflow over"),
    Row(errors.EventsExpired, 410, "The events are not kept any more"),
    Row(BodyTooLarge, 413, "The body is too large"),
    Row(BodyTypeUnsupported, 415, "The body's media type is not supported"),
    Row(ForeignHost, 421, "The server is not known by this name"),
    Row(errors.ContractInvalid, 500, "The contract is broken"),
    Row(LimitExceeded, 422, "A value is over its limit"),
    Row(InvalidInput, 422, "A value is not allowed"),
    Row(errors.ContentUnavailable, 422, "The content can't be read"),
    Row(errors.QuotaExceeded, 429, "The token's quota of the day is used up"),
    Row(errors.TooManyRequests, 429, "The token asks too often"),
    Row(errors.WorkflowFailed, 500, "The workflow failed"),
    Row(ShuttingDown, 503, "The server is shutting down", 5, close=True),
    Row(errors.OutcomeUnknown, 503, "It is not known whether the stamp was recorded", 5),
    Row(errors.Overloaded, 503, "Too much is waiting", 1),
    Row(errors.StateBehind, 503, "The state is behind", 5),
    Row(ServiceUnavailable, 503, "A service is unavailable", 5),
    Row(BridgeError, 500, "Something is wrong inside"),
)
# Statuses that the router and the protocol answer with: their code and title.
_BY_STATUS = {
    404: ("no_such_path", "There is nothing at this path"),
    405: ("method_not_allowed", "The method is not allowed here"),
}
_INSIDE = "an error inside the bridge; its log has more under this answer's X-Correlation-ID"


STAMPING_AWAY = Row(errors.WorkflowFailed, 503, "No stamping service answered, and the workflow failed", 5)
"""How a workflow's failure for want of a service looks: later, another one may succeed."""


def row_of(error: BridgeError) -> Row:
    """Return the row that decides how an error looks."""
    if isinstance(error, errors.WorkflowFailed) and error.context.get("error_code") == errors.StampingUnavailable.code:
        return STAMPING_AWAY
    return next(row for row in ROWS if isinstance(error, row.kind))


async def bridge_problem(request: Request, error: Exception) -> Response:
    """Answer an error that the bridge raised on purpose."""
    assert isinstance(error, BridgeError)
    request.state.error = error  # for whoever counts and logs
    row = row_of(error)
    failed = error.context if isinstance(error, errors.WorkflowFailed) else {}
    told = row.status != 500 or isinstance(error, errors.WorkflowFailed)
    problem = Problem(
        type=TYPE + error.code,
        title=row.title,
        status=row.status,
        detail=error.message if told else _INSIDE,
        code=error.code,
        field=error.field,
        # A failed workflow's op id has its last answer: trying again takes another one.
        op_id=None if isinstance(error, errors.WorkflowFailed) else getattr(request.state, "op_id", None),
        workflow_id=_text(failed.get("workflow_id")),
        step=_text(failed.get("step")),
        error_code=_text(failed.get("error_code")),
    )
    return respond(problem, _headers(row, error))


async def http_problem(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    code, title = _BY_STATUS.get(error.status_code, ("refused", HTTPStatus(error.status_code).phrase))
    detail = f"{request.method} {request.url.path[:200]} is not a call of this server: /openapi.json has them all"
    return respond(
        Problem(type=TYPE + code, title=title, status=error.status_code, detail=detail, code=code), error.headers
    )


def unexpected(request: Request) -> Response:
    """Answer an error that nobody meant to raise; the caller of this logs it."""
    return respond(
        Problem(
            type=TYPE + "internal_error",
            title="Something is wrong inside",
            status=500,
            detail=_INSIDE,
            code="internal_error",
            op_id=getattr(request.state, "op_id", None),
        )
    )


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(problem), problem.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _headers(row: Row, error: BridgeError) -> dict[str, str]:
    headers = {}
    if retry_after_s := error.context.get("retry_after_s") or row.retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    if row.close:
        headers["Connection"] = "close"
    if row.challenge:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
