"""The machine's clock and randomness, behind the ports `Clock` and `IdSource`.

The rule: nothing else in the bridge asks for the time or for random bytes; the core is handed both.
Ids are UUIDv7 (RFC 9562 §5.7), made in bulk because a thousand stamps need two thousand of them.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

__all__ = ["utc_now", "uuid7_batch"]

# RFC 9562 §6.2, method 1: the 12 bits beside the time count the ids of one batch, so that they ascend.
_COUNTS = tuple(f"-7{count:03x}-" for count in range(1 << 12))
# The two variant bits stand in front of two random ones.
_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def utc_now() -> datetime:
    """Return the system's time, aware, in UTC, to the microsecond. It can step back when the clock is set."""
    return datetime.now(UTC)


def uuid7_batch(count: int, unix_ms: int | None = None) -> list[str]:
    """Return `count` fresh UUIDv7 strings, strictly ascending within the batch.

    `unix_ms` is their time, milliseconds since 1970; the system's when left out. A batch of more than 4096 ids
    runs ahead of it by one millisecond for each further 4096. Each id has 62 random bits.
    """
    entropy = os.urandom(8 * count).hex()
    first_ms = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    ids: list[str] = []
    for start in range(0, count, len(_COUNTS)):
        moment = f"{first_ms + start // len(_COUNTS):012x}"
        prefix = f"{moment[:8]}-{moment[8:]}"
        stop = min(start + len(_COUNTS), count)
        ids += [
            f"{prefix}{number}{_VARIANTS[entropy[at]]}{entropy[at + 1 : at + 4]}-{entropy[at + 4 : at + 16]}"
            for number, at in zip(_COUNTS, range(16 * start, 16 * stop, 16), strict=False)
        ]
    return ids
