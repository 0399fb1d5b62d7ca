"""The relay, real PostgreSQL and a real broker: all of the log reaches the topics in order, whoever dies on the way."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource
from confluent_kafka.cimpl import NewPartitions

from omninode_bridge.adapters.kafka import KafkaPublisher, KafkaSettings
from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from omninode_bridge.domain.events import CONTENT_TYPE, SEAL_HEADER
from omninode_bridge.domain.log import START, Head, Record
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.ports import DeadLetter
from tests.broker import Broker
from tests.integration.books import Books, eventually
from tests.integration.carrier import BY_KEY, KEY, WAIT_S, Carrier, Seen, at_work, soon
from tests.making import draft

TAKEOVER_S_MAX = 10.0


@pytest.fixture
def carrier(books: Books, bootstrap_servers: str) -> Carrier:
    return Carrier(books, bootstrap_servers)


class Hooked(KafkaPublisher):
    """The real one, with something that happens when records were kept, and a cable that can be pulled."""

    kept: Callable[[], Awaitable[object]] | None = None
    cut = False

    async def publish(self, records: Sequence[Record]) -> list[str | None]:
        if self.cut:
            raise ServiceUnavailable("the cable to Kafka is cut")
        outcomes = await super().publish(records)
        if self.kept is not None:
            await self.kept()
        return outcomes


def hooked(carrier: Carrier) -> Hooked:
    return Hooked(carrier.settings(), carrier.topics)


def incompressible(characters: int) -> str:
    return "".join(uuid4().hex for _ in range(characters // 32 + 1))


async def on_topics(carrier: Carrier, *topics: str) -> list[Seen]:
    return await asyncio.to_thread(carrier.read, *topics)


async def kill_session(books: Books) -> None:
    """End the session of whoever holds the locks of the relay."""
    ended = await books.pool.fetch(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
            WHERE locktype = 'advisory' AND classid = $1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY pid""",
        0x0B21D6F,
    )
    assert len(ended) == 1, "one relay held locks"


async def test_each_shard_is_forwarded_in_order_with_key_and_headers_to_the_partition_of_its_shard(
    carrier: Carrier,
) -> None:
    await carrier.stamp(200, sessions=5)
    await carrier.forward()
    records = {record.event_id: record for record in await carrier.records()}
    assert len({record.shard for record in records.values()}) == 5
    positions: dict[int, list[int]] = defaultdict(list)
    seen = await on_topics(carrier)
    for message in seen:
        record = records[message.event["id"]]
        assert message.body == record.body
        assert message.key.decode() == record.workflow_id
        assert message.headers == {"content-type": CONTENT_TYPE.encode(), SEAL_HEADER: BY_KEY(message.body)}
        assert (message.topic, message.partition) == (record.topic, record.shard % 3)
        positions[record.shard].append(record.position)
    assert len(seen) == len(records) == 200
    assert all(found == list(range(1, len(found) + 1)) for found in positions.values())


async def test_what_was_forwarded_is_forwarded_again_only_when_the_position_is_lost(carrier: Carrier) -> None:
    await carrier.stamp(30)
    async with carrier.relay() as (relay, _):
        assert [await relay.step() for _ in range(3)] == [30, 0, 0]
        await carrier.stamp(10, prefix="q")
        assert await relay.step() == 10
    await carrier.forward()
    assert len(await on_topics(carrier)) == 40
    await carrier.books.pool.execute("DELETE FROM consumer_positions WHERE consumer = 'relay'")
    await carrier.forward()
    seen = await on_topics(carrier)
    assert (len(seen), len({message.event["id"] for message in seen})) == (80, 40)


async def test_the_topics_that_are_missing_are_made_as_the_contract_says(carrier: Carrier) -> None:
    async with KafkaPublisher(carrier.settings(), carrier.topics) as publisher:
        await publisher.prepare()
    admin = AdminClient({"bootstrap.servers": carrier.servers})
    found = admin.list_topics(timeout=WAIT_S).topics
    for name in carrier.topics.names:
        (described,) = admin.describe_configs([ConfigResource("topic", name)]).values()
        kept = described.result(WAIT_S)["retention.ms"].value
        assert (len(found[name].partitions), kept) == (carrier.topics.partitions, str(carrier.topics.retention_ms))
        assert len(found[f"{name}.dlq"].partitions) == 1


async def test_topics_that_may_not_be_made_are_named_with_what_to_do(bootstrap_servers: str) -> None:
    name = f"test.{uuid4().hex}"
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers, group="g", key=KEY)
    async with KafkaPublisher(settings, Topics((name,), 7, retention_ms=-5)) as publisher:  # refused by any broker
        with pytest.raises(ServiceUnavailable, match=rf"{name} is missing and can't be made \(.*\): make it, with 7"):
            await publisher.prepare()


async def test_events_of_a_topic_that_the_contract_no_longer_names_are_forwarded_too(carrier: Carrier) -> None:
    older = Carrier(carrier.books, carrier.servers)
    await older.stamp(5, prefix="older")
    await carrier.stamp(5)
    await carrier.forward()
    assert len(await on_topics(older, older.completed)) == len(await on_topics(carrier)) == 5


