"""What is on the topics, read by a consumer that knows nothing of the bridge, and held to what is promised of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from omninode_bridge.domain.log import NIL_ID, Record

PARTITIONS = 12
"""Of a topic: the shipped contract's."""
READ_S_MAX = 60.0
ANSWER_S_MAX = 8.0
"""Of one try."""


def read_topics(servers: str, topics: Sequence[str]) -> list[Message]:
    """Return what is on the topics now, in the order of each partition, by a consumer in a group of its own.

    A broker that just came back, or that was taken for dead, has no answer for a while; and a consumer that was told
    so may keep to it for minutes: each try has another.
    """
    until_s = time.monotonic() + READ_S_MAX
    while True:
        consumer = Consumer({"bootstrap.servers": servers, "group.id": uuid4().hex, "enable.auto.commit": False})
        try:
            return _read(consumer, topics)
        except (KafkaException, TimeoutError):
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        finally:
            consumer.close()


def _read(consumer: Consumer, topics: Sequence[str]) -> list[Message]:
    known = consumer.list_topics(timeout=ANSWER_S_MAX).topics
    places = [TopicPartition(name, partition) for name in topics for partition in known[name].partitions]
    bounds = {(place.topic, place.partition): consumer.get_watermark_offsets(place, ANSWER_S_MAX) for place in places}
    left = {place: end for place, (begin, end) in bounds.items() if end > begin}
    consumer.assign([TopicPartition(*place, bounds[place][0]) for place in left])
    found: list[Message] = []
    while left:
        # One is waited for, and what has come with it is taken: a call for many waits for as many.
        messages = consumer.consume(1, ANSWER_S_MAX) + consumer.consume(10_000, 0)
        if not messages:
            raise TimeoutError(f"nothing came of {left} in {ANSWER_S_MAX} s")
        for message in messages:
            if error := message.error():
                raise KafkaException(error)
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            if offset >= left.get((topic, partition), 0) - 1:
                left.pop((topic, partition), None)
        found += messages
    return found


def records_in(messages: Sequence[Message]) -> list[Record]:
    """Return the events in messages, less repeats, by place, after a look at how each was sent."""
    found: dict[tuple[str, int, int], Record] = {}
    for message in messages:
        body = message.value()
        event = json.loads(body or b"")
        assert message.topic() == event["type"]
        assert message.key() == event["subject"].encode()
        assert dict(message.headers() or [])["content-type"] == b"application/cloudevents+json"
        assert message.partition() == event["shard"] % PARTITIONS
        record = Record(
            topic=event["type"],
            shard=event["shard"],
            position=event["position"],
            event_id=event["id"],
            previous_id=event["previousid"],
            namespace=event["namespace"],
            workflow_id=event["subject"],
            body=body or b"",
        )
        assert found.setdefault((record.topic, record.shard, record.position), record) == record
    return [found[place] for place in sorted(found)]


def check_chains(records: Sequence[Record]) -> None:
    """Check that each shard's records name the one before, from the first on."""
    last: dict[tuple[str, int], tuple[int, str]] = {}
    for record in records:
        position, event_id = last.get((record.topic, record.shard), (0, NIL_ID))
        assert (record.position, record.previous_id) == (position + 1, event_id)
        last[record.topic, record.shard] = record.position, record.event_id
