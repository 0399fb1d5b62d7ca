"""Kafka → reducer → PostgreSQL, exactly once: `serve --role reducer` against Quix Streams, on a real broker.

The events of `folding`, in shards, are in the event log and on the topic before the clock starts. Our side is one
reducer process, or two, with a database and a group of its own: held up until each has its partitions; the clock runs
from when a quarter of the events is folded to the last commit in PostgreSQL, and the totals must be those of the plain
fold. Records that it read from the log instead of Kafka are told. The counterpart gets the same events on
topics like ours, and computes the same totals, which must be right as well; and, `spared`, on a topic keyed as it likes
it, the totals by namespace only.

Without `.venv-quix` (scripts/set-up.sh bench makes it) ours is measured alone, and what is owed on the ratio is not
met.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
from msgspec.structs import astuple, replace

from benchmarks.databases import Databases
from benchmarks.folding import group_key, make_events, totals_of
from benchmarks.machine import ROOT
from benchmarks.measure import Debt, ResultsDiffer, Row, Run, Turns, result_hash, say, take_turns, the_same
from benchmarks.place import Place
from benchmarks.service import PROGRAM, environment
from omninode_bridge.adapters.kafka import KafkaPublisher, KafkaSettings
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.relay import transport_key
from omninode_bridge.adapters.postgres.state import PostgresStateStore
from omninode_bridge.app.project import live_generation
from omninode_bridge.domain.events import Erased, decode, encode, record_of
from omninode_bridge.domain.log import NIL_ID, Record
from omninode_bridge.domain.reduction import EMPTY, State, fold, item_of, merge
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.nodes.contracts import load_contracts
from tests.broker import Broker

QUIX_PYTHON = ROOT / ".venv-quix" / "bin" / "python"
SHARDS = 12
"""As many as a topic has partitions: then readers share them evenly."""
IN_A_ROW = 50
"""Events that one shard gets before the next, about as a writer's commits come."""
PUBLISHED_AT_ONCE = 4000
WARM_UP = 0.25
"""Part of the events before the clock starts: more than what is in memory when they may begin."""
LOOK_S = 0.02
PATIENCE_S = 300


class Given:
    """The events, as records of a log of SHARDS shards, and what they add up to."""

    def __init__(self, count: int) -> None:
        self.contracts = load_contracts()
        self.records = list(_chains(make_events(count)))
        items = [item_of(decode(record.body)) for record in self.records]
        self.state: State = fold(items, self.contracts.reducer.groupings)
        self.result = _hash(self.state)


async def kafka_reduce(place: Place) -> list[Row]:
    """Measure one reducer against Quix Streams, then two reducers against one."""
    given = Given(place.size.kafka_events)
    pairs = place.size.pairs_slow
    filled: list[float] = []
    async with Databases.on(place) as databases, _broker(place) as broker:
        async with databases.fresh() as url, postgres.pool(url) as pool:
            key = await transport_key(pool)  # all of them have it from the template
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, group="unused", key=key)
        said = time.perf_counter()
        await _publish(kafka, given.contracts.orchestrator.topics, given.records)
        published = len(given.records) / (time.perf_counter() - said)

        async def ours(reducers: int = 1) -> Run:
            rate, from_log = await _reduce(databases, broker, given, reducers)
            filled.append(from_log)
            return Run(rate, given.result)

        quix = _Quix(broker, place.folder, given)

        async def theirs(*, spared: bool = False) -> Run:
            return Run(await quix.run(spared=spared), given.result)

        if QUIX_PYTHON.exists():
            await _publish_copies(kafka, given)
            turns = await take_turns("kafka-reduce", pairs, ours, theirs, warm_up=False)
            spared = await take_turns("kafka-reduce-spared", pairs, ours, lambda: theirs(spared=True), warm_up=False)
        else:
            runs = [await ours() for _ in range(pairs)]
            turns = Turns([run.rate for run in runs], [], the_same("kafka-reduce", (run.result for run in runs)))
            spared = turns
        two = await take_turns("kafka-reduce-two", pairs, lambda: ours(2), ours, warm_up=False)
    events = len(given.records)
    return [
        Row(
            name="kafka-reduce",
            what=f"{events:,} events from Kafka to totals in PostgreSQL, exactly once, one reducer process",
            against="Quix Streams, exactly-once, the same totals of topics like ours" if turns.theirs else "",
            unit="events/s",
            ours=turns.ours,
            theirs=turns.theirs,
            ratios=turns.ratios if turns.theirs else [],
            owed=[Debt("ratio", "≥", 5), Debt("ours", "≥", 100_000)],
            result=turns.result,
            note=f"of these, {100 * statistics.median(filled):.0f} in 100 were read from the log; "
            f"the publisher sent {published:,.0f} a second"
            + ("" if turns.theirs else "; Quix Streams is not installed"),
        ),
        Row(
            name="kafka-reduce-spared",
            what="the same",
            against="Quix Streams, exactly-once, only by namespace, on a topic keyed for it" if spared.theirs else "",
            unit="events/s",
            ours=spared.ours,
            theirs=spared.theirs,
            ratios=spared.ratios if spared.theirs else [],
            result=spared.result,
        ),
        Row(
            name="kafka-reduce-two",
            what="the same by two reducer processes",
            against="by one",
            unit="events/s",
            ours=two.ours,
            theirs=two.theirs,
            ratios=two.ratios,
            result=two.result,
            note="two reducers, the broker and PostgreSQL share the machine's processors",
        ),
    ]


