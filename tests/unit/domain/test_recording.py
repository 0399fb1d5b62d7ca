"""What a group of outcomes becomes: the four rules, seen by a group as if each item had been committed by itself."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from omninode_bridge.adapters.memory import SeededIds
from omninode_bridge.domain.errors import Conflict, IllegalTransition, InProgress, ServiceUnavailable, WorkflowFailed
from omninode_bridge.domain.events import StampingCompleted, StampingFailed, decode
from omninode_bridge.domain.log import START, Head, follow
from omninode_bridge.domain.recording import Decision, Prior, decide, op_key, path_key
from omninode_bridge.domain.stamp import Outcome, Stamp, fingerprint
from omninode_bridge.domain.workflow import begin
from tests.making import COMPLETED, FACTS, FAILED, MACHINE, NOW, PLAN, draft, failure, new_id

LATER = NOW + timedelta(milliseconds=250)


def ids() -> Iterator[str]:
    source = SeededIds(1)
    while True:
        yield from source(1)


def decided(
    outcomes: Sequence[Outcome],
    *,
    after: Decision | None = None,
    priors: Mapping[tuple[str, str], Prior] | None = None,
    heads: Mapping[str, Head] | None = None,
    plan: Any = PLAN,
    fresh: Iterator[str] | None = None,
) -> Decision:
    """Decide on a group after (only) the groups `after` tells of, in shard 5."""
    known = dict(priors or {})
    latest: dict[bytes, Stamp] = {}
    before = dict.fromkeys((plan.completed_topic, plan.failed_topic), START) | dict(heads or {})
    if after:
        stamps = {each.stamp_id: each for each in after.stamps}
        known |= {
            (w.namespace, w.workflow_id): Prior(w, stamps.get(w.stamp_id) if w.stamp_id else None)
            for w in after.workflows
        }
        latest = {path_key(draft(s.file_path, namespace=s.namespace)): s for s in after.stamps}
        before |= {topic: head for (topic, _), head in after.heads.items()}
    return decide(
        plan,
        outcomes,
        priors=known,
        latest=latest,
        heads=before,
        shard=5,
        ids=fresh or ids(),
        now=LATER,
    )


def only_stamp(decision: Decision) -> Stamp:
    (verdict,) = decision.verdicts
    assert isinstance(verdict, Stamp)
    return verdict


def test_a_new_draft_becomes_version_one_with_its_row_its_workflow_and_its_event() -> None:
    asked = draft("a.txt", b"abc", metadata={"project": "x"}, intelligence={"tags": ["t"]})
    decision = decided([asked])
    made = only_stamp(decision)
    assert decision.stamps == [made]
    assert (made.version, made.file_size, made.metadata, made.intelligence) == (1, 3, {"project": "x"}, {"tags": ["t"]})
    assert (made.workflow_id, made.op_id, made.deduplicated) == (asked.request.workflow_id,) * 2 + (False,)
    assert (made.created_at, made.completed_at, made.processing_time_ms) == (NOW, LATER, 250.0)
    assert made.workflow_state == "completed"
    (workflow,) = decision.workflows
    assert [visit.state for visit in workflow.visits] == ["pending", "processing", "completed"]
    assert (workflow.stamp_id, workflow.state, workflow.deduplicated) == (made.stamp_id, "completed", False)
    (record,) = decision.records
    event = decode(record.body)
    assert isinstance(event, StampingCompleted)
    assert event.data == made
    assert event.time == LATER
    assert decision.heads == {(COMPLETED, 5): record.head}


def test_an_event_and_its_record_say_the_same() -> None:
    decision = decided([draft(), failure(), draft(content=b"b")])
    for record in decision.records:
        event = decode(record.body)
        assert (event.type, event.shard, event.position, event.id, event.previousid) == (
            record.topic,
            record.shard,
            record.position,
            record.event_id,
            record.previous_id,
        )
        assert (event.namespace, event.subject) == (record.namespace, record.workflow_id)


def test_an_event_carries_the_trace_of_its_request() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (record,) = decided([draft(traceparent=trace)]).records
    assert decode(record.body).traceparent == trace


# Rule 1: op ids


def test_an_op_id_known_with_the_same_request_gives_the_first_answer_and_writes_nothing() -> None:
    op = new_id()
    first = decided([draft(op=op)])
    again = decided([draft(op=op)], after=first)
    assert again.verdicts == first.verdicts
    assert (again.heads, again.workflows, again.stamps, again.records, again.facts) == ({}, [], [], [], [])


def test_an_op_id_known_with_another_request_is_a_conflict_and_writes_nothing() -> None:
    op = new_id()
    first = decided([draft(op=op)])
    again = decided([draft(op=op, content=b"other")], after=first)
    (verdict,) = again.verdicts
    assert type(verdict) is Conflict
    assert op in verdict.message
    assert (again.heads, again.workflows, again.stamps, again.records) == ({}, [], [], [])


def test_an_op_id_whose_first_request_still_runs_is_in_progress() -> None:
    op = new_id()
    asked = draft(op=op)
    (done,) = decided([asked]).workflows
    running = msgspec.structs.replace(done, state="pending", visits=begin(MACHINE, NOW), stamp_id=None)
    again = decided([draft(op=op)], priors={op_key(asked): Prior(running)})
    (verdict,) = again.verdicts
    assert type(verdict) is InProgress
    assert again.records == []


def test_the_same_op_id_twice_in_one_group_is_recorded_once() -> None:
    op = new_id()
    decision = decided([draft(op=op), draft(op=op)])
    assert decision.verdicts[0] == decision.verdicts[1]
    assert [len(decision.workflows), len(decision.stamps), len(decision.records)] == [1, 1, 1]


def test_the_same_op_id_for_two_requests_in_one_group_is_a_conflict_of_the_second() -> None:
    op = new_id()
    decision = decided([draft(op=op), draft(op=op, content=b"other")])
    assert isinstance(decision.verdicts[0], Stamp)
    assert type(decision.verdicts[1]) is Conflict
    assert len(decision.records) == 1


def test_an_op_id_belongs_to_its_namespace() -> None:
    op = new_id()
    decision = decided([draft(op=op), draft(op=op, namespace="other", content=b"other")])
    assert [type(verdict) for verdict in decision.verdicts] == [Stamp, Stamp]


def test_a_repeated_op_id_that_was_deduplicated_is_answered_as_deduplicated_again() -> None:
    op = new_id()
    fresh = ids()
    first = decided([draft(), draft(op=op)], fresh=fresh)
    again = decided([draft(op=op)], after=first, fresh=fresh)
    assert again.verdicts == first.verdicts[1:]
    assert only_stamp(again).deduplicated
    assert only_stamp(again).op_id == op


# Rule 2: failures


def test_a_failure_becomes_a_failed_workflow_with_a_failed_event() -> None:
    asked = failure("gone.txt", message="the disk said no: 🙂")
    decision = decided([asked])
    (verdict,) = decision.verdicts
    assert isinstance(verdict, WorkflowFailed)
    assert verdict.context["workflow_id"] == asked.request.workflow_id
    assert verdict.context["step"] == "hash"
    (workflow,) = decision.workflows
    assert (workflow.state, workflow.stamp_id, workflow.error_code) == ("failed", None, "content_unavailable")
    (record,) = decision.records
    event = decode(record.body)
    assert isinstance(event, StampingFailed)
    assert (event.data.file_path, event.data.error_message) == ("gone.txt", "the disk said no: 🙂")
    assert decision.stamps == []
    assert decision.heads == {(FAILED, 5): record.head}


def test_a_repeated_op_id_that_failed_fails_again_with_the_same_words() -> None:
    op = new_id()
    first = decided([failure(op=op)])
    again = decided([failure(op=op)], after=first)
    assert isinstance(again.verdicts[0], WorkflowFailed)
    assert str(again.verdicts[0]) == str(first.verdicts[0])
    assert again.records == []


def test_a_failure_takes_no_version() -> None:
    decision = decided([draft(), failure(), draft(content=b"b")])
    assert [each.version for each in decision.stamps] == [1, 2]


# Rule 3: deduplication


def test_a_repetition_of_the_latest_stamp_gives_it_back_without_an_event() -> None:
    first = decided([draft()])
    op = new_id()
    again = decided([draft(op=op)], after=first)
    assert only_stamp(again) == msgspec.structs.replace(only_stamp(first), deduplicated=True, op_id=op)
    assert (again.records, again.stamps, again.heads) == ([], [], {})
    (workflow,) = again.workflows
    assert (workflow.workflow_id, workflow.stamp_id) == (op, only_stamp(first).stamp_id)
    assert (workflow.deduplicated, workflow.state) == (True, "completed")


def test_the_same_content_twice_in_one_group_is_stamped_once() -> None:
    decision = decided([draft(), draft()])
    assert [s.deduplicated for s in decision.verdicts if isinstance(s, Stamp)] == [False, True]
    assert [len(decision.workflows), len(decision.stamps), len(decision.records)] == [2, 1, 1]


def test_a_repetition_of_an_older_version_is_a_new_version() -> None:
    decision = decided([draft(), draft(content=b"b"), draft()])
    assert [each.version for each in decision.stamps] == [1, 2, 3]


def test_a_claimed_digest_repeats_a_computed_one() -> None:
    decision = decided([draft(), draft(origin="claimed")])
    assert len(decision.stamps) == 1


def test_a_computed_digest_after_a_claimed_one_is_a_new_version() -> None:
    decision = decided([draft(origin="claimed"), draft(), draft(origin="claimed")])
    assert [(s.version, s.digest_origin) for s in decision.stamps] == [(1, "claimed"), (2, "computed")]


# Rule 4: versions


def test_the_same_path_many_times_in_one_group_gets_consecutive_versions() -> None:
    decision = decided([draft(content=b"%d" % n) for n in range(5)])
    assert [each.version for each in decision.stamps] == [1, 2, 3, 4, 5]


def test_versions_go_on_after_what_is_recorded() -> None:
    first = decided([draft(), draft(content=b"b")])
    assert only_stamp(decided([draft(content=b"c")], after=first)).version == 3


def test_versions_are_counted_by_namespace_and_path() -> None:
    decision = decided([draft("a"), draft("b"), draft("a", namespace="other")])
    assert [each.version for each in decision.stamps] == [1, 1, 1]


def test_new_metadata_or_content_type_makes_a_new_version() -> None:
    decision = decided([draft(), draft(metadata={"a": 1}), draft(metadata={"a": 1}, content_type="text/html")])
    assert [each.version for each in decision.stamps] == [1, 2, 3]


# The chain


def test_the_records_of_a_group_are_a_gapless_chain_in_each_topic() -> None:
    decision = decided([draft("a"), failure(), draft("b"), failure(), draft("c")])
    for topic, count in ((COMPLETED, 3), (FAILED, 2)):
        records = [record for record in decision.records if record.topic == topic]
        assert follow(START, records) == (records, None)
        assert len(records) == count
        assert decision.heads[topic, 5] == records[-1].head


def test_a_chain_goes_on_after_the_recorded_head() -> None:
    head = Head(41, new_id())
    (record,) = decided([draft()], heads={COMPLETED: head}).records
    assert (record.position, record.previous_id) == (42, head.event_id)


def test_one_topic_for_both_outcomes_makes_one_chain() -> None:
    plan = msgspec.structs.replace(PLAN, failed_topic=COMPLETED)
    decision = decided([draft("a"), failure(), draft("b")], plan=plan)
    assert follow(START, decision.records) == (decision.records, None)


def test_only_topics_that_got_a_record_move() -> None:
    assert set(decided([failure()]).heads) == {(FAILED, 5)}


# File facts


def test_facts_vouch_for_the_version_that_was_answered() -> None:
    first = decided([draft()])
    new = decided([draft(content=b"b", facts=FACTS)], after=first)
    assert [(row.version, row.stamp_id) for row in new.facts] == [(2, only_stamp(new).stamp_id)]
    repeated = decided([draft(facts=FACTS)], after=first)
    assert [(row.version, row.stamp_id) for row in repeated.facts] == [(1, only_stamp(first).stamp_id)]


def test_content_without_facts_leaves_none() -> None:
    assert decided([draft(), draft("b", origin="claimed"), failure("c")]).facts == []


def test_the_last_facts_of_a_path_in_a_group_count() -> None:
    newer = msgspec.structs.replace(FACTS, inode=99)
    (row,) = decided([draft(facts=FACTS), draft(content=b"b", facts=newer)]).facts
    assert (row.facts, row.version) == (newer, 2)


# Time and order


def test_a_clock_that_was_set_back_makes_no_negative_duration() -> None:
    assert only_stamp(decided([draft(at=LATER + timedelta(hours=1))])).processing_time_ms == 0


def test_verdicts_are_in_the_order_of_the_outcomes() -> None:
    decision = decided([draft("a"), failure("b"), draft("c"), draft("a"), failure("d")])
    assert [
        v.file_path if isinstance(v, Stamp) else getattr(v, "context", {})["file_path"] for v in decision.verdicts
    ] == ["a", "b", "c", "a", "d"]


@pytest.mark.parametrize("kind", [draft, failure])
def test_a_history_the_machine_does_not_know_is_refused_and_leaves_no_trace(kind: Any) -> None:
    skipped = msgspec.structs.replace(kind("bad"), visits=begin(MACHINE, NOW))
    over = msgspec.structs.replace(kind("bad"), visits=decided([draft()]).workflows[0].visits)
    decision = decided([draft("a"), skipped, over, draft("b")])
    assert [type(verdict) for verdict in decision.verdicts] == [Stamp, IllegalTransition, IllegalTransition, Stamp]
    assert len(decision.workflows) == len(decision.stamps) == len(decision.records) == 2
    assert follow(START, decision.records) == (decision.records, None)


def test_nothing_becomes_of_nothing() -> None:
    assert decided([]) == Decision([], {}, [], [], [], [], [], [])


def test_what_is_given_is_not_changed() -> None:
    priors: dict[tuple[str, str], Prior] = {}
    latest: dict[bytes, Stamp] = {}
    heads = {COMPLETED: START, FAILED: START}
    decide(PLAN, [draft(), failure()], priors=priors, latest=latest, heads=heads, shard=0, ids=ids(), now=NOW)
    assert (priors, latest, heads) == ({}, {}, {COMPLETED: START, FAILED: START})


def test_the_fingerprint_of_the_first_request_is_what_is_kept() -> None:
    asked = draft(metadata={"a": 1})
    (workflow,) = decided([asked]).workflows
    assert workflow.request_digest == fingerprint(asked.request, asked.digest)


def test_a_repeated_request_gets_its_first_failure_though_its_content_can_be_read_now() -> None:
    first = decided([failure(op=(op := new_id()))])
    again = decided([draft(op=op)], after=first)
    assert isinstance(again.verdicts[0], WorkflowFailed)
    assert str(again.verdicts[0]) == str(first.verdicts[0])
    assert again.workflows == again.records == again.stamps == []


def test_a_repetition_whose_content_was_not_seen_is_asked_to_come_back_and_changes_nothing() -> None:
    first = decided([draft(op=(op := new_id()))])
    again = decided([failure(op=op)], after=first)
    assert isinstance(again.verdicts[0], ServiceUnavailable)
    assert again.workflows == again.records == []
