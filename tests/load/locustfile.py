"""Locust's users: each is a caller of the service. Run by `trial`, in a process of its own, which gevent patches.

What callers ask and are told is written to `LOAD_FOLDER/told-<pid>.jsonl`; figures to `LOAD_FOLDER/figures.json`.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, between, events, task
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from tests.load.caller import Answer, Ask, Caller, Circle

FOLDER = Path(os.environ["LOAD_FOLDER"])
SEED = os.environ["LOAD_SEED"]
# {"urls": [...], "tenants": [{"token": ..., "namespaces": [...]}, ...]}
PLACE: dict[str, Any] = json.loads((FOLDER / "place.json").read_text())
FIGURES = ("requests", "failures", "p50_ms", "p95_ms", "p99_ms", "max_ms")


class Pen:
    """Writes what callers enter, a line an act, as `Told.written` reads it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def ask(self, *op_ids: str) -> None:
        self._write("ask", *op_ids)

    def acknowledge(self, op_id: str, stamp: dict[str, Any]) -> None:
        self._write("acknowledge", op_id, {name: stamp[name] for name in KEPT})

    def accept(self, op_id: str) -> None:
        self._write("accept", op_id)

    def fault(self, what: str) -> None:
        self._write("fault", what)

    def close(self) -> None:
        self._file.close()

    def _write(self, *act: Any) -> None:
        self._file.write(json.dumps(act) + "\n")


KEPT = ("stamp_id", "namespace", "file_path", "version", "file_hash", "file_size", "op_id", "deduplicated")
pen = Pen(FOLDER / f"told-{os.getpid()}.jsonl")
circle = Circle(pen)
numbers = itertools.count(1)
at_once: list[int] = []


class User(FastHttpUser):
    """One user. They are spread evenly over tenants and over API processes."""

    host = PLACE["urls"][0]
    wait_time = between(0.5, 1.5)
    network_timeout = connection_timeout = 60.0

    def __init__(self, environment: Environment) -> None:
        number = next(numbers)
        self.host = PLACE["urls"][number % len(PLACE["urls"])]
        super().__init__(environment)
        tenants = PLACE["tenants"]
        tenant, another = tenants[number % len(tenants)], tenants[(number + 1) % len(tenants)]
        seed = f"{SEED}-{number}"
        self._caller = Caller(circle, seed, tenant["token"], tenant["namespaces"], another["namespaces"])

    @task
    def act(self) -> None:
        runner = self.environment.runner
        if runner.state not in (STATE_SPAWNING, STATE_RUNNING):
            return  # whoever wakes up now is about to be killed: what he began would have no answer
        at_once[:] = [max([runner.user_count, *at_once])]
        steps = self._caller.act()
        back: Answer | None = None
        while True:
            try:
                step = steps.send(back)
            except StopIteration:
                return
            if isinstance(step, Ask):
                back = self._send(step)
            else:
                gevent.sleep(step.seconds)
                back = None

    def _send(self, ask: Ask) -> Answer | None:
        sending = self.client.request(
            ask.method, ask.target, name=ask.name, data=ask.body or None, headers=dict(ask.headers), catch_response=True
        )
        with sending as response:
            if not response.status_code:
                response.failure(f"no answer: {response.error}")
                return None
            # What is right and what is not, the caller knows: he enters it in the books.
            response.success()
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, headers, response.content or b"")


@events.quitting.add_listener
def write_figures(environment: Environment, **_: Any) -> None:
    pen.close()
    stats = environment.stats
    calls = {
        entry.name: dict(
            zip(
                FIGURES,
                (
                    entry.num_requests,
                    entry.num_failures,
                    *(entry.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99)),
                    entry.max_response_time,
                ),
                strict=True,
            )
        )
        for entry in sorted([*stats.entries.values(), stats.total], key=lambda entry: entry.name)
    }
    figures = {
        "users": at_once[0] if at_once else 0,
        "seconds": stats.total.last_request_timestamp - stats.total.start_time,
        "calls": calls,
        "counts": circle.counts,
    }
    (FOLDER / "figures.json").write_text(json.dumps(figures))
