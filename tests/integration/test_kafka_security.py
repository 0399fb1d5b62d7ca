"""A Kafka that asks who comes: settings of the client go their whole way, and who is not let in is told why."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation, AdminClient, ResourceType

from omninode_bridge import Bridge
from omninode_bridge.adapters.kafka import KafkaPublisher, KafkaSettings, publisher
from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app import parts
from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from omninode_bridge.domain.workflow import Topics
from tests.conftest import Server
from tests.integration.books import Books, eventually
from tests.integration.carrier import KEY, Carrier, at_work, soon
from tests.integration.flow import Flow, filled, only_by_kafka
from tests.integration.test_relay import incompressible
from tests.integration.topics import PARTITIONS
from tests.load.fleet import Process
from tests.making import draft
from tests.secured_broker import WAIT_S, Authority, Client, SecuredBroker

RELAY, READER = "relay", "reader"
STAMPS = 20
WRONG = f"wrong-{uuid4().hex}"
FORWARDS = (AclOperation.DESCRIBE, AclOperation.WRITE, AclOperation.CREATE)
READS = (AclOperation.DESCRIBE, AclOperation.READ)

type Way = Literal["PLAIN", "SCRAM-SHA-512", "certificate"]


class Numbered(Producer):
    """The real one, which notes who of them sends to a topic."""

    made: ClassVar[int] = 0
    used: ClassVar[dict[str, set[int]]] = defaultdict(set)

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        Numbered.made += 1
        self.number = Numbered.made

    def produce(self, topic: str, *arguments: Any, **named: Any) -> None:
        self.used[topic].add(self.number)
        super().produce(topic, *arguments, **named)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecuredBroker]:
    async with SecuredBroker(tmp_path_factory.mktemp("secured"), [RELAY, READER]) as running:
        yield running


@pytest_asyncio.fixture
async def flow(one_server: Server, secured: SecuredBroker, tmp_path: Path) -> AsyncIterator[Flow]:
    """A database with topics and a group that the relay and the reducer may use as docs/distributed.md has it."""
    url = await one_server.create()
    async with pool(url) as sql:
        opened = Flow(url, secured.bootstrap_servers, tmp_path, sql)
        for topic in (opened.completed, opened.failed):
            secured.allow(RELAY, topic, *FORWARDS)
            secured.allow(RELAY, f"{topic}.dlq", *FORWARDS)
            secured.allow(READER, topic, *READS)
        secured.allow(READER, opened.prefix, AclOperation.READ, kind=ResourceType.GROUP)
        yield opened
    await one_server.drop(url)


def told(broker: SecuredBroker, way: Way, user: str) -> dict[str, Any]:
    """Return settings of the bridge for a user that comes that way; those of the client as a text."""
    client = broker.by_certificate(user) if way == "certificate" else broker.by_password(user, way)
    servers = broker.mutual if way == "certificate" else broker.secured
    return {"kafka_bootstrap_servers": servers, "kafka_client": json.dumps(client)}


def process(flow: Flow, role: Literal["relay", "reducer"], number: int, servers: str, client: Client) -> Process:
    """Return a process that has its settings from the environment."""
    settings = flow.settings().model_dump(mode="json", exclude_unset=True, exclude_none=True)
    environment = {f"BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"BRIDGE_KAFKA_BOOTSTRAP_SERVERS": servers, "BRIDGE_KAFKA_CLIENT": json.dumps(client)}
    return Process(role, number, flow.folder, environment)


async def stamp(bridge: Bridge, prefix: str) -> None:
    for n in range(STAMPS):
        await bridge.stamp(b"%d" % n, file_path=f"{prefix}/{n}", namespace="acme.docs")


async def partitions(bridge: Bridge) -> float:
    gauges = await bridge.monitor.health.gauges()
    return sum(value for gauge in gauges if gauge.name == "kafka_partitions" for _, value in gauge.values)


async def asked(process: Process, path: str) -> str:
    async with httpx.AsyncClient(base_url=process.url, timeout=WAIT_S) as http:
        return (await http.get(path)).text


async def reason(process: Process, part: str) -> str:
    """Return what a process says of a part of it that does not do well."""
    components = json.loads(await asked(process, "/health"))["components"]
    return "".join(one.get("reason", "") for one in components if one["name"] == part)


async def reason_with(sentence: str, process: Process, part: str) -> str:
    """Return what a process says of a part of it, once that has a sentence in it."""
    found = ""

    async def has_it() -> bool:
        nonlocal found
        found = await reason(process, part)
        return sentence in found

    await eventually(has_it, f"the health of {process.name} names what is wrong")
    return found


async def prepared(sends: KafkaPublisher) -> None:
    """See to the topics, with patience: a broker that has just begun may take longer than is waited for."""
    until_s = asyncio.get_running_loop().time() + WAIT_S
    while True:
        try:
            await sends.prepare()
        except ServiceUnavailable:
            if asyncio.get_running_loop().time() > until_s:
                raise
        else:
            return


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-512", "certificate"])
async def test_events_go_by_tls_with_a_name_from_the_log_to_the_totals(
    flow: Flow, secured: SecuredBroker, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_by_kafka(monkeypatch)
    async with (
        flow.open_role("api", kafka_bootstrap_servers=None) as api,
        flow.open_role("relay", **told(secured, way, RELAY)) as relay,
        flow.open_role("reducer", **told(secured, way, READER)) as reducer,
    ):

        async def reads() -> bool:
            return await partitions(reducer) == 2 * PARTITIONS

        await eventually(reads, "the reducer reads all partitions")
        await stamp(api, way)
        records = await flow.balance(api)
        assert len(records) == STAMPS
        assert await filled(reducer) == 0

        async def is_well() -> bool:
            reports = [await bridge.monitor.health.report() for bridge in (relay, reducer)]
            return {report.status for report in reports} == {"ok"}

        await eventually(is_well, "both are well")


@pytest.mark.parametrize("wrong", ["password", "authority"])
async def test_who_is_not_let_in_says_why_without_its_password_and_nothing_is_lost(
    flow: Flow, secured: SecuredBroker, wrong: str, tmp_path: Path
) -> None:
    change, sentence = {
        "password": ({"sasl.password": WRONG}, "Authentication failed: Invalid username or password"),
        "authority": (
            {"ssl.ca.location": str(Authority(tmp_path, "stranger").certificate)},
            "certificate verify failed",
        ),
    }[wrong]
    relay = process(flow, "relay", 1, secured.secured, secured.by_password(RELAY) | change)
    reducer = process(flow, "reducer", 2, secured.secured, secured.by_password(READER) | change)
    right = process(flow, "relay", 3, secured.secured, secured.by_password(RELAY))
    said: list[str] = []
    try:
        async with flow.open_role("api", kafka_bootstrap_servers=None) as api:
            await asyncio.gather(relay.start(), reducer.start())
            found = await reason_with(sentence, relay, "relay")
            assert found.startswith("it can't forward: Kafka failed while asking for its topics: ")
            assert found.endswith("; check BRIDGE_KAFKA_CLIENT")
            assert secured.secured not in found
            await stamp(api, wrong)
            await flow.folded()  # from the log
            await soon(lambda: sentence in reducer.log.read_text(), "the reducer's log names what is wrong")
            found = await reason_with(sentence, reducer, "kafka")
            assert found.endswith("; check BRIDGE_KAFKA_CLIENT")
            assert sentence in relay.log.read_text()
            there = AdminClient({"bootstrap.servers": secured.bootstrap_servers}).list_topics(timeout=WAIT_S).topics
            assert not any(name.startswith(flow.prefix) for name in there)
            said += [await asked(one, path) for one in (relay, reducer) for path in ("/health", "/metrics")]
            code, _ = await asyncio.gather(relay.stop(), right.start())
            assert code == 0
            assert len(await flow.balance(api)) == STAMPS
            said += [await asked(right, path) for path in ("/health", "/metrics")]
    finally:
        started = [one for one in (relay, reducer, right) if one.log.exists()]
        await asyncio.gather(*(one.stop() for one in started))
    said += [one.log.read_text() for one in started]
    for secret in (WRONG, *secured.passwords.values()):
        assert [text for text in said if secret in text] == []
    assert [line for one in started for line in one.complaints()] == []


@pytest.mark.parametrize("role", ["relay", "reducer"])
async def test_an_authority_that_is_not_there_stops_the_program(
    flow: Flow, secured: SecuredBroker, role: Literal["relay", "reducer"]
) -> None:
    settings = told(secured, "PLAIN", RELAY)
    settings["kafka_client"] = json.dumps(json.loads(settings["kafka_client"]) | {"ssl.ca.location": "/not/there.pem"})
    with pytest.raises(InvalidInput, match=r"ssl\.ca\.location.*; see BRIDGE_KAFKA_CLIENT") as refused:
        async with flow.open_role(role, **settings):
            pass
    assert secured.passwords[RELAY] not in str(refused.value)


async def test_each_reason_for_not_being_let_in_is_named(secured: SecuredBroker, tmp_path: Path) -> None:
    by_password, by_certificate = secured.by_password(RELAY), secured.by_certificate(RELAY)
    key, certificate = Authority(tmp_path, "stranger").sign(RELAY)
    foreign = {"ssl.certificate.location": str(certificate), "ssl.key.location": str(key), "ssl.key.password": ""}
    none = {name: value for name, value in by_certificate.items() if "key" not in name and "certificate" not in name}
    unknown = {name: value for name, value in by_password.items() if name != "ssl.ca.location"}
    refused: list[tuple[str, Client, str]] = [
        (secured.secured, by_password | {"sasl.mechanism": "SCRAM-SHA-512", "sasl.password": WRONG}, "credentials"),
        (secured.secured, unknown, "certificate verify failed"),
        (
            secured.secured.replace("127.0.0.1", "localhost"),  # which its certificate does not name
            by_password | {"broker.address.family": "v4"},
            "certificate verify failed",
        ),
        (secured.mutual, none, "certificate"),
        (secured.mutual, by_certificate | foreign, "certificate"),
        (secured.bootstrap_servers, by_password, "connecting to a PLAINTEXT broker listener"),
    ]

    until_s = asyncio.get_running_loop().time() + WAIT_S

    async def said(servers: str, client: Client, why: str) -> str:
        async with KafkaPublisher(_settings(servers, client), Topics((f"test.{uuid4().hex}",))) as sends:
            while True:  # the broker may not answer in time
                with pytest.raises(ServiceUnavailable) as error:
                    await sends.prepare()
                if why in error.value.message or asyncio.get_running_loop().time() > until_s:
                    return error.value.message

    found = await asyncio.gather(*(said(*one) for one in refused))
    for (_, _, why), message in zip(refused, found, strict=True):
        assert why in message and message.endswith("; check BRIDGE_KAFKA_CLIENT"), message


async def test_a_broker_that_is_away_is_not_taken_for_one_that_lets_nobody_in(secured: SecuredBroker) -> None:
    topic = f"test.{uuid4().hex}"
    secured.allow(RELAY, topic, *FORWARDS)
    async with KafkaPublisher(_settings(secured.secured, secured.by_password(RELAY)), Topics((topic,))) as sends:
        await prepared(sends)
        await secured.kill()
        try:
            with pytest.raises(ServiceUnavailable, match=r"; check that the broker runs, and its log$"):
                await sends.prepare()
        finally:
            await secured.start()
        await prepared(sends)


async def test_a_topic_of_dead_letters_that_can_t_be_made_keeps_no_event_and_gets_its_letters_later(
    books: Books, secured: SecuredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "Producer", Numbered)
    carrier = Carrier(books, secured.bootstrap_servers)
    dead = f"{carrier.completed}.dlq"
    for topic in carrier.topics.names:
        secured.allow(RELAY, topic, *FORWARDS)
    await asyncio.to_thread(carrier.make, carrier.completed, max_message_bytes="4000")
    writer = carrier.session()
    await carrier.stamp(STAMPS, by=writer)
    await books.record(writer, draft("large", metadata={"long": incompressible(9000)}))
    sends = KafkaPublisher(_settings(secured.secured, secured.by_password(RELAY)), carrier.topics)
    async with carrier.relay(sends) as (relay, forwarding), at_work(relay.run()):
        await eventually(carrier.forwarded, "events are forwarded")
        await soon(lambda: relay.burial is not None, "the letter can't be sent")
        assert isinstance(relay.burial, ServiceUnavailable)
        assert f"the Kafka topic {dead} is missing and can't be made (" in relay.burial.message
        held = relay.held
        for batch in range(3):
            relay._bury_at_s = 0.0  # the time for it has come
            await carrier.stamp(STAMPS, by=writer, prefix=f"{batch}")
            relay.wake.set()
            await eventually(carrier.forwarded, "events are forwarded while letters are not")
            assert (relay.trouble, relay.held) == (None, held)
        found = await parts.relay(books.source, forwarding, utc_now, relay, needed=True).check()
        assert found.status == "degraded"
        assert (found.reason or "").startswith("dead letters don't reach Kafka, all else does: ")
        secured.allow(RELAY, dead, *FORWARDS)

        def is_sent() -> bool:
            relay._bury_at_s = 0.0  # also after a try that began before
            relay.wake.set()
            return relay.burial is None

        await soon(is_sent, "the letter is sent")
    assert len(Numbered.used[carrier.completed]) == 1, "events have had one producer all the while"
    assert len(await asyncio.to_thread(carrier.read)) == 4 * STAMPS
    (letter,) = await asyncio.to_thread(carrier.read, dead)
    assert letter.event["data"]["file_path"] == "large"
    await books.balance()


async def test_topics_of_dead_letters_are_made_with_the_others_or_it_is_said_once_that_they_can_t(
    secured: SecuredBroker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Topics((f"test.{uuid4().hex}",), 3, 3_600_000) for _ in range(2))
    for topics in (first, second):
        secured.allow(RELAY, topics.names[0], *FORWARDS)
    secured.allow(RELAY, f"{first.names[0]}.dlq", *FORWARDS)
    for topics in (first, second):
        async with KafkaPublisher(_settings(secured.secured, secured.by_password(RELAY)), topics) as sends:
            await sends.prepare()
            await sends.prepare()
    there = AdminClient({"bootstrap.servers": secured.bootstrap_servers}).list_topics(timeout=WAIT_S).topics
    assert {f"{name}{suffix}" for name in (*first.names, *second.names) for suffix in ("", ".dlq")} - there.keys() == {
        f"{second.names[0]}.dlq"
    }
    said = [record.getMessage() for record in caplog.records if second.names[0] in record.getMessage()]
    assert len([line for line in said if "no dead letters can be sent" in line]) == 1


def _settings(servers: str, client: Client) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=servers, group="none", key=KEY, client=client)
