"""Reads the topics as one of a group of readers, in a thread of its own.

    thread: poll ─▶ parse ─▶ a bounded queue ─▶ take()     event loop
            commit ◀──────── offsets ◀───────── done()

* The group shares the partitions out, and moves only those that must move (cooperative).
* The queue has a limit; when it is full the partitions are paused, and the thread goes on answering the group.
* A message that is none of our records is counted and left out: it has no place in the log, so no total can lack it.
  One of ours that was damaged leaves a gap, which the reader fills from the log.
* Offsets are committed as a hint, so that the next reader does not begin at the start. Where there is none, or the
  broker has not got it any more, reading begins at the oldest message: repeats are dropped by position.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from omninode_bridge.adapters.kafka.client import KafkaSettings, created, unavailable
from omninode_bridge.domain.errors import CorruptEvent, ServiceUnavailable
from omninode_bridge.domain.events import record_of
from omninode_bridge.domain.log import ShardKey
from omninode_bridge.ports.transport import Arrived

QUEUE_RECORDS_MAX = 50_000
QUEUE_BYTES_MAX = 64 * 1024**2
"""What waits in memory to be folded, at most; a burst more while the partitions pause."""
BURST_MAX = 2000
COMMIT_S = 5.0
"""How often offsets are told."""
PARTITIONS_S = 10.0
"""How often to look whether topics have got partitions."""
SESSION_MS = 10_000
"""After this long without a word a reader's partitions are others'."""
CLOSE_S_MAX = 10.0
_WAIT_S = 0.2

_log = logging.getLogger(__name__)


class KafkaSubscription:
    """One reader."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._settings = settings
        self._topics = list(topics)
        self.hint: Callable[[], None] = lambda: None
        """Called on the event loop when something has arrived."""
        self._lock = threading.Lock()
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._owned: frozenset[tuple[str, int]] = frozenset()
        self._partitions: dict[str, int] = {}
        self._offsets: dict[tuple[str, int], int] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hinted = self._paused = False
        self._look_at_s = self._commit_at_s = 0.0
        self.strays = 0
        """Messages that are none of our records."""
        self.trouble: ServiceUnavailable | None = None
        """What the broker could not be read for, last; None since it was read again."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        consumer = created(
            Consumer,
            self._settings.config(
                group_id=self._settings.group,
                partition_assignment_strategy="cooperative-sticky",
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="earliest",
                session_timeout_ms=SESSION_MS,
                heartbeat_interval_ms=SESSION_MS // 5,
            ),
        )
        self._thread = threading.Thread(target=self._run, args=(consumer,), name="kafka", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, CLOSE_S_MAX)

    def take(self, limit: int) -> list[Arrived]:
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            self._waiting_bytes -= sum(len(arrived.record.body) for arrived in taken)
        return taken

    def owns(self, key: ShardKey) -> bool:
        topic, shard = key
        partitions = self._partitions.get(topic)
        return partitions is not None and (topic, shard % partitions) in self._owned

    def done(self, offsets: Mapping[tuple[str, int], int]) -> None:
        with self._lock:
            self._offsets.update(offsets)

    @property
    def owned(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that are ours now."""
        return self._owned

    def _run(self, consumer: Consumer) -> None:
        try:
            consumer.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
            while not self._ended.is_set():
                self._keep(consumer)
                full = len(self._waiting) >= QUEUE_RECORDS_MAX or self._waiting_bytes >= QUEUE_BYTES_MAX
                if full != self._paused:
                    (consumer.pause if full else consumer.resume)(consumer.assignment())
                    self._paused = full
                first = consumer.poll(_WAIT_S)
                if first is not None:
                    self._arrive([first, *consumer.consume(BURST_MAX, 0)])
        except KafkaException as error:
            self._fails(error.args[0])
        finally:
            with suppress(KafkaException, RuntimeError):
                self._commit(consumer)
            consumer.close()

    def _keep(self, consumer: Consumer) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + (PARTITIONS_S if self._partitions else 1.0)
            with suppress(KafkaException):  # asked again; what is known stays
                found = consumer.list_topics(timeout=1.0).topics
                self._partitions = {name: len(found[name].partitions) for name in self._topics if name in found}
        if now_s >= self._commit_at_s:
            self._commit_at_s = now_s + COMMIT_S
            self._commit(consumer)

    def _commit(self, consumer: Consumer) -> None:
        with self._lock:
            told = {place: offset for place, offset in self._offsets.items() if place in self._owned}
            self._offsets.clear()
        if told:
            with suppress(KafkaException):  # a hint: the next one is as good
                consumer.commit(offsets=[TopicPartition(*place, offset) for place, offset in told.items()])

    def _arrive(self, messages: Sequence[Message]) -> None:
        arrived: list[Arrived] = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._fails(error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None
            assert partition is not None
            assert offset is not None
            try:
                record = record_of(message.value() or b"")
                if record.topic != topic:
                    raise CorruptEvent(f"an event of type {record.topic!r:.80} on another topic")
            except CorruptEvent as corrupt:
                self.strays += 1
                _log.warning("%s partition %d offset %d is no event: %s", topic, partition, offset, corrupt.message)
                continue
            arrived.append(Arrived(record, partition, offset))
        if arrived:
            self.trouble = None
            with self._lock:
                self._waiting.extend(arrived)
                self._waiting_bytes += sum(len(one.record.body) for one in arrived)
            self._tell()

    def _fails(self, error: KafkaError) -> None:
        self.trouble = unavailable(error, "reading events")
        _log.warning("%s", self.trouble.message)

    def _tell(self) -> None:
        if self._hinted or self._loop is None:
            return
        self._hinted = True
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._on_hint)

    def _on_hint(self) -> None:
        self._hinted = False
        self.hint()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._owned |= {(part.topic, part.partition) for part in partitions}
        _log.info("reads %d more partitions, %d in all", len(partitions), len(self._owned))
        self._paused = False  # those that came are not
        self.trouble = None
        self._tell()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(consumer)
        self._owned -= {(part.topic, part.partition) for part in partitions}
        _log.info("reads %d partitions less, %d in all", len(partitions), len(self._owned))
