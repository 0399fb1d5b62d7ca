"""The reducer on a real broker: whatever Kafka loses, repeats, mixes up or is told, the totals are those of the log."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
from collections.abc import Callable, Mapping
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from omninode_bridge.adapters.kafka import KafkaSubscription
from omninode_bridge.adapters.kafka.reader import BURST_MAX, CLOSE_S_MAX, TopicReader
from omninode_bridge.adapters.postgres.state import PostgresStateStore
from omninode_bridge.app.feed import Feed
from omninode_bridge.app.project import Projector
from omninode_bridge.domain.log import Head, Record, ShardKey
from tests.broker import Broker
from tests.conftest import Server
from tests.integration.books import Books, eventually
from tests.integration.carrier import BY_KEY, WAIT_S, Carrier, Reducer, Sealed, at_work, sealed_by, soon
from tests.making import GROUPINGS, chain

STAMPS = 200


@pytest.fixture
def server(one_server: Server) -> Server:
    """One is enough: the relay's tests are those that run on each PostgreSQL."""
    return one_server


@pytest.fixture
def carrier(books: Books, bootstrap_servers: str) -> Carrier:
    return Carrier(books, bootstrap_servers)


class Held(Feed):
    """Reads, and hands on what it read only when it is let: a process that hangs in between."""

    def __init__(self, books: Books, subscription: KafkaSubscription) -> None:
        super().__init__(books.source, subscription)
        self.holds = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def read(self, after: Mapping[ShardKey, Head], limit: int) -> list[Record]:
        found = await super().read(after, limit)
        if found:
            self.holds.set()
            await self.goes_on.wait()
        return found


async def test_what_is_forwarded_is_folded_from_kafka_and_the_totals_are_those_of_the_topics(carrier: Carrier) -> None:
    await carrier.stamp(STAMPS, sessions=4)
    await carrier.forward()
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= STAMPS, "all has arrived")
        await carrier.fold(reducer)
        assert (reducer.feed.filled, reducer.feed.strange, reducer.subscription.strays) == (0, 0, 0)
    await carrier.check()


@pytest.mark.parametrize("seed", range(3))
async def test_losses_repeats_reordering_garbage_and_a_foreign_log_on_the_topics_change_no_total(
    carrier: Carrier, seed: int
) -> None:
    rng = random.Random(seed)
    await carrier.stamp(STAMPS, sessions=3)
    records = await carrier.records()
    for name in carrier.topics.names:
        await asyncio.to_thread(carrier.make, name)
    strange = [*chain(20, topic=carrier.completed, shard=0), *chain(20, topic=carrier.completed, shard=200)]
    strange += chain(5, after=records[-1].head, topic=carrier.completed, shard=records[-1].shard)
    garbage = [b"", b"{", b"null", rng.randbytes(50), b'{"position": 1}', chain(1)[0].body]
    kept = [record for record in records if rng.random() > 0.2]
    bodies = [record.body for record in (*kept, *rng.choices(records, k=50), *strange)] + garbage
    rng.shuffle(bodies)
    for partition in range(3):
        await asyncio.to_thread(carrier.produce, carrier.completed, bodies[partition::3], partition)
    async with carrier.reducer() as reducer:
        await carrier.fold(reducer)
        await soon(lambda: reducer.subscription.strays >= len(garbage), "all garbage was counted")
    await carrier.books.balance()


async def test_a_message_whose_headers_are_no_text_stops_nobody(carrier: Carrier, bootstrap_servers: str) -> None:
    await carrier.stamp(9)
    await carrier.forward()
    command = ["kcat", "-P", "-b", bootstrap_servers, "-t", carrier.completed, "-p", "0", "-H", b"\xff\xfe=x"]
    await asyncio.to_thread(subprocess.run, command, input=b"x", check=True, timeout=WAIT_S)
    await carrier.stamp(9, prefix="after")
    await carrier.forward()
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= 18, "all has arrived")
        await carrier.fold(reducer)
        await soon(lambda: reducer.subscription.strays == 1, "it was counted")
        assert reducer.feed.filled == 0
        await soon(lambda: reducer.subscription.trouble is None, "it reads on")


