"""The independent auditor: what the totals must be, computed again from the raw bytes of the log.

It knows JSON and the published shape of events, nothing else: it imports nothing of the project, keeps every
member of every group in a list, and adds up at the end.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

NOBODY = "00000000-0000-0000-0000-000000000000"

type Row = tuple[int, str, str, bytes]
"""(position, event id, previous event id, body)."""
type Groups = dict[tuple[str, str, str], dict[str, Any]]
"""(namespace, aggregation type, group key) to the columns of a row of state."""


class Findings(NamedTuple):
    groups: Groups
    stamps: dict[str, dict[str, Any]]
    """The data of each readable completed event, by stamp id."""
    failed: list[tuple[str, str]]
    """(namespace, workflow id) of each readable failed event."""
    unreadable: set[tuple[str, int, int]]
    """(topic, shard, position)."""
    faults: list[str]


def audit(
    log: Mapping[tuple[str, int], Iterable[Row]],
    groupings: Mapping[str, Any],
    letters: Collection[tuple[str, int, int]] = (),
) -> Findings:
    """Read the whole log; `groupings` is the reducer's contract as JSON has it. What has a letter is in no group."""
    members: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    found = Findings({}, {}, [], set(), [])
    for (topic, shard), rows in log.items():
        expected, before = 1, NOBODY
        for position, event_id, previous_id, body in rows:
            if (position, previous_id) != (expected, before):
                found.faults.append(f"{topic}/{shard}: {position} after {previous_id}, not {expected} after {before}")
            expected, before = position + 1, event_id
            try:
                event = json.loads(body, parse_float=Decimal)
            except ValueError:
                found.unreadable.add((topic, shard, position))
                continue
            if (event["id"], event["position"], event["previousid"], event["shard"], event["type"]) != (
                event_id,
                position,
                previous_id,
                shard,
                topic,
            ):
                found.faults.append(f"{topic}/{shard}/{position}: the event says otherwise than its row")
            _file(event, found)
            if (topic, shard, position) in letters:
                continue
            for aggregation_type, key in _keys(event, groupings):
                members[event["namespace"], aggregation_type, key].append(event)
    found.groups.update({group: _totals(events) for group, events in members.items()})
    return found


def _file(event: dict[str, Any], found: Findings) -> None:
    data = event["data"]
    if "stamp_id" not in data:
        found.failed.append((event["namespace"], data["workflow_id"]))
    elif data["stamp_id"] in found.stamps:
        found.faults.append(f"stamp {data['stamp_id']} has two events")
    else:
        found.stamps[data["stamp_id"]] = data


def _keys(event: dict[str, Any], groupings: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = [("namespace", event["namespace"])]
    if groupings["time_window"]:
        keys.append(("time_window", _window(event["time"], groupings["window_ms"])))
    data = event["data"]
    if "stamp_id" not in data:
        return keys
    if groupings["content_type"]:
        keys.append(("content_type", data["content_type"]))
    if groupings["size_bucket"]:
        edges = [0, *groupings["size_bounds"]]
        floor = max(edge for edge in edges if edge <= data["file_size"])
        above = [edge - 1 for edge in edges if edge > data["file_size"]]
        keys.append(("size_bucket", f"{floor}..{min(above) if above else ''}"))
    metadata, fields = data["metadata"], groupings["metadata_fields"]
    return keys + [(f"metadata.{name}", metadata[name]) for name in fields if name in metadata]


def _window(time: str, window_ms: int) -> str:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    passed_ms = (datetime.fromisoformat(time) - epoch) // timedelta(milliseconds=1)
    start = epoch + timedelta(milliseconds=passed_ms // window_ms * window_ms)
    return start.strftime("%Y-%m-%dT%H:%M:%S") + (f".{start.microsecond // 1000:03d}Z" if start.microsecond else "Z")


def _totals(events: list[dict[str, Any]]) -> dict[str, Any]:
    done = [event["data"] for event in events if "stamp_id" in event["data"]]
    took = [int(data["processing_time_ms"] * 1000) for data in done]
    moments = [(datetime.fromisoformat(event["time"]), event["id"]) for event in events]
    return {
        "total_stamps": len(done),
        "failed": len(events) - len(done),
        "total_size_bytes": sum(data["file_size"] for data in done),
        "processing_time_us_sum": sum(took),
        "processing_time_us_min": min(took, default=None),
        "processing_time_us_max": max(took, default=None),
        "first": min(moments),
        "last": max(moments),
    }
