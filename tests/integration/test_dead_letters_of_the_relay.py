"""Dead letters of the relay, with a real broker: what it refused is sent once more when it takes it."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from uuid import uuid4

from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from omninode_bridge.app.bootstrap import connect
from omninode_bridge.app.letters import dead_letters
from omninode_bridge.app.settings import Settings
from omninode_bridge.nodes.contracts import load_contracts, shipped_text
from omninode_bridge.ports import Letter
from tests.integration.books import Books, eventually
from tests.integration.keeping import acts
from tests.integration.test_cli import Desk
from tests.integration.topics import read_topics

WAIT_S = 60
SMALL, LARGE = "4000", "1000000"
NO_BROKER = "127.0.0.1:1"


async def test_what_the_broker_refused_is_sent_once_more_when_it_takes_it(
    books: Books, bootstrap_servers: str, tmp_path: Path
) -> None:
    settings = _settings(books, bootstrap_servers, tmp_path)
    contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    groupings = contracts.reducer.groupings
    topic = Topic(bootstrap_servers, contracts.orchestrator.plan.completed_topic)
    # Digits that no compression makes small.
    metadata = {"noise": random.Random(20_261_123).randbytes(8000).hex()}
    async with connect(books.url, settings) as bridge:
        for path, more in (("small", {}), ("large", metadata)):
            books.acknowledge([await bridge.stamp(b"1", file_path=path, namespace="legal", metadata=more)])
    await asyncio.to_thread(topic.make)
    async with connect(books.url, settings, "relay"):
        await eventually(lambda: _letters(settings), "the relay has a dead letter")
    (letter,) = await _letters(settings)
    assert (letter.source, letter.record.namespace) == ("relay", "legal")
    await books.balance(groupings=groupings)
    assert letter.record.event_id not in await asyncio.to_thread(topic.read)
    desk = _desk(settings, tmp_path)
    sentence = desk.run("dead-letters", "replay", "--all", code=1).sentence
    assert sentence.startswith(f"dead letter {letter.number} stays open: ")
    await asyncio.to_thread(topic.take_large)
    # The broker's change of mind takes a moment.
    await eventually(lambda: _replayed(settings, letter.number), "the broker takes the event")
    assert "already" in desk.run("dead-letters", "replay", str(letter.number)).output
    assert (await asyncio.to_thread(topic.read)).count(letter.record.event_id) == 1
    assert [(subject, details["status"]) for _, _, subject, details in await acts(books)][-1:] == [
        (str(letter.number), "replayed")
    ]
    await books.balance(groupings=groupings)


async def test_a_letter_that_no_broker_can_be_asked_about_stays_what_it_was(books: Books, tmp_path: Path) -> None:
    settings = _settings(books, NO_BROKER, tmp_path)
    async with connect(books.url, settings) as bridge:
        await bridge.stamp(b"1", file_path="a", namespace="legal")
    await books.pool.execute(
        """INSERT INTO dead_letters
            (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
        SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, body, 'too large'
        FROM event_log"""
    )
    (letter,) = await _letters(settings)
    desk = _desk(settings, tmp_path)
    errors = desk.run("dead-letters", "replay", str(letter.number), code=3).errors
    assert errors.splitlines()[-1].startswith("omninode-bridge: Kafka failed")
    assert await _letters(settings) == [letter]
    assert await acts(books) == []


class Topic:
    """The topic of completed workflows, which takes small records only."""

    def __init__(self, servers: str, name: str) -> None:
        self._servers = servers
        self._name = name

    def make(self) -> None:
        admin = AdminClient({"bootstrap.servers": self._servers})
        new = NewTopic(self._name, 1, 1, config={"max.message.bytes": SMALL})
        admin.create_topics([new])[self._name].result(WAIT_S)

    def take_large(self) -> None:
        admin = AdminClient({"bootstrap.servers": self._servers})
        entry = ConfigEntry("max.message.bytes", LARGE, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, self._name, incremental_configs=[entry])
        admin.incremental_alter_configs([resource])[resource].result(WAIT_S)

    def read(self) -> list[str]:
        """Return the ids of the events in the topic."""
        return [_id_of(message.value()) for message in read_topics(self._servers, [self._name])]


def _id_of(body: bytes | None) -> str:
    assert body is not None
    return str(json.loads(body)["id"])


def _settings(books: Books, servers: str, folder: Path) -> Settings:
    prefix = f"letters-{uuid4().hex}."
    for kind in ("orchestrator", "reducer"):
        text = shipped_text(kind)
        assert "workflow.stamping." in text
        (folder / f"{kind}.yaml").write_text(text.replace("workflow.stamping.", prefix), encoding="utf-8")
    return Settings.read(
        database_url=books.url,
        kafka_bootstrap_servers=servers,
        kafka_group=prefix,
        orchestrator_contract=folder / "orchestrator.yaml",
        reducer_contract=folder / "reducer.yaml",
    )


def _desk(settings: Settings, folder: Path) -> Desk:
    told = settings.model_dump(mode="json", exclude_unset=True)
    return Desk(folder, {f"BRIDGE_{name.upper()}": str(value) for name, value in told.items()})


async def _letters(settings: Settings) -> list[Letter]:
    async with dead_letters(settings) as opened:
        return [letter async for letter in opened.every()]


async def _replayed(settings: Settings, number: int) -> bool:
    async with dead_letters(settings) as opened:
        letter, _ = await opened.replay(number)
    return letter.status == "replayed"
