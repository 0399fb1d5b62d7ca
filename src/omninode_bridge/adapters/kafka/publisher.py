"""Sends records to the broker: an idempotent producer, `acks=all`, partition = shard mod partitions.

What the broker refuses for itself alone (too large, not valid) comes back as refused. A batch may be refused for one of
its records: so each of the refused is sent once more by itself, before that is believed. Everything else that goes
wrong says nothing about a record: the whole call fails, and is made again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from omninode_bridge.adapters.kafka.client import METADATA_S_MAX, KafkaSettings, created, translated, unavailable
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.events import CONTENT_TYPE
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.ports.state import DeadLetter

DELIVERY_MS_MAX = 30_000
"""How long a record may take to be kept by the broker."""
MESSAGE_BYTES_MAX = 64 * 1024**2
"""What the client takes; the broker's own limit (`max.message.bytes`) is what decides."""
DEAD_SUFFIX = ".dlq"
_POLL_S = 0.05
_HEADERS: list[tuple[str, str | bytes | None]] = [("content-type", CONTENT_TYPE.encode())]
_REFUSALS = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD, KafkaError._INVALID_ARG,
})  # fmt: skip


@dataclass(slots=True)
class _Message:
    topic: str
    partition: int
    key: str
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class KafkaPublisher:
    """One producer. `async with` closes it, within the time that records may take."""

    def __init__(self, settings: KafkaSettings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics
        self._producer: Producer | None = None
        self._turn = threading.Lock()
        self._partitions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def prepare(self) -> None:
        await asyncio.to_thread(self._prepare)

    async def publish(self, records: Sequence[Record]) -> list[str | None]:
        return await asyncio.to_thread(self._publish, records)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        refused = await asyncio.to_thread(self._bury, letters)
        if refused is not None:
            raise unavailable(refused, "sending dead letters")

    def _prepare(self) -> None:
        admin = created(AdminClient, self._settings.config())
        with translated("asking for its topics"):
            there = admin.list_topics(timeout=METADATA_S_MAX).topics
        dead = [name + DEAD_SUFFIX for name in self._topics.names]
        missing = [name for name in (*self._topics.names, *dead) if name not in there]
        for name, future in admin.create_topics([self._new(name) for name in missing]).items() if missing else ():
            try:
                future.result(METADATA_S_MAX)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise ServiceUnavailable(
                        f"the Kafka topic {name} is missing and can't be made ({error.args[0].str()}): make it, with "
                        f"{self._topics.partitions} partitions"
                    ) from error
        with translated("asking for its topics"):
            found = admin.list_topics(timeout=METADATA_S_MAX).topics
        self._partitions = {name: len(found[name].partitions) for name in (*self._topics.names, *dead) if name in found}

    def _new(self, name: str) -> NewTopic:
        partitions = 1 if name.endswith(DEAD_SUFFIX) else self._topics.partitions
        return NewTopic(name, partitions, config={"retention.ms": str(self._topics.retention_ms)})

    def _publish(self, records: Sequence[Record]) -> list[str | None]:
        with self._turn:
            if any(record.topic not in self._partitions for record in records):
                self._prepare()
            messages = [self._message(record) for record in records]
            try:
                outcomes = self._send(messages)
                for index, outcome in enumerate(outcomes):
                    if outcome is not None:  # alone, and believed then
                        outcomes[index] = self._send([messages[index]])[0]
            except ServiceUnavailable:
                self._partitions = {}  # topics may have been deleted, or have got partitions
                raise
            return outcomes

    def _bury(self, letters: Sequence[DeadLetter]) -> str | None:
        with self._turn:
            if not self._partitions:
                self._prepare()
            messages = [_burial(letter) for letter in letters]
            refused = self._send(messages)
            for message, outcome in zip(messages, refused, strict=True):
                if outcome is not None:  # too large also for this topic: what it is and why, without its body
                    message.value = b""
                    if (again := self._send([message])[0]) is not None:
                        return again
            return None

    def _message(self, record: Record) -> _Message:
        partition = record.shard % self._partitions[record.topic]
        return _Message(record.topic, partition, record.workflow_id, record.body, _HEADERS)

    def _send(self, messages: Sequence[_Message]) -> list[str | None]:
        """Return for each None, or why the broker refused it."""
        producer = self._open()
        left = len(messages)
        outcomes: list[str | None] = [None] * left
        failure: KafkaError | None = None

        def told(index: int, error: KafkaError | None, _: Message | None) -> None:
            nonlocal left, failure
            left -= 1
            if error is None:
                return
            if error.code() in _REFUSALS:
                outcomes[index] = error.str()
            else:
                failure = error

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
                    producer.poll(_POLL_S)  # the client's queue is full: let some go
                    continue
                except KafkaException as error:
                    told(index, error.args[0], None)
                break
        while left:  # ends: each record is told of after DELIVERY_MS_MAX at the latest
            producer.poll(_POLL_S)
        if failure is not None:
            if failure.fatal():
                self._producer = None
            raise unavailable(failure, "sending events")
        return outcomes

    def _open(self) -> Producer:
        if self._producer is None:
            config = self._settings.config(
                acks="all",
                enable_idempotence=True,
                linger_ms=2,
                delivery_timeout_ms=DELIVERY_MS_MAX,
                message_max_bytes=MESSAGE_BYTES_MAX,
                queue_buffering_max_messages=100_000,
            )
            self._producer = created(Producer, {"compression.type": "lz4", **config})
        return self._producer

    def _close(self) -> None:
        with self._turn:
            if self._producer is not None:
                self._producer.flush(0)
                self._producer = None


def _burial(letter: DeadLetter) -> _Message:
    record = letter.record
    said: Mapping[str, str] = {
        "reason": letter.reason,
        "topic": record.topic,
        "shard": str(record.shard),
        "position": str(record.position),
        "event_id": record.event_id,
        "previous_id": record.previous_id,
    }
    headers = [*_HEADERS, *((name, value.encode()) for name, value in said.items())]
    return _Message(record.topic + DEAD_SUFFIX, 0, record.workflow_id, record.body, headers)