FORGERIES: dict[str, Callable[[bytes], Sealed | None]] = {
    "without a seal": lambda _: None,
    "by another key": lambda _: sealed_by(bytes(32)),
    "with the seal of the real one": lambda real: lambda _: BY_KEY(real),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_records_forged_with_the_ids_of_real_ones_change_no_total_and_stop_nothing(
    carrier: Carrier, forgery: str
) -> None:
    """Whoever may write to the topics, and has not the database's key, can't say what somebody stamped."""
    for name in carrier.topics.names:
        await asyncio.to_thread(carrier.make, name)
    await carrier.stamp(9)
    records = await carrier.records()
    changes = (
        lambda event: event | {"data": {}},
        lambda event: event | {"namespace": "a\0b"},
        lambda event: event | {"namespace": "globex.hr", "data": event["data"] | {"namespace": "globex.hr"}},
        lambda event: event | {"data": event["data"] | {"file_size": 10**12}},
    )
    for change in changes:
        for record in records:
            forged, sealed = json.dumps(change(json.loads(record.body))).encode(), FORGERIES[forgery](record.body)
            await asyncio.to_thread(carrier.produce, carrier.completed, [forged], record.shard % 3, sealed)
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.strays == len(changes) * len(records), "all forgeries were counted")
        await carrier.fold(reducer)
        assert reducer.feed.filled == len(records)
    await carrier.books.balance()


async def test_the_topics_of_an_older_database_count_for_nothing_in_a_new_one(carrier: Carrier) -> None:
    for name in carrier.topics.names:
        await asyncio.to_thread(carrier.make, name)
    await carrier.stamp(10)
    (shard,) = {record.shard for record in await carrier.records()}
    older = [record.body for record in chain(50, topic=carrier.completed, shard=shard)]
    await asyncio.to_thread(carrier.produce, carrier.completed, older, shard % 3)
    await carrier.forward()
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= 60, "all has arrived")
        await carrier.fold(reducer)
        assert reducer.feed.strange > 0
    await carrier.books.balance()


async def test_kafka_switched_on_later_and_off_again_recounts_nothing(carrier: Carrier) -> None:
    await carrier.stamp(STAMPS, sessions=2, prefix="before")
    await carrier.books.catch_up()
    before = await carrier.state()
    await carrier.forward()
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= STAMPS, "all has arrived")
        await reducer.projector.step()
        assert await carrier.state() == before
        await carrier.stamp(STAMPS, sessions=2, prefix="with")
        await carrier.forward()
        await carrier.fold(reducer)
    await carrier.stamp(STAMPS, sessions=2, prefix="after")
    await carrier.books.balance()
    assert (await carrier.state())["legal.contracts"][0] == 3 * STAMPS


async def test_a_zombie_that_read_before_a_rebalance_commits_nothing(carrier: Carrier) -> None:
    await carrier.stamp(STAMPS, sessions=2)
    await carrier.forward()
    state = PostgresStateStore(carrier.books.service)
    subscription = KafkaSubscription(carrier.settings(), carrier.topics.names)
    async with subscription:
        held = Held(carrier.books, subscription)
        zombie = Projector(held, state, GROUPINGS)
        await soon(lambda: subscription.waiting >= STAMPS, "all has arrived at the first reader")
        folding = asyncio.create_task(zombie.step())
        await held.holds.wait()
    async with carrier.reducer() as successor:
        await soon(lambda: successor.subscription.waiting >= STAMPS, "all is redelivered")
        await carrier.fold(successor)
        assert successor.feed.filled == 0
    held.goes_on.set()
    assert await folding == 0
    await carrier.check()


async def test_what_was_read_and_not_folded_when_the_reader_died_is_read_again(carrier: Carrier) -> None:
    await carrier.stamp(STAMPS, sessions=2)
    await carrier.forward()
    async with carrier.reducer() as first:
        await soon(lambda: first.subscription.waiting >= STAMPS, "all has arrived at the first reader")
        assert await first.feed.read({}, 10 * STAMPS)
    async with carrier.reducer() as second:
        await soon(lambda: second.subscription.waiting >= STAMPS, "all is redelivered")
        await carrier.fold(second)
        assert second.feed.filled == 0
    await carrier.check()


