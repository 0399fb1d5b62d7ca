"""What a stamp costs, and how long reads take, on a database of millions of stamps, against one of ten thousand.

Each on an embedded PostgreSQL of its own. The large database is filled the way batches over HTTP and trees come in: by
the orchestrator, a thousand requests at a time, four batches at once, two writers, the reducer folding along. It is
measured in pairs: the same requests are stamped into the large database, and into a fresh clone of the small one,
within the same half minute. Each turn has a bridge of its own that is warmed up; the clock stops when the totals
include all. The processor time is that of this process and of all of that PostgreSQL's. Autovacuum comes when it comes.

What a stamp costs changes from one checkpoint to the next: the first change of a page after it writes the whole page
to the log. So `growth` is a whole cycle, turn after turn, from where the server begins a checkpoint by itself to where
it begins the next, with the writing of what the first one left; a clone has no such pages at all, which is the
harder comparison. `growth-after-checkpoint` is the worst moment: both sides have a checkpoint right before each turn.

Before the large database is trusted, its totals are held against what was asked for, and a sample of its stamps,
workflows and events against each other. `lookups` has the reads.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import corpus, lookups
from benchmarks.databases import Databases
from benchmarks.measure import Debt, ResultsDiffer, Row, result_hash, say, the_same
from benchmarks.place import GIB, Place, Size
from omninode_bridge.app import bootstrap
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.domain.events import StampingCompleted, decode
from omninode_bridge.domain.stamp import Stamp, StampRequest

LEVELS = (100_000, 1_000_000, 5_000_000)
"""Where the large database is measured on its way, as far as it goes."""
BATCH = 1000
BATCHES_IN_FLIGHT = 4
PORTION = 20 * BATCH
"""Requests made in one go while the database is filled."""
KEPT_STAMPS = 10_000
STAMP_BYTES = 4096
"""Room on the disk for a stamp: 2.8 KiB are its rows, event and index entries."""
LOG_BYTES_MAX = 6 * GIB
LOG_BYTES = 65_536
"""Room for the write-ahead log: so much a stamp, until PostgreSQL uses its files again."""
AUDITED_STAMPS = 300
AUDITED_WINDOWS = 20
"""Of each shard of the event log, as many records as the shard has at most."""
WINDOW_EVENTS = 100
FLAT = 1.2
CYCLES = 2


class Cost(NamedTuple):
    """What a stamp took: microseconds, and bytes of PostgreSQL's write-ahead log."""

    wall_us: float
    cpu_us: float
    log_bytes: float
    result: str


class Level(NamedTuple):
    """The pairs measured from a number of stamps on: (large, small)."""

    stamps: int
    pairs: list[tuple[Cost, Cost]]

    def ours(self, figure: str) -> list[float]:
        return [getattr(large, figure) for large, _ in self.pairs]

    def theirs(self, figure: str) -> list[float]:
        return [getattr(small, figure) for _, small in self.pairs]

    def ratios(self, figure: str) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours(figure), self.theirs(figure), strict=True)]

    def mean(self, figure: str, side: int) -> float:
        return float(statistics.mean(getattr(pair[side], figure) for pair in self.pairs))

    def told(self) -> str:
        wall, cpu = (statistics.median(self.ratios(figure)) for figure in ("wall_us", "cpu_us"))
        return f"at {self.stamps:,} {wall:.2f} × the time and {cpu:.2f} × the processor time"


async def growth(place: Place) -> list[Row]:
    """Fill a database, measure stamps on the way, and reads at the end."""
    size = place.size
    require_room(place.folder, size.growth_stamps)
    async with (
        _Server.on(place, "postgres-small") as with_small,
        _Server.on(place) as with_large,
        with_small.fresh() as small_url,
        with_large.fresh() as large_url,
    ):
        small, large = Database(small_url, size.growth_base), Database(large_url, size.growth_stamps)
        pairs = _Pairs(size, with_small, small, with_large, large)
        await small.fill(size.growth_base)
        levels = [await pairs.of_clones()]
        for stamps in sorted({size.growth_stamps, *(level for level in LEVELS if level < size.growth_stamps)}):
            await large.fill(stamps)
            levels.append(await pairs.level())
        result = result_hash([*(large.result for level in levels for large, _ in level.pairs), await large.checked()])
        reads = await pairs.reads()
        cycles = await pairs.cycles()
        await large.checked()
    return [*_cost_rows(place, levels, cycles, result), *reads]


