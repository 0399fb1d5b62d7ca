"""What is to be stamped by the API and by its counterpart: 1 KiB of text a request, no two alike, from a fixed seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.measure import result_hash

NAMESPACE = "benchmark.api"
CONTENT_TYPE = "text/plain"
CONTENT_BYTES = 1024
COLUMNS = ("namespace", "file_path", "file_hash", "file_size", "content_type", "version")
"""What a stamp says that does not differ from run to run."""


class Wanted(NamedTuple):
    """One request for a stamp."""

    file_path: str
    content: str


def wanted(count: int, label: str = "file") -> list[Wanted]:
    """Return the first `count` requests of a label; other labels have other paths and contents."""
    rng = random.Random(f"5 {label}")
    return [Wanted(f"{label}-{number:06}.txt", rng.randbytes(CONTENT_BYTES // 2).hex()) for number in range(count)]


def stamps_hash(rows: Iterable[Iterable[Any]]) -> str:
    """Return the hash of stamps, each given by its COLUMNS."""
    return result_hash(" ".join(map(str, row)) for row in rows)
