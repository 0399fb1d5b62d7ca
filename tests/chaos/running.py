"""The real command as a process that is killed, the tree it stamps, and the look at what is left.

`Run` reads what the command acknowledges while it works, so a test knows at which moment it kills and what it may not
lose. `look` compares the database with the tree and with everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from blake3 import blake3

from omninode_bridge import Bridge

NAMESPACE = "chaos.files"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Tree:
    """A folder named `tree` of small files. `files` maps each path, as it is recorded, to the digest and the size."""

    parent: Path
    files: dict[str, tuple[str, int]]

    @classmethod
    def grow(cls, parent: Path, count: int, seed: int = 20_260_301) -> Self:
        rng = random.Random(seed)
        for number in range(count):
            path = parent / f"tree/{number // 250:03d}/{number % 250:03d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.randrange(200)))
        return cls.standing_in(parent)

    @classmethod
    def standing_in(cls, parent: Path) -> Self:
        """Return the tree that was grown in a folder."""
        contents = {str(path.relative_to(parent)): path.read_bytes() for path in parent.glob("tree/*/*.txt")}
        return cls(parent, {path: (blake3(content).hexdigest(), len(content)) for path, content in contents.items()})


@dataclass
class Run:
    """A command at work. `told` counts its results; `stamps` are the new ones of them: path → stamp id."""

    process: asyncio.subprocess.Process
    told: int = 0
    stamps: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    async def until_new(self, count: int) -> bool:
        """Read on until that many new stamps were told of; False when the command ended before."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.stamps) < count:
                if not await self._read():
                    return False
        return True

    async def until_told(self, count: int) -> bool:
        """Read on until that many files were told of, new or not; False when the command ended before."""
        async with asyncio.timeout(PATIENCE_S):
            while self.told < count:
                if not await self._read():
                    return False
        return True

    async def end(self) -> int:
        """Read on to the end; return the exit code."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._read():
                pass
            assert self.process.stderr is not None
            self.complaints = (await self.process.stderr.read()).decode().splitlines()
            return await self.process.wait()

    async def kill(self) -> None:
        """kill -9, then read what it had told before."""
        self.process.kill()
        await self.end()

    async def _read(self) -> bool:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line.endswith(b"\n"):  # the end, perhaps in the middle of a line
            return False
        told = json.loads(line)
        self.summary = told.get("summary", self.summary)
        self.told += "status" in told
        if told.get("status") == "new":
            self.stamps[told["file_path"]] = told["stamp_id"]
        return True


@asynccontextmanager
async def running(*arguments: str | Path, cwd: Path) -> AsyncIterator[Run]:
    """Run a command of the bridge; whatever is left of it at the end is killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "omninode_bridge",
        *map(str, arguments),
        cwd=cwd,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    run = Run(process)
    try:
        yield run
    finally:
        if process.returncode is None:
            await run.kill()


def stamping(*where: str | Path) -> list[str | Path]:
    """Return the arguments of a stamp run over the tree; `where` is --data-dir DIR or --database-url URL."""
    return ["stamp", "tree", "-n", NAMESPACE, "--json", *where]


async def finish(tree: Tree, *where: str | Path) -> Run:
    """Stamp the tree to its end, as whoever starts again after a crash."""
    async with running(*stamping(*where), cwd=tree.parent) as run:
        assert await run.end() == 0, run.complaints
        assert (run.summary["files"], run.summary["failed"]) == (len(tree.files), 0)
        assert run.summary["new"] == len(run.stamps)
        return run


async def look(bridge: Bridge, tree: Tree, acknowledged: Iterable[Run]) -> None:
    """Fail unless every law holds, each file has exactly one version, and nothing that was told of is lost."""
    await bridge.query.up_to_date()
    broken = [finding for finding in await bridge.audit() if not finding.holds]
    assert not broken, broken
    stamps = {stamp.file_path: stamp async for stamp in bridge.reads.latest_under(NAMESPACE)}
    assert {path: (stamp.file_hash, stamp.file_size) for path, stamp in stamps.items()} == tree.files
    assert {stamp.version for stamp in stamps.values()} == {1}
    for run in acknowledged:
        assert run.stamps.items() <= {path: stamp.stamp_id for path, stamp in stamps.items()}.items()
    state = await bridge.state(NAMESPACE)
    sizes = [size for _, size in tree.files.values()]
    assert (state.total_stamps, state.failed, state.total_size_bytes) == (len(sizes), 0, sum(sizes))
