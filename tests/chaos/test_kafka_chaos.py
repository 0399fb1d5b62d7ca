"""The distributed bridge under load while Kafka, the network, the relay and the reducers are treated badly.

The laws: after each blow the log is forwarded and folded again, to the last event; the audit is clean; the topics have
every event since somebody deleted them; and the totals are a plain count of what is on the topics, without repeats.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.evidence import evidence
from omninode_bridge.app.audit import audit
from omninode_bridge.nodes.contracts import shipped_text
from tests.broker import Broker, free_ports
from tests.chaos import impatient
from tests.chaos.cable import Cable, DatabaseCable
from tests.chaos.crowd import Crowd
from tests.integration.carrier import Totals, read
from tests.integration.proxy import Fault, Match, Proxy, is_begin, is_commit
from tests.load.fleet import Fleet, Process, Role
from tests.load.reckoning import reckon
from tests.making import MACHINE

SEED = os.environ.get("CHAOS_SEED", "20260307")
PATIENCE_S = 60.0
PARTITIONS = 3
DELIVERY_MS = 3000
KEEPALIVE_S = 3.0
"""When PostgreSQL notices that a session's client is gone."""
CALLERS = 6
"""Fewer than elsewhere: the processes shall be busy with being ended and started."""
CLIENT = {"delivery.timeout.ms": DELIVERY_MS, "heartbeat.interval.ms": 300, "session.timeout.ms": 6000}

pytestmark = pytest.mark.timeout(240)


LIVE_TOTALS = """
SELECT s.namespace, total_stamps, total_size_bytes::bigint
FROM bridge_state AS s JOIN state_generations USING (generation)
WHERE status = 'live' AND aggregation_type = 'namespace' AND total_stamps > 0
"""
LOGGED_TOTALS = """
SELECT namespace, count(*), sum((convert_from(body, 'UTF8')::json #>> '{data,file_size}')::int8)::int8
FROM event_log JOIN unnest($1::text[], $2::integer[], $3::bigint[]) AS h (topic, shard, head) USING (topic, shard)
WHERE topic LIKE '%completed' AND position <= head GROUP BY 1
"""


