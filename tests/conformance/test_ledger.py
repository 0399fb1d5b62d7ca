"""What every ledger does: the rules of recording, durably, in order, and with many writers at once."""

import asyncio
import random
from collections import Counter, defaultdict

import msgspec

from omninode_bridge.domain.errors import BridgeError, Conflict, WorkflowFailed
from omninode_bridge.domain.events import StampingCompleted, StampingFailed, decode
from omninode_bridge.domain.log import START, follow
from omninode_bridge.domain.names import FILE_SIZE_BYTES_MAX, path_hash
from omninode_bridge.domain.stamp import Digest, Stamp
from omninode_bridge.domain.workflow import begin
from tests.conformance.storage import Storage, stamped
from tests.making import FACTS, MACHINE, NOW, draft, failure, hash_of, new_id


async def test_nothing_is_recorded_of_nothing(storage: Storage) -> None:
    assert await storage.ledger.record([]) == []
    assert await storage.whole_log() == {}


async def test_a_stamp_is_answered_stored_and_published_as_one_and_the_same(storage: Storage) -> None:
    asked = draft(
        "dir/ä 🙂\n\\.txt",
        metadata={"b": [1, 2.5, None, True], "a": {"x": "漢", "big": 2**60}},
        intelligence={"tags": ["t"], "confidence": 0.25},
        content_type="text/plain; charset=utf-8",
        stamped_by="someone",
    )
    (stamp,) = await storage.stamp(asked)
    assert (stamp.version, stamp.file_path, stamp.metadata) == (1, "dir/ä 🙂\n\\.txt", asked.request.metadata)
    assert await storage.reads.by_id(stamp.stamp_id) == stamp
    ((record,),) = (await storage.whole_log()).values()
    event = decode(record.body)
    assert isinstance(event, StampingCompleted)
    assert event.data == stamp


async def test_values_at_their_limits_are_recorded(storage: Storage) -> None:
    digest = Digest("f" * 64, FILE_SIZE_BYTES_MAX, hash_time_us=2**40)
    facts = msgspec.structs.replace(FACTS, inode=2**64 - 1, device=2**64 - 1, mtime_ns=2**63 - 1, ctime_ns=-(2**63))
    asked = draft("🙂" * 4096, namespace="n" * 255, content_type="a/" + "x" * 253, metadata={"x": "y" * 65_000})
    asked = msgspec.structs.replace(asked, digest=msgspec.structs.replace(digest, facts=facts))
    (stamp,) = await storage.stamp(asked)
    assert await storage.reads.by_id(stamp.stamp_id) == stamp
    assert stamp.file_size == FILE_SIZE_BYTES_MAX
    (known,) = (await storage.reads.known_files([path_hash(stamp.namespace, stamp.file_path)])).values()
    assert known.facts == facts


async def test_the_same_content_again_gives_the_stamp_back_without_an_event(storage: Storage) -> None:
    (first,) = await storage.stamp(draft())
    op = new_id()
    (again,) = await storage.stamp(draft(op=op))
    assert again == msgspec.structs.replace(first, deduplicated=True, op_id=op)
    ((_,),) = (await storage.whole_log()).values()


async def test_metadata_is_compared_by_its_value_after_storage_too(storage: Storage) -> None:
    metadata = {"b": 1.0, "a": [0.1, 1e300, -0.0, 2**70, "\u2028"], "c": {"z": None, "y": "\U0010ffff"}}
    await storage.stamp(draft(metadata=metadata))
    (again,) = await storage.stamp(draft(metadata=dict(reversed(metadata.items()))))
    assert again.deduplicated


async def test_changed_content_makes_the_next_version(storage: Storage) -> None:
    stamps = await storage.stamp(
        draft(content=b"1"), draft(content=b"2"), draft(content=b"2", metadata={"a": 1}), draft(content=b"1")
    )
    assert [stamp.version for stamp in stamps] == [1, 2, 3, 4]


async def test_a_computed_digest_is_never_deduplicated_onto_a_claimed_one(storage: Storage) -> None:
    stamps = await storage.stamp(draft(origin="claimed"), draft(), draft(origin="claimed"))
    assert [(s.version, s.digest_origin, s.deduplicated) for s in stamps] == [
        (1, "claimed", False),
        (2, "computed", False),
        (2, "computed", True),
    ]


