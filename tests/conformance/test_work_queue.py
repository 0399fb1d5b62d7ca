"""Accepted workflows: nothing of them is lost, each ends once, and only under the lease that it still has."""

import asyncio

import msgspec

from omninode_bridge.domain.errors import AttemptFailed, Conflict, InProgress, LeaseLost, WorkflowFailed
from omninode_bridge.domain.recording import Prior, Workflow
from omninode_bridge.domain.stamp import Acceptance, Inline, Stamp, StampRequest
from omninode_bridge.ports import WorkQueue
from tests.conformance.storage import Storage, stamped
from tests.making import NAMESPACE, PLAN, acceptance, draft, leased_draft, leased_failure, new_id

LEASE_S = 60.0


async def claim(queue: WorkQueue, worker: str = "w", *, lease_s: float = LEASE_S, **limits: int) -> list[StampRequest]:
    return await queue.claim(worker, **{"count_max": 100, "bytes_max": 10**9, **limits}, lease_s=lease_s)


async def accepted(storage: Storage, *acceptances: Acceptance) -> list[Workflow]:
    workflows = []
    for verdict in await storage.ledger.record(acceptances):
        assert isinstance(verdict, Workflow), verdict
        workflows.append(verdict)
    return workflows


async def found(storage: Storage, workflow_id: str) -> Prior:
    (prior,) = await storage.reads.workflow(workflow_id)
    return prior


async def test_an_accepted_workflow_waits_in_its_first_state_and_makes_no_event(storage: Storage) -> None:
    (workflow,) = await accepted(storage, acceptance("a"))
    assert workflow.state == PLAN.machine.initial
    prior = await found(storage, workflow.workflow_id)
    assert prior.workflow == workflow and prior.stamp is None
    assert prior.waiting is not None and (prior.waiting.fence, prior.waiting.attempts) == (0, 0)
    assert await storage.whole_log() == {}
    waiting, oldest_s = await storage.queue.depth()
    assert waiting == 1 and oldest_s >= 0
    assert await storage.queue.size() == (1, 1)


async def test_a_worker_gets_the_request_as_it_was_accepted_and_moves_it_on(storage: Storage) -> None:
    metadata = {"project": "p", "n": [1, 2.5, None]}
    asked = acceptance("a/ü.txt", b"\x00bytes", metadata=metadata, enable_intelligence=True, stamped_by="ci")
    await accepted(storage, asked)
    (held,) = await claim(storage.queue)
    assert held.lease is not None and (held.lease.fence, held.lease.attempt, held.lease.last) == (1, 1, False)
    assert [visit.state for visit in held.lease.visits] == ["pending", "processing"]
    assert msgspec.structs.replace(held, lease=None, op_id_given=False) == asked.request
    prior = await found(storage, held.workflow_id)
    assert prior.workflow.state == "processing" and prior.workflow.visits == held.lease.visits


async def test_the_end_of_a_workflow_is_its_stamp_and_leaves_no_input(storage: Storage) -> None:
    (workflow,) = await accepted(storage, acceptance("a", b"abc"))
    (held,) = await claim(storage.queue)
    (stamp,) = await storage.stamp(leased_draft(held))
    assert (stamp.workflow_id, stamp.file_size, stamp.version) == (workflow.workflow_id, 3, 1)
    prior = await found(storage, workflow.workflow_id)
    assert [visit.state for visit in prior.workflow.visits] == ["pending", "processing", "completed"]
    assert prior.stamp == stamp and prior.waiting is None
    assert await storage.queue.depth() == (0, 0.0)
    assert await claim(storage.queue) == []
    assert sum(map(len, (await storage.whole_log()).values())) == 1


