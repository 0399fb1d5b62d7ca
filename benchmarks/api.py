"""`POST /stamp` on one API process, against DBOS Transact running the same three steps on the same PostgreSQL server.

Each run has a process of its own and a database of its own, cloned from a migrated template, after a checkpoint; it
warms up before the clock starts. DBOS, being slower, runs only the first few of the requests: on those, both sides must
have come to the same stamps. On our side every answer is read when the clock has stopped: it must be the stamp of its
request, the database must hold just these stamps, each once, and `audit` must find nothing.

Without `dbos` (scripts/set-up.sh bench installs it) ours is measured alone, and what is owed on the ratio is not met.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from benchmarks import loadgen
from benchmarks.databases import Databases
from benchmarks.machine import ROOT
from benchmarks.measure import Debt, ResultsDiffer, Row, Run, Turns, say, take_turns, the_same
from benchmarks.place import Place
from benchmarks.service import PROGRAM, environment
from benchmarks.wanted import COLUMNS, CONTENT_BYTES, NAMESPACE, Wanted, stamps_hash, wanted
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.app import bootstrap

COMMAND = ("serve", "--role", "api")
"""The API as one process on a PostgreSQL that is there; whoever reads the state folds it."""
CONNECTIONS = 64
RATE = 3000
"""Requests a second that are due in the open loop."""
WARM_UP_REQUESTS = 20 * CONNECTIONS
_STOP_S_MAX = 60

type Load = Callable[[int, list[bytes]], Coroutine[Any, Any, loadgen.Load]]


class _Answer(msgspec.Struct, frozen=True):
    """What is read of an answer."""

    stamp_id: str
    namespace: str
    file_path: str
    file_hash: str
    file_size: int
    content_type: str
    version: int
    deduplicated: bool


class _Ours(NamedTuple):
    """One run of ours. The generator's processor time is what it took from the two sides of it."""

    load: loadgen.Load
    generator_us: float
    result: str


async def api(place: Place) -> list[Row]:
    """Measure how many stamps a second are to be had, and how long they take when 3,000 a second are asked for."""
    size = place.size
    closed: list[_Ours] = []
    opened: list[_Ours] = []
    closed_loop = partial(loadgen.closed_loop, connections=CONNECTIONS)
    open_loop = partial(loadgen.open_loop, connections=CONNECTIONS, rate=RATE)
    async with Databases.on(place) as databases:

        async def ours() -> Run:
            closed.append(await _stamp_all(databases, place, closed_loop))
            return Run(closed[-1].load.rate, closed[-1].result)

        async def theirs() -> Run:
            return await _dbos(databases, place)

        if find_spec("dbos") is not None:
            turns = await take_turns("api", size.pairs_slow, ours, theirs, warm_up=False)
        else:
            runs = [await ours() for _ in range(size.pairs_slow)]
            turns = Turns([run.rate for run in runs], [], the_same("api", (run.result for run in runs)))
        for number in range(1, size.pairs_slow + 1):
            run = await _stamp_all(databases, place, open_loop)
            opened.append(run)
            say(f"api-p99: run {number} of {size.pairs_slow}, {run.load.latency_ms(0.99):.1f} ms")
    theirs_ran = f"the first {size.peer_workflows:,} of them by DBOS" if turns.theirs else "DBOS is not installed"
    return [
        Row(
            name="api",
            what=f"POST /stamp, {CONTENT_BYTES:,} bytes as JSON, {CONNECTIONS} connections, one process",
            against=f"DBOS Transact, {CONNECTIONS} workflows at a time, in process" if turns.theirs else "",
            unit="stamps/s",
            ours=turns.ours,
            theirs=turns.theirs,
            ratios=turns.ratios if turns.theirs else [],
            owed=[Debt("ratio", "≥", 60)],
            result=turns.result,
            note=f"{size.api_requests:,} stamps a run, {theirs_ran}; the load generator takes "
            f"{_median(run.generator_us for run in closed):.0f} µs of processor time a stamp",
        ),
        Row(
            name="api-p99",
            what=f"the same at {RATE:,} a second, from when a request is due to its answer: 99 of 100 within",
            unit="ms",
            ours=[run.load.latency_ms(0.99) for run in opened],
            owed=[Debt("ours", "≤", 25)],
            result=the_same("api-p99", (run.result for run in opened)),
            note=f"half within {_median(run.load.latency_ms(0.5) for run in opened):.1f} ms, "
            f"95 of 100 within {_median(run.load.latency_ms(0.95) for run in opened):.1f} ms; "
            f"{_median(run.load.rate for run in opened):,.0f} a second were answered",
        ),
    ]


