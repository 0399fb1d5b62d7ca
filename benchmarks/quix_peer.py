"""The counterpart of the reducer on Kafka: Quix Streams, summing the same events exactly once.

    PYTHON quix_peer.py BOOTSTRAP TOPIC GROUP COUNT FOLDER

with a Python that has quixstreams and nothing of ours. It sums stamps, failures, bytes and processing times by
namespace, reading COUNT events from a topic, and prints a JSON object: the seconds from the first event handled to
the last, and the sums.

What suits it: the topic is one that is keyed by namespace already, so that nothing is sent round by `group_by`; only
the fields of the sums are looked at; `processing_guarantee="exactly-once"` with a commit every five seconds, its
default; the last commit is not on the clock. Ours keeps five groupings, and what is committed is in PostgreSQL.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from quixstreams import Application

_EMPTY = {"stamps": 0, "failed": 0, "bytes": 0, "processing_us": 0}


def main() -> None:
    bootstrap, topic, group, count, folder = sys.argv[1:]
    app = Application(
        bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=folder,
        loglevel="WARNING",
    )
    began_s = ended_s = 0.0
    sums: dict[str, dict[str, int]] = {}

    def add(event: dict[str, Any], state: Any) -> None:
        nonlocal began_s, ended_s
        if not began_s:
            began_s = time.perf_counter()
        totals = state.get("totals", default=None) or dict(_EMPTY)
        data = event["data"]
        if "stamp_id" in data:
            totals["stamps"] += 1
            totals["bytes"] += data["file_size"]
            totals["processing_us"] += round(data["processing_time_ms"] * 1000)
        else:
            totals["failed"] += 1
        state.set("totals", totals)
        sums[event["namespace"]] = totals
        ended_s = time.perf_counter()

    frame = app.dataframe(app.topic(topic, value_deserializer="json"))
    frame.update(add, stateful=True)
    app.run(count=int(count), collect=False)
    json.dump({"seconds": ended_s - began_s, "sums": sums}, sys.stdout)


if __name__ == "__main__":
    main()