async def test_a_failed_end_has_its_event_and_says_why(storage: Storage) -> None:
    (workflow,) = await accepted(storage, acceptance("a"))
    (held,) = await claim(storage.queue)
    (verdict,) = await storage.ledger.record([leased_failure(held)])
    assert isinstance(verdict, WorkflowFailed) and verdict.context["error_code"] == "stamping_unavailable"
    prior = await found(storage, workflow.workflow_id)
    assert prior.workflow.state == "failed" and prior.workflow.error_message == "the service was away"
    assert prior.workflow.request_digest == workflow.request_digest
    assert {topic for topic, _ in await storage.whole_log()} == {PLAN.failed_topic}


async def test_what_is_leased_is_nobody_elses_until_the_lease_runs_out(storage: Storage) -> None:
    await accepted(storage, acceptance("a"))
    (first,) = await claim(storage.queue, "w1", lease_s=0)
    (second,) = await claim(storage.queue, "w2")
    assert await claim(storage.queue, "w3") == []
    assert first.lease and second.lease and (first.lease.fence, second.lease.fence) == (1, 2)
    assert second.lease.visits == first.lease.visits
    prior = await found(storage, second.workflow_id)
    assert prior.waiting is not None and prior.waiting.worker == "w2"


async def test_a_worker_whose_lease_was_taken_over_changes_nothing(storage: Storage) -> None:
    await accepted(storage, acceptance("a"))
    (slow,) = await claim(storage.queue, "slow", lease_s=0)
    (quick,) = await claim(storage.queue, "quick")
    (verdict,) = await storage.rival.record([leased_draft(slow)])
    assert isinstance(verdict, LeaseLost)
    await storage.queue.release([slow], delay_s=0)
    assert await claim(storage.queue) == []
    stamp = stamped((await storage.ledger.record([leased_draft(quick)]))[0])
    (late,) = await storage.rival.record([leased_draft(slow)])
    assert late == stamp
    assert sum(map(len, (await storage.whole_log()).values())) == 1


async def test_of_two_who_bring_the_end_at_once_under_one_lease_both_get_the_one_stamp(storage: Storage) -> None:
    await accepted(storage, *(acceptance(f"{n}") for n in range(20)))
    held = await claim(storage.queue)
    verdicts = await asyncio.gather(
        *(ledger.record([leased_draft(one)]) for one in held for ledger in (storage.ledger, storage.rival))
    )
    stamps = [stamped(verdict) for (verdict,) in verdicts]
    assert len({stamp.stamp_id for stamp in stamps}) == 20
    assert sum(map(len, (await storage.whole_log()).values())) == 20


async def test_what_was_taken_unawares_is_given_back_uncounted_and_nothing_else(storage: Storage) -> None:
    await accepted(storage, *(acceptance(f"{n}") for n in range(3)))
    (known,) = await claim(storage.queue, "w/1", count_max=1)
    (lost,) = await claim(storage.queue, "w/2", count_max=1)
    (others,) = await claim(storage.queue, "w2/1")
    for _ in range(2):
        await storage.queue.disown(["w/2", "w/0"])
    (again,) = await claim(storage.queue, "w/3")
    assert again.workflow_id == lost.workflow_id
    assert again.lease and (again.lease.fence, again.lease.attempt) == (2, 1)
    verdicts = await storage.ledger.record([leased_draft(known), leased_draft(others), leased_draft(lost)])
    assert [type(verdict) for verdict in verdicts] == [Stamp, Stamp, LeaseLost]


async def test_a_renewed_lease_lasts_and_a_lost_one_is_not_renewed(storage: Storage) -> None:
    await accepted(storage, acceptance("a"))
    (first,) = await claim(storage.queue, "w1", lease_s=0)
    await storage.queue.renew([first], LEASE_S)
    assert await claim(storage.queue) == []
    await storage.queue.renew([first], 0)
    (second,) = await claim(storage.queue, "w2", lease_s=0)
    await storage.queue.renew([first], LEASE_S)
    (third,) = await claim(storage.queue, "w3")
    assert second.lease and third.lease and third.lease.fence == 3