def require_room(folder: Path, stamps: int) -> None:
    """Raise RuntimeError when a folder has not the room for so many stamps."""
    needed, free = stamps * STAMP_BYTES + min(LOG_BYTES_MAX, stamps * LOG_BYTES), shutil.disk_usage(folder).free
    say(f"growth: {stamps:,} stamps take up to {needed / GIB:.0f} GiB of {folder}, {free / GIB:.0f} GiB are free")
    if needed > free:
        raise RuntimeError(
            f"growth needs {needed / GIB:.0f} GiB in {folder}, {free / GIB:.0f} are free: name another folder with "
            "--folder, or fewer stamps with --stamps"
        )


def _cost_rows(place: Place, levels: Sequence[Level], cycles: Sequence[Level], result: str) -> list[Row]:
    size, base, last = place.size, place.size.growth_base, levels[-1]
    against = f"the same at {base:,}"
    more = "; ".join(level.told() for level in levels[1:-1])
    logged = [statistics.median(side) / 1024 for side in (last.ours("log_bytes"), last.theirs("log_bytes"))]
    in_cycle = statistics.mean(cycle.mean("log_bytes", 0) for cycle in cycles) / 1024
    turns = " and ".join(str(len(cycle.pairs)) for cycle in cycles)
    rows = [
        Row(
            name=name,
            what=f"stamp one more at {cycles[0].stamps:,} stamps, from one checkpoint to the next: {of}",
            against=against,
            unit="µs/stamp",
            ours=[cycle.mean(figure, 0) for cycle in cycles],
            theirs=[cycle.mean(figure, 1) for cycle in cycles],
            ratios=[cycle.mean(figure, 0) / cycle.mean(figure, 1) for cycle in cycles],
            owed=[Debt("ratio", "≤", FLAT)],
            result=result,
            note=note,
        )
        for name, figure, of, note in (
            ("growth", "wall_us", "time", f"{turns} turns of {size.growth_turn:,}"),
            (
                "growth-cpu",
                "cpu_us",
                "processor time, PostgreSQL's included",
                f"{in_cycle:.1f} KiB of write-ahead log a stamp",
            ),
        )
    ]
    worst = Row(
        name="growth-after-checkpoint",
        what=f"stamp one more at {last.stamps:,} stamps, right after a checkpoint: time",
        against=against,
        unit="µs/stamp",
        ours=last.ours("wall_us"),
        theirs=last.theirs("wall_us"),
        ratios=last.ratios("wall_us"),
        result=result,
        note=f"{size.growth_turn:,} a turn; {statistics.median(last.ratios('cpu_us')):.2f} × the processor time; "
        f"{logged[0]:.1f} KiB of write-ahead log a stamp, {logged[1]:.1f} KiB there; "
        f"two clones of the small one differ by {statistics.median(levels[0].ratios('wall_us')):.2f} ×"
        + (f"; {more}" if more else ""),
    )
    return [*rows, worst]


