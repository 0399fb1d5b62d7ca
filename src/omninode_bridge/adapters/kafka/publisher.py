"""Sends records to the broker: an idempotent producer, `acks=all`, partition = shard mod partitions.

What the broker refuses for itself alone (too large, not valid) comes back as refused. A batch may be refused for one of
its records: so the refused are sent again in halves, until each stands alone, before that is believed. Everything else
that goes wrong says nothing about a record, which is to be sent again, with a new producer; where it befalls all of
them, the call fails.

Dead letters have a producer of their own, and events need none of their topics.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from omninode_bridge.adapters.kafka.client import (
    METADATA_S_MAX,
    KafkaSettings,
    Refusals,
    created,
    translated,
    unavailable,
)
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.events import CONTENT_TYPE, SEAL_HEADER, seal
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.ports.state import DeadLetter
from omninode_bridge.ports.transport import Outcome

DELIVERY_MS_MAX = 30_000
"""How long a record may take to be kept by the broker."""
MESSAGE_BYTES_MAX = 64 * 1024**2
"""What the client takes; the broker's own limit (`max.message.bytes`) is what decides."""
DEAD_SUFFIX = ".dlq"
_POLL_S = 0.05
_DEFAULTS = {
    "compression.type": "lz4",
    "delivery.timeout.ms": DELIVERY_MS_MAX,
    "linger.ms": 2,
    "message.max.bytes": MESSAGE_BYTES_MAX,
}
_HEADERS: list[tuple[str, str | bytes | None]] = [("content-type", CONTENT_TYPE.encode())]
_REFUSALS = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD, KafkaError._INVALID_ARG, KafkaError._INVALID_DIFFERENT_RECORD,
})  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Message:
    topic: str
    partition: int
    key: str
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class KafkaPublisher:
    """Two producers. `async with` closes them: what is under way then is given up, and its call fails."""

    def __init__(self, settings: KafkaSettings, topics: Topics) -> None:
        self._key = settings.key
        self._topics = topics
        self._ended = threading.Event()
        self._events = _Sender(settings, self._new, self._ended)
        self._letters = _Sender(settings, self._new, self._ended)
        self._unmade: str | None = None
        """What was said last of topics of dead letters that can't be made."""

    async def __aenter__(self) -> Self:
        self._events.open()  # a setting that is none stops the program
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A call whose task was cancelled goes on in its thread: it is waited for.
        self._ended.set()
        for sender in (self._events, self._letters):
            await asyncio.to_thread(sender.in_turn, sender.drop)

    async def prepare(self) -> None:
        await asyncio.to_thread(self._events.in_turn, self._prepare)

    async def publish(self, records: Sequence[Record]) -> list[Outcome]:
        return await asyncio.to_thread(self._events.in_turn, partial(self._publish, records))

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        await asyncio.to_thread(self._letters.in_turn, partial(self._bury, letters))

    def _prepare(self, more: Iterable[str] = ()) -> None:
        """See to the topics of the contract and to `more`: the log may have events of an older contract's."""
        names = list(dict.fromkeys((*self._topics.names, *more)))
        found = self._events.see_to(names)
        unmade = self._events.make([dead for name in names if (dead := name + DEAD_SUFFIX) not in found])
        said = next(iter(unmade.values())).message if unmade else None
        if said is not None and said != self._unmade:
            _log.warning("%s; until then no dead letters can be sent there", said)
        self._unmade = said

    def _new(self, name: str) -> NewTopic:
        partitions = 1 if name.endswith(DEAD_SUFFIX) else self._topics.partitions
        return NewTopic(name, partitions, config={"retention.ms": str(self._topics.retention_ms)})

    def _publish(self, records: Sequence[Record]) -> list[Outcome]:
        named = {record.topic for record in records}
        if not named <= self._events.partitions.keys():
            self._prepare(sorted(named))
        return self._events.deliver([self._message(record) for record in records])

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        messages = [_burial(letter) for letter in letters]
        named = {message.topic for message in messages}
        if not named <= self._letters.partitions.keys():
            self._letters.see_to(sorted(named))
        # Too large also for this topic: then what it is and why, without its body.
        refused = [message for message, why in zip(messages, self._sent(messages), strict=True) if why is not None]
        for message in refused:
            message.value = b""
        for message, why in zip(refused, self._sent(refused), strict=True):
            if why is not None:
                _log.error("%s refuses a dead letter even without its body, which stays in PostgreSQL only: %s",
                           message.topic, why)  # fmt: skip

    def _sent(self, letters: Sequence[_Message]) -> list[str | None]:
        """Send dead letters, all or none: they are noted as sent together."""
        told: list[str | None] = []
        for outcome in self._letters.deliver(letters):
            if isinstance(outcome, ServiceUnavailable):
                raise outcome
            told.append(outcome)
        return told

    def _message(self, record: Record) -> _Message:
        partition = record.shard % self._events.partitions[record.topic]
        headers = [*_HEADERS, (SEAL_HEADER, seal(self._key, record.body))]
        return _Message(record.topic, partition, record.workflow_id, record.body, headers)


