"""The executor: runs a plan's steps for a batch of requests, through the ports, and hands the outcomes to the ledger.

The rules it keeps:

1. The plan decides: which steps, in which order, with which timeouts, retries and transitions.
2. One bad item harms no other: a content that can't be read is that item's answer, and no workflow is
   recorded, because nothing was seen to stamp.
3. A step that fails for good ends in the ledger too, as a failed workflow with a failed event.
4. `intelligence` never fails a stamp: without an answer in time the stamp is made without it.
5. What may have been recorded is never reported as if it had not been.

A batch shares its history of states: it is accepted at one moment and its steps run together, so one
tuple of visits serves all items and the cost of the FSM does not grow with them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from omninode_bridge.domain.errors import (
    AttemptFailed,
    BridgeError,
    ContentUnavailable,
    DataDirectoryError,
    InvalidInput,
    OutcomeUnknown,
    SchemaMismatch,
    ServiceUnavailable,
    StateBehind,
    WorkflowFailed,
)
from omninode_bridge.domain.names import check_metadata
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import (
    Claimed,
    Digest,
    Draft,
    Failure,
    Inline,
    LocalFile,
    Outcome,
    StampRequest,
    Streamed,
)
from omninode_bridge.domain.workflow import Plan, Step, Visit, advance, begin
from omninode_bridge.ports import Clock, Hasher, Intelligence, Ledger

# Trying again can't help, or is not for this hop to decide.
_NOT_RETRIED = (OutcomeUnknown, DataDirectoryError, SchemaMismatch, StateBehind)
ERROR_MESSAGE_CHARACTERS_MAX = 500
TIMEOUT_CODE = "timeout"
STEP_FAILED_CODE = "step_failed"


class _Failed(NamedTuple):
    """Which step failed, with what, and how far the workflow had come."""

    step: Step
    error: BaseException
    visits: tuple[Visit, ...]


class Execution:
    """One batch on its way through the plan. `state` is the machine's, for whoever asks meanwhile."""

    def __init__(
        self,
        plan: Plan,
        *,
        timeout_ms: int,
        hashing_s: float,
        ledger: Ledger,
        hasher: Hasher,
        intelligence: Intelligence | None,
        clock: Clock,
        counts: Counter[str],
    ) -> None:
        self._plan = plan
        self._timeout_s = timeout_ms / 1000 + hashing_s
        self._hashing_s = hashing_s
        self._ledger = ledger
        self._hasher = hasher
        self._intelligence = intelligence
        self._clock = clock
        self._counts = counts
        self._visits: tuple[Visit, ...] = ()
        self._deadline_s = 0.0

    @property
    def state(self) -> str:
        return self._visits[-1].state if self._visits else self._plan.machine.initial

    async def run(self, requests: Sequence[StampRequest]) -> list[Answer]:
        """Return the answer to each request, in order.

        Raises ServiceUnavailable when the ledger is down (nothing is recorded) and OutcomeUnknown when it can't
        be told whether anything is: trying again with the same op ids is safe.
        """
        machine = self._plan.machine
        self._deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        self._visits = begin(machine, self._clock())
        for trigger in self._plan.start:
            self._visits = advance(machine, self._visits, trigger, self._clock())
        digests: list[Digest | ContentUnavailable | None] = [None] * len(requests)
        knowledge: dict[int, dict[str, Any] | None] = {}
        failed: dict[int, _Failed] = {}
        # `stamp` comes last: it is the ledger's, below.
        for step in self._plan.steps[:-1]:
            if step.name == "hash":
                await self._hash(step, requests, digests, failed)
            elif step.name == "intelligence":
                await self._analyse(step, requests, digests, knowledge)
            if step.trigger:
                self._visits = advance(machine, self._visits, step.trigger, self._clock())
        answers: list[Answer | None] = [
            digest if isinstance(digest, ContentUnavailable) else self._again(request, failed.get(index))
            for index, (request, digest) in enumerate(zip(requests, digests, strict=True))
        ]
        ending = [index for index, answer in enumerate(answers) if answer is None]
        outcomes = [self._outcome(i, requests[i], digests[i], knowledge, failed) for i in ending]
        recorded = await self._record(self._plan.steps[-1], outcomes) if outcomes else []
        for index, answer in zip(ending, recorded, strict=True):
            answers[index] = answer
            if isinstance(answer, WorkflowFailed) and index in failed:
                answer.__cause__ = failed[index].error
        return cast("list[Answer]", answers)

    async def _hash(
        self,
        step: Step,
        requests: Sequence[StampRequest],
        digests: list[Digest | ContentUnavailable | None],
        failed: dict[int, _Failed],
    ) -> None:
        """Fill in the digests. A claimed content is taken at its word; a streamed one was hashed as it arrived."""
        wanted: list[int] = []
        for index, request in enumerate(requests):
            content = request.content
            if isinstance(content, Claimed):
                digests[index] = Digest(content.file_hash, content.file_size, "claimed")
            elif isinstance(content, Streamed):
                digests[index] = content.digest
            else:
                wanted.append(index)
        if not wanted:
            return
        contents = [requests[index].content for index in wanted]
        try:
            found = await self._tried(step, lambda: self._hasher.digest_many(contents), more_s=self._hashing_s)
        except Exception as error:
            # Whatever the step failed with, its workflows were accepted and must end: as failed ones.
            failed.update(dict.fromkeys(wanted, _Failed(step, error, self._visits)))
            return
        for index, digest in zip(wanted, found, strict=True):
            digests[index] = digest

    async def _analyse(
        self,
        step: Step,
        requests: Sequence[StampRequest],
        digests: Sequence[Digest | ContentUnavailable | None],
        knowledge: dict[int, dict[str, Any] | None],
    ) -> None:
        """Fill in what is known of the contents whose requests ask for it, if it can be had in time."""
        wanted = [
            index
            for index, request in enumerate(requests)
            if request.enable_intelligence and not isinstance(digests[index], ContentUnavailable)
        ]
        service = self._intelligence
        if not wanted or service is None:
            self._counts["intelligence_missing"] += len(wanted)
            return
        asking = [requests[index] for index in wanted]
        try:
            found = await self._tried(step, lambda: service.analyse_many(asking))
            known = {index: _storable(data) for index, data in zip(wanted, found, strict=True)}
        except Exception:
            # Optional by its nature (rule 4); the count is how its absence is seen.
            known = {}
        self._counts["intelligence_missing"] += len(wanted) - sum(data is not None for data in known.values())
        knowledge.update(known)

    def _again(self, request: StampRequest, failed: _Failed | None) -> AttemptFailed | None:
        """Return the answer to an accepted workflow that is to be tried again; None to what ends now."""
        if failed is None or request.lease is None or request.lease.last:
            return None
        code, message = _described(failed)
        return AttemptFailed(message, step=failed.step.name, error_code=code)

    def _outcome(
        self,
        index: int,
        asked: StampRequest,
        digest: Digest | ContentUnavailable | None,
        knowledge: dict[int, dict[str, Any] | None],
        failed: dict[int, _Failed],
    ) -> Outcome:
        if not isinstance(digest, Digest):
            return self._failure(asked, failed[index])
        # Bytes in memory are not needed any more, and may have to wait for their commit.
        held = isinstance(asked.content, Inline)
        return Draft(
            request=msgspec.structs.replace(asked, content=Streamed(digest)) if held else asked,
            digest=digest,
            visits=self._visited(asked, self._visits),
            intelligence=knowledge.get(index),
            # A digest that was claimed took no step; the stamp itself is one.
            steps_executed=(1 if digest.origin == "claimed" else 2) + (index in knowledge),
        )

    def _failure(self, request: StampRequest, failed: _Failed) -> Failure:
        code, message = _described(failed)
        return Failure(
            request=request,
            visits=self._visited(request, failed.visits),
            step=failed.step.name,
            error_code=code,
            error_message=message,
        )

    def _visited(self, request: StampRequest, visits: tuple[Visit, ...]) -> tuple[Visit, ...]:
        """Return a workflow's history: one that was accepted before began, and was started, at times of its own."""
        if request.lease is None:
            return visits
        return request.lease.visits + visits[1 + len(self._plan.start) :]

    async def _record(self, step: Step, outcomes: list[Outcome]) -> list[Answer]:
        """Run the `stamp` step.

        Repeated is only what certainly left nothing behind: the ledger says ServiceUnavailable then. It marks the
        op ids as given, so that the ledger looks them up all the same. A time limit cuts a commit off
        mid-flight, and OutcomeUnknown means that the ledger itself could not settle it: neither is repeated here,
        where nobody knows how long the database will be away; the caller may, with the same op ids.
        """
        attempts = 0

        async def record() -> list[Answer]:
            nonlocal attempts
            attempts += 1
            again = attempts > 1
            # No acceptance is among them, so that no verdict is a workflow.
            return cast("list[Answer]", await self._ledger.record([_known(o) for o in outcomes] if again else outcomes))

        try:
            # The deadline of the steps before it must not keep a failed workflow from being recorded.
            return await self._tried(step, record, bounded=False, retry_timeouts=False)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the ledger did not answer within {step.timeout_ms} ms; send the request again with the same op_id",
                op_ids=[outcome.request.workflow_id for outcome in outcomes],
            ) from error

    async def _tried[T](
        self,
        step: Step,
        call: Callable[[], Awaitable[T]],
        *,
        bounded: bool = True,
        retry_timeouts: bool = True,
        more_s: float = 0.0,
    ) -> T:
        """Return what `call` gives, trying as often and waiting as long as the contract allows."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            until = loop.time() + step.timeout_ms / 1000 + more_s
            try:
                async with asyncio.timeout_at(min(until, self._deadline_s) if bounded else until):
                    return await call()
            except TimeoutError:
                if not retry_timeouts or attempt == step.retries:
                    raise
            except ServiceUnavailable as error:
                if isinstance(error, _NOT_RETRIED) or attempt == step.retries:
                    raise
            pause = self._backoff_s(attempt)
            if bounded and loop.time() + pause >= self._deadline_s:
                raise TimeoutError(f"step {step.name!r} has no time left of the workflow's {self._timeout_s:g} s")
            attempt += 1
            self._counts["retries"] += 1
            await asyncio.sleep(pause)

    def _backoff_s(self, attempt: int) -> float:
        retry = self._plan.retry
        # Full jitter: those who failed together do not come back together.
        return random.uniform(0, min(retry.max_delay_s, retry.base_delay_s * 2**attempt))  # noqa: S311 - no secret


def content_bytes(request: StampRequest) -> int:
    """Return how many bytes the hash step will read for a request."""
    content = request.content
    if isinstance(content, LocalFile):
        return content.facts.size
    return len(content.data) if isinstance(content, Inline) else 0


def _known(outcome: Outcome) -> Outcome:
    request = msgspec.structs.replace(outcome.request, op_id_given=True)
    return msgspec.structs.replace(outcome, request=request)


def _storable(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what was found out if the ledger can keep it, so that no answer of a service can spoil a stamp."""
    try:
        return check_metadata(data) if data is not None else None
    except InvalidInput:
        return None


def _described(failed: _Failed) -> tuple[str, str]:
    """Return the code and the message by which a step's failure is recorded."""
    step, error = failed.step, failed.error
    if isinstance(error, BridgeError):
        code, message = error.code, error.message
    elif isinstance(error, TimeoutError):
        code, message = TIMEOUT_CODE, str(error) or f"no answer within {step.timeout_ms} ms"
    else:
        code, message = STEP_FAILED_CODE, f"{type(error).__name__}: {error}"
    return code, message.replace("\0", "")[:ERROR_MESSAGE_CHARACTERS_MAX]