class Database:
    """One of the two, which is to have so many stamps, and what was asked of it."""

    def __init__(self, url: str, stamps_to_be: int) -> None:
        self.url = url
        self.stamps = 0
        self.kept: list[Stamp] = []
        """Some of the answers, evenly spread: reads by id ask for them."""
        self._keep_every = max(1, stamps_to_be // KEPT_STAMPS)
        self._asked: Counter[str] = Counter()
        self._asked_bytes: Counter[str] = Counter()

    async def fill(self, stamps: int) -> None:
        """Stamp until there are so many."""
        async with bootstrap.connect(self.url) as bridge:
            while self.stamps < stamps:
                count = min(PORTION, stamps - self.stamps)
                began_s = time.perf_counter()
                answered = await self.stamp(bridge, corpus.requests(self.stamps, count))
                self.kept += sorted(answered, key=corpus.said)[:: self._keep_every]
                rate = count / (time.perf_counter() - began_s)
                if self.stamps == stamps or self.stamps % (10 * PORTION) < PORTION:
                    say(f"growth: {self.stamps:,} stamps, {rate:,.0f} a second")
            await bridge.query.up_to_date()

    async def stamp(self, bridge: Bridge, requests: Sequence[StampRequest]) -> list[Stamp]:
        """Stamp requests that were not asked for before; return the new stamps, in whatever order."""
        for request in requests:
            self._asked[request.namespace] += 1
            self._asked_bytes[request.namespace] += corpus.size_of(request)
        self.stamps += len(requests)
        return await _stamped(bridge, requests)

    async def checked(self) -> str:
        """Return a hash of the totals; ResultsDiffer unless they are those of the requests, and a sample is sound."""
        async with bootstrap.connect(self.url) as bridge:
            rows = await bridge.query.rows("namespace")
            found = {row.namespace: (row.total_stamps, row.total_size_bytes, row.failed) for row in rows}
            asked = {name: (count, self._asked_bytes[name], 0) for name, count in self._asked.items()}
            if found != asked:
                differing = sorted(name for name in found | asked if found.get(name) != asked.get(name))
                raise ResultsDiffer(f"growth: the totals are not those of what was asked for: {differing[:5]}")
            await _spot_audit(bridge, self)
        return result_hash(f"{name} {totals}" for name, totals in found.items())


class _Server(Databases):
    """A server, and what a turn costs there."""

    @asynccontextmanager
    async def clone(self, database: Database) -> AsyncIterator[Database]:
        """Yield a copy of a database that nobody uses now; dropped afterwards."""
        name = f"clone_{next(self._numbers)}"
        template = database.url.rpartition("/")[2].partition("?")[0]
        await self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            clone = Database(self._url(name), database.stamps)
            clone.stamps, clone.kept = database.stamps, database.kept
            yield clone
        finally:
            await self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def turn(self, database: Database, first: int, count: int, *, checkpoint: bool) -> Cost:
        """Stamp requests from a serial number on, the first fifth before the clock starts."""
        async with bootstrap.connect(database.url) as bridge:
            await database.stamp(bridge, corpus.requests(first, count // 5))
            await bridge.query.up_to_date()
            requests = corpus.requests(first + count // 5, count)
            if checkpoint:
                await self._admin.execute("CHECKPOINT")
            log, cpu_s, began_s = await self._log_bytes(), self._cpu_s(), time.perf_counter()
            answered = await database.stamp(bridge, requests)
            await bridge.query.up_to_date()
            wall_s, cpu_s, log = time.perf_counter() - began_s, self._cpu_s() - cpu_s, await self._log_bytes() - log
        result = result_hash(map(corpus.said, answered))
        return Cost(1e6 * wall_s / count, 1e6 * cpu_s / count, log / count, result)

    async def checkpoints(self) -> int:
        """Return how many were begun."""
        return int(await self._admin.fetchval("SELECT num_timed + num_requested FROM pg_stat_checkpointer"))

    async def _log_bytes(self) -> int:
        return int(await self._admin.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def _cpu_s(self) -> float:
        """Return the processor time of this process and of all processes that PostgreSQL has and had."""
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return time.process_time() + _cpu_s(pid, ended_children=True) + sum(map(_cpu_s, map(int, children)))


class _Pairs(NamedTuple):
    """The two databases, each on its server."""

    size: Size
    with_small: _Server
    small: Database
    with_large: _Server
    large: Database

    async def of_clones(self) -> Level:
        """Measure what two clones of the small database differ by."""
        first = self.small.stamps
        pairs = [(await self._of_small(first), await self._of_small(first)) for _ in range(self.size.pairs_slow)]
        return self._level(first, pairs)

    async def level(self) -> Level:
        """Measure right after checkpoints; which side comes first alternates."""
        stamps, pairs = self.large.stamps, []
        for number in range(self.size.pairs_slow):
            first = self.large.stamps
            theirs = await self._of_small(first) if number % 2 else None
            ours = await self._of_large(first, checkpoint=True)
            pairs.append((ours, theirs or await self._of_small(first)))
        return self._level(stamps, pairs)

    async def cycles(self) -> list[Level]:
        """Measure from where the server of the large database begins a checkpoint to where it begins another."""
        await self._to_a_checkpoint()
        return [self._level(self.large.stamps, await self._to_a_checkpoint()) for _ in range(CYCLES)]

    async def _to_a_checkpoint(self) -> list[tuple[Cost, Cost]]:
        begun = await self.with_large.checkpoints()
        pairs: list[tuple[Cost, Cost]] = []
        while len(pairs) < self.size.growth_turns_max and await self.with_large.checkpoints() == begun:
            first = self.large.stamps
            ours = await self._of_large(first, checkpoint=False)
            pairs.append((ours, await self._of_small(first, checkpoint=False)))
        return pairs

    async def _of_large(self, first: int, *, checkpoint: bool) -> Cost:
        return await self.with_large.turn(self.large, first, self.size.growth_turn, checkpoint=checkpoint)

    async def _of_small(self, first: int, *, checkpoint: bool = True) -> Cost:
        async with self.with_small.clone(self.small) as clone:
            return await self.with_small.turn(clone, first, self.size.growth_turn, checkpoint=checkpoint)

    def _level(self, stamps: int, pairs: list[tuple[Cost, Cost]]) -> Level:
        for pair in pairs:
            the_same("growth", (cost.result for cost in pair))
        level = Level(stamps, pairs)
        say(f"growth: {level.told()}")
        return level

    async def reads(self) -> list[Row]:
        async with (
            self.with_small.clone(self.small) as clone,
            bootstrap.connect(self.large.url) as ours,
            bootstrap.connect(clone.url) as theirs,
        ):
            faults = [finding.title for finding in await theirs.audit() if not finding.holds]
            if faults:
                raise ResultsDiffer(f"growth: the audit of the small database finds faults: {faults}")
            return await lookups.measured(
                lookups.Target(ours, self.large.stamps, self.large.kept),
                lookups.Target(theirs, clone.stamps, clone.kept),
                count=self.size.growth_reads,
            )


async def _stamped(bridge: Bridge, requests: Sequence[StampRequest]) -> list[Stamp]:
    batches = itertools.batched(requests, BATCH)
    stamps: list[Stamp] = []

    async def work(mine: Iterator[tuple[StampRequest, ...]]) -> None:
        for batch in mine:
            for answer in await bridge.orchestrator.run_many(batch):
                if isinstance(answer, BridgeError):
                    raise answer
                if answer.deduplicated:
                    raise ResultsDiffer(f"growth: {answer.file_path} in {answer.namespace} was taken for a repetition")
                stamps.append(answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(BATCHES_IN_FLIGHT):
            group.create_task(work(batches))
    return stamps


async def _spot_audit(bridge: Bridge, database: Database) -> None:
    """Hold a sample of stamps, workflows and events against each other; ResultsDiffer where they differ."""
    heads = await bridge.source.heads()
    logged = sum(head.position for head in heads.values())
    if logged != database.stamps:
        raise ResultsDiffer(f"growth: {logged:,} events are in the log of {database.stamps:,} stamps")
    step = max(1, len(database.kept) // AUDITED_STAMPS)
    for stamp in database.kept[::step]:
        (prior,) = await bridge.reads.workflow(stamp.workflow_id)
        history = await bridge.reads.history(stamp.namespace, stamp.file_path)
        versions = [version.version for version in history]
        if prior.stamp != stamp or stamp not in history or versions != list(range(len(history), 0, -1)):
            raise ResultsDiffer(f"growth: stamp {stamp.stamp_id} is not recorded as it was answered")
    for key, head in heads.items():
        apart = max(1, head.position // AUDITED_WINDOWS)
        for after in range(0, head.position, apart):
            until = min(after + WINDOW_EVENTS, head.position)
            sight = await bridge.source.look({key: (after, until)}, records_max=WINDOW_EVENTS, bytes_max=GIB)
            if [record.position for record in sight.records] != list(range(after + 1, until + 1)):
                raise ResultsDiffer(f"growth: the event log of {key} has a hole after {after}")
            for before, record in itertools.pairwise(sight.records):
                event = decode(record.body)
                assert isinstance(event, StampingCompleted)
                if record.previous_id != before.event_id or await bridge.reads.by_id(event.data.stamp_id) != event.data:
                    raise ResultsDiffer(f"growth: event {record.event_id} is not that of its stamp")


def _cpu_s(pid: int, *, ended_children: bool = False) -> float:
    """Return the processor time of a process, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime and stime, the 14th and 15th of proc_pid_stat(5); then those of children that were waited for
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / os.sysconf("SC_CLK_TCK")
