"""The counterpart of the reducer on Kafka: Quix Streams, summing the same events exactly once.

    PYTHON quix_peer.py TASK

with a Python that has quixstreams and nothing of ours. TASK is a JSON object: `bootstrap`, `group`, `folder`, `count`
(events to sum), `topics`, `spared`, and of the reducer's contract `window_ms`, `size_bounds` and `metadata_fields`. It
prints a JSON object: the `seconds` from the first event handled to the last, and `rows`, the totals of each group.

It reads our topics, whose keys are workflows, sends what the sums need round by `group_by("namespace")`, and keeps the
totals of each grouping in its state. `spared`: the topics are keyed by namespace already, and it sums by namespace
only. `processing_guarantee="exactly-once"`, its other settings as they come; the last commit is not on the clock.
"""

from __future__ import annotations

import json
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

from quixstreams import Application


def main() -> None:
    task = json.loads(sys.argv[1])
    spared = task["spared"]
    fields = task["metadata_fields"]
    app = Application(
        task["bootstrap"],
        consumer_group=task["group"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=task["folder"],
        loglevel="WARNING",
    )
    began_s = ended_s = 0.0
    sums: dict[tuple[str, str, str], list[Any]] = {}

    def item_of(event: dict[str, Any]) -> dict[str, Any]:
        """Return what the sums need of an event."""
        nonlocal began_s
        began_s = began_s or time.perf_counter()
        data, at = event["data"], datetime.fromisoformat(event["time"])
        item = {"namespace": event["namespace"], "moment": [round(at.timestamp() * 1_000_000), event["id"]]}
        if "stamp_id" not in data:
            return item
        item |= {"size": data["file_size"], "took": round(data["processing_time_ms"] * 1000)}
        if not spared:
            metadata = data.get("metadata", {})
            item |= {
                "type": data["content_type"],
                "metadata": {name: metadata[name] for name in fields if name in metadata},
            }
        return item

    def groups(item: dict[str, Any]) -> Iterator[tuple[str, str | int]]:
        yield "namespace", item["namespace"]
        if spared:
            return
        yield "time_window", item["moment"][0] // (task["window_ms"] * 1000)
        if "size" in item:
            yield "content_type", item["type"]
            yield "size_bucket", bisect_right(task["size_bounds"], item["size"])
            for name, value in item["metadata"].items():
                yield f"metadata.{name}", value

    def add(topic: str, item: dict[str, Any], state: Any) -> None:
        nonlocal ended_s
        moment, completed = item["moment"], "size" in item
        for kind, key in groups(item):
            group = f"{kind} {key}"
            totals = state.get(group)
            if totals is None:
                totals = [0, 0, 0, 0, None, None, moment, moment]
            if completed:
                took = item["took"]
                totals[0] += 1
                totals[2] += item["size"]
                totals[3] += took
                totals[4] = took if totals[4] is None else min(totals[4], took)
                totals[5] = took if totals[5] is None else max(totals[5], took)
            else:
                totals[1] += 1
            totals[6], totals[7] = min(totals[6], moment), max(totals[7], moment)
            state.set(group, totals)
            sums[topic, item["namespace"], group] = [item["namespace"], kind, key, *totals]
        ended_s = time.perf_counter()

    for name in task["topics"]:
        frame = app.dataframe(app.topic(name, value_deserializer="json")).apply(item_of)
        if not spared:
            frame = frame.group_by("namespace")
        frame.update(partial(add, name), stateful=True)
    app.run(count=task["count"], collect=False)
    json.dump({"seconds": ended_s - began_s, "rows": list(sums.values())}, sys.stdout)


if __name__ == "__main__":
    main()
