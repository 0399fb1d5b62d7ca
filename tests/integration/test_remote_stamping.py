"""Remote stamping against the real application: a process that serves `/hash`, is stopped, killed and started again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from blake3 import blake3

from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.stamping_http import RemoteHasher
from omninode_bridge.domain.breaker import BreakerLimits, CallPolicy
from omninode_bridge.domain.errors import ContentUnavailable, StampingUnavailable
from omninode_bridge.domain.stamp import Digest, Inline

COMMAND = Path(sys.executable).parent / "omninode-bridge"
BODY_BYTES_MAX = 2_000_000
PATIENCE_S = 90
OPEN_S = 5.0


class Application:
    """`omninode-bridge up` on a folder and, from its first start on, a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: asyncio.subprocess.Process | None = None
        self.url = "http://127.0.0.1:0"

    async def start(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
        settings = {"BRIDGE_DATA_DIR": str(self._folder / "data"), "BRIDGE_BODY_BYTES_MAX": str(BODY_BYTES_MAX)}
        self.process = await asyncio.create_subprocess_exec(
            COMMAND,
            "up",
            "--port",
            self.url.rpartition(":")[2],
            env=clean | settings,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            said = (await self.process.stdout.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said
        self.url = found[0]

    async def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            async with asyncio.timeout(PATIENCE_S):
                await self.process.communicate()


@pytest_asyncio.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    running = Application(tmp_path)
    await running.start()
    try:
        yield running
    finally:
        assert running.process is not None
        if running.process.returncode is None:
            await running.send(signal.SIGKILL)


async def test_the_applications_digests_are_right_and_its_limit_is_one_items_answer(application: Application) -> None:
    policy = CallPolicy(30_000, 16, 10, BreakerLimits(2, OPEN_S))
    async with RemoteHasher([application.url], policy, local=Blake3Hasher()) as hasher:
        contents = [os.urandom(size) for size in (0, 1, 1_000, BODY_BYTES_MAX)] + [os.urandom(64) for _ in range(500)]
        answers = await hasher.digest_many([Inline(data) for data in contents])
        for data, digest in zip(contents, answers, strict=True):
            assert isinstance(digest, Digest)
            assert (digest.file_hash, digest.file_size) == (blake3(data).hexdigest(), len(data))
            assert digest.hash_time_us >= 0
        small = Inline(b"small")
        for size in (BODY_BYTES_MAX + 1, 30 * BODY_BYTES_MAX):
            before, refused, after = await hasher.digest_many([small, Inline(bytes(size)), small])
            assert isinstance(before, Digest) and isinstance(after, Digest)
            assert isinstance(refused, ContentUnavailable)
            assert f"{size} bytes (HTTP 413 limit_exceeded)" in refused.message
        assert hasher.breakers()[0].failures == 0


async def test_an_application_that_hangs_or_is_killed_is_left_alone_and_found_again(application: Application) -> None:
    now_s = 0.0
    policy = CallPolicy(1500, 8, 10, BreakerLimits(2, OPEN_S))

    async def hashed() -> str:
        (digest,) = await hasher.digest_many([Inline(b"bytes")])
        assert isinstance(digest, Digest)
        return digest.file_hash

    async def hashed_at_last() -> str:
        """Ask until there is an answer: while the application starts or catches up, a call may fail."""
        nonlocal now_s
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await hashed()
                except StampingUnavailable:
                    now_s += OPEN_S  # when a breaker that is open lets the next one try

    async def found_again() -> None:
        with pytest.raises(StampingUnavailable, match="and not asked again yet"):
            await hashed()
        for _ in range(2):  # the probe, and a call after it
            assert await hashed_at_last() == blake3(b"bytes").hexdigest()
            assert hasher.breakers()[0].state == "closed"

    async with RemoteHasher([application.url], policy, local=Blake3Hasher(), now_s=lambda: now_s) as hasher:
        await hashed_at_last()
        await application.send(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(StampingUnavailable, match=r"no answer within 1\.5 s"):
                await hashed()
        await application.send(signal.SIGCONT)
        await found_again()
        await application.send(signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(StampingUnavailable):
                await hashed()
        await application.start()
        await found_again()
