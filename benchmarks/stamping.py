"""Stamping a tree against the bare INSERT of the same rows, and stamping it again.

Both on an embedded PostgreSQL as `stamp` starts it, each run in a database of its own that is cloned from a migrated
template, after a checkpoint. Opening the bridge is left out (`processes` has the start); from the first path until
every file is hashed, committed, in the event log and counted in the namespace's totals, all is in.
"""

from __future__ import annotations

import asyncpg

from benchmarks import floor
from benchmarks.databases import Databases
from benchmarks.measure import Debt, ResultsDiffer, Row, Run, result_hash, take_turns, the_same, timed
from benchmarks.place import Place
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.app import bootstrap
from omninode_bridge.app.bridge import Bridge

NAMESPACE = "benchmark.tree"


async def stamp_tree(place: Place) -> list[Row]:
    """Stamp a tree for the first time."""
    tree = place.tree
    written: list[floor.Commits] = []
    in_tables: list[str] = []

    async def ours() -> Run:
        async with databases.fresh() as url:
            async with bootstrap.connect(url) as bridge:
                with timed() as watch:
                    await _stamp_all(bridge, place)
            connection = await postgres.connect(url)
            try:
                written[:] = [await floor.read_back(connection)]
                in_tables[:] = await floor.contents(connection)
                result = await _stamps(connection)
            finally:
                await connection.close()
        return Run(tree.files / watch.seconds, result)

    async def theirs() -> Run:
        async with databases.fresh() as url:
            connection = await postgres.connect(url, by_key=True)
            try:
                bare = floor.Floor(connection)
                await bare.prepare()
                with timed() as watch:
                    await bare.write(written[0])
                if await floor.contents(connection) != in_tables:
                    raise ResultsDiffer("stamp-tree: the bare INSERT wrote other rows than the real run")
                result = await _stamps(connection)
            finally:
                await connection.close()
        return Run(tree.files / watch.seconds, result)

    with place.inside():
        async with Databases.on(place) as databases:
            turns = await take_turns("stamp-tree", place.size.pairs_slow, ours, theirs)
    return [
        Row(
            name="stamp-tree",
            what=f"stamp {tree.files:,} files: hashed, durable, event written, aggregated",
            against=f"bare INSERT of the same rows, {floor.COMMIT_ROWS} a commit, one connection",
            unit="files/s",
            ours=turns.ours,
            theirs=turns.theirs,
            ratios=turns.ratios,
            owed=[Debt("ratio", "≥", 0.5)],
            result=turns.result,
            note="20,000 files/s are owed where the floor is 40,000",
        )
    ]


async def stamp_again(place: Place) -> list[Row]:
    """Stamp an unchanged tree a second time: the file facts alone tell that nothing is to be done."""
    tree = place.tree
    first: list[float] = []
    second: list[float] = []
    results: list[str] = []
    with place.inside():
        async with Databases.on(place) as databases:
            for _ in range(place.size.pairs_slow):
                async with databases.fresh() as url, bootstrap.connect(url) as bridge:
                    with timed() as watch:
                        await _stamp_all(bridge, place)
                    first.append(tree.files / watch.seconds)
                    with timed() as watch:
                        await _skip_all(bridge, place)
                    second.append(tree.files / watch.seconds)
                    connection = await postgres.connect(url)
                    try:
                        results.append(await _stamps(connection))
                    finally:
                        await connection.close()
    return [
        Row(
            name="stamp-again",
            what=f"stamp {tree.files:,} unchanged files a second time",
            against="the first time",
            unit="files/s",
            ours=second,
            theirs=first,
            ratios=[again / once for again, once in zip(second, first, strict=True)],
            owed=[Debt("ratio", "≥", 3.0)],
            result=the_same("stamp-again", results),
        )
    ]


async def _stamp_all(bridge: Bridge, place: Place) -> None:
    """Stamp the tree, and wait for totals that include it."""
    statuses: dict[str, int] = {}
    async for batch in bridge.stamp_tree_batches(place.tree.path, namespace=NAMESPACE):
        for result in batch:
            statuses[result.status] = statuses.get(result.status, 0) + 1
    state = await bridge.state(NAMESPACE)
    totals = (statuses, state.total_stamps, state.total_size_bytes)
    if totals != ({"new": place.tree.files}, place.tree.files, place.tree.bytes):
        raise ResultsDiffer(f"stamp-tree: {totals} is not the tree: {place.tree}")


async def _skip_all(bridge: Bridge, place: Place) -> None:
    skipped = 0
    async for batch in bridge.stamp_tree_batches(place.tree.path, namespace=NAMESPACE):
        # A file that was read and found to be the same would have its stamp here.
        skipped += sum(result.status == "unchanged" and result.stamp is None for result in batch)
    state = await bridge.state(NAMESPACE)
    if (skipped, state.total_stamps) != (place.tree.files, place.tree.files):
        raise ResultsDiffer(f"stamp-again: {skipped} files were skipped of {place.tree.files}")


async def _stamps(connection: asyncpg.Connection) -> str:
    """Return what the tree's stamps say, less what differs from run to run (ids and times)."""
    found = await connection.fetch(
        "SELECT namespace, file_path, encode(digest, 'hex') AS file_hash, file_size, content_type, version"
        " FROM metadata_stamps"
    )
    return result_hash(" ".join(map(str, row.values())) for row in found)