async def test_partitions_that_are_added_are_used_without_a_restart(carrier: Carrier) -> None:
    await carrier.stamp(20, sessions=4, group=5)
    async with carrier.relay() as (relay, _):
        await relay.step()
        admin = AdminClient({"bootstrap.servers": carrier.servers})
        for grown in admin.create_partitions([NewPartitions(name, 4) for name in carrier.topics.names]).values():
            await asyncio.to_thread(grown.result, WAIT_S)
        await carrier.stamp(20, sessions=4, group=5, prefix="q")
        relay._prepare_at_s = 0.0  # the time for it has come
        await relay.step()
    seen = [(message.event, message.partition) for message in await on_topics(carrier)]
    places = {(event["data"]["file_path"][0], event["shard"], partition) for event, partition in seen}
    assert places == {("p", shard, shard % 3) for shard in range(4)} | {
        ("q", shard, shard % 4) for shard in range(4, 8)
    }


async def test_a_shard_has_one_relay_and_another_takes_over_when_its_session_dies(carrier: Carrier) -> None:
    await carrier.stamp(40, sessions=2)
    async with carrier.relay() as (first, _), carrier.relay() as (second, _):
        await first.step()
        await second.step()
        assert (len(first.held), second.held) == (2, frozenset())
        async with at_work(second.run()):
            await kill_session(carrier.books)
            async with asyncio.timeout(TAKEOVER_S_MAX):
                await soon(lambda: len(second.held) == 2, "the second relay has the shards")
            with suppress(ServiceUnavailable):  # it may find out only now
                await first.step()
            await first.step()
            assert first.held == frozenset()
            await carrier.stamp(40, sessions=2, prefix="later")
            await eventually(carrier.forwarded, "the second relay forwards")
    assert len(await on_topics(carrier)) == 80


async def test_a_relay_that_reaches_kafka_no_more_lets_another_take_over(carrier: Carrier) -> None:
    writer = carrier.session()
    await carrier.stamp(20, by=writer)
    publisher = hooked(carrier)
    async with carrier.relay(publisher) as (first, _), carrier.relay() as (second, _):
        await first.step()
        publisher.cut = True
        async with at_work(first.run(), second.run()):
            await carrier.stamp(20, by=writer, prefix="q")
            async with asyncio.timeout(TAKEOVER_S_MAX):
                await eventually(carrier.forwarded, "the second relay forwards")
        assert second.trouble is None
    assert len(await on_topics(carrier)) == 40


async def test_a_relay_that_dies_between_sending_and_moving_its_position_is_repeated_by_the_next(
    carrier: Carrier,
) -> None:
    await carrier.stamp(20)
    publisher = hooked(carrier)
    publisher.kept = lambda: kill_session(carrier.books)
    async with carrier.relay(publisher) as (zombie, _):
        with suppress(ServiceUnavailable):  # when it finds its session dead later than it might
            assert await zombie.step() == 0
        assert not await carrier.forwarded()
    await carrier.forward()
    seen = await on_topics(carrier)
    assert (len(seen), len({message.event["id"] for message in seen})) == (40, 20)
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= len(seen), "all has arrived")
        await carrier.fold(reducer)
        assert reducer.feed.filled == 0
    await carrier.check()


async def test_a_zombie_moves_no_position_back_and_keeps_no_dead_letter(carrier: Carrier) -> None:
    await carrier.stamp(20)
    (first, *_, last) = await carrier.records()
    async with carrier.relay() as (relay, forwarding):
        await relay.step()
        letters = [DeadLetter(record=first, reason="refused")]
        move = {(first.topic, first.shard): (START, Head(1, first.event_id))}
        assert not await forwarding.forwarded(move, letters)
        assert await forwarding.positions() == {(last.topic, last.shard): last.head}
    assert await carrier.books.count("dead_letters") == 0


async def test_a_record_that_the_broker_refuses_becomes_a_dead_letter_and_the_others_go_on(carrier: Carrier) -> None:
    await asyncio.to_thread(carrier.make, carrier.completed, max_message_bytes="4000")
    session = carrier.session()
    sizes = [10, 10, 9000, 10, 9000, 10]
    for n, size in enumerate(sizes):
        await carrier.books.record(session, draft(f"{n}", metadata={"long": incompressible(size)}))
    await carrier.forward()
    assert [message.event["position"] for message in await on_topics(carrier)] == [1, 2, 4, 6]
    letters = await carrier.books.pool.fetch("SELECT * FROM dead_letters ORDER BY position")
    assert [(letter["position"], letter["generation"]) for letter in letters] == [(3, None), (5, None)]
    assert all(letter["reason"].startswith("not forwarded: ") and letter["forwarded_at"] for letter in letters)
    dead = await on_topics(carrier, f"{carrier.completed}.dlq")
    assert [message.body for message in dead] == [letter["body"] for letter in letters]
    for message, letter in zip(dead, letters, strict=True):
        told = {name: value.decode() for name, value in message.headers.items()}
        assert (told["reason"], told["position"]) == (letter["reason"], str(letter["position"]))
        assert (told["topic"], told["shard"]) == (letter["topic"], str(letter["shard"]))
    async with carrier.reducer() as reducer:
        await soon(lambda: reducer.subscription.waiting >= 4, "all has arrived")
        await carrier.fold(reducer)
        assert 2 <= reducer.feed.filled <= 4
    assert (await carrier.state())["legal.contracts"][0] == len(sizes)
    await carrier.books.balance()


