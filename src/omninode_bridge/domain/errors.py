"""Every error the bridge raises on purpose, in one tree.

    BridgeError
    ├── InvalidInput             the caller's value is wrong; nothing was written
    │   ├── LimitExceeded        … because it is too large, too long or too many
    │   └── ContractInvalid      … in a contract.yaml: the program does not start
    ├── ContentUnavailable       the bytes to stamp could not be read; nothing was written
    │   └── ContentChanged       … because they changed while they were being read
    ├── NotFound                 no such stamp, workflow, namespace or grouping
    ├── Conflict                 the op id was used before with another request
    │   └── InProgress           … or its first request is still running
    ├── Unauthenticated          no token, or one that is unknown, expired or revoked
    ├── Forbidden                the token is good, but not for this
    ├── TooManyRequests          the token's rate is used up; try again a little later
    │   └── QuotaExceeded        … its quota of the day is; try again tomorrow
    ├── LeaseLost                another worker has taken this workflow over; nothing was written
    ├── EventsExpired            the events asked for were dropped by retention
    ├── WorkflowFailed           a step failed for good; the workflow is recorded as failed
    ├── AttemptFailed            a step failed; the accepted workflow is tried again later
    ├── IllegalTransition        the FSM has no such move from this state; nothing changed
    ├── CorruptEvent             bytes that are no event of any schema ever written
    ├── LawBroken                stored data contradicts one of the eight laws
    └── ServiceUnavailable       a dependency is down; try again
        ├── DataDirectoryError   the embedded data directory can't be used
        ├── SchemaMismatch       the database's schema is missing, older or newer than this program
        ├── ForeignState         the state is kept by another reducer contract than this process has
        ├── OutcomeUnknown       the connection died in COMMIT; a retry with the same op id is safe
        ├── StampingUnavailable  no stamping service answers
        ├── Overloaded           a bounded queue is full
        └── StateBehind          the reducer did not reach the log's heads in time

Adapters translate their driver's errors into these at the border. `code` is stable and goes out in
answers; the message names the offending value and says what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AttemptFailed",
    "BridgeError",
    "Conflict",
    "ContentChanged",
    "ContentUnavailable",
    "ContractInvalid",
    "CorruptEvent",
    "DataDirectoryError",
    "EventsExpired",
    "Forbidden",
    "ForeignState",
    "IllegalTransition",
    "InProgress",
    "InvalidInput",
    "LawBroken",
    "LeaseLost",
    "LimitExceeded",
    "NotFound",
    "OutcomeUnknown",
    "Overloaded",
    "QuotaExceeded",
    "SchemaMismatch",
    "ServiceUnavailable",
    "StampingUnavailable",
    "StateBehind",
    "TooManyRequests",
    "Unauthenticated",
    "WorkflowFailed",
]


class BridgeError(Exception):
    """Base of all errors raised on purpose.

    `field` is the offending input field, when there is one; `context` holds further values for logs and
    answers (never content, never secrets).
    """

    code: ClassVar[str] = "bridge_error"

    def __init__(self, message: str, *, field: str | None = None, **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.context = context

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.field, self.context))


def _rebuild(cls: type[BridgeError], message: str, field: str | None, context: dict[str, object]) -> BridgeError:
    return cls(message, field=field, **context)


class InvalidInput(BridgeError):
    code = "invalid_input"


class LimitExceeded(InvalidInput):
    code = "limit_exceeded"


class ContractInvalid(InvalidInput):
    code = "contract_invalid"


class ContentUnavailable(BridgeError):
    code = "content_unavailable"


class ContentChanged(ContentUnavailable):
    code = "content_changed"


class NotFound(BridgeError):
    code = "not_found"


class Conflict(BridgeError):
    code = "op_id_conflict"


class InProgress(Conflict):
    code = "in_progress"


class Unauthenticated(BridgeError):
    code = "unauthenticated"


class Forbidden(BridgeError):
    code = "forbidden"


class TooManyRequests(BridgeError):
    """`context` has retry_after_s."""

    code = "rate_limited"


class QuotaExceeded(TooManyRequests):
    code = "quota_exceeded"


class LeaseLost(BridgeError):
    code = "lease_lost"


class EventsExpired(BridgeError):
    code = "events_expired"


class WorkflowFailed(BridgeError):
    """`context` has workflow_id, namespace, file_path, step and error_code as recorded."""

    code = "workflow_failed"


class AttemptFailed(BridgeError):
    """`context` has step and error_code, as a failed workflow's; the message is the step's."""

    code = "attempt_failed"


class IllegalTransition(BridgeError):
    code = "illegal_transition"


class CorruptEvent(BridgeError):
    code = "corrupt_event"


class LawBroken(BridgeError):
    code = "law_broken"


class ServiceUnavailable(BridgeError):
    code = "service_unavailable"


class DataDirectoryError(ServiceUnavailable):
    code = "data_directory"


class SchemaMismatch(ServiceUnavailable):
    code = "schema_mismatch"


class ForeignState(ServiceUnavailable):
    code = "foreign_state"


class OutcomeUnknown(ServiceUnavailable):
    code = "outcome_unknown"


class StampingUnavailable(ServiceUnavailable):
    code = "stamping_unavailable"


class Overloaded(ServiceUnavailable):
    code = "overloaded"


class StateBehind(ServiceUnavailable):
    code = "state_behind"
