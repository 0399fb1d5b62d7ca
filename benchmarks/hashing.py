"""Hashing against Debian's b3sum: one large file, and a tree of small ones. Files are in the page cache.

Ours is measured in process, as the bridge hashes in its own: the time from the paths to the digests, walk included.
b3sum is measured as a process, because that is what it is; its start takes about a millisecond. What ours would take as
a process, with the interpreter's start and our imports, is in the row's note.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks.digests import digest_lines
from benchmarks.machine import ROOT
from benchmarks.measure import Debt, Row, Run, result_hash, take_turns, timed
from benchmarks.place import Place


async def hash_large(place: Place) -> list[Row]:
    """Hash one large file with as many threads as there are cores."""
    name, size = place.large_file.name, place.size.large_file_bytes

    async def ours() -> Run:
        with timed() as watch:
            lines = await digest_lines([name])
        return Run(size / watch.seconds, result_hash(lines))

    async def theirs() -> Run:
        with timed() as watch:
            lines = _b3sum(name)
        return Run(size / watch.seconds, result_hash(lines))

    with place.inside():
        turns = await take_turns("hash-large", place.size.pairs, ours, theirs)
        process = _process([name], place.size.pairs)
    return [
        Row(
            name="hash-large",
            what=f"hash a file of {size / 1024**2:,.0f} MiB",
            against=f"b3sum --num-threads {_threads()}",
            unit="GB/s",
            ours=[rate / 1e9 for rate in turns.ours],
            theirs=[rate / 1e9 for rate in turns.theirs],
            ratios=turns.ratios,
            owed=[Debt("ratio", "≥", 0.95)],
            result=turns.result,
            note=f"as a process of its own, start included: {size / process / 1e9:.2f} GB/s",
        )
    ]


async def hash_small(place: Place) -> list[Row]:
    """Find and hash a tree of small files."""
    tree = place.tree

    async def ours() -> Run:
        with timed() as watch:
            lines = await digest_lines([tree.path])
        return Run(len(lines) / watch.seconds, result_hash(lines))

    async def theirs() -> Run:
        with timed() as watch:
            lines = _find_and_b3sum(tree.path)
        return Run(len(lines) / watch.seconds, result_hash(lines))

    with place.inside():
        turns = await take_turns("hash-small", place.size.pairs, ours, theirs)
        process = _process([tree.path], place.size.pairs)
    return [
        Row(
            name="hash-small",
            what=f"find and hash {tree.files:,} files of {tree.bytes / tree.files / 1024:.1f} KiB on average",
            against="find -print0 | xargs -0 b3sum",
            unit="files/s",
            ours=turns.ours,
            theirs=turns.theirs,
            ratios=turns.ratios,
            owed=[Debt("ratio", "≥", 1.0)],
            result=turns.result,
            note=f"as a process of its own, start included: {tree.files / process:,.0f} files/s",
        )
    ]


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _b3sum(path: str) -> list[str]:
    command = ["b3sum", "--num-threads", str(_threads()), path]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def _find_and_b3sum(path: str) -> list[str]:
    with subprocess.Popen(["find", path, "-type", "f", "-print0"], stdout=subprocess.PIPE) as find:
        command = ["xargs", "-0", "b3sum"]
        said = subprocess.run(command, stdin=find.stdout, stdout=subprocess.PIPE, text=True, check=True).stdout
    return said.splitlines()


def _process(paths: list[str], times: int) -> float:
    """Return the median seconds of our side as a process."""
    command = [sys.executable, "-m", "benchmarks.digests", *paths]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(times):
        with timed() as watch:
            subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
        seconds.append(watch.seconds)
    return statistics.median(seconds)
