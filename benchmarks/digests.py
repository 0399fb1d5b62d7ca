"""Our side of the hashing benchmarks: find files and hash them, as `stamp` and `verify` do.

    python -m benchmarks.digests PATH…

prints what `b3sum` would; that is how the whole process, start included, is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import uvloop

from omninode_bridge.adapters.filesystem import walk
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.domain.stamp import Digest, LocalFile

BATCH_FILES = 500
"""As `stamp` has it: BRIDGE_TREE_BATCH_FILES."""


async def digest_lines(paths: Sequence[str]) -> list[str]:
    """Return a line as b3sum prints it for each file under `paths`. Raises what is wrong with the first bad one."""
    hasher = Blake3Hasher()
    lines: list[str] = []
    for found, problems in walk(paths, batch=BATCH_FILES):
        for problem in problems:
            raise problem.error
        digests = await hasher.digest_many([LocalFile(file.os_path, file.facts) for file in found])
        lines += [_line(digest, file.file_path) for digest, file in zip(digests, found, strict=True)]
    return lines


def _line(digest: Digest | BridgeError, path: str) -> str:
    if isinstance(digest, BridgeError):
        raise digest
    return f"{digest.file_hash}  {path}"


if __name__ == "__main__":
    print("\n".join(uvloop.run(digest_lines(sys.argv[1:]))))
