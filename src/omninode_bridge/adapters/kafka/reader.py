"""Reads a topic as one of a group of readers, in a thread of its own.

    thread: poll ─▶ parse ─▶ a bounded queue ─▶ take()     event loop
            commit ◀──────── offsets ◀───────── done()

* The group shares the partitions out, and moves only those that must move (cooperative).
* The queue has a limit; when it is full the partitions are paused, and the thread goes on answering the group.
* A message that our relay did not send so, by its keyed digest, is counted and left out: no total can lack it. One of
  ours that was damaged or forged leaves a gap, which the reader fills from the log.
* Offsets are committed as a hint, so that the next reader does not begin at the start. Where there is none, or the
  broker has not got it any more, reading begins at the oldest message: repeats are dropped by position.
* Who is no member of the group, because the broker is away or the topic is, owns every shard: then readers fold from
  the log, all of them, and each record is still folded once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hmac import compare_digest

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from omninode_bridge.adapters.kafka.client import KafkaSettings, Refusals, Seldom, created, translated, unavailable
from omninode_bridge.domain.errors import CorruptEvent, InvalidInput, ServiceUnavailable
from omninode_bridge.domain.events import SEAL_HEADER, sealer
from omninode_bridge.domain.reduction import read_record
from omninode_bridge.ports.transport import Arrived

QUEUE_RECORDS_MAX = 50_000
QUEUE_BYTES_MAX = 64 * 1024**2
"""What waits in memory to be folded, at most; a burst more while the partitions pause. They go on at half of it. It has
room for some of each partition: one of which nothing comes for seconds is read from the log."""
BURST_MAX = 500
"""Messages that the client hands over at once: so few that they are in the processor's caches when they are read."""
COMMIT_S = 5.0
"""How often offsets are told."""
PARTITIONS_S = 10.0
"""How often to look whether topics have got partitions, and whether the broker answers."""
PARTITIONS_HASTY_S = 1.0
"""The same while it does not."""
SESSION_MS = 10_000
"""After this long without a word a reader's partitions are others'."""
CLOSE_S_MAX = 5.0
"""How long to take leave of the group; a broker that hangs is left without a word, and notices by itself."""
ANEW_S = 2.0
"""How long to wait before a consumer that failed is replaced."""
ROOM_S = 0.5
"""How long to wait for room in a full queue, before the partitions are paused."""
_WAIT_S = 0.2
_PAUSED_S = 0.02
_DEFAULTS = {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": SESSION_MS // 5}

_log = logging.getLogger(__name__)
_stray_log = logging.getLogger(f"{__name__}.strays")
_stray_log.addFilter(Seldom(lambda record: str(record.msg)))


class TopicReader:
    """One reader of one topic."""

    def __init__(self, settings: KafkaSettings, topic: str, *, queue_records_max: int = QUEUE_RECORDS_MAX) -> None:
        self._settings = settings
        self._queue_records_max = queue_records_max
        self.topic = topic
        self.hint: Callable[[], None] = lambda: None
        """Called on the event loop when something has arrived."""
        self._seal = sealer(settings.key)
        self._lock = threading.Lock()
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._member = False
        self._partitions = 0  # until they are known
        self._offsets: dict[int, int] = {}
        self._ended = threading.Event()
        self._room = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hinted = False
        self._paused: bool | None = None
        self._look_at_s = self._commit_at_s = 0.0
        self.strays = 0
        """Messages that are none of our records."""
        self.trouble: ServiceUnavailable | None = None
        """What the broker could not be read for, last; None since it was read again."""
        self.owned: frozenset[int] = frozenset()
        """The partitions that are ours now."""

    def open(self) -> None:
        """Begin to read; to be called on the event loop that is told of what arrives."""
        self._loop = asyncio.get_running_loop()
        # The first one here, where a setting that is none stops the program.
        self._thread = threading.Thread(target=self._run, args=(self._consumer(),), name="kafka", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Take leave of the group, in CLOSE_S_MAX at most."""
        self._ended.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, CLOSE_S_MAX)

    def take(self, limit: int) -> list[Arrived]:
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            self._waiting_bytes -= sum(len(arrived.record.body) for arrived in taken)
        if not self._is_full(0.9):  # read on while what was taken is being saved
            self._room.set()
        return taken

    def owns(self, shard: int) -> bool:
        return not self._member or not self._partitions or shard % self._partitions in self.owned

    def done(self, offsets: Mapping[int, int]) -> None:
        """Tell up to where each partition was dealt with, the offset excluded."""
        with self._lock:
            self._offsets.update(offsets)

    @property
    def waiting(self) -> int:
        """How many records have arrived and were not taken."""
        return len(self._waiting)

    def _consumer(self) -> Consumer:
        self._refusals = Refusals()
        return created(
            Consumer,
            self._settings.config(
                _DEFAULTS,
                self._refusals,
                group_id=self._settings.group,
                partition_assignment_strategy="cooperative-sticky",
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="earliest",
            ),
        )

    def _run(self, consumer: Consumer | None) -> None:
        while consumer is not None:
            try:
                self._read(consumer)
            except Exception as error:  # whatever it is: the log is read meanwhile, and another consumer tries again
                self._fails(self._failure(error))
            finally:
                self._commit(consumer)
                with suppress(KafkaException, RuntimeError):
                    consumer.close()
                self._leave()
            consumer = self._anew()

    def _anew(self) -> Consumer | None:
        """Return another consumer after a while; None at the end."""
        while not self._ended.wait(ANEW_S):
            try:
                return self._consumer()
            except InvalidInput as error:  # a certificate is being exchanged, say
                self._fails(ServiceUnavailable(error.message))
        return None

    def _failure(self, error: Exception) -> ServiceUnavailable:
        said = error.args[0] if error.args else error
        if not isinstance(error, (KafkaException, RuntimeError)):  # RuntimeError: what a client says that is closed
            _log.error("reading %s failed", self.topic, exc_info=error)
            said = f"{type(error).__name__}: {said}"
        return unavailable(said if isinstance(said, KafkaError) else str(said), "reading events", self._refusals)

    def _read(self, consumer: Consumer) -> None:
        """Read until the end of the subscription."""
        consumer.subscribe([self.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        while not self._ended.is_set():
            self._keep(consumer)
            if not self._paused and self._is_full():
                # Mostly it is being emptied. A pause costs more: what the client has fetched is fetched again.
                self._room.clear()
                self._room.wait(ROOM_S)
            self._pause(consumer)
            first = consumer.poll(_PAUSED_S if self._paused else _WAIT_S)
            if first is not None:
                self._arrive([first, *consumer.consume(BURST_MAX, 0)])

    def _is_full(self, share: float = 1.0) -> bool:
        return len(self._waiting) >= share * self._queue_records_max or self._waiting_bytes >= share * QUEUE_BYTES_MAX

    def _pause(self, consumer: Consumer) -> None:
        """Pause all partitions when the queue is full, and let them go on when half of it is gone."""
        full = self._is_full(0.5 if self._paused else 1.0)
        if full is not self._paused:
            (consumer.pause if full else consumer.resume)(consumer.assignment())
            self._paused = full

    def _keep(self, consumer: Consumer) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            try:
                with translated("asking for its partitions", self._refusals):
                    found = consumer.list_topics(timeout=1.0).topics.get(self.topic)
            except ServiceUnavailable as error:  # what is known stays
                self._fails(error)
            else:
                self._partitions = 0 if found is None or found.error is not None else len(found.partitions)
                if not self._partitions:
                    self._fails(ServiceUnavailable(f"the Kafka topic {self.topic} is not there: run a relay"))
                elif self._member:
                    self._goes_on()
            well = self._member and self.trouble is None
            self._look_at_s = time.monotonic() + (PARTITIONS_S if well else PARTITIONS_HASTY_S)
        if now_s >= self._commit_at_s:
            self._commit_at_s = now_s + COMMIT_S
            self._commit(consumer)

    def _commit(self, consumer: Consumer) -> None:
        with self._lock:
            told = {partition: offset for partition, offset in self._offsets.items() if partition in self.owned}
            self._offsets.clear()
        if told:
            with suppress(KafkaException, RuntimeError):  # a hint: the next one is as good
                consumer.commit(offsets=[TopicPartition(self.topic, *place) for place in told.items()])

    def _arrive(self, messages: Sequence[Message]) -> None:
        arrived: list[Arrived] = []
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # of missing topics `_keep` tells
                    self._fails(unavailable(error, "reading events"))
                continue
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            try:
                record = read_record(self._unsealed(message))
                if record.topic != self.topic:
                    raise CorruptEvent(f"an event of type {record.topic!r:.80} on another topic")
            except CorruptEvent as corrupt:
                self.strays += 1
                _stray_log.warning(
                    "%s partition %d offset %d is no event of the bridge: %s; %d such messages until now",
                    *(self.topic, partition, offset, corrupt.message, self.strays),
                )
                continue
            arrived.append(Arrived(record, partition, offset))
        if arrived:
            self._goes_on()
            with self._lock:
                self._waiting.extend(arrived)
                self._waiting_bytes += sum(len(one.record.body) for one in arrived)
            self._tell()

    def _unsealed(self, message: Message) -> bytes:
        """Return what a message holds, if the relay of this database sent it so."""
        body = message.value() or b""
        try:  # the client does not raise where it fails to decode a header's name, but in the lines after that
            headers = message.headers()
            told = dict(headers).get(SEAL_HEADER) if headers else None
            sealed = isinstance(told, bytes) and compare_digest(told, self._seal(body))
        except UnicodeDecodeError as error:
            raise CorruptEvent("a header's name is no UTF-8") from error
        if not sealed:
            raise CorruptEvent(f"it has not the {SEAL_HEADER} of this database's relay")
        return body

    def _fails(self, error: ServiceUnavailable) -> None:
        # The same again, every second for as long as the broker is away, is no news.
        if self.trouble is None or self.trouble.message != error.message:
            _log.warning("%s; the reducer goes on from PostgreSQL", error.message)
        self.trouble = error

    def _goes_on(self) -> None:
        if self.trouble is not None:
            _log.info("reads Kafka again")
            self.trouble = None

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
        self._member = True
        self.owned |= {part.partition for part in partitions}
        self._paused = None  # those that came are not, whatever the others are
        if partitions:
            _log.info("reads %d more partitions of %s, %d in all", len(partitions), self.topic, len(self.owned))
        self._tell()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(consumer)
        self.owned -= {part.partition for part in partitions}
        _log.info("reads %d partitions of %s less, %d in all", len(partitions), self.topic, len(self.owned))

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("%d partitions of %s were lost, and may be others' by now", len(partitions), self.topic)
        self._leave()

    def _leave(self) -> None:
        self._member, self.owned, self._paused = False, frozenset(), None
