"""A test's own topics on the real broker, with the relay and the reducer's reading of them, as they run in a process.

`Carrier` belongs to one database and one pair of topics. What is on the topics is read by plain consumers, and counted
by plain addition, beside the code under test.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from omninode_bridge.adapters.kafka import KafkaPublisher, KafkaSettings, KafkaSubscription
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.relay import PostgresForwarding
from omninode_bridge.adapters.postgres.state import PostgresStateStore
from omninode_bridge.app.feed import Feed
from omninode_bridge.app.project import Projector
from omninode_bridge.app.relay import Relay
from omninode_bridge.app.telemetry import Telemetry
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.events import SEAL_HEADER
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.workflow import Plan, Topics
from tests.integration.books import PATIENCE_S, Books, eventually
from tests.integration.topics import read_topics
from tests.making import GROUPINGS, PLAN, draft

WAIT_S = 30.0
type Totals = dict[str, tuple[int, int]]
"""Stamps and bytes of each namespace."""

KEY = bytes(range(32))
"""What the records are sealed with."""
type Sealed = Callable[[bytes], bytes]
"""Makes a seal for a body."""


def sealed_by(key: bytes) -> Sealed:
    """Return what seals as the relay is to do it, by code of its own: keyed BLAKE2b of the whole body."""
    return lambda body: blake2b(body, key=key, digest_size=16).hexdigest().encode()


BY_KEY = sealed_by(KEY)


class Seen(NamedTuple):
    """A message on a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes
    headers: dict[str, bytes]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Reducer(NamedTuple):
    """What folds what arrives."""

    subscription: KafkaSubscription
    feed: Feed
    projector: Projector


class Carrier:
    """The topics of one test, and who writes and reads them."""

    def __init__(self, books: Books, servers: str, *, partitions: int = 3, name: str | None = None) -> None:
        self.books = books
        self.servers = servers
        self.name = name or f"test.{uuid4().hex}"
        self.topics = Topics((f"{self.name}.completed", f"{self.name}.failed"), partitions, 3_600_000)
        self.plan: Plan = msgspec.structs.replace(
            PLAN, completed_topic=self.topics.names[0], failed_topic=self.topics.names[1]
        )
        self.group = self.name

    @property
    def completed(self) -> str:
        return self.topics.names[0]

    def session(self) -> PostgresLedgerSession:
        return self.books.session(plan=self.plan)

    async def stamp(
        self,
        count: int,
        *,
        sessions: int = 1,
        by: PostgresLedgerSession | None = None,
        group: int = 20,
        prefix: str = "p",
    ) -> None:
        """Record stamps by sessions, each new one on a shard of its own; `by`: by one that has its shard."""
        opened = [by] if by is not None else [self.session() for _ in range(sessions)]
        for n in range(0, count, group):
            outcomes = [draft(f"{prefix}/{n + k}", b"%d" % (n + k)) for k in range(min(group, count - n))]
            await self.books.record(opened[n // group % len(opened)], *outcomes)

    def settings(self, **client: str | float | bool) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=self.servers,
            group=self.group,
            key=KEY,
            # Rebalances take a few heartbeats.
            client={"heartbeat.interval.ms": 200} | {name.replace("_", "."): value for name, value in client.items()},
        )

    @asynccontextmanager
    async def relay(
        self, publisher: KafkaPublisher | None = None, *, batch_max: int = 4000
    ) -> AsyncIterator[tuple[Relay, PostgresForwarding]]:
        """A relay that a test lets step, or run."""
        publisher = publisher or KafkaPublisher(self.settings(), self.topics)
        async with publisher, PostgresForwarding(self.books.url, self.books.service) as forwarding:
            meter = Telemetry().relay
            yield Relay(self.books.source, forwarding, publisher, meter=meter, batch_max=batch_max), forwarding

    async def forward(self) -> None:
        """Forward all there is, with patience: a broker that was taken for dead makes no topics for a while."""
        trouble: Exception | None = None
        async with self.relay() as (relay, _):

            async def is_done() -> bool:
                nonlocal trouble
                if await self.forwarded():
                    return True
                try:
                    await relay.step()
                    trouble = relay.trouble
                except ServiceUnavailable as error:
                    trouble = error
                return False

            try:
                await eventually(is_done, "all is forwarded")
            except AssertionError:
                if trouble is not None:
                    raise trouble from None
                raise

    async def forwarded(self) -> bool:
        """Tell whether the relay's positions have reached the log's heads."""
        behind = await self.books.pool.fetchval(
            """SELECT count(*) FROM log_heads AS h LEFT JOIN consumer_positions AS p
                ON p.consumer = 'relay' AND p.topic = h.topic AND p.shard = h.shard
                WHERE h.position > coalesce(p.position, 0)"""
        )
        return behind == 0

    @asynccontextmanager
    async def reducer(self, **limits: int) -> AsyncIterator[Reducer]:
        """A reader of the topics in this carrier's group, and what folds for it when a test lets it."""
        books = self.books
        subscription = KafkaSubscription(self.settings(), self.topics.names, **limits)
        feed = Feed(books.source, subscription)
        projector = Projector(feed, PostgresStateStore(books.service), GROUPINGS)
        subscription.hints(projector.wake.set)
        async with subscription:
            yield Reducer(subscription, feed, projector)

    async def fold(self, reducer: Reducer) -> None:
        """Fold with this reducer alone until its positions have reached the heads."""
        heads = await self.books.source.heads()
        async with asyncio.timeout(PATIENCE_S):
            while not await reducer.projector.reached(heads):
                if not await reducer.projector.step():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reducer.projector.wake.wait(), 0.1)
                    reducer.projector.wake.clear()

    async def check(self) -> None:
        """Fail unless the state is what the topics say without repeats, what was acknowledged, and audited."""
        assert await self.state() == counted(await asyncio.to_thread(self.read))
        await self.books.balance()

    async def state(self) -> Totals:
        rows = await self.books.state.rows("namespace")
        return {namespace: (totals.total_stamps, totals.total_size_bytes) for (namespace, _, _), totals in rows.items()}

    async def records(self) -> list[Record]:
        """Return the whole log."""
        return await self.books.source.read({}, 100_000)

    def read(self, *topics: str) -> list[Seen]:
        """Return what is on topics, in the order of each partition; on the test's own by default."""
        return read(self.servers, topics or self.topics.names)

    def make(self, name: str, partitions: int | None = None, **config: str) -> None:
        """Make a topic as it is not made by the relay."""
        named = {key.replace("_", "."): value for key, value in config.items()}
        make_topic(self.servers, NewTopic(name, partitions or self.topics.partitions, config=named))

    def produce(self, topic: str, bodies: Iterable[bytes], partition: int = 0, sealed: Sealed | None = BY_KEY) -> None:
        """Put bytes on a topic, sealed as the relay does it, or otherwise, or not at all."""
        producer = Producer({"bootstrap.servers": self.servers, "acks": "all"})
        refused: list[KafkaError] = []
        for body in bodies:
            producer.produce(
                topic,
                body,
                partition=partition,
                headers=[] if sealed is None else [(SEAL_HEADER, sealed(body))],
                on_delivery=lambda error, _: refused.append(error) if error else None,
            )
        assert producer.flush(WAIT_S) == 0
        assert refused == []

    def commit_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell the group offsets that nobody of it has read to; it has no members now."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.group})
        try:
            told = consumer.commit(
                offsets=[TopicPartition(*place, offset) for place, offset in offsets.items()], asynchronous=False
            )
            assert all(one.error is None for one in told)
        finally:
            consumer.close()

    def places(self) -> list[tuple[str, int]]:
        return [(name, partition) for name in self.topics.names for partition in range(self.topics.partitions)]