async def test_what_is_given_back_can_be_taken_again_and_says_why_it_failed(storage: Storage) -> None:
    (workflow,) = await accepted(storage, acceptance("a"))
    error = AttemptFailed("no service answers", step="hash", error_code="stamping_unavailable")
    for attempt in range(1, PLAN.queue.attempts_max + 1):
        (held,) = await claim(storage.queue)
        assert held.lease and held.lease.attempt == attempt
        assert held.lease.last is (attempt == PLAN.queue.attempts_max)
        await storage.queue.release([held], delay_s=0, error=error)
        await storage.queue.renew([held], LEASE_S)  # a renewal that was under way comes too late
        prior = await found(storage, workflow.workflow_id)
        assert prior.waiting is not None and prior.waiting.worker is None
        assert (prior.waiting.error_code, prior.waiting.error_message) == ("stamping_unavailable", error.message)
    (held,) = await claim(storage.queue)
    assert held.lease and held.lease.attempt == PLAN.queue.attempts_max + 1


async def test_an_attempt_that_was_cut_short_is_not_counted_but_its_lease_is_void(storage: Storage) -> None:
    await accepted(storage, acceptance("a"))
    (first,) = await claim(storage.queue)
    await storage.queue.release([first], delay_s=0, counts=False)
    await storage.queue.release([first], delay_s=0, counts=False)
    (second,) = await claim(storage.queue)
    assert second.lease and (second.lease.attempt, second.lease.fence) == (1, 2)


async def test_what_is_given_back_for_later_comes_later(storage: Storage) -> None:
    await accepted(storage, acceptance("a"))
    (held,) = await claim(storage.queue)
    await storage.queue.release([held], delay_s=LEASE_S)
    assert await claim(storage.queue) == []


async def test_an_accepted_op_id_is_answered_by_its_workflow_and_refused_for_another_request(storage: Storage) -> None:
    op = new_id()
    (workflow,) = await accepted(storage, acceptance("a", op=op))
    same, other, elsewhere = acceptance("a", op=op), acceptance("a", b"b", op=op), acceptance("b", op=op)
    again, changed, moved, direct = await storage.rival.record([same, other, elsewhere, draft("a", op=op)])
    assert again == workflow
    assert isinstance(changed, Conflict) and isinstance(moved, Conflict) and not isinstance(changed, InProgress)
    assert isinstance(direct, InProgress)
    (held,) = await claim(storage.queue)
    (stamp,) = await storage.stamp(leased_draft(held))
    (after, ended) = await storage.ledger.record([same, draft("a", op=op)])
    assert isinstance(after, Workflow) and after.state == "completed" and ended == stamp


async def test_acceptances_and_stamps_of_one_group_see_each_other(storage: Storage) -> None:
    op = new_id()
    workflow, running, stamp = await storage.ledger.record([acceptance("a", op=op), draft("a", op=op), draft("b")])
    assert isinstance(workflow, Workflow) and isinstance(running, InProgress) and isinstance(stamp, Stamp)


async def test_a_claim_takes_what_its_limits_allow_and_one_at_least(storage: Storage) -> None:
    await accepted(storage, *(acceptance(f"{n}", bytes(100)) for n in range(6)))
    assert len(await claim(storage.queue, count_max=2)) == 2
    assert len(await claim(storage.queue, bytes_max=250)) == 2
    (one,) = await claim(storage.queue, bytes_max=1)
    assert isinstance(one.content, Inline) and len(one.content.data) == 100


async def test_workers_at_once_take_each_workflow_once(storage: Storage) -> None:
    await accepted(storage, *(acceptance(f"{n}") for n in range(50)))
    batches = await asyncio.gather(*(claim(storage.queue, f"w{n}", count_max=10) for n in range(8)))
    taken = [held.workflow_id for batch in batches for held in batch]
    assert len(taken) == len(set(taken)) == 50
    assert all(held.namespace == NAMESPACE for batch in batches for held in batch)
