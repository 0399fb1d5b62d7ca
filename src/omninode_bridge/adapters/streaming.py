"""The BLAKE3 digest of bytes that arrive piece by piece: the port `RunningDigest`.

It hashes where it is called: pieces off a socket are small (a quarter of a mebibyte at most takes 50 µs), and
handing each to another thread would cost more than hashing it.
"""

from __future__ import annotations

import time

from blake3 import blake3

from omninode_bridge.domain.stamp import Digest

__all__ = ["Blake3Stream"]


class Blake3Stream:
    """One digest in the making. The time counted is that of hashing, not of waiting for the bytes."""

    def __init__(self) -> None:
        self._hasher = blake3()
        self._bytes = 0
        self._time_ns = 0

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        started = time.perf_counter_ns()
        self._hasher.update(piece)
        self._time_ns += time.perf_counter_ns() - started
        self._bytes += len(piece)

    def digest(self) -> Digest:
        """Return the digest of the bytes taken so far."""
        return Digest(self._hasher.hexdigest(), self._bytes, "computed", self._time_ns // 1000)
