"""The reducer's fold against polars: the same totals, by every grouping of the shipped contract, from the same events.

polars is given what suits it best: all events as one NDJSON in memory (joining them is not counted), a schema with only
the fields it needs, a lazy query, all cores, and the way we fold: cells first, groupings from the cells. Ours takes one
thread; from bytes it takes the contract's batches, as in production, and checks each event against its whole schema.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any

import polars as pl

from benchmarks.measure import Debt, ResultsDiffer, Row, Run, result_hash, take_turns, timed
from benchmarks.place import Place
from omninode_bridge.adapters.memory import SeededIds
from omninode_bridge.domain.events import (
    COMPLETED_SCHEMA,
    SOURCE,
    FailureData,
    StampingCompleted,
    StampingFailed,
    decode,
    encode,
)
from omninode_bridge.domain.log import NIL_ID
from omninode_bridge.domain.reduction import Item, State, Totals, bucket_key, fold, item_of, merge_states, window_key
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.nodes.contracts import ReducerContract, load_reducer

_PROJECT = "project"
_EVENTS_PER_S = 500


async def folding(place: Place) -> list[Row]:
    """Fold decoded events; and, beside it, decode and fold them."""
    contract = load_reducer()
    bodies = make_events(place.size.events)
    items = [item_of(decode(body)) for body in bodies]
    lines = b"\n".join(bodies)
    if folded(items, contract) != by_polars(lines, contract):
        raise ResultsDiffer("fold: polars comes to other totals")

    async def ours() -> Run:
        with timed() as watch:
            state = folded(items, contract)
        return Run(len(bodies) / watch.seconds, _hash(state))

    async def ours_from_bytes() -> Run:
        with timed() as watch:
            state = folded_from_bytes(bodies, contract)
        return Run(len(bodies) / watch.seconds, _hash(state))

    async def theirs() -> Run:
        with timed() as watch:
            state = by_polars(lines, contract)
        return Run(len(bodies) / watch.seconds, _hash(state))

    only = await take_turns("fold", place.size.pairs, ours, theirs)
    whole = await take_turns("fold-from-bytes", place.size.pairs, ours_from_bytes, theirs)
    against = f"polars from the bytes, {pl.thread_pool_size()} threads"
    return [
        Row(
            name="fold",
            what=f"fold {len(bodies):,} decoded events",
            against=against,
            unit="events/s",
            ours=only.ours,
            theirs=only.theirs,
            ratios=only.ratios,
            owed=[Debt("ratio", "≥", 1.0), Debt("ours", "≥", 500_000)],
            result=only.result,
        ),
        Row(
            name="fold-from-bytes",
            what=f"decode, check and fold {len(bodies):,} events of {len(lines) // len(bodies)} bytes",
            against=against,
            unit="events/s",
            ours=whole.ours,
            theirs=whole.theirs,
            ratios=whole.ratios,
            result=whole.result,
        ),
    ]


def make_events(count: int) -> list[bytes]:
    """Return encoded events of ten namespaces, one shard, in the order of positions; three in a hundred failed."""
    rng, ids = random.Random(3), SeededIds(3)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    bodies: list[bytes] = []
    previous_id = NIL_ID
    for position in range(1, count + 1):
        at += timedelta(microseconds=rng.randrange(2_000_000 // _EVENTS_PER_S))
        event_id, workflow_id, stamp_id = ids(3)
        namespace = f"tenant-{rng.randrange(10)}.documents"
        envelope: dict[str, Any] = {
            "specversion": "1.0",
            "id": event_id,
            "source": SOURCE,
            "subject": workflow_id,
            "time": at,
            "datacontenttype": "application/json",
            "namespace": namespace,
            "shard": 0,
            "position": position,
            "previousid": previous_id,
        }
        if rng.random() < 0.03:
            failure = FailureData(
                workflow_id=workflow_id,
                namespace=namespace,
                file_path=f"incoming/{position}.bin",
                step="hash",
                error_code="timeout",
                error_message="no answer within 30000 ms",
            )
            bodies.append(encode(StampingFailed(type="workflow.stamping.failed", data=failure, **envelope)))
        else:
            stamp = _stamp(rng, at, namespace, workflow_id, stamp_id, position)
            bodies.append(encode(StampingCompleted(type="workflow.stamping.completed", data=stamp, **envelope)))
        previous_id = event_id
    return bodies


def folded(items: Sequence[Item], contract: ReducerContract) -> State:
    """Fold all at once, as polars does."""
    return fold(items, contract.groupings)


def folded_from_bytes(bodies: Sequence[bytes], contract: ReducerContract) -> State:
    """Decode, check and fold in the contract's batches, each merged into the whole, as in production."""
    state: State = {}
    for batch in batched(bodies, contract.batch_size):
        state = merge_states(state, fold([item_of(decode(body)) for body in batch], contract.groupings))
    return state


