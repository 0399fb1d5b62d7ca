"""Decide what a group of outcomes becomes, given what is already recorded. Pure: every ledger calls this.

The rules, in the order in which an outcome meets them:

1. An op id that is known with the same request gives the first answer again; with another request, Conflict;
   while the first still runs, InProgress, unless it is the holder of that workflow's lease who brings its end.
2. An acceptance is recorded as a workflow that waits, with its input.
3. A failure is recorded as a failed workflow with a failed event.
4. A draft that repeats the latest stamp of its path is answered with that stamp: no event, no count. The
   op id is remembered.
5. Anything else is the path's next version, with a completed event.

An outcome whose history the machine does not allow is answered IllegalTransition, and leaves no trace.

Outcomes of one group see each other in order, as if each had been committed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from omninode_bridge.domain.acceptance import Input, Waiting
from omninode_bridge.domain.errors import (
    BridgeError,
    Conflict,
    IllegalTransition,
    InProgress,
    LeaseLost,
    ServiceUnavailable,
    WorkflowFailed,
)
from omninode_bridge.domain.events import SOURCE, Event, FailureData, StampingCompleted, StampingFailed, encode
from omninode_bridge.domain.log import Head, Record, ShardKey
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.stamp import (
    CONTENT_UNSEEN,
    Acceptance,
    Draft,
    Failure,
    FileFacts,
    Inline,
    Outcome,
    Stamp,
    StampRequest,
    fingerprint,
    same_content,
)
from omninode_bridge.domain.workflow import Plan, Visit, advance

_MICROSECOND = timedelta(microseconds=1)

type OpKey = tuple[str, str]
"""(namespace, workflow id)."""
type PathKey = bytes
"""`names.path_hash`: a path in a namespace."""
type Answer = Stamp | BridgeError
"""What the end of a workflow is answered: the stamp, or why there is none."""
type Verdict = Answer | Workflow
"""What an outcome is answered: an acceptance by the workflow as it stands, any other by its end."""


class Workflow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A row of `fsm_states`: a workflow's end, and its first answer."""

    namespace: str
    workflow_id: str
    file_path: str
    request_digest: bytes
    state: str
    visits: tuple[Visit, ...]
    stamp_id: str | None = None
    deduplicated: bool = False
    step: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class Prior(msgspec.Struct, frozen=True, gc=False):
    """A workflow as found, with the stamp that it was answered with, or with what it waits for."""

    workflow: Workflow
    stamp: Stamp | None = None
    waiting: Waiting | None = None


class FactsRow(msgspec.Struct, frozen=True, gc=False):
    """A row of `file_facts`: facts that vouch for one version of a path."""

    namespace: str
    path_hash: bytes
    facts: FileFacts
    stamp_id: str
    version: int


class Decision(msgspec.Struct, frozen=True):
    """What to write, in one transaction, and what to answer once it is committed (aligned with the outcomes)."""

    verdicts: list[Verdict]
    heads: dict[ShardKey, Head]
    workflows: list[Workflow]
    """New ones."""
    ended: list[tuple[Workflow, int]]
    """Accepted ones that end now, with the fence of the lease that they were run under."""
    inputs: list[Input]
    stamps: list[Stamp]
    records: list[Record]
    facts: list[FactsRow]


def op_key(outcome: Outcome) -> OpKey:
    return outcome.request.namespace, outcome.request.workflow_id


def path_key(outcome: Outcome) -> PathKey:
    return path_hash(outcome.request.namespace, outcome.request.file_path)


def decide(
    plan: Plan,
    outcomes: Sequence[Outcome],
    *,
    priors: Mapping[OpKey, Prior],
    latest: Mapping[PathKey, Stamp],
    heads: Mapping[str, Head],
    shard: int,
    ids: Iterator[str],
    now: datetime,
) -> Decision:
    """Return what to write and to answer for a group of outcomes.

    `priors` and `latest` hold what storage knows of the group's op ids and paths; `heads` the shard's head
    per topic; `ids` yields fresh UUIDv7 strings, two an outcome at most; `now` is the time of completion.
    """
    group = _Group(plan, dict(priors), dict(latest), dict(heads), shard, ids, now)
    for outcome in outcomes:
        try:
            group.verdicts.append(group.judge(outcome))
        except IllegalTransition as error:  # raised before anything was changed: this item's answer, no other's
            group.verdicts.append(error)
    moved = {(topic, shard): head for topic, head in group.heads.items() if head != heads[topic]}
    return Decision(
        group.verdicts, moved, group.workflows, group.ended, group.inputs, group.stamps, group.records,
        list(group.facts.values()),
    )  # fmt: skip