class Scene:
    """A fleet, its broker and its topics, with callers at work."""

    def __init__(self, fleet: Fleet, broker: Broker, crowd: Crowd, connection: asyncpg.Connection, name: str) -> None:
        self.fleet = fleet
        self.broker = broker
        self.crowd = crowd
        self.topics = [f"{name}completed", f"{name}failed"]
        self._connection = connection
        self._since: dict[tuple[str, int], int] = {}
        """Positions up to which the topics were emptied by a blow."""

    @classmethod
    @asynccontextmanager
    async def of(cls, folder: Path, roles: list[Role], *, advertised: str | None = None) -> AsyncIterator[Scene]:
        print(f"CHAOS_SEED={SEED}")
        name = f"chaos-{uuid4().hex}."
        (folder / "broker").mkdir()
        contracts = {}
        for kind in ("orchestrator", "reducer"):
            text = shipped_text(kind).replace("workflow.stamping.", name)
            path = folder / f"{kind}.yaml"
            path.write_text(text.replace("kafka: {partitions: 12,", f"kafka: {{partitions: {PARTITIONS},"))
            contracts[f"{kind}_contract"] = str(path)
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(Broker(folder / "broker", advertised=advertised))
            fleet = await stack.enter_async_context(
                Fleet.sailing(
                    folder,
                    roles,
                    kafka_bootstrap_servers=broker.bootstrap_servers,
                    kafka_group=name,
                    kafka_client=json.dumps(CLIENT),
                    **contracts,
                )
            )
            connection = await asyncpg.connect(fleet.postgres.url)
            stack.push_async_callback(connection.close)
            crowd = await Crowd.gather(fleet, SEED, CALLERS)
            stack.push_async_callback(crowd.give_up)
            scene = cls(fleet, broker, crowd, connection, name)
            if fleet.of("relay"):
                await scene.recovers()
            yield scene

    async def change(self, ask: Callable[[AdminClient], Mapping[Any, Future[Any]]]) -> None:
        """Let the broker's administrator do something, and wait until it is done."""
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap_servers})
        for done in ask(admin).values():
            await asyncio.to_thread(done.result, PATIENCE_S)

    async def recovers(self) -> None:
        """Wait until whoever tries is answered, and all that was recorded by then is forwarded and folded."""
        await self.crowd.progress()
        heads = await self._connection.fetch("SELECT topic, shard, position FROM log_heads")
        await self._until(lambda: self._reached(heads), f"{len(heads)} shards are forwarded and folded")

    async def laws_hold(self) -> None:
        """After a blow: all catch up, and the audit is clean while the load goes on."""
        await self.recovers()
        async with pool(self.fleet.postgres.url) as opened, evidence(opened) as snapshot:
            broken = [finding for finding in await audit(snapshot, MACHINE) if not finding.holds]
        assert not broken, broken
        await self._totals_are_those_of_the_topics()

    async def end(self) -> None:
        """Let the callers end; fail unless everything is forwarded, folded, and counted right."""
        await self.crowd.end()
        await self._until(self._quiet, "nothing is left to forward or to fold, and no workflow to run")
        counts = await reckon(self.fleet, self.crowd.told)
        print(counts)
        assert counts["unanswered"] == 0
        heads = await self._connection.fetch("SELECT topic, shard, position FROM log_heads")
        whole = map(list, zip(*(tuple(head.values()) for head in heads), strict=True))
        assert await self._totals(LIVE_TOTALS) == await self._totals(LOGGED_TOTALS, *whole)
        assert not (said := self.fleet.complaints()), "\n".join(said[:20])

    async def emptied(self) -> None:
        """Remember that what is recorded until now may be gone from the topics."""
        heads = await self._connection.fetch("SELECT topic, shard, position FROM log_heads")
        self._since = {(head["topic"], head["shard"]): head["position"] for head in heads}

    async def _totals_are_those_of_the_topics(self) -> None:
        """Fail unless every event that is folded is on the topics, and the totals are their count without repeats."""
        async with self._connection.transaction(isolation="repeatable_read"):
            totals = await self._totals(LIVE_TOTALS)
            positions = await self._connection.fetch(
                """SELECT topic, shard, position FROM consumer_positions JOIN state_generations AS g
                    ON consumer = 'reducer/' || generation AND g.status = 'live'"""
            )
        # What is folded from the log while no relay runs is on the topics later.
        await self._until(partial(self._forwarded, positions), "what is folded is forwarded as well")
        before = [(*place, position) for place, position in self._since.items()]
        counted = await self._totals(LOGGED_TOTALS, *map(list, zip(*before, strict=True))) if before else {}
        stamps, octets = (Counter({name: count[part] for name, count in counted.items()}) for part in (0, 1))
        seen = await asyncio.to_thread(read, self.broker.bootstrap_servers, self.topics)
        events = {(event["type"], event["shard"], event["position"]): event for event in (one.event for one in seen)}
        for topic, shard, end in positions:
            for position in range(self._since.get((topic, shard), 0) + 1, end + 1):
                event = events[topic, shard, position]
                if "stamp_id" in event["data"]:
                    stamps[event["namespace"]] += 1
                    octets[event["namespace"]] += event["data"]["file_size"]
        assert totals == {name: (count, octets[name]) for name, count in stamps.items()}
        print(Counter(events=len(events), repeats=len(seen) - len(events)))

    async def _forwarded(self, positions: Sequence[asyncpg.Record]) -> bool:
        """Tell whether the relays have forwarded every shard up to the positions."""
        behind = await self._connection.fetchval(
            """SELECT count(*) FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS p (topic, shard, position)
                LEFT JOIN consumer_positions AS r
                    ON r.consumer = 'relay' AND r.topic = p.topic AND r.shard = p.shard
                WHERE p.position > coalesce(r.position, 0)""",
            *([row[column] for row in positions] for column in ("topic", "shard", "position")),
        )
        return bool(behind == 0)

    async def says(self, process: Process, what: str, since: int) -> None:
        """Wait until a process logs a line with a pattern, after so many bytes of its log."""

        async def said() -> bool:
            return re.search(what.encode(), process.log.read_bytes()[since:], re.MULTILINE) is not None

        await self._until(said, f"{process.name} says {what!r}")

    async def _quiet(self) -> bool:
        heads = await self._connection.fetch("SELECT topic, shard, position FROM log_heads")
        return await self._reached(heads) and not await self._connection.fetchval(
            "SELECT count(*) FROM workflow_inputs"
        )

    async def _reached(self, heads: list[asyncpg.Record]) -> bool:
        """Tell whether the relay and the live state are there."""
        reached: bool = await self._connection.fetchval(
            """SELECT NOT EXISTS (
                SELECT FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS h (topic, shard, position)
                CROSS JOIN (SELECT 'relay' AS consumer UNION
                    SELECT 'reducer/' || generation FROM state_generations WHERE status = 'live') AS c
                LEFT JOIN consumer_positions AS p USING (consumer, topic, shard)
                WHERE h.position > coalesce(p.position, 0))""",
            *map(list, zip(*(head.values() for head in heads), strict=True)),
        )
        return reached

    async def _totals(self, query: str, *arguments: object) -> Totals:
        return {row[0]: (row[1], row[2]) for row in await self._connection.fetch(query, *arguments)}

    async def _until(self, condition: Callable[[], Awaitable[object]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await condition():  # noqa: ASYNC110 - neither a database nor a file has events to wait for
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not in {PATIENCE_S:.0f} s: {what}") from None


async def stop_and_start(scene: Scene) -> None:
    await scene.broker.stop()
    await scene.crowd.progress()
    await scene.broker.start()


async def kill_and_start(scene: Scene) -> None:
    await scene.broker.kill()
    await scene.crowd.progress()
    await scene.broker.start()


async def hang_beyond_the_delivery_timeout(scene: Scene) -> None:
    begins = {relay: relay.log_bytes() for relay in scene.fleet.of("relay")}
    scene.broker.pause()
    for relay, begin in begins.items():
        await scene.says(relay, "the relay can't forward", begin)
    await scene.crowd.progress()
    scene.broker.resume()


async def let_a_third_reducer_come_and_go(scene: Scene) -> None:
    third = await scene.fleet.join("reducer")
    await scene.says(third, "more partitions", 0)
    await scene.laws_hold()
    assert await third.stop() == 0


async def add_partitions(scene: Scene) -> None:
    grown = [NewPartitions(topic, PARTITIONS + 2) for topic in scene.topics]
    await scene.change(lambda admin: admin.create_partitions(grown))


async def expire_all_records(scene: Scene) -> None:
    ends = [TopicPartition(topic, n, OFFSET_END) for topic in scene.topics for n in range(PARTITIONS)]
    await scene.change(lambda admin: admin.delete_records(ends))
    await scene.emptied()


async def delete_the_topics(scene: Scene) -> None:
    (relay,) = scene.fleet.of("relay")
    begin = relay.log_bytes()
    await scene.change(lambda admin: admin.delete_topics(scene.topics))
    # What the broker takes until it has dropped them is gone as well.
    for topic in scene.topics:
        await scene.says(relay, rf"made the topics .*\b{re.escape(topic)}(?!\.)", begin)
    await scene.emptied()


async def test_whatever_becomes_of_the_broker_and_its_topics_all_is_forwarded_and_counted_once(tmp_path: Path) -> None:
    roles: list[Role] = ["api", "orchestrator", "relay", "reducer", "reducer"]
    async with Scene.of(tmp_path, roles) as scene:
        for blow in (stop_and_start, kill_and_start, hang_beyond_the_delivery_timeout, let_a_third_reducer_come_and_go):
            await blow(scene)
            await scene.laws_hold()
        for blow in (add_partitions, expire_all_records, delete_the_topics):
            await blow(scene)
            await scene.laws_hold()
        await scene.end()


ROWS: list[tuple[Role, Fault, Match]] = [
    ("relay", Fault.STALL_BEFORE, is_begin),  # sent, and its position has not moved
    ("relay", Fault.STALL_AFTER, is_commit),  # the position has moved, and it does not know
    ("reducer", Fault.STALL_BEFORE, is_begin),  # read and folded in memory, before the transaction
    ("reducer", Fault.STALL_AFTER, is_commit),  # folded, before Kafka's offset is told
]


async def test_relay_and_reducer_killed_at_each_row_of_the_crash_table_or_cut_off_lose_and_double_nothing(
    tmp_path: Path,
) -> None:
    front = f"127.0.0.1:{next(free_ports())}"
    async with Scene.of(tmp_path, ["api", "orchestrator"], advertised=front) as scene, AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(Cable(front, scene.broker.upstream))
        postgres = await stack.enter_async_context(DatabaseCable(scene.fleet.postgres.url))
        proxies: dict[Role, Proxy] = {}
        victims: dict[Role, Process] = {}
        for role in ("relay", "reducer"):
            proxies[role] = await stack.enter_async_context(Proxy(postgres.url))
        for role, proxy in proxies.items():
            victims[role] = await scene.fleet.join(
                role, program=impatient.PROGRAM, kafka_bootstrap_servers=front, database_url=proxy.url
            )
        await scene.recovers()
        for role, fault, match in ROWS:
            proxies[role].arm(fault, match)
            async with asyncio.timeout(PATIENCE_S):
                await proxies[role].struck.wait()
            await victims[role].kill()
            proxies[role].release()
            await victims[role].start()
            await scene.laws_hold()

        await asyncio.gather(*(scene.fleet.join(role) for role in victims))
        relay = victims["relay"]
        for fault in (kafka.stall, kafka.cut, postgres.cut, partial(postgres.forget, KEEPALIVE_S)):
            begin = relay.log_bytes()
            fault()
            await scene.says(relay, "the relay can't forward", begin)
            await scene.laws_hold()  # by those that are not cut off
            kafka.mend()
            postgres.mend()
            await scene.says(relay, "the relay forwards again", begin)
        await scene.laws_hold()
        await scene.end()