def by_polars(lines: bytes, contract: ReducerContract) -> State:
    """Return the same totals, computed by polars from NDJSON."""
    groupings = contract.groupings
    assert groupings.metadata_fields == (_PROJECT,), "the query below is written for the shipped contract"
    cells = _cells(lines, contract)
    stamped = pl.col("completed")
    wanted = [
        ("namespace", "namespace", cells),
        ("time_window", "window", cells),
        ("content_type", "content_type", cells.filter(stamped)),
        ("size_bucket", "bucket", cells.filter(stamped)),
        (f"metadata.{_PROJECT}", _PROJECT, cells.filter(pl.col(_PROJECT).is_not_null())),
    ]
    tables = pl.collect_all([_rolled_up(kept, column) for _, column, kept in wanted])
    state: State = {}
    for (kind, _, _), table in zip(wanted, tables, strict=True):
        for namespace, key, *totals in table.iter_rows():
            state[namespace, kind, group_key(kind, key, contract)] = totals_of(*totals)
    return state


def _cells(lines: bytes, contract: ReducerContract) -> pl.LazyFrame:
    """Totals of each combination of keys."""
    data, bounds = pl.col("data").struct, contract.groupings.size_bounds
    size = data.field("file_size").fill_null(0)
    bucket = pl.sum_horizontal([(size >= bound).cast(pl.Int8) for bound in bounds])
    at = pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us")
    frame = pl.read_ndjson(lines, schema=_SCHEMA).lazy()
    events = frame.select(
        "namespace",
        "id",
        at=at,
        window=at.dt.epoch("us") // (contract.groupings.window_ms * 1000),
        completed=pl.col("dataschema") == COMPLETED_SCHEMA,
        content_type=data.field("content_type").fill_null(""),
        bucket=bucket,
        size=size,
        took=(data.field("processing_time_ms") * 1000).round().cast(pl.Int64),
        project=data.field("metadata").struct.field(_PROJECT),
    )
    in_order = pl.col("id").sort_by("at", "id")
    return events.group_by("namespace", "window", "content_type", "bucket", "completed", _PROJECT).agg(
        stamps=pl.col("completed").sum().cast(pl.Int64),
        failed=pl.col("completed").not_().sum().cast(pl.Int64),
        size=pl.col("size").sum(),
        took=pl.col("took").sum(),
        least=pl.col("took").min(),
        most=pl.col("took").max(),
        first_at=pl.col("at").min(),
        first_id=in_order.first(),
        last_at=pl.col("at").max(),
        last_id=in_order.last(),
    )


def _rolled_up(cells: pl.LazyFrame, column: str) -> pl.LazyFrame:
    return cells.group_by(pl.col("namespace").alias("tenant"), pl.col(column).alias("key")).agg(
        pl.col("stamps").sum(),
        pl.col("failed").sum(),
        pl.col("size").sum(),
        pl.col("took").sum(),
        pl.col("least").min(),
        pl.col("most").max(),
        pl.col("first_at").min(),
        pl.col("first_id").sort_by("first_at", "first_id").first(),
        pl.col("last_at").max(),
        pl.col("last_id").sort_by("last_at", "last_id").last(),
    )


_SCHEMA = pl.Schema({
    "id": pl.String(),
    "dataschema": pl.String(),
    "namespace": pl.String(),
    "time": pl.String(),
    "data": pl.Struct({
        "content_type": pl.String(),
        "file_size": pl.Int64(),
        "processing_time_ms": pl.Float64(),
        "metadata": pl.Struct({_PROJECT: pl.String()}),
    }),
})  # fmt: skip


def group_key(kind: str, key: str | int, contract: ReducerContract) -> str:
    """Return the reducer's name of a group that a counterpart has by number, or by the same name."""
    if isinstance(key, str):
        return key
    if kind == "time_window":
        return window_key(key, contract.groupings.window_ms)
    return bucket_key(key, contract.groupings.size_bounds)


def totals_of(
    stamps: int,
    failed: int,
    size: int,
    took: int,
    least: int | None,
    most: int | None,
    first_at: datetime,
    first_id: str,
    last_at: datetime,
    last_id: str,
) -> Totals:
    """Return a counterpart's totals as ours."""
    first, last = (first_at.replace(tzinfo=UTC), first_id), (last_at.replace(tzinfo=UTC), last_id)
    return Totals(stamps, failed, size, took, least, most, first, last)


def _stamp(rng: random.Random, at: datetime, namespace: str, workflow_id: str, stamp_id: str, number: int) -> Stamp:
    took_us = int(rng.lognormvariate(8, 1))
    return Stamp(
        stamp_id=stamp_id,
        stamped_by="benchmark",
        workflow_id=workflow_id,
        op_id=workflow_id,
        namespace=namespace,
        file_path=f"incoming/{number // 1000:04}/{number}.bin",
        file_hash=rng.randbytes(32).hex(),
        file_size=int(rng.lognormvariate(8, 3)),
        content_type=rng.choice(("text/plain", "application/pdf", "application/json", "image/png", "text/csv")),
        version=1,
        metadata={_PROJECT: rng.choice(("apollo", "gemini", "mercury"))} if rng.random() < 0.6 else {},
        workflow_state="completed",
        created_at=at - timedelta(microseconds=took_us),
        completed_at=at,
        processing_time_ms=took_us / 1000,
        hash_generation_time_ms=took_us / 4000,
        workflow_steps_executed=2,
    )


def _hash(state: State) -> str:
    return result_hash(f"{key} {totals}" for key, totals in state.items())