def first_answer(plan: Plan, prior: Prior, digest: bytes) -> Verdict:
    """Return what a repeated op id is answered: its first answer, or the conflict.

    A workflow that failed before its content was seen is answered by its failure whatever the content is now.
    A repetition that failed so itself can't be compared with the first: it has to be sent again.
    """
    workflow = prior.workflow
    if (refusal := _other_request(workflow, digest)) is not None:
        return refusal
    if not plan.machine.is_terminal(workflow.state):
        return InProgress(
            f"op_id {workflow.workflow_id} is still {workflow.state}: ask for its workflow, or try again later",
            field="op_id",
            op_id=workflow.workflow_id,
        )
    if prior.stamp is None:
        return failed(workflow)
    return msgspec.structs.replace(prior.stamp, deduplicated=workflow.deduplicated, op_id=workflow.workflow_id)


def _other_request(workflow: Workflow, digest: bytes) -> BridgeError | None:
    """Return the refusal of a request that is not the one which its op id was used for; None if it is that one."""
    asked, content = workflow.request_digest[:16], workflow.request_digest[16:]
    if asked != digest[:16] or (content != digest[16:] and CONTENT_UNSEEN not in (content, digest[16:])):
        return Conflict(
            f"op_id {workflow.workflow_id} was used before with another request: send a new op_id",
            field="op_id",
            op_id=workflow.workflow_id,
        )
    if digest[16:] == CONTENT_UNSEEN != content:
        return ServiceUnavailable(
            f"the content of op_id {workflow.workflow_id} could not be digested to compare it with its first request: "
            "try again",
            op_id=workflow.workflow_id,
        )
    return None


def failed(workflow: Workflow) -> WorkflowFailed:
    """Return the error that a failed workflow is answered with."""
    return WorkflowFailed(
        f"workflow {workflow.workflow_id} failed in step {workflow.step!r}: {workflow.error_message} "
        "(to try again, send another op_id)",
        workflow_id=workflow.workflow_id,
        namespace=workflow.namespace,
        file_path=workflow.file_path,
        step=workflow.step,
        error_code=workflow.error_code,
    )


