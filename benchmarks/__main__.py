"""Run benchmarks by name and report them: `python -m benchmarks [NAME…]`. Progress goes to standard error."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from benchmarks import api, growth, hashing, processes, stamping, transitions
from benchmarks.lookups import LOOKUPS
from benchmarks.machine import machine, occasion
from benchmarks.measure import Row, say
from benchmarks.place import FULL, SMOKE, Place
from benchmarks.report import json_lines, markdown, write_document
from omninode_bridge.cli.running import collect_seldom

type Benchmark = Callable[[Place], Awaitable[list[Row]]]


async def _folding(place: Place) -> list[Row]:
    from benchmarks.folding import folding  # polars is installed for the benchmarks only

    return await folding(place)


async def _carrying(place: Place) -> list[Row]:
    from benchmarks.carrying import kafka_reduce  # polars, and a broker

    return await kafka_reduce(place)


BENCHMARKS: dict[str, Benchmark] = {
    "hash-large": hashing.hash_large,
    "hash-small": hashing.hash_small,
    "stamp-tree": stamping.stamp_tree,
    "stamp-again": stamping.stamp_again,
    "api": api.api,
    "fold": _folding,
    "kafka-reduce": _carrying,
    "fsm": transitions.fsm,
    "memory": processes.memory,
    "start": processes.start,
    "growth": growth.growth,
}
ROWS = (
    "hash-large", "hash-small", "stamp-tree", "stamp-again", "api", "api-p99", "fold", "fold-from-bytes",
    "kafka-reduce", "kafka-reduce-spared", "kafka-reduce-two", "fsm",
    "memory-idle", "memory-upload", "memory-file", "start-help", "start-up",
    "growth", "growth-cpu", "growth-after-checkpoint", *(f"growth-{lookup.name}" for lookup in LOOKUPS),
)  # fmt: skip
"""The rows that they report, in the order of docs/performance.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report what the arguments name; return the exit code: 0, or 2 for arguments that can't be meant."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Run benchmarks against their counterparts.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without it")
    parser.add_argument("--smoke", action="store_true", help="tiny data, one turn; judges nothing")
    parser.add_argument("--json", action="store_true", help="print NDJSON instead of a table")
    parser.add_argument("--write", action="store_true", help="also put the rows into docs/performance.md")
    parser.add_argument("--stamps", type=int, metavar="N", help="how far `growth` fills its database")
    parser.add_argument("--folder", type=Path, help="for data sets and databases (default: the temporary folder)")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is named {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    if asked.smoke and asked.write:
        parser.error("figures of a smoke run mean nothing: leave out --smoke or --write")
    if asked.stamps is not None and asked.write:
        parser.error("what is owed is owed on the full size: leave out --stamps or --write")
    if asked.stamps is not None and asked.stamps < 1:
        parser.error(f"--stamps {asked.stamps} is no number of stamps: give one from 1 on")
    return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    judged = not asked.smoke
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omninode-bridge-bench-", dir=asked.folder) as folder:
        size = SMOKE if asked.smoke else FULL
        if asked.stamps is not None:
            size = msgspec.structs.replace(size, growth_stamps=asked.stamps)
        place = Place(Path(folder), size)
        at, now = machine(place.folder), occasion()
        collect_seldom()  # as the command line does
        for name in asked.names or BENCHMARKS:
            say(name)
            rows += uvloop.run(_awaited(BENCHMARKS[name], place))
    if asked.json:
        for line in json_lines(at, now, rows, judged=judged):
            print(line.decode())
    else:
        print(markdown(at, now, rows, judged=judged))
    if asked.write:
        write_document(at, now, rows, ROWS)
    return 0


async def _awaited(benchmark: Benchmark, place: Place) -> list[Row]:
    return await benchmark(place)


if __name__ == "__main__":
    sys.exit(main())