async def test_a_dead_letter_too_large_for_its_topic_too_is_sent_there_without_its_body(carrier: Carrier) -> None:
    for name in (carrier.completed, f"{carrier.completed}.dlq"):
        await asyncio.to_thread(carrier.make, name, 1, max_message_bytes="4000")
    await carrier.books.record(carrier.session(), draft("big", metadata={"long": incompressible(9000)}))
    await carrier.forward()
    (dead,) = await on_topics(carrier, f"{carrier.completed}.dlq")
    assert (dead.body, dead.headers["position"]) == (b"", b"1")


async def test_of_many_that_are_too_large_together_none_is_lost(carrier: Carrier) -> None:
    await asyncio.to_thread(carrier.make, carrier.completed, 1, max_message_bytes="8000")
    await carrier.stamp(300)
    await carrier.forward()
    assert await carrier.books.count("dead_letters") == 0
    assert {message.event["position"] for message in await on_topics(carrier)} == set(range(1, 301))


async def test_dead_letters_are_sent_by_the_relay_of_their_shard_and_by_no_other(carrier: Carrier) -> None:
    async with carrier.relay() as (_, first), carrier.relay() as (_, second):
        await carrier.stamp(20)
        await first.hold()
        await carrier.stamp(20, prefix="q")
        await second.hold()
        for one in (first, second):
            records = [record for record in await carrier.records() if record.shard in await one.hold()]
            moves = {(records[0].topic, records[0].shard): (START, records[-1].head)}
            assert await one.forwarded(moves, [DeadLetter(record=record, reason="refused") for record in records])
        (mine,), (others,) = [
            {letter.letter.record.shard for letter in await one.unsent(100)} for one in (first, second)
        ]
        assert mine != others


async def test_closing_while_records_wait_for_a_broker_that_hangs_takes_little_time(
    books: Books, broker: Broker
) -> None:
    carrier = Carrier(books, broker.bootstrap_servers)
    await carrier.stamp(20)
    async with carrier.relay() as (relay, _):
        await relay.step()
        await carrier.stamp(20, prefix="q")
        broker.pause()
        try:
            sending = asyncio.create_task(relay.step())
            # It reads the log, sends, and waits for an answer that does not come.
            done, _ = await asyncio.wait({sending}, timeout=1.0)
            assert not done
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            began_s = asyncio.get_running_loop().time()
        except BaseException:
            broker.resume()
            raise
    took_s = asyncio.get_running_loop().time() - began_s
    broker.resume()
    assert took_s < 3.0
    assert not await carrier.forwarded()
    await carrier.forward()
    assert len({message.event["id"] for message in await on_topics(carrier)}) == 40


async def test_while_no_broker_answers_the_log_says_so_a_few_times_and_not_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody.getsockname()[1]}", group="g", key=KEY)
        with caplog.at_level(logging.INFO):
            async with KafkaPublisher(settings, Topics(("a",))) as publisher:
                with pytest.raises(ServiceUnavailable, match="Kafka failed while asking for its topics"):
                    await publisher.prepare()
    assert max((record.levelno for record in caplog.records), default=0) <= logging.WARNING
    assert len(caplog.records) <= 3


@pytest.mark.parametrize(
    "client",
    [
        {"acks": "0"},
        {"enable.auto.commit": True},
        {"group.instance.id": "a"},
        {"client.id": "mine"},
        {"logger": "mine"},
        {"delivery.report.only.error": True},
        {"message.timeout.ms": 0},
        {"message.timeout.ms": 1000},
        {"delivery.timeout.ms": 0},
        {"delivery.timeout.ms": "0"},
        {"delivery.timeout.ms": 300_001},
        {"delivery.timeout.ms": True},
        {"no.such": 1},
    ],
    ids=str,
)
async def test_settings_that_would_break_the_laws_or_are_none_are_refused_by_name(
    client: dict[str, str | bool | int],
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(next(iter(client)))):
        async with KafkaPublisher(
            KafkaSettings(bootstrap_servers="127.0.0.1:1", group="g", key=KEY, client=client), Topics(("a",))
        ) as publisher:
            await publisher.prepare()


@pytest.mark.parametrize("told", [1000, "60000", 300_000])
async def test_how_long_a_record_may_take_can_be_set(told: str | int) -> None:
    KafkaSettings(bootstrap_servers="127.0.0.1:1", group="g", key=KEY, client={"delivery.timeout.ms": told})