async def test_what_was_folded_before_the_offset_was_told_is_redelivered_and_dropped(carrier: Carrier) -> None:
    await carrier.stamp(STAMPS, sessions=2)
    await carrier.forward()
    async with carrier.reducer() as first:
        await carrier.fold(first)
    admin = AdminClient({"bootstrap.servers": carrier.servers})
    for deleted in admin.delete_consumer_groups([carrier.group]).values():
        await asyncio.to_thread(deleted.result, WAIT_S)
    folded = await carrier.state()
    async with carrier.reducer() as second:
        await soon(lambda: second.subscription.waiting >= STAMPS, "all is redelivered")
        assert await second.projector.step() == 0
        assert await carrier.state() == folded
    await carrier.check()


@pytest.mark.parametrize("beyond", [0, 1_000_000], ids=["at-the-end", "beyond-the-end"])
async def test_offsets_are_only_a_hint_and_what_they_skip_is_folded_all_the_same(carrier: Carrier, beyond: int) -> None:
    await carrier.stamp(STAMPS, sessions=2)
    await carrier.forward()
    ends = dict.fromkeys(carrier.places(), 0)
    for message in await asyncio.to_thread(carrier.read):
        ends[message.topic, message.partition] = message.offset + 1
    await asyncio.to_thread(carrier.commit_offsets, {place: end + beyond for place, end in ends.items()})
    async with carrier.reducer() as reducer:
        await carrier.fold(reducer)
        if not beyond:
            assert reducer.feed.filled == STAMPS
    await carrier.check()


async def test_what_kafka_never_got_is_folded_from_the_log(carrier: Carrier) -> None:
    await carrier.stamp(40, sessions=2)
    lost, brought = sorted({record.shard for record in await carrier.records()})
    for name in carrier.topics.names:
        await asyncio.to_thread(carrier.make, name)
    bodies = [record.body for record in await carrier.records() if record.shard == brought]
    await asyncio.to_thread(carrier.produce, carrier.completed, bodies, brought % 3)
    async with carrier.reducer() as reducer:
        await carrier.fold(reducer)
        assert reducer.feed.filled >= 20
    assert lost != brought
    await carrier.books.balance()


async def test_readers_share_every_topic_evenly_whoever_came_first(books: Books, bootstrap_servers: str) -> None:
    carrier = Carrier(books, bootstrap_servers, partitions=4)
    await carrier.stamp(1)
    await carrier.forward()  # makes the topics
    topics = sorted(2 * carrier.topics.names)

    def of(reducer: Reducer) -> list[str]:
        return sorted(topic for topic, _ in reducer.subscription.owned)

    async with carrier.reducer() as first:
        await soon(lambda: of(first) == sorted(2 * topics), "the first has all")
        async with carrier.reducer() as second:
            await soon(lambda: of(first) == of(second) == topics, "each has half of each topic")
        await soon(lambda: of(first) == sorted(2 * topics), "the first has all again")


async def test_a_full_reader_pauses_stays_in_the_group_and_goes_on_where_it_was(carrier: Carrier) -> None:
    count, most = 3000, 100
    await carrier.stamp(count, sessions=2, group=500)
    await carrier.forward()
    bodies = [record.body for record in await carrier.records()]
    for _ in range(3):  # repeats, so that there is more than one burst brings
        await asyncio.to_thread(carrier.produce, carrier.completed, bodies, 0)
    async with carrier.reducer(queue_records_max=most) as reducer:
        subscription = reducer.subscription
        await soon(lambda: subscription.waiting >= most, "it is full")
        await soon(lambda: len(subscription.owned) == 6, "it has all")
        everything = subscription.owned
        async with carrier.reducer() as other:  # a rebalance while it is full
            await soon(lambda: subscription.owned < everything, "the first has given some away")
            await soon(lambda: subscription.owned ^ other.subscription.owned == everything, "the other has the rest")
            assert subscription.waiting <= most + 2 * BURST_MAX
        await soon(lambda: subscription.owned == everything, "it has all again")
        assert subscription.waiting <= most + 2 * BURST_MAX < 4 * count
        taken = 0

        def drained() -> bool:
            nonlocal taken
            taken += len(subscription.take(1000))
            return taken >= 4 * count

        await soon(drained, "all has arrived")
    async with carrier.reducer() as reducer:
        await carrier.fold(reducer)
    await carrier.check()


