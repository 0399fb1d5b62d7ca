"""How long reads take on two databases of very different sizes: random ones, one at a time, in rounds that alternate.

They are the product's own, in process: from the call to the domain values. Most are asked as a tenant asks whose token
has a pattern and a name, so under row-level security. Each answer is looked at: what was asked for must be in it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from benchmarks import corpus
from benchmarks.measure import Debt, ResultsDiffer, Row, result_hash, say
from omninode_bridge.app import listing
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.ports import StampFilter

ROUNDS = 5
P95_MS_MAX = 5.0
PAGE = 100
PATHS = 100
KNOWN_FILES = 1000


class Target:
    """A database to read from: an open bridge, how many requests it has stamped, and some of its answers."""

    def __init__(self, bridge: Bridge, stamps: int, kept: Sequence[Stamp]) -> None:
        self.bridge = bridge
        self.stamps = stamps
        self.kept = kept

    def seen(self, namespace: str) -> Bridge:
        """Return the bridge as the tenant of a namespace sees it."""
        return self.bridge.seen_by(corpus.tenant_of(namespace))

    @cached_property
    def folders(self) -> dict[str, list[int]]:
        """The first serial numbers of each namespace's folders."""
        found: dict[str, list[int]] = defaultdict(list)
        for first in range(0, self.stamps - corpus.FOLDER_FILES + 1, corpus.FOLDER_FILES):
            found[corpus.place_of(first)[0]].append(first)
        return found


class Asked(NamedTuple):
    """One read that was not begun yet, and what tells how much it found: 0 when that can't be the answer."""

    call: Coroutine[Any, Any, Any]
    found: Callable[[Any], int]


class Lookup(NamedTuple):
    """A kind of read: the end of its row's name, what it is, how a random one is made, and whether its time is owed."""

    name: str
    what: str
    ask: Callable[[Target, random.Random], Asked]
    owed: bool = True


def _by_hash(target: Target, rng: random.Random) -> Asked:
    return _hash_asked(target.bridge, corpus.hash_of(rng.randrange(target.stamps)))


def _by_hash_in(target: Target, rng: random.Random) -> Asked:
    serial = rng.randrange(target.stamps)
    namespace, _ = corpus.place_of(serial)
    return _hash_asked(target.seen(namespace), corpus.hash_of(serial), [namespace])


def _by_hash_tenant(target: Target, rng: random.Random) -> Asked:
    serial = rng.randrange(target.stamps)
    return _hash_asked(target.seen(corpus.place_of(serial)[0]), corpus.hash_of(serial))


def _common_hash(target: Target, rng: random.Random) -> Asked:
    return _hash_asked(target.bridge, corpus.common_hash(rng.randrange(10)), may_lack=True)


def _common_hash_tenant(target: Target, rng: random.Random) -> Asked:
    seen = target.seen(corpus.NAMESPACES[rng.randrange(10)])
    return _hash_asked(seen, corpus.common_hash(rng.randrange(10)), may_lack=True)


def _hash_asked(
    bridge: Bridge, file_hash: str, namespaces: list[str] | None = None, *, may_lack: bool = False
) -> Asked:
    return Asked(
        bridge.reads.by_hash(file_hash, namespaces),
        lambda found: may_lack + len(found) if all(stamp.file_hash == file_hash for stamp in found) else 0,
    )


def _by_path(target: Target, rng: random.Random) -> Asked:
    namespace, path = corpus.place_of(rng.randrange(target.stamps))
    return Asked(
        target.seen(namespace).reads.history(namespace, path),
        lambda found: len(found) if found and found[-1].version == 1 and found[0].file_path == path else 0,
    )


def _latest(target: Target, rng: random.Random) -> Asked:
    namespace, _ = corpus.place_of(rng.randrange(target.stamps))
    paths = {path for _, path in _places_in(target, namespace, PATHS, rng)}
    return Asked(
        target.seen(namespace).reads.latest_many(namespace, sorted(paths)),
        lambda found: len(found) if found.keys() == paths else 0,
    )


def _page(target: Target, rng: random.Random) -> Asked:
    at = rng.choice(target.kept)
    return Asked(
        target.seen(at.namespace).reads.page(at.namespace, StampFilter(), before=at.stamp_id, limit=PAGE),
        lambda page: int(all(stamp.stamp_id < at.stamp_id for stamp in page.stamps)),
    )


def _totals(target: Target, rng: random.Random) -> Asked:
    namespace, _ = corpus.place_of(rng.randrange(target.stamps))
    return Asked(listing.totals(target.seen(namespace).query, namespace), lambda row: int(row.total_stamps))


def _by_id(target: Target, rng: random.Random) -> Asked:
    stamp = rng.choice(target.kept)
    return Asked(target.seen(stamp.namespace).reads.by_id(stamp.stamp_id), lambda found: int(found == stamp))


def _workflow(target: Target, rng: random.Random) -> Asked:
    stamp = rng.choice(target.kept)
    return Asked(
        target.seen(stamp.namespace).reads.workflow(stamp.workflow_id),
        lambda found: int([prior.stamp for prior in found] == [stamp]),
    )


