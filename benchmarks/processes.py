"""The whole program: what it holds in memory, and how soon it answers. No counterpart: what is owed is absolute.

Resident memory is the Python process's alone, PostgreSQL beside it is not counted; pages of files that it maps are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.measure import Debt, ResultsDiffer, Row, result_hash, say, the_same, timed
from benchmarks.place import MIB, Place
from benchmarks.service import PROGRAM, Service, environment, forget_peak, peak_bytes, resident_bytes

_SMALL = b"a stamp of 30 bytes, more or less"
_IDLE_S = 2.0
_UPLOAD_BLOCK = bytes(256 * 1024)


async def memory(place: Place) -> list[Row]:
    """Measure `up` idle, a huge upload to it, and a huge file stamped from disk."""
    huge = place.huge_file
    size_text = f"{place.size.huge_file_bytes / MIB:,.0f} MiB"
    expected = _b3sum(huge)
    idle: list[float] = []
    uploaded: list[float] = []
    from_disk: list[float] = []
    results: list[str] = []
    for number in range(1, place.size.pairs_slow + 1):
        data_dir = place.folder / f"memory-{number}"
        with Service(data_dir) as service:
            service.stamp("small.txt", _SMALL, len(_SMALL))
            idle.append(_settled(service.pid) / MIB)
            before = resident_bytes(service.pid)
            forget_peak(service.pid)
            stamp = service.stamp("huge.bin", _zeros(place.size.huge_file_bytes), place.size.huge_file_bytes)
            uploaded.append((peak_bytes(service.pid) - before) / MIB)
            results.append(stamp["file_hash"])
        digest, added = _resident(place, data_dir, huge)
        from_disk.append(added / MIB)
        results.append(digest)
        say(f"memory: run {number} of {place.size.pairs_slow}, idle {idle[-1]:.0f} MiB")
    if the_same("memory", results) != expected:
        raise ResultsDiffer("memory: b3sum has another digest of the huge file")
    result = result_hash([expected])
    return [
        Row(
            name="memory-idle",
            what="resident memory of `up`, idle after a first stamp, PostgreSQL not counted",
            unit="MiB",
            ours=idle,
            owed=[Debt("ours", "≤", 200)],
            result=result,
        ),
        Row(
            name="memory-upload",
            what=f"what an upload of {size_text} adds to it at the peak",
            unit="MiB",
            ours=uploaded,
            owed=[Debt("ours", "≤", 32)],
            result=result,
        ),
        Row(
            name="memory-file",
            what=f"what stamping a file of {size_text} adds to a process at the peak",
            unit="MiB",
            ours=from_disk,
            owed=[Debt("ours", "≤", 32)],
            result=result,
        ),
    ]


async def start(place: Place) -> list[Row]:
    """Time `--help`, and `up` on a data directory that exists until it has answered its first stamp."""
    helped: list[float] = []
    answered: list[float] = []
    said: list[str] = []
    stamped: list[str] = []
    data_dir = place.folder / "start-up"
    with Service(data_dir) as service:
        service.stamp("first.txt", _SMALL, len(_SMALL))
    _help()
    for number in range(1, place.size.pairs + 1):
        with timed() as watch:
            said.append(_help())
        helped.append(watch.seconds)
        with timed() as watch, Service(data_dir) as service:
            stamp = service.stamp(f"{number}.txt", _SMALL, len(_SMALL))
            answered.append(watch.seconds)
        stamped.append(stamp["file_hash"])
        say(f"start: run {number} of {place.size.pairs}, help {helped[-1]:.3f} s, first stamp {answered[-1]:.2f} s")
    return [
        Row(
            name="start-help",
            what="`omninode-bridge --help`, the whole process",
            unit="s",
            ours=helped,
            owed=[Debt("ours", "≤", 0.2)],
            result=the_same("start-help", said),
        ),
        Row(
            name="start-up",
            what="`up` on an existing data directory until its first stamp is answered over HTTP",
            unit="s",
            ours=answered,
            owed=[Debt("ours", "≤", 3.0)],
            result=result_hash([the_same("start-up", stamped)]),
        ),
    ]


def _help() -> str:
    run = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True, env=environment())
    return result_hash(run.stdout.splitlines())


def _settled(pid: int) -> int:
    """Return the most that a process holds while nothing is asked of it for two seconds."""
    until = time.monotonic() + _IDLE_S
    most = 0
    while time.monotonic() < until:
        most = max(most, resident_bytes(pid))
        time.sleep(0.1)
    return most


def _zeros(length: int) -> Iterator[bytes]:
    while length:
        block = _UPLOAD_BLOCK[:length]
        yield block
        length -= len(block)


def _resident(place: Place, data_dir: Path, huge: Path) -> tuple[str, int]:
    small = place.folder / "small.txt"
    small.write_bytes(_SMALL)
    command = [sys.executable, "-m", "benchmarks.resident", str(data_dir), str(small), str(huge)]
    settings = {**environment(), "PYTHONPATH": os.fspath(ROOT)}
    digest, added = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=settings).stdout.split()
    return digest, int(added)


def _b3sum(path: Path) -> str:
    run = subprocess.run(["b3sum", "--no-names", path], stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.strip()
