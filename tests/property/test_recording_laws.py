"""Laws of recording: grouping never matters, and what is written always hangs together."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters.memory import MemoryStore, SeededIds
from omninode_bridge.domain.errors import BridgeError, Conflict, ServiceUnavailable, WorkflowFailed
from omninode_bridge.domain.events import StampingCompleted, StampingFailed, decode
from omninode_bridge.domain.log import START, follow
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.recording import OpKey, Verdict, decide, op_key, path_key
from omninode_bridge.domain.stamp import Failure, Outcome, Stamp
from tests.making import COMPLETED, FAILED, NOW, PLAN
from tests.property.strategies import outcomes


def endless_ids() -> Iterator[str]:
    source = SeededIds()
    while True:
        yield from source(1)


def recorded(found: list[Outcome], cuts: list[int]) -> tuple[MemoryStore, list[Verdict]]:
    """Commit outcomes in groups that end at the cuts."""
    store, ids, verdicts = MemoryStore(), endless_ids(), list[Verdict]()
    edges = [0, *sorted({cut for cut in cuts if cut < len(found)}), len(found)]
    for start, end in pairwise(edges):
        group = found[start:end]
        heads = {topic: store.head((topic, 0)) for topic in (COMPLETED, FAILED)}
        decision = decide(
            PLAN,
            group,
            priors={key: store.prior(store.workflows[key]) for key in map(op_key, group) if key in store.workflows},
            latest={key: stamp for key in map(path_key, group) if (stamp := store.latest(key))},
            heads=heads,
            shard=0,
            ids=ids,
            now=NOW,
        )
        assert store.write(decision, heads, NOW)
        verdicts += decision.verdicts
    return store, verdicts


def answer(verdict: Verdict) -> object:
    return (type(verdict), verdict.message, verdict.context) if isinstance(verdict, BridgeError) else verdict


CUTS = st.lists(st.integers(1, 11), max_size=6)


@given(outcomes(), CUTS)
def test_any_division_into_groups_gives_the_same_answers_and_the_same_tables(
    found: list[Outcome], cuts: list[int]
) -> None:
    whole, together = recorded(found, [])
    parts, apart = recorded(found, cuts)
    assert list(map(answer, apart)) == list(map(answer, together))
    assert parts.log == whole.log
    assert parts.stamps == whole.stamps
    assert parts.workflows == whole.workflows


@given(outcomes(), CUTS)
def test_each_chain_is_gapless_and_each_record_names_its_predecessor(found: list[Outcome], cuts: list[int]) -> None:
    store, _ = recorded(found, cuts)
    for records in store.log.values():
        assert follow(START, records) == (records, None)


@given(outcomes(), CUTS)
def test_versions_of_a_path_are_one_to_n_without_a_hole(found: list[Outcome], cuts: list[int]) -> None:
    store, _ = recorded(found, cuts)
    by_path = defaultdict(list)
    for stamp in store.stamps.values():
        by_path[path_hash(stamp.namespace, stamp.file_path)].append(stamp.version)
    for versions in by_path.values():
        assert versions == list(range(1, len(versions) + 1))


@given(outcomes(), CUTS)
def test_every_stamp_has_one_completed_event_and_every_failed_workflow_one_failed_event(
    found: list[Outcome], cuts: list[int]
) -> None:
    store, _ = recorded(found, cuts)
    events = [decode(record.body) for records in store.log.values() for record in records]
    done = [event.data for event in events if isinstance(event, StampingCompleted)]
    assert sorted(done, key=lambda stamp: stamp.stamp_id) == sorted(store.stamps.values(), key=lambda s: s.stamp_id)
    gone = [(event.namespace, event.subject) for event in events if isinstance(event, StampingFailed)]
    failed = [key for key, workflow in store.workflows.items() if workflow.state == "failed"]
    assert sorted(gone) == sorted(failed)


@given(outcomes(), CUTS)
def test_asking_everything_again_gives_the_same_answers_and_writes_nothing(
    found: list[Outcome], cuts: list[int]
) -> None:
    once, first = recorded(found, cuts)
    twice, both = recorded(found + found, cuts)
    assert list(map(answer, both[len(found) :])) == list(map(answer, first))
    assert twice.log == once.log
    assert twice.stamps == once.stamps
    assert twice.workflows == once.workflows


@given(outcomes())
def test_consecutive_versions_of_a_path_always_differ_in_content_or_origin(found: list[Outcome]) -> None:
    store, _ = recorded(found, [])
    for versions in store.versions.values():
        for one, other in pairwise(versions):
            same = (one.file_hash, one.metadata, one.content_type) == (
                other.file_hash,
                other.metadata,
                other.content_type,
            )
            assert not same or (one.digest_origin, other.digest_origin) == ("claimed", "computed")


@given(outcomes())
def test_every_outcome_is_answered_in_its_kind(found: list[Outcome]) -> None:
    _, verdicts = recorded(found, [])
    assert len(verdicts) == len(found)
    failed_before: set[OpKey] = set()
    for outcome, verdict in zip(found, verdicts, strict=True):
        if isinstance(outcome, Failure):
            # ServiceUnavailable: its content was not seen, so it can't be compared with the op id's first request.
            assert isinstance(verdict, WorkflowFailed | Conflict | ServiceUnavailable)
            if isinstance(verdict, WorkflowFailed):
                failed_before.add(op_key(outcome))
        elif isinstance(verdict, WorkflowFailed):
            assert op_key(outcome) in failed_before
        else:
            assert isinstance(verdict, Stamp | Conflict)
