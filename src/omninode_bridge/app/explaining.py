"""What is told of a workflow: where it is, how it came there, and in one plain sentence why."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from omninode_bridge.domain.acceptance import Waiting
from omninode_bridge.domain.recording import Prior, Workflow
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.domain.workflow import Queue, Visit

__all__ = ["AttemptError", "StepError", "WorkflowReport", "report"]


class StepError(msgspec.Struct, frozen=True, kw_only=True):
    """The step that a workflow failed in, and with what."""

    step: str
    code: str
    message: str


class AttemptError(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt failed with that is not the last."""

    code: str
    message: str


class WorkflowReport(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as it stands. The fields from `attempts` on are there while it waits for its end.

    One of `next_attempt_at` and `leased_until` is set: a worker may take it from then on, or `worker` holds it until
    then. `last_error` is how the latest attempt that failed ended.
    """

    workflow_id: str
    namespace: str
    file_path: str
    state: str
    why: str
    history: tuple[Visit, ...]
    error: StepError | None
    deduplicated: bool
    stamp: Stamp | None
    attempts: int | UnsetType = UNSET
    attempts_max: int | UnsetType = UNSET
    worker: str | UnsetType | None = UNSET
    next_attempt_at: datetime | UnsetType | None = UNSET
    leased_until: datetime | UnsetType | None = UNSET
    last_error: AttemptError | UnsetType | None = UNSET


def report(found: Prior, queue: Queue, now: datetime) -> WorkflowReport:
    """Return what is told of a workflow; `queue` is how the contract has accepted ones run."""
    workflow, waiting = found.workflow, found.waiting
    plain = WorkflowReport(
        workflow_id=workflow.workflow_id,
        namespace=workflow.namespace,
        file_path=workflow.file_path,
        state=workflow.state,
        why=_why(found, queue, now),
        history=workflow.visits,
        error=_error(workflow),
        deduplicated=workflow.deduplicated,
        stamp=found.stamp,
    )
    if waiting is None:
        return plain
    return msgspec.structs.replace(
        plain,
        attempts=waiting.attempts,
        attempts_max=queue.attempts_max,
        worker=waiting.worker,
        next_attempt_at=waiting.available_at if waiting.worker is None else None,
        leased_until=None if waiting.worker is None else waiting.available_at,
        last_error=_last_error(waiting),
    )


def _why(found: Prior, queue: Queue, now: datetime) -> str:
    workflow, stamp = found.workflow, found.stamp
    if workflow.error_code is not None:
        return (
            f"step {workflow.step} failed with {workflow.error_code}: {workflow.error_message}; "
            "trying again needs a new op id"
        )
    if found.waiting is not None:
        return _waits(found.waiting, queue, now)
    if stamp is None:
        return "it has not come to an end yet"
    if workflow.deduplicated:
        return (
            f"the path's latest stamp, {stamp.stamp_id} (version {stamp.version}), already said the same: "
            "no new version was made"
        )
    return f"its content is stamped as version {stamp.version} of the path, by stamp {stamp.stamp_id}"


def _waits(waiting: Waiting, queue: Queue, now: datetime) -> str:
    at = f"{waiting.available_at:%Y-%m-%d %H:%M:%SZ}"
    if waiting.worker is not None:
        if waiting.available_at > now:
            turn = f"attempt {waiting.attempts} of {queue.attempts_max}"
            return f"worker {waiting.worker} runs it ({turn}), and holds it until {at}"
        return f"worker {waiting.worker} held it until {at} and told no outcome: the next free worker takes it over"
    when = f"it is tried again from {at} on" if waiting.available_at > now else "it waits for a free worker"
    if waiting.error_code is None:
        return when
    return (
        f"the last attempt of {waiting.attempts} (at most {queue.attempts_max}) failed with "
        f"{waiting.error_code}: {waiting.error_message}; {when}"
    )


def _error(workflow: Workflow) -> StepError | None:
    if workflow.error_code is None:
        return None
    return StepError(step=workflow.step or "", code=workflow.error_code, message=workflow.error_message or "")


def _last_error(waiting: Waiting) -> AttemptError | None:
    if waiting.error_code is None:
        return None
    return AttemptError(code=waiting.error_code, message=waiting.error_message or "")
