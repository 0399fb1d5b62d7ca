"""Others can read the topics: the CloudEvents SDK, and kcat, from nothing but the topics' names."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest_asyncio
from cloudevents.core.bindings.kafka import KafkaMessage, from_structured_event
from confluent_kafka import Message

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.domain.stamp import Stamp
from tests.conftest import Server
from tests.integration.books import eventually
from tests.integration.flow import Flow
from tests.integration.topics import read_topics

KCAT_S_MAX = 60
NAMESPACE = "acme.documents"


@pytest_asyncio.fixture
async def published(
    one_server: Server, bootstrap_servers: str, tmp_path: Path
) -> AsyncIterator[tuple[Flow, list[Stamp]]]:
    """A flow whose relay has forwarded some stamps."""
    url = await one_server.create()
    try:
        async with pool(url) as sql:
            flow = Flow(url, bootstrap_servers, tmp_path, sql)
            async with flow.open() as bridge:
                stamps = [
                    await bridge.stamp(b"%d" % n, file_path=f"ä {n}.txt", namespace=NAMESPACE, metadata={"n": n})
                    for n in range(5)
                ]

                async def forwarded() -> bool:
                    return len(await sql.fetch("SELECT FROM event_log")) == await sql.fetchval(
                        "SELECT coalesce(sum(position), 0)::bigint FROM consumer_positions WHERE consumer = 'relay'"
                    )

                await eventually(forwarded, "all is forwarded")
            yield flow, stamps
            await flow.clear()
    finally:
        await one_server.drop(url)


def by_sdk(message: Message) -> Any:
    headers = {name: value for name, value in message.headers() or [] if isinstance(value, bytes)}
    return from_structured_event(KafkaMessage(headers, message.key(), message.value() or b""))


async def test_the_cloudevents_sdk_reads_every_event_as_what_was_stamped(
    published: tuple[Flow, list[Stamp]], bootstrap_servers: str
) -> None:
    flow, stamps = published
    messages = await asyncio.to_thread(read_topics, bootstrap_servers, [flow.completed])
    events = {event.get_subject(): (event, message) for message in messages for event in [by_sdk(message)]}
    assert events.keys() == {stamp.workflow_id for stamp in stamps}
    for stamp in stamps:
        event, message = events[stamp.workflow_id]
        assert message.key() == stamp.workflow_id.encode()
        assert event.get_type() == flow.completed
        assert event.get_source() == "/omninode-bridge/orchestrator"
        assert event.get_extension("namespace") == NAMESPACE
        assert isinstance(event.get_time(), datetime)
        data = event.get_data()
        told = (data["stamp_id"], data["file_path"], data["file_hash"], data["metadata"])
        assert told == (stamp.stamp_id, stamp.file_path, stamp.file_hash, stamp.metadata)


def test_kcat_prints_them(published: tuple[Flow, list[Stamp]], bootstrap_servers: str) -> None:
    flow, stamps = published
    printed = subprocess.run(
        ["kcat", "-b", bootstrap_servers, "-C", "-e", "-q", "-t", flow.completed, "-f", "%k %h %s\n"],
        capture_output=True,
        check=True,
        timeout=KCAT_S_MAX,
        text=True,
    ).stdout.splitlines()
    assert len(printed) == len(stamps)
    for line in printed:
        key, headers, body = line.split(" ", 2)
        assert headers.startswith("content-type=application/cloudevents+json,omninode-mac=")
        event = json.loads(body)
        assert (event["subject"], event["type"], event["specversion"]) == (key, flow.completed, "1.0")
    assert {json.loads(line.split(" ", 2)[2])["data"]["stamp_id"] for line in printed} == {s.stamp_id for s in stamps}
