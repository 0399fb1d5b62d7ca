"""What every event source does: the log in order, from where one stands, and no record skipped."""

import asyncio

from omninode_bridge.domain.events import decode
from omninode_bridge.domain.log import NIL_ID, START, Head, Record, ShardKey, follow
from omninode_bridge.ports import READ_BYTES_MAX
from tests.conformance.storage import Storage
from tests.making import draft, failure


async def test_an_empty_log_has_no_records_and_no_heads(storage: Storage) -> None:
    assert await storage.source.read({}, 10) == []
    assert await storage.source.heads() == {}


async def test_a_record_says_what_its_event_says(storage: Storage) -> None:
    await storage.ledger.record([draft(), failure()])
    for records in (await storage.whole_log()).values():
        for record in records:
            event = decode(record.body)
            assert (event.type, event.shard, event.position) == (record.topic, record.shard, record.position)
            assert (event.id, event.previousid) == (record.event_id, record.previous_id)
            assert (event.namespace, event.subject) == (record.namespace, record.workflow_id)


async def test_the_first_record_has_position_one_and_names_nobody(storage: Storage) -> None:
    await storage.ledger.record([draft()])
    (record,) = await storage.source.read({}, 10)
    assert (record.position, record.previous_id) == (1, NIL_ID)


async def test_heads_are_where_each_shard_of_each_topic_ends(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), failure("b"), draft("c")])
    log = await storage.whole_log()
    assert {topic for topic, _ in log} == {storage.plan.completed_topic, storage.plan.failed_topic}
    assert await storage.source.heads() == {key: records[-1].head for key, records in log.items()}


async def test_reading_after_a_head_gives_only_what_lies_beyond_it(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(5)])
    ((key, records),) = (await storage.whole_log()).items()
    for place, record in enumerate(records):
        assert await storage.source.read({key: record.head}, 10) == records[place + 1 :]
    assert await storage.source.read({key: START}, 10) == records


async def test_shards_that_are_not_named_are_read_from_their_start(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), failure("b"), failure("c")])
    log = await storage.whole_log()
    (done,) = (key for key in log if key[0] == storage.plan.completed_topic)
    found = await storage.source.read({done: log[done][-1].head}, 10)
    assert [record.topic for record in found] == [storage.plan.failed_topic] * 2


async def test_a_shard_that_has_no_records_may_be_named(storage: Storage) -> None:
    await storage.ledger.record([draft()])
    heads = {("no.such.topic", 0): START, (storage.plan.completed_topic, 255): Head(9)}
    assert len(await storage.source.read(heads, 10)) == 1


async def test_the_limit_is_of_all_shards_and_each_shard_is_in_order(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(5)] + [failure(f"{n}") for n in range(5)])
    found = by_shard(await storage.source.read({}, 6))
    assert [[record.position for record in records] for records in found.values()] == [[1, 2, 3]] * 2


async def test_what_one_shard_does_not_need_is_left_to_the_others(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(9)] + [failure("x")])
    found = by_shard(await storage.source.read({}, 8))
    assert sorted(len(records) for records in found.values()) == [1, 7]


async def test_a_limit_below_the_number_of_shards_leaves_none_out_for_ever(storage: Storage) -> None:
    for name, ledger in (("a", storage.ledger), ("b", storage.rival)):
        await ledger.record([draft(f"{name}{n}") for n in range(3)] + [failure(f"{n}") for n in range(2)])
    heads, taken = dict[ShardKey, Head](), 0
    while found := await storage.source.read(heads, 1):
        (record,) = found
        heads[record.topic, record.shard] = record.head
        taken += 1
    assert taken == 10
    assert heads == await storage.source.heads()


async def test_a_read_is_bounded_by_bytes_too_and_brings_one_record_at_least(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), draft("b"), draft("c"), failure("x")])
    for records in (await storage.whole_log()).values():
        for record in records:
            await storage.corrupt(record, bytes(READ_BYTES_MAX // 2 if record.position < 3 else READ_BYTES_MAX + 1))
    heads, sizes = dict[ShardKey, Head](), list[int]()
    while found := await storage.source.read(heads, 100):
        for record in found:
            assert follow(heads.get((record.topic, record.shard), START), [record]) == ([record], None)
            heads[record.topic, record.shard] = record.head
        sizes.append(len(found))
    assert sizes == [2, 1, 1]
    assert heads == await storage.source.heads()


async def test_small_reads_one_after_another_give_the_whole_chain(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(10)])
    ((key, whole),) = (await storage.whole_log()).items()
    head, taken = START, list[Record]()
    while found := await storage.source.read({key: head}, 3):
        accepted, misfit = follow(head, found)
        assert misfit is None
        taken += accepted
        head = accepted[-1].head
    assert taken == whole


async def test_a_reader_beside_many_writers_skips_nothing(storage: Storage) -> None:
    async def write(ledger: int) -> None:
        for turn in range(10):
            await (storage.ledger, storage.rival)[ledger].record([draft(f"{ledger} {turn} {n}") for n in range(3)])

    async def read(until: int) -> int:
        heads, count = dict[ShardKey, Head](), 0
        while count < until:
            for record in await storage.source.read(heads, 4):
                key = (record.topic, record.shard)
                assert follow(heads.get(key, START), [record]) == ([record], None)
                heads[key] = record.head
                count += 1
            await asyncio.sleep(0)
        return count

    count, *_ = await asyncio.gather(read(60), write(0), write(1))
    assert count == 60


async def test_a_corrupt_body_is_handed_on_as_it_is(storage: Storage) -> None:
    await storage.ledger.record([draft("a"), draft("b")])
    ((record, _),) = (await storage.whole_log()).values()
    await storage.corrupt(record, b"\xff not an event")
    ((found, other),) = (await storage.whole_log()).values()
    assert found.body == b"\xff not an event"
    assert (found.head, found.previous_id, found.namespace) == (record.head, record.previous_id, record.namespace)
    assert decode(other.body).id == other.event_id


def by_shard(records: list[Record]) -> dict[ShardKey, list[Record]]:
    found: dict[ShardKey, list[Record]] = {}
    for record in records:
        found.setdefault((record.topic, record.shard), []).append(record)
    return found