async def test_readers_share_the_partitions_and_one_without_any_leaves_the_shards_to_the_others(
    books: Books, bootstrap_servers: str
) -> None:
    carrier = Carrier(books, bootstrap_servers, partitions=1)
    await carrier.stamp(20)
    await carrier.forward()
    async with carrier.reducer() as a, carrier.reducer() as b, carrier.reducer() as c:
        readers = [a.subscription, b.subscription, c.subscription]
        keys = [(name, shard) for name in carrier.topics.names for shard in range(3)]

        def shared() -> bool:  # who is not in the group yet owns every shard, and has no partition
            counts = sorted(len(reader.owned) for reader in readers)
            return counts in ([0, 1, 1], [0, 0, 2]) and all(sum(one.owns(key) for one in readers) == 1 for key in keys)

        await soon(shared, "each partition and each shard has one reader")
        async with at_work(*(one.projector.run() for one in (a, b, c))):
            await carrier.stamp(STAMPS, prefix="more")
            await carrier.forward()
            heads = await books.source.heads()
            await soon_folded(carrier, heads)
    await carrier.check()


async def test_a_consumer_that_fails_is_replaced_and_the_shards_are_folded_meanwhile(carrier: Carrier) -> None:
    class Failing(TopicReader):
        failures = 1

        def _keep(self, consumer: Consumer) -> None:
            super()._keep(consumer)
            if self.failures:
                self.failures -= 1
                raise KafkaException(KafkaError(KafkaError._FATAL))

    await carrier.stamp(STAMPS, sessions=2)
    await carrier.forward()
    reader = Failing(carrier.settings(), carrier.completed)
    reader.open()
    try:
        await soon(lambda: reader.trouble, "it says what is wrong")
        assert all(reader.owns(shard) for shard in range(3))
        await soon(lambda: reader.waiting >= STAMPS, "another reads")
        await soon(lambda: reader.trouble is None, "it is well")
    finally:
        await reader.close()


async def test_closing_while_the_broker_hangs_takes_little_time(books: Books, broker: Broker) -> None:
    carrier = Carrier(books, broker.bootstrap_servers)
    await carrier.stamp(STAMPS)
    await carrier.forward()
    try:
        async with carrier.reducer() as reducer:
            await carrier.fold(reducer)
            await reducer.projector.step()  # and tells its offsets
            broker.pause()
            began_s = asyncio.get_running_loop().time()
        # Else it takes leave for as long as the broker hangs: until `finally` here, which is never.
        assert asyncio.get_running_loop().time() - began_s < 3 * CLOSE_S_MAX
    finally:
        broker.resume()
    await carrier.check()


async def test_a_reducer_that_never_reaches_kafka_folds_everything_from_the_log(books: Books) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        carrier = Carrier(books, f"127.0.0.1:{nobody.getsockname()[1]}", name=f"test.{uuid4().hex}")
        await carrier.stamp(STAMPS, sessions=2)
        async with carrier.reducer() as reducer:
            await carrier.fold(reducer)
            assert reducer.feed.filled == STAMPS
            await soon(lambda: reducer.subscription.trouble, "it says what is wrong")
    await books.balance()


async def test_a_long_log_is_caught_up_with_at_once_where_kafka_has_none_of_it(books: Books) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        carrier = Carrier(books, f"127.0.0.1:{nobody.getsockname()[1]}")
        await carrier.stamp(2000, group=500)
        async with carrier.reducer() as reducer:
            projector = Projector(reducer.feed, books.state, GROUPINGS, batch_max=100)
            began_s = asyncio.get_running_loop().time()
            await carrier.fold(reducer._replace(projector=projector))
            assert asyncio.get_running_loop().time() - began_s < 15.0  # 20 batches, and no pause between them
    await books.balance()


async def soon_folded(carrier: Carrier, heads: Mapping[ShardKey, Head]) -> None:
    async def reached() -> bool:
        return await carrier.books.projector().reached(heads)

    await eventually(reached, "the readers have folded all")
