"""The tests' own Kafka is a real one: it keeps what it acknowledged when it is killed, and hangs when told to."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import NewTopic

from tests.broker import ROOT, Broker
from tests.integration.carrier import make_topic

WAIT_S = 60


def create_topic(servers: str, *, partitions: int = 1) -> str:
    name = f"test.{uuid4().hex}"
    make_topic(servers, NewTopic(name, partitions, 1))
    return name


def produce(servers: str, topic: str, values: list[bytes]) -> list[Message]:
    """Return the acknowledged messages."""
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True})
    reports: list[tuple[KafkaError | None, Message]] = []
    for value in values:
        headers: list[tuple[str, str | bytes | None]] = [("ce_type", b"stamp.recorded"), ("ce_id", value)]
        producer.produce(topic, value, b"key", headers=headers, on_delivery=lambda *report: reports.append(report))
    assert producer.flush(WAIT_S) == 0
    assert [error for error, _ in reports if error is not None] == []
    return [message for _, message in reports]


def consume(servers: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        found = consumer.consume(count, WAIT_S)
    finally:
        consumer.close()
    for message in found:
        if error := message.error():
            raise KafkaException(error)
    return found


def test_what_is_produced_is_consumed_in_order_with_its_headers(bootstrap_servers: str) -> None:
    topic = create_topic(bootstrap_servers)
    values = [b"%d" % number for number in range(100)]
    assert [message.offset() for message in produce(bootstrap_servers, topic, values)] == list(range(100))
    found = consume(bootstrap_servers, topic, 100)
    assert [(message.key(), message.value(), message.headers()) for message in found] == [
        (b"key", value, [("ce_type", b"stamp.recorded"), ("ce_id", value)]) for value in values
    ]


def test_a_topic_that_nobody_made_is_an_error(bootstrap_servers: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "topic.metadata.propagation.max.ms": 0})
    errors: list[KafkaError | None] = []
    producer.produce(f"test.{uuid4().hex}", b"lost", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(WAIT_S) == 0
    assert [error.code() for error in errors if error is not None] == [KafkaError.UNKNOWN_TOPIC_OR_PART]


async def test_a_killed_broker_started_again_has_what_it_acknowledged(broker: Broker) -> None:
    servers = broker.bootstrap_servers
    topic = create_topic(servers)
    produce(servers, topic, [b"before"])
    await broker.kill()
    await broker.start()
    assert broker.bootstrap_servers == servers
    produce(servers, topic, [b"after"])
    assert [message.value() for message in consume(servers, topic, 2)] == [b"before", b"after"]


async def test_a_stopped_broker_started_again_has_what_it_acknowledged(broker: Broker) -> None:
    topic = create_topic(broker.bootstrap_servers)
    produce(broker.bootstrap_servers, topic, [b"before"])
    await broker.stop()
    await broker.start()
    assert [message.value() for message in consume(broker.bootstrap_servers, topic, 1)] == [b"before"]


async def test_a_paused_broker_acknowledges_when_it_goes_on(broker: Broker) -> None:
    topic = create_topic(broker.bootstrap_servers)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all"})
    broker.pause()
    try:
        producer.produce(topic, b"waiting")
        assert producer.flush(1) == 1
    finally:
        broker.resume()
    assert producer.flush(WAIT_S) == 0


async def test_who_comes_by_a_proxy_never_gets_past_it(broker: Broker) -> None:
    topic = create_topic(broker.bootstrap_servers)
    passed: list[bytes] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes]) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                seen.append(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(*broker.upstream.split(":"))
        await asyncio.gather(pass_on(reader, behind[1], passed), pass_on(behind[0], writer, []))

    async with await asyncio.start_server(serve, *broker.advertised.split(":")):
        (message,) = await asyncio.to_thread(produce, broker.advertised, topic, [b"by the proxy"])
        assert message.offset() == 0
    assert b"by the proxy" in b"".join(passed)


async def test_a_broker_that_cannot_start_says_why(tmp_path: Path, broker: Broker) -> None:
    second = Broker(tmp_path)
    second.bootstrap_servers = broker.bootstrap_servers
    with pytest.raises(RuntimeError, match=r"(?s)the broker ended with 1; .*Address already in use"):
        await second.start()


def test_a_broker_dies_with_whoever_started_it(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, pathlib, signal
from tests.broker import Broker

async def run():
    broker = Broker(pathlib.Path({str(tmp_path)!r}))
    await broker.start()
    print(broker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(run())
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    try:
        process = os.pidfd_open(int(run.stdout))
    except ProcessLookupError:
        return
    ended, _, _ = select.select([process], [], [], WAIT_S)
    os.close(process)
    assert ended