async def test_an_op_id_again_gives_the_first_answer(storage: Storage) -> None:
    op, repeated = new_id(), new_id()
    (first,) = await storage.stamp(draft(op=op))
    (deduplicated,) = await storage.stamp(draft(op=repeated))
    await storage.stamp(draft(content=b"newer"))
    assert await storage.stamp(draft(op=op), draft(op=repeated)) == [first, deduplicated]
    assert sum(map(len, (await storage.whole_log()).values())) == 2


async def test_an_op_id_with_another_request_is_a_conflict_that_writes_nothing(storage: Storage) -> None:
    op = new_id()
    await storage.stamp(draft(op=op))
    log = await storage.whole_log()
    (verdict,) = await storage.ledger.record([draft(op=op, content=b"other")])
    assert type(verdict) is Conflict
    assert await storage.whole_log() == log
    assert len(await storage.reads.history("legal.contracts", "a.txt")) == 1


async def test_an_op_id_of_another_namespace_is_another_op_id(storage: Storage) -> None:
    op = new_id()
    stamps = await storage.stamp(draft(op=op), draft(op=op, namespace="other", content=b"other"))
    assert [stamp.version for stamp in stamps] == [1, 1]


async def test_a_failure_is_recorded_published_and_answered_again(storage: Storage) -> None:
    op = new_id()
    (first,) = await storage.ledger.record([failure(op=op, message='it said "no" 🙂\n')])
    (again,) = await storage.ledger.record([failure(op=op, message='it said "no" 🙂\n')])
    assert isinstance(first, WorkflowFailed)
    assert isinstance(again, WorkflowFailed)
    assert (first.message, first.context) == (again.message, again.context)
    ((record,),) = (await storage.whole_log()).values()
    event = decode(record.body)
    assert isinstance(event, StampingFailed)
    assert event.data.error_message == 'it said "no" 🙂\n'
    assert record.topic == storage.plan.failed_topic


async def test_a_group_is_answered_in_its_order_and_sees_itself(storage: Storage) -> None:
    op = new_id()
    verdicts = await storage.ledger.record(
        [
            draft("b"),
            failure("x"),
            draft("a"),
            draft("b"),
            draft("b", b"2", op=op),
            draft("b", b"2", op=op),
            draft("b", b"3", op=op),
            draft("a", b"2"),
        ]
    )
    stamps = {n: verdict for n, verdict in enumerate(verdicts) if isinstance(verdict, Stamp)}
    assert {n: (s.file_path, s.version, s.deduplicated) for n, s in stamps.items()} == {
        0: ("b", 1, False),
        2: ("a", 1, False),
        3: ("b", 1, True),
        4: ("b", 2, False),
        5: ("b", 2, False),
        7: ("a", 2, False),
    }
    assert isinstance(verdicts[1], WorkflowFailed)
    assert type(verdicts[6]) is Conflict


async def test_one_item_that_is_refused_harms_no_other(storage: Storage) -> None:
    refused = msgspec.structs.replace(draft("refused"), visits=begin(MACHINE, NOW))
    verdicts = await storage.ledger.record([draft("a"), draft("b"), refused, draft("c")])
    assert [stamped(verdicts[n]).file_path for n in (0, 1, 3)] == ["a", "b", "c"]
    assert isinstance(verdicts[2], BridgeError)
    assert await storage.reads.history("legal.contracts", "refused") == []
    await assert_chains(storage)


async def test_what_a_storage_cannot_hold_harms_no_other(storage: Storage) -> None:
    """A storage may record a NUL or refuse it; either way the item stands alone."""
    verdicts = await storage.ledger.record(
        [draft("a"), failure("b", message="\0"), draft("c"), draft("a"), failure("d")]
    )
    assert [stamped(verdicts[n]).file_path for n in (0, 2, 3)] == ["a", "c", "a"]
    assert [stamped(verdicts[n]).deduplicated for n in (0, 2, 3)] == [False, False, True]
    assert isinstance(verdicts[1], BridgeError)
    assert isinstance(verdicts[4], WorkflowFailed)
    await assert_chains(storage)


async def test_a_large_group_is_recorded_whole(storage: Storage) -> None:
    verdicts = await storage.ledger.record([draft(f"{n:04d}") for n in range(1_500)])
    assert [stamped(verdict).file_path for verdict in verdicts] == [f"{n:04d}" for n in range(1_500)]
    await assert_chains(storage)