def _chains(bodies: Sequence[bytes]) -> Iterator[Record]:
    """Give each event a place in one of the shards of its topic."""
    heads: dict[tuple[str, int], tuple[int, str]] = {}
    for number, body in enumerate(bodies):
        event = decode(body)
        assert not isinstance(event, Erased)
        key = event.type, number // IN_A_ROW % SHARDS
        position, previous_id = heads.get(key, (0, NIL_ID))
        heads[key] = position + 1, event.id
        moved = replace(event, shard=key[1], position=position + 1, previousid=previous_id)
        yield record_of(encode(moved))


def _hash(state: State) -> str:
    return result_hash(f"{key} {totals}" for key, totals in state.items())


@asynccontextmanager
async def _broker(place: Place) -> AsyncIterator[Broker]:
    folder = place.folder / "kafka"
    folder.mkdir()
    try:
        async with Broker(folder) as broker:
            yield broker
    finally:
        shutil.rmtree(folder)


async def _publish(kafka: KafkaSettings, topics: Topics, records: Sequence[Record]) -> None:
    async with KafkaPublisher(kafka, topics) as publisher:
        await publisher.prepare()
        for start in range(0, len(records), PUBLISHED_AT_ONCE):
            refused = await publisher.publish(records[start : start + PUBLISHED_AT_ONCE])
            assert not any(refused), refused


_COPIES = "quix."
"""What the topics are called that the counterpart reads, with events like ours."""
_KEYED = Topics(("quix.keyed",), partitions=SHARDS)


async def _publish_copies(kafka: KafkaSettings, given: Given) -> None:
    """Publish the counterpart's events: as ours are, and keyed by namespace."""
    topics, records = given.contracts.orchestrator.topics, given.records
    copies = Topics(tuple(_COPIES + name for name in topics.names), partitions=topics.partitions)
    await _publish(kafka, copies, [replace(record, topic=_COPIES + record.topic) for record in records])
    names = sorted({record.namespace for record in records})
    keyed = [
        replace(record, topic=_KEYED.names[0], workflow_id=record.namespace, shard=names.index(record.namespace))
        for record in records
    ]
    await _publish(kafka, _KEYED, keyed)


async def _reduce(databases: Databases, broker: Broker, given: Given, reducers: int) -> tuple[float, float]:
    """Return events a second, and which part of them was read from the log."""
    count = len(given.records)
    async with databases.fresh() as url:
        session = await postgres.connect(url)
        try:
            await _log(session, given.records)
            async with postgres.pool(url) as pool:
                await live_generation(PostgresStateStore(pool), given.contracts.reducer.groupings)
            with ExitStack() as stack:
                group = uuid4().hex
                async with session.transaction():
                    # Nothing is folded before all of them have their partitions, and what they read first.
                    await session.execute("SELECT FROM state_generations FOR UPDATE")
                    running = [stack.enter_context(_reducer(url, broker, group)) for _ in range(reducers)]
                    await _assigned(running)
                rate = await _timed(session, count)
                filled = sum(_gauge(address, "kafka_filled_total") for address in running)
            async with postgres.pool(url) as pool:
                if _hash(await PostgresStateStore(pool).rows(None)) != given.result:
                    raise ResultsDiffer("kafka-reduce: the totals are not those of the fold")
        finally:
            await session.close()
    return rate, filled / count