class _Sender:
    """A producer, opened when it is needed and anew after a failure. One call at a time, each by `in_turn`."""

    def __init__(self, settings: KafkaSettings, new: Callable[[str], NewTopic], ended: threading.Event) -> None:
        self._settings = settings
        self._new = new
        self._ended = ended
        self._refusals = Refusals()
        self._producer: Producer | None = None
        self._turn = threading.Lock()
        self.partitions: dict[str, int] = {}
        """How many each of the topics has that were seen to."""

    def in_turn[T](self, work: Callable[[], T]) -> T:
        with self._turn:
            try:
                return work()
            except ServiceUnavailable:
                self.partitions = {}  # topics may have been deleted, or have got partitions
                self.drop()  # what it was about to do is unknown
                raise

    def open(self) -> Producer:
        if self._producer is None:
            self._refusals = Refusals()
            config = self._settings.config(_DEFAULTS, self._refusals, acks="all", enable_idempotence=True)
            self._producer = created(Producer, config)
        return self._producer

    def see_to(self, names: Sequence[str]) -> dict[str, int]:
        """Make the topics that are missing; return how many partitions each of the broker's topics has."""
        found = self._ask()
        for unmade in self.make([name for name in names if name not in found]).values():
            raise unmade
        until_s = time.monotonic() + METADATA_S_MAX
        while absent := [name for name in names if not found.get(name)]:
            if time.monotonic() > until_s or self._ended.wait(_POLL_S):
                raise ServiceUnavailable(f"the Kafka topic {absent[0]} has no partitions yet: look at the broker's log")
            found = self._ask()
        self.partitions = {name: found[name] for name in names}
        return found

    def _ask(self) -> dict[str, int]:
        """Return how many partitions each topic has."""
        producer = self.open()
        with translated("asking for its topics", self._refusals):
            try:
                topics = producer.list_topics(timeout=METADATA_S_MAX).topics
            finally:
                producer.poll(0)  # what the client has to say goes to the log
        return {name: 0 if topic.error is not None else len(topic.partitions) for name, topic in topics.items()}

    def make(self, missing: Sequence[str]) -> dict[str, ServiceUnavailable]:
        """Make topics; return what to say of each that can't be made."""
        if not missing:
            return {}
        unmade: dict[str, ServiceUnavailable] = {}
        admin = created(AdminClient, self._settings.config())
        topics = [self._new(name) for name in missing]
        for topic, made in zip(
            topics, admin.create_topics(topics, request_timeout=METADATA_S_MAX).values(), strict=True
        ):
            try:
                made.result(2 * METADATA_S_MAX)
            except (KafkaException, TimeoutError) as error:
                said = error.args[0] if isinstance(error, KafkaException) else None
                if said is not None and said.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    continue
                why = said.str() if said is not None else "no answer"
                unmade[topic.topic] = ServiceUnavailable(
                    f"the Kafka topic {topic.topic} is missing and can't be made ({why.rstrip('.')}): make it, with "
                    f"{topic.num_partitions} partitions"
                )
        if done := [name for name in missing if name not in unmade]:
            _log.info("made the topics %s", ", ".join(done))
        return unmade

    def deliver(self, messages: Sequence[_Message]) -> list[Outcome]:
        """Send, and return what became of each; ServiceUnavailable when that is known of none."""
        outcomes = self._settle(messages)
        unknown = [outcome for outcome in outcomes if isinstance(outcome, ServiceUnavailable)]
        if unknown and len(unknown) == len(messages):
            raise unknown[0]
        if unknown:
            self.drop()
        return outcomes

    def _settle(self, messages: Sequence[_Message]) -> list[Outcome]:
        """Send; what the broker refuses is sent again in halves, until it is refused alone."""
        if not messages:
            return []
        outcomes = self._send(messages)
        refused = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        if len(messages) == 1:
            return outcomes
        middle = (len(refused) + 1) // 2
        for half in (refused[:middle], refused[middle:]):
            for index, outcome in zip(half, self._settle([messages[index] for index in half]), strict=True):
                outcomes[index] = outcome
        return outcomes

    def _send(self, messages: Sequence[_Message]) -> list[Outcome]:
        producer = self.open()
        left = len(messages)
        outcomes: list[Outcome] = [None] * left

        def told(index: int, error: KafkaError | None, _: Message | None) -> None:
            nonlocal left
            left -= 1
            if error is None:
                return
            refused = error.code() in _REFUSALS
            outcomes[index] = error.str() if refused else unavailable(error, "sending events", self._refusals)

        for index, message in enumerate(messages):
            while True:
                try:
                    producer.produce(
                        message.topic,
                        message.value,
                        message.key,
                        message.partition,
                        on_delivery=partial(told, index),
                        headers=message.headers,
                    )
                except BufferError:
                    self._poll(producer)  # the client's queue is full: let some go
                    continue
                except KafkaException as error:
                    told(index, error.args[0], None)
                break
        while left:  # ends: each record is told of after `delivery.timeout.ms` at the latest
            self._poll(producer)
        return outcomes

    def _poll(self, producer: Producer) -> None:
        producer.poll(_POLL_S)
        if self._ended.is_set():
            raise ServiceUnavailable("the relay ends: what it was sending is sent again by the next one")

    def drop(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None


def _burial(letter: DeadLetter) -> _Message:
    record = letter.record
    said = {
        "reason": letter.reason,
        "topic": record.topic,
        "shard": str(record.shard),
        "position": str(record.position),
        "event_id": record.event_id,
        "previous_id": record.previous_id,
    }
    headers = [*_HEADERS, *((name, value.encode()) for name, value in said.items())]
    return _Message(record.topic + DEAD_SUFFIX, 0, record.workflow_id, record.body, headers)