class _Group:
    """The state of one decision: what is known so far, and what is to be written."""

    def __init__(
        self,
        plan: Plan,
        priors: dict[OpKey, Prior],
        latest: dict[PathKey, Stamp],
        heads: dict[str, Head],
        shard: int,
        ids: Iterator[str],
        now: datetime,
    ) -> None:
        self.plan = plan
        self.priors = priors
        self.latest = latest
        self.heads = heads
        self.shard = shard
        self.ids = ids
        self.now = now
        self.verdicts: list[Verdict] = []
        self.workflows: list[Workflow] = []
        self.ended: list[tuple[Workflow, int]] = []
        self.inputs: list[Input] = []
        self.stamps: list[Stamp] = []
        self.records: list[Record] = []
        self.facts: dict[PathKey, FactsRow] = {}
        self._endings: dict[tuple[int, str], tuple[Visit, ...]] = {}

    def judge(self, outcome: Outcome) -> Verdict:
        digest = fingerprint(outcome.request, outcome.digest)
        prior = self.priors.get(op_key(outcome))
        if isinstance(outcome, Acceptance):
            return self._accept(outcome, digest, prior)
        lease = outcome.request.lease
        if lease is not None:
            if prior is None or prior.waiting is None or prior.waiting.fence != lease.fence:
                return self._lost(outcome.request, prior)
            digest = prior.workflow.request_digest
        elif prior is not None:
            return first_answer(self.plan, prior, digest)
        if isinstance(outcome, Failure):
            return self._fail(outcome, digest)
        return self._complete(outcome, digest)

    def _accept(self, acceptance: Acceptance, digest: bytes, prior: Prior | None) -> Verdict:
        if prior is not None:
            return _other_request(prior.workflow, digest) or prior.workflow
        request = acceptance.request
        workflow = Workflow(
            namespace=request.namespace,
            workflow_id=request.workflow_id,
            file_path=request.file_path,
            request_digest=digest,
            state=acceptance.visits[-1].state,
            visits=acceptance.visits,
        )
        assert isinstance(request.content, Inline)
        self.workflows.append(workflow)
        self.inputs.append(Input(request, request.content.data))
        waiting = Waiting(fence=0, attempts=0, available_at=self.now)
        self.priors[op_key(acceptance)] = Prior(workflow, waiting=waiting)
        return workflow

    def _lost(self, request: StampRequest, prior: Prior | None) -> Verdict:
        if prior is not None and self.plan.machine.is_terminal(prior.workflow.state):
            return first_answer(self.plan, prior, prior.workflow.request_digest)
        return LeaseLost(
            f"the lease of workflow {request.workflow_id} is another worker's now: its end is left to that one",
            workflow_id=request.workflow_id,
        )

    def _complete(self, draft: Draft, digest: bytes) -> Stamp:
        key = path_key(draft)
        visits = self._ended(draft.visits, self.plan.complete)
        before = self.latest.get(key)
        if before is not None and same_content(before, draft):
            stamp = msgspec.structs.replace(before, deduplicated=True, op_id=draft.request.workflow_id)
        else:
            stamp = self._stamp(draft, before.version + 1 if before else 1, visits[-1].state)
            self.latest[key] = stamp
            self.stamps.append(stamp)
            self._append(StampingCompleted, self.plan.completed_topic, draft.request, stamp)
        if draft.digest.facts is not None:
            self.facts[key] = FactsRow(stamp.namespace, key, draft.digest.facts, stamp.stamp_id, stamp.version)
        workflow = Workflow(
            namespace=draft.request.namespace,
            workflow_id=draft.request.workflow_id,
            file_path=draft.request.file_path,
            request_digest=digest,
            state=visits[-1].state,
            visits=visits,
            stamp_id=stamp.stamp_id,
            deduplicated=stamp.deduplicated,
        )
        self._remember(workflow, stamp, draft.request)
        return stamp

    def _fail(self, failure: Failure, digest: bytes) -> WorkflowFailed:
        request = failure.request
        visits = self._ended(failure.visits, self.plan.fail)
        data = FailureData(
            workflow_id=request.workflow_id,
            namespace=request.namespace,
            file_path=request.file_path,
            step=failure.step,
            error_code=failure.error_code,
            error_message=failure.error_message,
        )
        self._append(StampingFailed, self.plan.failed_topic, request, data)
        workflow = Workflow(
            namespace=request.namespace,
            workflow_id=request.workflow_id,
            file_path=request.file_path,
            request_digest=digest,
            state=visits[-1].state,
            visits=visits,
            step=failure.step,
            error_code=failure.error_code,
            error_message=failure.error_message,
        )
        self._remember(workflow, None, request)
        return failed(workflow)

    def _stamp(self, draft: Draft, version: int, state: str) -> Stamp:
        request, digest = draft.request, draft.digest
        # A clock that was set back must not make a duration negative.
        processing_us = max(0, (self.now - request.created_at) // _MICROSECOND)
        return Stamp(
            stamp_id=next(self.ids),
            stamped_by=request.stamped_by,
            workflow_id=request.workflow_id,
            op_id=request.workflow_id,
            namespace=request.namespace,
            file_path=request.file_path,
            file_hash=digest.file_hash,
            digest_origin=digest.origin,
            file_size=digest.file_size,
            content_type=request.content_type,
            version=version,
            metadata=request.metadata,
            intelligence=draft.intelligence,
            workflow_state=state,
            created_at=request.created_at,
            completed_at=self.now,
            processing_time_ms=processing_us / 1000,
            hash_generation_time_ms=digest.hash_time_us / 1000,
            workflow_steps_executed=draft.steps_executed,
        )

    def _append[Data: Stamp | FailureData](
        self, kind: Callable[..., Event], topic: str, request: StampRequest, data: Data
    ) -> None:
        head = self.heads[topic]
        event = kind(
            specversion="1.0",
            id=next(self.ids),
            source=SOURCE,
            type=topic,
            subject=request.workflow_id,
            time=self.now,
            datacontenttype="application/json",
            namespace=request.namespace,
            shard=self.shard,
            position=head.position + 1,
            previousid=head.event_id,
            traceparent=request.traceparent,
            data=data,
        )
        self.heads[topic] = Head(event.position, event.id)
        self.records.append(
            Record(
                topic,
                self.shard,
                event.position,
                event.id,
                event.previousid,
                event.namespace,
                event.subject,
                encode(event),
            )
        )

    def _remember(self, workflow: Workflow, stamp: Stamp | None, request: StampRequest) -> None:
        if request.lease is None:
            self.workflows.append(workflow)
        else:
            self.ended.append((workflow, request.lease.fence))
        self.priors[(workflow.namespace, workflow.workflow_id)] = Prior(workflow, stamp)

    def _ended(self, visits: tuple[Visit, ...], trigger: str) -> tuple[Visit, ...]:
        # Items of one batch share their history, the very same tuple: share its ending too. The group keeps
        # the tuple alive, so its identity is its own.
        key = (id(visits), trigger)
        ended = self._endings.get(key)
        if ended is None:
            ended = self._endings[key] = advance(self.plan.machine, visits, trigger, self.now)
        return ended