async def _log(session: asyncpg.Connection, records: Sequence[Record]) -> None:
    """Write the records into the event log, from where they were published."""
    rows = [astuple(record) for record in records]
    await session.copy_records_to_table("event_log", records=rows, timeout=PATIENCE_S)
    heads = {(record.topic, record.shard): record for record in records}
    await session.copy_records_to_table(
        "log_heads", records=[(*key, head.position, head.event_id, 0) for key, head in heads.items()]
    )
    await session.execute("ANALYZE")
    await session.execute("CHECKPOINT")


async def _assigned(running: Sequence[str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not all(_gauge(address, "kafka_partitions") for address in running):  # noqa: ASYNC110 - it can only be asked
            await asyncio.sleep(0.1)


async def _timed(session: asyncpg.Connection, count: int) -> float:
    """Return events a second, from when WARM_UP of them are folded to the last commit."""
    first, began_s = 0, time.perf_counter()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            folded = await session.fetchval(
                "SELECT coalesce(sum(position), 0)::bigint FROM consumer_positions WHERE consumer LIKE 'reducer/%'"
            )
            now_s = time.perf_counter()
            if folded == count:
                return float((count - first) / (now_s - began_s))
            if not first and folded >= WARM_UP * count:
                first, began_s = folded, now_s
            await asyncio.sleep(LOOK_S)


@contextmanager
def _reducer(url: str, broker: Broker, group: str) -> Iterator[str]:
    """Run a reducer process; yield where it serves."""
    settings = {
        "BRIDGE_DATABASE_URL": url,
        "BRIDGE_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "BRIDGE_KAFKA_GROUP": group,
    }
    process = subprocess.Popen(
        [PROGRAM, "serve", "--role", "reducer", "--port", "0"],
        env=environment() | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "http://" in line), "")
        found = re.search(r"http://[^\s/]+", line)
        if found is None:
            raise RuntimeError("kafka-reduce: the reducer did not serve")
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()


def _gauge(address: str, name: str) -> float:
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:  # noqa: S310 - an address of our own
        text = answer.read().decode()
    found = re.search(rf"^omninode_bridge_{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


class _Quix(NamedTuple):
    """The counterpart, on the copies of the events."""

    broker: Broker
    folder: Path
    given: Given

    async def run(self, *, spared: bool) -> float:
        """Return its events a second; ResultsDiffer unless its totals are right. `spared`: see `quix_peer`."""
        state, contracts, count = self.folder / "quix", self.given.contracts, len(self.given.records)
        groupings = contracts.reducer.groupings
        names = [_COPIES + name for name in contracts.orchestrator.topics.names]
        task = {
            "bootstrap": self.broker.bootstrap_servers, "group": uuid4().hex, "folder": str(state),
            "count": count, "topics": _KEYED.names if spared else names, "spared": spared,
            "window_ms": groupings.window_ms, "size_bounds": groupings.size_bounds,
            "metadata_fields": groupings.metadata_fields,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            QUIX_PYTHON, ROOT / "benchmarks" / "quix_peer.py", json.dumps(task), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await process.communicate()
        shutil.rmtree(state, ignore_errors=True)
        found = json.loads(said)
        if self._state(found["rows"]) != self._wanted(spared=spared):
            raise ResultsDiffer("kafka-reduce: Quix Streams comes to other totals")
        say(f"kafka-reduce: Quix Streams took {found['seconds']:.1f} s for {count:,} events")
        return float(count / found["seconds"])

    def _state(self, rows: Sequence[list[Any]]) -> State:
        state: State = {}
        for namespace, kind, key, *figures, first, last in rows:
            group = namespace, kind, group_key(kind, key, self.given.contracts.reducer)
            totals = totals_of(*[*figures, *_moment(first), *_moment(last)])
            state[group] = merge(state.get(group, EMPTY), totals)
        return state

    def _wanted(self, *, spared: bool) -> State:
        state = self.given.state
        return {group: totals for group, totals in state.items() if not spared or group[1] == "namespace"}


def _moment(told: Sequence[Any]) -> tuple[datetime, str]:
    return datetime(1970, 1, 1) + timedelta(microseconds=told[0]), told[1]  # noqa: DTZ001 - UTC, as from polars
