"""Where a run happens: its sizes, its folder, and the data sets in it, made once from fixed seeds."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import chdir
from functools import cached_property
from pathlib import Path

import msgspec

from omninode_bridge.adapters.hashing import SETTLED_NS

GIB = 1024**3
MIB = 1024**2


class Size(msgspec.Struct, frozen=True):
    """How much is measured, and how often."""

    large_file_bytes: int
    tree_files: int
    events: int
    transitions: int
    huge_file_bytes: int
    api_requests: int
    peer_workflows: int
    """Of these requests, by the slower counterpart of the API."""
    growth_base: int
    """Stamps of the small database that a large one is held against."""
    growth_stamps: int
    growth_turn: int
    """Stamps of one turn of theirs."""
    growth_turns_max: int
    """Turns from one checkpoint to the next, at most."""
    growth_reads: int
    kafka_events: int
    pairs: int
    pairs_slow: int
    """Of what takes more than about five seconds a turn."""


FULL = Size(
    large_file_bytes=GIB,
    tree_files=50_000,
    events=200_000,
    transitions=100_000,
    huge_file_bytes=10 * GIB,
    api_requests=30_000,
    peer_workflows=600,
    growth_base=10_000,
    growth_stamps=5_000_000,
    growth_turn=20_000,
    growth_turns_max=60,
    growth_reads=2_500,
    kafka_events=400_000,
    pairs=9,
    pairs_slow=5,
)
SMOKE = Size(
    large_file_bytes=9 * MIB,
    tree_files=300,
    events=2_000,
    transitions=3_000,
    huge_file_bytes=64 * MIB,
    api_requests=300,
    peer_workflows=60,
    growth_base=1_000,
    growth_stamps=2_000,
    growth_turn=250,
    growth_turns_max=2,
    growth_reads=10,
    kafka_events=8_000,
    pairs=1,
    pairs_slow=1,
)

_FILE_BYTES_MEDIAN = 1280
_FILE_BYTES_SIGMA = 1.1
"""Log-normal sizes as in source trees and document stores: mean 2 KiB, one in a hundred above 16 KiB."""
_FILE_BYTES_MAX = 64 * 1024
_FOLDER_FILES = 50
_SUFFIXES = (".py", ".md", ".json", ".txt", ".html", ".csv", ".png", "")


class Files(msgspec.Struct, frozen=True):
    """A tree of files: its path below the place's folder, and what is in it."""

    path: str
    files: int
    bytes: int


class Place:
    """A folder to measure in. Commands and walks run inside it, so that recorded paths don't depend on its name."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size

    def inside(self) -> chdir[Path]:
        """Return a context in which the folder is the current one."""
        return chdir(self.folder)

    @cached_property
    def tree(self) -> Files:
        """Many small files in nested folders, old enough that their facts vouch for them."""
        rng = random.Random(2)
        root = self.folder / "tree"
        total = 0
        for path in self._paths(root):
            size = min(_FILE_BYTES_MAX, int(rng.lognormvariate(0, _FILE_BYTES_SIGMA) * _FILE_BYTES_MEDIAN))
            path.write_bytes(rng.randbytes(size))
            total += size
        newest_ns = path.stat().st_ctime_ns
        while time.time_ns() <= newest_ns + SETTLED_NS:
            time.sleep(0.05)
        return Files("tree", self.size.tree_files, total)

    @cached_property
    def large_file(self) -> Path:
        """One large file without holes, on the disk and in the page cache."""
        rng = random.Random(1)
        path = self.folder / "large.bin"
        left = self.size.large_file_bytes
        with path.open("wb") as file:
            while left:
                left -= file.write(rng.randbytes(min(left, 16 * MIB)))
            os.fsync(file.fileno())
        return path

    @cached_property
    def huge_file(self) -> Path:
        """One huge file that is a hole from end to end: it takes no room on the disk."""
        path = self.folder / "huge.bin"
        with path.open("wb") as file:
            file.truncate(self.size.huge_file_bytes)
        return path

    def _paths(self, root: Path) -> Iterator[Path]:
        for number in range(self.size.tree_files):
            at = number // _FOLDER_FILES
            folder = root / f"part-{at // 20:02}" / f"folder-{at % 20:02}"
            if number % _FOLDER_FILES == 0:
                folder.mkdir(parents=True)
            yield folder / f"file-{number:05}{_SUFFIXES[number % len(_SUFFIXES)]}"
