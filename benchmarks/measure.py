"""What a benchmark reports, and how two sides are measured: in turns, so that the machine's moods meet both alike."""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import msgspec


class Run(NamedTuple):
    """One run of one side: amount a second, and the hash of what came out."""

    rate: float
    result: str


type Side = Callable[[], Awaitable[Run]]


class ResultsDiffer(Exception):
    """Two runs that should have computed the same did not: their figures mean nothing."""


class Debt(msgspec.Struct, frozen=True):
    """A bound that is owed. `of` says on what: the median ratio, or the median of our own figures.

    What was not measured is not met.
    """

    of: Literal["ratio", "ours"]
    sense: Literal["≥", "≤"]
    bound: float

    def met(self, row: Row) -> bool:
        figures = row.ratios if self.of == "ratio" else row.ours
        if not figures:
            return False
        median = statistics.median(figures)
        return median >= self.bound if self.sense == "≥" else median <= self.bound


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the report. `ours` and `theirs` are figures in `unit`, a run each; `ratios` those of the pairs."""

    name: str
    what: str
    unit: str
    ours: list[float]
    result: str
    against: str = ""
    theirs: list[float] = []
    ratios: list[float] = []
    owed: list[Debt] = []
    note: str = ""

    @property
    def verdict(self) -> str:
        if not self.owed:
            return "–"
        return "met" if all(debt.met(self) for debt in self.owed) else "short"


class Turns(NamedTuple):
    """What `take_turns` measured."""

    ours: list[float]
    theirs: list[float]
    result: str

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]


async def take_turns(name: str, pairs: int, ours: Side, theirs: Side, *, warm_up: bool = True) -> Turns:
    """Run both sides alternately; ResultsDiffer unless every run has the same result.

    `warm_up`: one run of each comes first and is not counted (page cache, imports, prepared statements).
    """
    if warm_up:
        say(f"{name}: warming up")
        await ours()
        await theirs()
    our_runs: list[Run] = []
    their_runs: list[Run] = []
    for number in range(1, pairs + 1):
        our_runs.append(await ours())
        their_runs.append(await theirs())
        say(f"{name}: pair {number} of {pairs}, ratio {our_runs[-1].rate / their_runs[-1].rate:.2f}")
    result = the_same(name, (run.result for run in (*our_runs, *their_runs)))
    return Turns([run.rate for run in our_runs], [run.rate for run in their_runs], result)


def the_same(name: str, results: Iterable[str]) -> str:
    """Return the one result of all runs, or raise ResultsDiffer."""
    distinct = set(results)
    if len(distinct) != 1:
        raise ResultsDiffer(f"{name}: runs came to different results ({', '.join(sorted(distinct))})")
    return distinct.pop()


def result_hash(lines: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that stand for lines, in whatever order they come."""
    digest = hashlib.blake2b(digest_size=8)
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


class Watch:
    """A stretch of time: `seconds` once it is over, or so far."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._ended: float | None = None

    def stop(self) -> None:
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        return (self._ended or time.perf_counter()) - self._started


@contextmanager
def timed() -> Iterator[Watch]:
    """Measure the time that the block takes."""
    watch = Watch()
    yield watch
    watch.stop()


def say(text: str) -> None:
    """Tell how far the run is, on standard error."""
    print(f"==> {text}", file=sys.stderr, flush=True)
