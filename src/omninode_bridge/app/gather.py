"""Single requests as batches: what arrives in one turn of the event loop goes to the orchestrator together.

A batch of one pays for its workflow's steps, time limits and bookkeeping alone; measured, that was a third of what a
small request costs. The rules it keeps:

1. Nobody waits for others to come: a batch is what is there when the turn ends.
2. Only what takes next to no time goes together: small contents in memory, or digested ones, without intelligence.
   What may take long, or fail by itself, runs alone.
3. A caller who goes away takes nobody along. What fails all of a batch is told each of them as if it had been alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import NamedTuple

from omninode_bridge.domain.errors import BridgeError, OutcomeUnknown
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Inline, Stamp, StampRequest, Streamed

TOGETHER_BYTES_MAX = 16 * 1024
"""A content up to this size is hashed in some microseconds."""

type RunMany = Callable[[Sequence[StampRequest]], Awaitable[Sequence[Answer]]]


class _Waiting(NamedTuple):
    request: StampRequest
    answer: asyncio.Future[Answer]


class Gather:
    """Gives `run_many` what single callers ask for. `hashes_here`: contents are hashed by this process."""

    def __init__(self, run_many: RunMany, *, items_max: int, hashes_here: bool = True) -> None:
        self._run_many = run_many
        self._items_max = items_max
        self._hashes_here = hashes_here
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, request: StampRequest) -> Stamp:
        """Return the stamp of one request, or raise the BridgeError that is its answer."""
        if self._is_quick(request):
            loop = asyncio.get_running_loop()
            waiting = _Waiting(request, loop.create_future())
            if not self._waiting:
                loop.call_soon(self._start)
            self._waiting.append(waiting)
            answer = await waiting.answer
        else:
            (answer,) = await self._run_many((request,))
        if isinstance(answer, BridgeError):
            raise answer
        return answer

    def _is_quick(self, request: StampRequest) -> bool:
        content = request.content
        small = isinstance(content, Inline) and self._hashes_here and len(content.data) <= TOGETHER_BYTES_MAX
        return not request.enable_intelligence and (small or isinstance(content, Streamed))

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        for at in range(0, len(waiting), self._items_max):
            task = asyncio.create_task(self._run(waiting[at : at + self._items_max]), name="gathered")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._run_many([waiting.request for waiting in batch])
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(_own(error, waiting.request))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def _own(error: Exception, request: StampRequest) -> Exception:
    """Return a batch's error as one of its callers is told it: with its own op id, and a traceback of its own."""
    if isinstance(error, OutcomeUnknown):
        own: Exception = OutcomeUnknown(error.message, op_ids=[request.workflow_id])
    elif isinstance(error, BridgeError):
        own = copy(error)
    else:
        return error
    own.__cause__ = error.__cause__
    return own