def _workflows(target: Target, rng: random.Random) -> Asked:
    namespace, _ = corpus.place_of(rng.randrange(target.stamps))
    page = listing.state(target.seen(namespace).query, namespace, "workflow", after=None, limit=PAGE)
    return Asked(page, lambda found: len(found.rows))


def _known_files(target: Target, rng: random.Random) -> Asked:
    # Only trees that were hashed here have facts.
    namespace = rng.choice([name for name in target.folders if not corpus.is_claimed(name)])
    keys = {path_hash(*place) for place in _places_in(target, namespace, KNOWN_FILES, rng)}
    return Asked(target.bridge.reads.known_files(sorted(keys)), lambda found: len(found) if found.keys() == keys else 0)


def _places_in(target: Target, namespace: str, count: int, rng: random.Random) -> Iterable[tuple[str, str]]:
    """Yield the files of random folders, as `stamp` and `verify` ask for them; some twice in a small namespace."""
    for _ in range(count // corpus.FOLDER_FILES):
        first = rng.choice(target.folders[namespace])
        yield from map(corpus.place_of, range(first, first + corpus.FOLDER_FILES))


LOOKUPS = (
    Lookup("by-hash", "the stamps of a digest, in all namespaces", _by_hash),
    Lookup("by-hash-in", "those in one namespace, as its tenant", _by_hash_in),
    Lookup("by-hash-tenant", "those in all of a tenant's namespaces", _by_hash_tenant),
    Lookup("common-hash", f"the newest {PAGE} of a digest that thousands have, in all namespaces", _common_hash),
    Lookup("common-hash-tenant", "those in all of a tenant's namespaces", _common_hash_tenant),
    Lookup("by-path", "every version of a path, as its tenant", _by_path),
    Lookup("by-namespace", f"a page of {PAGE} stamps in the middle of a namespace, as its tenant", _page),
    Lookup("totals", "the totals of a namespace, as its tenant", _totals),
    Lookup("workflows", f"the first {PAGE} rows by workflow of a namespace, as its tenant", _workflows, owed=False),
    Lookup("by-id", "a stamp by its id, as its tenant", _by_id, owed=False),
    Lookup("workflow", "a workflow by its id, as its tenant", _workflow, owed=False),
    Lookup("latest", f"the latest stamps of {PATHS} paths in two folders, as their tenant", _latest, owed=False),
    Lookup("known-files", f"the facts of {KNOWN_FILES:,} files in twenty folders", _known_files, owed=False),
)


async def measured(large: Target, small: Target, *, count: int) -> list[Row]:
    """Make `count` reads of each kind of both; return a row a kind, whose figures are the p95 of each round."""
    rows = []
    for lookup in LOOKUPS:
        ours: list[list[float]] = []
        theirs: list[list[float]] = []
        found: list[str] = []
        for number in range(ROUNDS):
            for side, target in ((ours, large), (theirs, small)):
                times_ms, total = await _round(lookup, target, count // ROUNDS, random.Random(number))
                side.append(times_ms)
                found.append(f"{target.stamps} {number} {total}")
        rows.append(_row(lookup, large.stamps, small.stamps, ours, theirs, result_hash(found)))
        say(f"growth-{lookup.name}: {rows[-1].note}")
    return rows


async def _round(lookup: Lookup, target: Target, count: int, rng: random.Random) -> tuple[list[float], int]:
    """Return how long each read took, in milliseconds, and how much they found together."""
    times_ms: list[float] = []
    total = 0
    for _ in range(count):
        asked = lookup.ask(target, rng)
        began_s = time.perf_counter()
        answer = await asked.call
        times_ms.append(1000 * (time.perf_counter() - began_s))
        found = asked.found(answer)
        if not found:
            raise ResultsDiffer(f"growth-{lookup.name}: a read answered {str(answer)[:300]}, which can't be")
        total += found
    return times_ms, total


def _row(lookup: Lookup, stamps: int, few: int, ours: list[list[float]], theirs: list[list[float]], result: str) -> Row:
    all_ms = [time_ms for times_ms in ours for time_ms in times_ms]
    return Row(
        name=f"growth-{lookup.name}",
        what=f"{lookup.what}: 95 of 100 within, at {stamps:,} stamps",
        against=f"the same at {few:,}",
        unit="ms",
        ours=[percentile(times_ms, 0.95) for times_ms in ours],
        theirs=[percentile(times_ms, 0.95) for times_ms in theirs],
        ratios=[percentile(a, 0.95) / percentile(b, 0.95) for a, b in zip(ours, theirs, strict=True)],
        owed=[Debt("ours", "≤", P95_MS_MAX)] if lookup.owed else [],
        result=result,
        note=f"half within {statistics.median(all_ms):.2f} ms, 99 of 100 within {percentile(all_ms, 0.99):.2f} ms",
    )


def percentile(times_ms: Sequence[float], part: float) -> float:
    """Return the time within which that part of the reads was answered."""
    ordered = sorted(times_ms)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
