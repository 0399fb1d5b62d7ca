"""What is on the topics, read by a consumer that knows nothing of the bridge, and held to what is promised of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from omninode_bridge.domain.log import NIL_ID, Record

PARTITIONS = 12
"""Of a topic: the shipped contract's."""
READ_S_MAX = 30.0


def read_topics(servers: str, topics: Sequence[str]) -> list[Message]:
    """Return what is in the topics now, from the beginning, by a consumer in a group of its own."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"flow-{uuid4().hex}", "enable.auto.commit": False})
    try:
        left: dict[tuple[str, int], int] = {}
        for topic in topics:
            for partition in consumer.list_topics(topic, READ_S_MAX).topics[topic].partitions:
                _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), READ_S_MAX)
                left |= {(topic, partition): end} if end else {}
        consumer.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in left])
        found: list[Message] = []
        while left:
            message = consumer.poll(READ_S_MAX)
            assert message is not None, f"nothing comes any more of {left}"
            if error := message.error():
                raise KafkaException(error)
            found.append(message)
            name, number, offset = message.topic(), message.partition(), message.offset()
            assert name is not None
            assert number is not None
            assert offset is not None
            if offset + 1 >= left.get((name, number), 0):
                left.pop((name, number), None)
        return found
    finally:
        consumer.close()


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
