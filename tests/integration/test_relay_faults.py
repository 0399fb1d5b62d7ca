"""One fault does not stop the relay's other work: a shard that is broken, dead letters that their topic won't take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from omninode_bridge.adapters.kafka import KafkaPublisher
from omninode_bridge.adapters.postgres.relay import PostgresForwarding
from omninode_bridge.adapters.postgres.state import PostgresStateStore
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app import parts
from omninode_bridge.app.health import Finding
from omninode_bridge.app.relay import Relay
from omninode_bridge.domain.errors import LawBroken, ServiceUnavailable
from omninode_bridge.ports import DeadLetter
from tests.integration.books import Books, eventually
from tests.integration.carrier import WAIT_S, Carrier, at_work, soon
from tests.making import draft, failure

TURN_S_MAX = 10.0
"""How long events may wait while dead letters are tried."""
LATE_MS_NONE, LATE_MS_ANY = "0", "9223372036854775807"


class Counting(KafkaPublisher):
    """The real one, which counts how often it is to send dead letters."""

    burials = 0

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        self.burials += 1
        await super().bury(letters)


@pytest.fixture
def carrier(books: Books, bootstrap_servers: str) -> Carrier:
    return Carrier(books, bootstrap_servers)


async def health(carrier: Carrier, relay: Relay, forwarding: PostgresForwarding) -> Finding:
    return await parts.relay(carrier.books.source, forwarding, utc_now, relay, needed=True).check()


def set_late_ms_max(carrier: Carrier, topic: str, late_ms_max: str) -> None:
    """Let a topic take only records that are at most so old: none is as young as 0 ms."""
    entry = ConfigEntry("message.timestamp.before.max.ms", late_ms_max, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": carrier.servers})
    admin.incremental_alter_configs([resource])[resource].result(WAIT_S)


async def test_a_topic_that_takes_nothing_holds_up_no_other_and_is_caught_up_with_in_order(carrier: Carrier) -> None:
    books, (completed, failing) = carrier.books, carrier.topics.names
    await asyncio.to_thread(carrier.make, failing, message_timestamp_before_max_ms=LATE_MS_NONE)
    writer = carrier.session()
    await books.record(writer, draft("a"), failure("b"), draft("c"))

    async def positions() -> dict[str, int]:
        found = await books.pool.fetch("SELECT topic, position FROM consumer_positions WHERE consumer = 'relay'")
        return {row["topic"]: row["position"] for row in found}

    async with carrier.relay() as (relay, forwarding), at_work(relay.run()):
        await soon(lambda: isinstance(relay.trouble, ServiceUnavailable), "the relay says that it can't forward")
        held = relay.held
        for batch in range(3):
            await books.record(writer, draft(f"{batch}"), failure(f"{batch}"))
            relay.wake.set()

            async def forwarded(count: int = 3 + batch) -> bool:
                return (await positions()).get(completed) == count

            await eventually(forwarded, "the other topic is forwarded")
        assert (await positions()).get(failing, 0) == 0
        relay._look_at_s = 0.0
        relay.wake.set()
        await soon(lambda: relay._look_at_s > 0, "it looks again, where nothing else is to be sent")
        assert relay.held == held, "no shard was let go"
        found = await health(carrier, relay, forwarding)
        assert found.status == "degraded"
        assert "sending events" in found.reason
        await asyncio.to_thread(set_late_ms_max, carrier, failing, LATE_MS_ANY)

        async def caught_up() -> bool:
            relay._look_at_s = 0.0  # the time for it has come, also after a try that began before
            return await carrier.forwarded()

        await eventually(caught_up, "what was left out is forwarded")
        await soon(lambda: relay.trouble is None, "it is well again")
    seen = await asyncio.to_thread(carrier.read)
    for topic, count in ((completed, 5), (failing, 4)):
        assert [one.event["position"] for one in seen if one.topic == topic] == list(range(1, count + 1))
    await books.balance()


async def test_while_dead_letters_are_not_taken_events_are_forwarded_and_health_says_so(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omninode_bridge.app.relay.PAUSE_S_MAX", 3 * TURN_S_MAX)
    books = carrier.books
    dead = f"{carrier.completed}.dlq"
    await asyncio.to_thread(carrier.make, dead, 1, message_timestamp_before_max_ms=LATE_MS_NONE)
    writer = carrier.session()
    await carrier.stamp(20, by=writer)
    await books.pool.execute(
        """INSERT INTO dead_letters
            (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
        SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, body, 'refused'
        FROM event_log WHERE position = 1"""
    )
    publisher = Counting(carrier.settings(), carrier.topics)
    async with carrier.relay(publisher) as (relay, forwarding), at_work(relay.run()):
        await soon(lambda: relay.burial is not None, "the letter was not taken")
        assert isinstance(relay.burial, ServiceUnavailable)
        held = relay.held
        assert len(held) == 1
        for batch in range(10):
            await carrier.stamp(20, by=writer, prefix=f"{batch}")
            relay.wake.set()
            async with asyncio.timeout(TURN_S_MAX):  # a relay in trouble soon pauses for longer
                await eventually(carrier.forwarded, "events are forwarded")
            assert (relay.trouble, relay.held) == (None, held)
        assert publisher.burials <= 5  # with a pause of three turns at least, and not at each of ten
        found = await health(carrier, relay, forwarding)
        assert found.status == "degraded"
        assert (found.reason or "").startswith("dead letters don't reach Kafka")
        await asyncio.to_thread(set_late_ms_max, carrier, dead, LATE_MS_ANY)

        def is_sent() -> bool:
            relay._bury_at_s = 0.0  # the time for it has come, also after a try that began before
            relay.wake.set()
            return relay.burial is None

        await soon(is_sent, "the letter is sent")
        assert (await health(carrier, relay, forwarding)).status == "ok"
    assert await books.pool.fetchval("SELECT count(*) FROM dead_letters WHERE forwarded_at IS NULL") == 0
    assert len(await asyncio.to_thread(carrier.read, dead)) == 1


async def test_a_shard_whose_log_does_not_continue_is_left_out_and_named_while_the_others_are_forwarded(
    carrier: Carrier,
) -> None:
    books = carrier.books
    writers = [carrier.session() for _ in range(3)]
    for number, writer in enumerate(writers):
        await carrier.stamp(10, by=writer, group=10, prefix=f"{number}")
    broken = (await carrier.records())[0].shard
    place = f"{carrier.completed} shard {broken}"
    await books.pool.execute("CREATE TABLE gone AS SELECT * FROM event_log WHERE position = 5 AND shard = $1", broken)
    await books.pool.execute("DELETE FROM event_log WHERE position = 5 AND shard = $1", broken)
    async with carrier.relay() as (relay, forwarding), at_work(relay.run()):
        await soon(lambda: relay.trouble is not None, "the relay has found it")
        for number, writer in enumerate(writers):
            await carrier.stamp(10, by=writer, group=10, prefix=f"later/{number}")
        await eventually(lambda: all_but(carrier, broken), "the other shards are forwarded")
        assert isinstance(relay.trouble, LawBroken)
        assert len(relay.held) == 3
        found = await health(carrier, relay, forwarding)
        assert found.status == "down"
        assert f"{place} does not continue before position 6" in (found.reason or "")
        at = await forwarding.positions()
        assert at[carrier.completed, broken].position == 4
        await books.pool.execute("INSERT INTO event_log SELECT * FROM gone")
        relay._look_at_s = 0.0  # the time for it has come
        await eventually(carrier.forwarded, "the mended shard is forwarded")
        await soon(lambda: relay.trouble is None, "nothing is left out")
        assert (await health(carrier, relay, forwarding)).status == "ok"
    seen = await asyncio.to_thread(carrier.read)
    assert len(seen) == len({message.event["id"] for message in seen}) == 60


async def test_a_broken_shard_is_looked_at_again_after_a_while_and_not_at_every_turn(carrier: Carrier) -> None:
    await carrier.stamp(10)
    await carrier.books.pool.execute("CREATE TABLE gone AS SELECT * FROM event_log WHERE position = 1")
    await carrier.books.pool.execute("DELETE FROM event_log WHERE position = 1")
    async with carrier.relay() as (relay, _):
        assert await relay.step() == 0
        await carrier.books.pool.execute("INSERT INTO event_log SELECT * FROM gone")
        assert await relay.step() == 0
        assert isinstance(relay.trouble, LawBroken)
        relay._look_at_s = 0.0  # the time for it has come
        assert await relay.step() == 10
        assert relay.trouble is None


async def test_only_open_letters_of_the_live_state_and_of_the_relay_are_sent(carrier: Carrier) -> None:
    books = carrier.books
    await carrier.stamp(5)
    await books.catch_up()
    live = await books.state.live()
    building = await PostgresStateStore(books.service).begin("other")
    assert live is not None and building.number != live.number
    for generation in (None, live.number, building.number):
        for position, status in ((1, "open"), (2, "replayed"), (3, "discarded")):
            await books.pool.execute(
                """INSERT INTO dead_letters (generation, status, reason,
                    topic, shard, position, event_id, previous_id, namespace, workflow_id, body)
                SELECT $1, $2, 'refused', topic, shard, position, event_id, previous_id, namespace, workflow_id, body
                FROM event_log WHERE position = $3""",
                *(generation, status, position),
            )
    async with carrier.relay() as (_, forwarding):
        await forwarding.hold()
        numbers = [letter.number for letter in await forwarding.unsent(100)]
    found = await books.pool.fetch(
        "SELECT generation, status FROM dead_letters WHERE id = ANY ($1::bigint[]) ORDER BY id", numbers
    )
    assert [(row["generation"], row["status"]) for row in found] == [(None, "open"), (live.number, "open")]


async def all_but(carrier: Carrier, shard: int) -> bool:
    behind = await carrier.books.pool.fetchval(
        """SELECT count(*) FROM log_heads AS h LEFT JOIN consumer_positions AS p
            ON p.consumer = 'relay' AND p.topic = h.topic AND p.shard = h.shard
            WHERE h.position > coalesce(p.position, 0) AND h.shard <> $1""",
        shard,
    )
    return bool(behind == 0)
