"""What stamping one huge file adds to the memory of a process that has stamped a small one.

    python -m benchmarks.resident DATA_DIR SMALL HUGE

prints the huge file's digest and the bytes added at the peak. A process of its own, as its memory is what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import uvloop

from benchmarks.service import forget_peak, peak_bytes, resident_bytes
from omninode_bridge import Bridge


async def measure(data_dir: str, small: str, huge: str) -> tuple[str, int]:
    """Return the digest of `huge` and the bytes that stamping it added."""
    async with Bridge.embedded(data_dir) as bridge:
        await _stamp(bridge, small)
        gc.collect()
        before = resident_bytes()
        await asyncio.to_thread(forget_peak)
        file_hash = await _stamp(bridge, huge)
        return file_hash, max(0, peak_bytes() - before)


async def _stamp(bridge: Bridge, path: str) -> str:
    async for result in bridge.stamp_tree(path, namespace="benchmark.memory"):
        if result.error is not None:
            raise result.error
        if result.stamp is not None:
            return result.stamp.file_hash
    raise AssertionError(f"{path!r} made no stamp")


if __name__ == "__main__":
    print(*uvloop.run(measure(*sys.argv[1:4])))