async def test_two_ledgers_share_one_storage(storage: Storage) -> None:
    for number in range(10):
        ledger = (storage.ledger, storage.rival)[number % 2]
        (verdict,) = await ledger.record([draft(content=b"%d" % number)])
        assert stamped(verdict).version == number + 1
    await assert_chains(storage)


async def test_many_writers_of_the_same_paths_make_versions_one_to_n_each_once(storage: Storage) -> None:
    rng = random.Random(20_260_301)
    names = ["p", "q", "r"]

    async def write(writer: int) -> list[Stamp]:
        made: list[Stamp] = []
        for turn in range(5):
            group = [draft(name, b"%d %d" % (writer, turn)) for name in rng.sample(names, 3)]
            made += map(stamped, await (storage.ledger, storage.rival)[writer % 2].record(group))
        return made

    answered = [stamp for stamps in await asyncio.gather(*map(write, range(12))) for stamp in stamps]
    versions = defaultdict(list)
    for stamp in answered:
        versions[stamp.file_path].append(stamp.version)
    assert {name: sorted(found) for name, found in versions.items()} == {name: list(range(1, 61)) for name in names}
    for name in names:
        history = await storage.reads.history("legal.contracts", name)
        assert [stamp.version for stamp in history] == list(range(60, 0, -1))
    await assert_chains(storage)
    await assert_one_event_each(storage, answered)


async def test_many_writers_of_the_same_content_make_one_stamp(storage: Storage) -> None:
    ledgers = (storage.ledger, storage.rival)
    verdicts = await asyncio.gather(*(ledgers[n % 2].record([draft()]) for n in range(20)))
    stamps = [stamped(verdict) for (verdict,) in verdicts]
    assert Counter(stamp.deduplicated for stamp in stamps) == {False: 1, True: 19}
    assert len({stamp.stamp_id for stamp in stamps}) == 1
    ((_,),) = (await storage.whole_log()).values()


async def test_many_writers_with_the_same_op_id_get_one_answer(storage: Storage) -> None:
    op = new_id()
    ledgers = (storage.ledger, storage.rival)
    verdicts = await asyncio.gather(*(ledgers[n % 2].record([draft(op=op)]) for n in range(20)))
    stamps = [stamped(verdict) for (verdict,) in verdicts]
    assert all(stamp == stamps[0] for stamp in stamps)
    ((_,),) = (await storage.whole_log()).values()


async def test_writers_that_meet_the_same_paths_in_opposite_orders_all_finish(storage: Storage) -> None:
    names = [f"{n:02d}" for n in range(20)]
    groups = [[draft(name, b"%d" % n) for name in (names if n % 2 else names[::-1])] for n in range(8)]
    ledgers = (storage.ledger, storage.rival)
    await asyncio.gather(*(ledgers[n % 2].record(group) for n, group in enumerate(groups)))
    for name in names:
        assert len(await storage.reads.history("legal.contracts", name)) == 8
    await assert_chains(storage)


async def test_file_facts_survive_any_number_of_writers(storage: Storage) -> None:
    await asyncio.gather(*(storage.ledger.record([draft(content=b"%d" % n, facts=FACTS)]) for n in range(10)))
    (latest,) = (await storage.reads.latest_many("legal.contracts", ["a.txt"])).values()
    (known,) = (await storage.reads.known_files([path_hash("legal.contracts", latest.file_path)])).values()
    assert known.stamp_id == latest.stamp_id
    assert latest.file_hash in {hash_of(b"%d" % n) for n in range(10)}


async def assert_chains(storage: Storage) -> None:
    log = await storage.whole_log()
    heads = await storage.source.heads()
    for key, records in log.items():
        assert follow(START, records) == (records, None)
        assert records[-1].head == heads[key]


async def assert_one_event_each(storage: Storage, stamps: list[Stamp]) -> None:
    events = [decode(record.body) for records in (await storage.whole_log()).values() for record in records]
    told = {event.data.stamp_id: event.data for event in events if isinstance(event, StampingCompleted)}
    assert len(told) == len(events)
    assert told == {stamp.stamp_id: stamp for stamp in stamps}