async def _stamp_all(databases: Databases, place: Place, send: Load) -> _Ours:
    """Serve on a fresh database, warm up, send all requests; check what was answered and what is recorded."""
    asked, warming = wanted(place.size.api_requests), wanted(WARM_UP_REQUESTS, "warm-up")
    requests = _encoded(asked)
    async with databases.fresh() as url:
        with _serving(url) as port:
            warmed = await loadgen.closed_loop(port, _encoded(warming), CONNECTIONS)
            before_s = time.process_time()
            load = await send(port, requests)
            generator_s = time.process_time() - before_s
        recorded = _checked(warming, warmed) | _checked(asked, load)
        result = await _recorded(url, recorded, asked[: place.size.peer_workflows])
    return _Ours(load, 1e6 * generator_s / len(asked), result)


async def _dbos(databases: Databases, place: Place) -> Run:
    count = place.size.peer_workflows
    async with databases.fresh() as url:
        seconds = _peer(url, count)
        connection = await postgres.connect(url)
        try:
            rows = await connection.fetch(f"SELECT {', '.join(COLUMNS)} FROM stamps")  # noqa: S608 - our own names
        finally:
            await connection.close()
    paths = {one.file_path for one in wanted(count)}
    return Run(count / seconds, stamps_hash(row.values() for row in rows if row["file_path"] in paths))


def _encoded(asked: list[Wanted]) -> list[bytes]:
    bodies = (
        {"file_path": one.file_path, "namespace": NAMESPACE, "content": one.content, "content_type": "text/plain"}
        for one in asked
    )
    return [loadgen.post("/stamp", msgspec.json.encode(body)) for body in bodies]


def _checked(asked: list[Wanted], load: loadgen.Load) -> dict[str, tuple[Any, ...]]:
    """Return the stamps that were answered, by id; ResultsDiffer unless each request got its own new stamp."""
    decode = msgspec.json.Decoder(_Answer).decode
    stamps: dict[str, tuple[Any, ...]] = {}
    for one, answer in zip(asked, load.answers, strict=True):
        if answer.status != 201:
            raise ResultsDiffer(f"api: {one.file_path} was answered {answer.status}: {answer.body[:300]!r}")
        stamp = decode(answer.body)
        content = one.content.encode()
        wanted_hash = blake3(content).hexdigest()
        if (stamp.file_path, stamp.file_hash, stamp.file_size) != (one.file_path, wanted_hash, len(content)):
            raise ResultsDiffer(f"api: {one.file_path} was answered by another stamp: {answer.body[:300]!r}")
        if stamp.deduplicated or stamp.stamp_id in stamps:
            raise ResultsDiffer(f"api: {one.file_path} was answered by a stamp that was there: {answer.body[:300]!r}")
        stamps[stamp.stamp_id] = tuple(getattr(stamp, column) for column in COLUMNS)
    return stamps


async def _recorded(url: str, answered: dict[str, tuple[Any, ...]], compared: list[Wanted]) -> str:
    """Return the hash of the compared stamps as they are recorded; ResultsDiffer unless all are as answered."""
    connection = await postgres.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT stamp_id::text, namespace, file_path, encode(digest, 'hex'), file_size, content_type, version"
            " FROM metadata_stamps"
        )
    finally:
        await connection.close()
    recorded = {stamp_id: tuple(columns) for stamp_id, *columns in rows}
    if recorded != answered:
        lost, more = len(answered.keys() - recorded.keys()), len(recorded.keys() - answered.keys())
        raise ResultsDiffer(f"api: of {len(answered)} stamps {lost} are not recorded; {more} are that nobody was told")
    async with bootstrap.connect(url) as bridge:
        state = await bridge.state(NAMESPACE)
        faults = [finding.title for finding in await bridge.audit() if not finding.holds]
    if faults or state.total_stamps != len(answered):
        raise ResultsDiffer(f"api: {state.total_stamps} stamps are counted of {len(answered)}; audit: {faults}")
    paths = {one.file_path for one in compared}
    return stamps_hash(columns for columns in recorded.values() if columns[1] in paths)


@contextmanager
def _serving(url: str) -> Iterator[int]:
    """Run the API on a database; yield its port."""
    command = [str(PROGRAM), *COMMAND, "--host", "127.0.0.1", "--port", "0"]
    settings = {**environment(), "BRIDGE_DATABASE_URL": url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdout is not None
        try:
            yield next(int(found[1]) for line in process.stdout if (found := re.search(r"http://[^\s/]+:(\d+)", line)))
        except StopIteration:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.wait()} before it served") from None
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_S_MAX)


def _peer(url: str, count: int) -> float:
    """Return how many seconds DBOS took."""
    command = [sys.executable, "-m", "benchmarks.dbos_peer", url, str(count), str(CONNECTIONS)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=settings).stdout)


def _median(figures: Iterator[float]) -> float:
    return statistics.median(figures)