def make_topic(servers: str, topic: NewTopic) -> None:
    """Make a topic, with patience: a broker that was taken for dead makes none for a while."""
    admin = AdminClient({"bootstrap.servers": servers})  # held: when it goes, what it was asked for fails
    until_s = time.monotonic() + WAIT_S
    again = False
    while True:
        (made,) = admin.create_topics([topic]).values()
        try:
            made.result(WAIT_S)
        except KafkaException as error:
            exists = error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
            if exists and again:
                return  # it was made before, and nobody was told
            if exists or time.monotonic() > until_s:
                raise
            again = True
            time.sleep(0.05)
        else:
            return


def read(servers: str, topics: Sequence[str]) -> list[Seen]:
    """Return what is on the topics, in the order of each partition."""
    return list(map(_seen, read_topics(servers, topics)))


def counted(messages: Iterable[Seen]) -> Totals:
    """Add up the stamps on topics without repeats, by plain addition."""
    events = {message.event["id"]: message.event["data"] for message in messages}
    stamps, octets = Counter[str](), Counter[str]()
    for data in events.values():
        stamps[data["namespace"]] += 1
        octets[data["namespace"]] += data["file_size"]
    return {namespace: (stamps[namespace], octets[namespace]) for namespace in stamps}


async def soon(condition: Callable[[], object], what: str) -> None:
    """Look until `condition` holds; a thread's state tells nobody."""

    async def look() -> object:
        return condition()

    await eventually(look, what)


@asynccontextmanager
async def at_work(*loops: Awaitable[None]) -> AsyncIterator[list[asyncio.Future[None]]]:
    """Run loops that have no end beside the block."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _seen(message: Message) -> Seen:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    key, body = message.key(), message.value()
    assert topic is not None and partition is not None and offset is not None and body is not None
    headers = {name: value for name, value in message.headers() or () if isinstance(value, bytes)}
    return Seen(topic, partition, offset, bytes(key or b""), headers, bytes(body))
