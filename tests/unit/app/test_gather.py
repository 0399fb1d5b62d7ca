"""Single requests go to the orchestrator together, and nobody is the worse for who was in the batch."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from omninode_bridge.app.gather import TOGETHER_BYTES_MAX, Gather
from omninode_bridge.domain.errors import InvalidInput, OutcomeUnknown, ServiceUnavailable
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Digest, StampRequest, Streamed
from tests.making import request, stamp


class Orchestra:
    """Answers each batch by a stamp a request, keeps what it was given, and can be held."""

    def __init__(self, answer: Callable[[StampRequest], Answer] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.held = asyncio.Event()
        self.held.set()
        self.begun = asyncio.Event()
        self._answer = answer or (lambda asked: stamp(file_path=asked.file_path))

    async def run_many(self, requests: Sequence[StampRequest]) -> list[Answer]:
        self.batches.append([asked.file_path for asked in requests])
        self.begun.set()
        await self.held.wait()
        return [self._answer(asked) for asked in requests]

    def gather(self, **settings: Any) -> Gather:
        return Gather(self.run_many, **{"items_max": 100, **settings})


async def paths(gather: Gather, *requests: StampRequest) -> list[str]:
    return [done.file_path for done in await asyncio.gather(*map(gather.run, requests))]


async def test_what_arrives_in_one_turn_runs_together_and_each_gets_its_own_answer() -> None:
    orchestra = Orchestra()
    names = [f"{n}" for n in range(50)]
    assert await paths(orchestra.gather(), *map(request, names)) == names
    assert orchestra.batches == [names]


async def test_nobody_waits_for_others_to_come_or_to_end() -> None:
    orchestra = Orchestra()
    gather = orchestra.gather()
    orchestra.held.clear()
    first = asyncio.create_task(gather.run(request("a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(gather.run(request("b")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert orchestra.batches == [["a"], ["b"]]
    orchestra.held.set()
    assert [(await first).file_path, (await second).file_path] == ["a", "b"]


async def test_a_batch_has_no_more_than_the_contract_allows() -> None:
    orchestra = Orchestra()
    await paths(orchestra.gather(items_max=4), *(request(f"{n}") for n in range(10)))
    assert [len(batch) for batch in orchestra.batches] == [4, 4, 2]


@pytest.mark.parametrize(
    "alone",
    [
        request("x", bytes(TOGETHER_BYTES_MAX + 1)),
        request("x", enable_intelligence=True),
    ],
)
async def test_what_may_take_long_runs_alone(alone: StampRequest) -> None:
    orchestra = Orchestra()
    await paths(orchestra.gather(), request("a"), alone, request("b"))
    assert sorted(orchestra.batches) == [["a", "b"], ["x"]]


async def test_what_another_machine_hashes_runs_alone_and_digests_go_together() -> None:
    orchestra = Orchestra()
    arrived = Streamed(Digest("0" * 64, 1))
    digested = [msgspec.structs.replace(request(name), content=arrived) for name in "cd"]
    await paths(orchestra.gather(hashes_here=False), request("a"), request("b"), *digested)
    assert sorted(orchestra.batches) == [["a"], ["b"], ["c", "d"]]


async def test_a_caller_who_goes_away_takes_nobody_along() -> None:
    orchestra = Orchestra()
    gather = orchestra.gather()
    orchestra.held.clear()
    callers = [asyncio.create_task(gather.run(request(name))) for name in "abc"]
    await orchestra.begun.wait()
    callers[1].cancel()
    orchestra.held.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [getattr(answers[n], "file_path", None) for n in (0, 2)] == ["a", "c"]


async def test_an_answer_that_is_an_error_is_that_callers_alone() -> None:
    def judge(asked: StampRequest) -> Answer:
        return InvalidInput("no") if asked.file_path == "b" else stamp(file_path=asked.file_path)

    answers = await asyncio.gather(*map(Orchestra(judge).gather().run, map(request, "abc")), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Stamp", "InvalidInput", "Stamp"]


async def test_what_fails_all_is_told_each_as_if_it_had_been_alone() -> None:
    requests = [request(name) for name in "abc"]
    everybodys = OutcomeUnknown("lost", op_ids=[asked.workflow_id for asked in requests])

    async def lost(_: Sequence[StampRequest]) -> list[Answer]:
        raise everybodys

    answers = await asyncio.gather(*map(Gather(lost, items_max=9).run, requests), return_exceptions=True)
    assert [getattr(answer, "context", None) for answer in answers] == [
        {"op_ids": [asked.workflow_id]} for asked in requests
    ]

    async def down(_: Sequence[StampRequest]) -> list[Answer]:
        raise ServiceUnavailable("down", retry_after_s=3)

    answers = await asyncio.gather(*map(Gather(down, items_max=9).run, requests), return_exceptions=True)
    assert len({id(answer) for answer in answers}) == 3
    assert all(isinstance(a, ServiceUnavailable) and a.context == {"retry_after_s": 3} for a in answers)
