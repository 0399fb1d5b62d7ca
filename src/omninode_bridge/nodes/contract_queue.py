"""How accepted workflows are run: `config.queue` of the orchestrator's contract.

Refused: a lease so short that a pause of the machine would hand living work to another, or so long that a dead
worker's work waits for an hour; and a number of attempts or of workflows that means nothing.
"""

from __future__ import annotations

from omninode_bridge.domain.workflow import Queue
from omninode_bridge.nodes.contract_reading import Problem, join, whole_numbers

_PATH = "config.queue"
_BOUNDS = {"lease_ms": (1000, 3_600_000), "attempts_max": (1, 100), "in_flight_max": (1, 1024)} | {
    "pause_base_ms": (1, 600_000),
    "pause_max_ms": (1, 3_600_000),
}


def compile_queue(raw: object, batch_items_max: int, found: list[Problem]) -> Queue | None:
    """Return what a contract says of the queue; None, after adding what is wrong with it."""
    values = whole_numbers(raw, _PATH, _BOUNDS, found)
    if values is None:
        return None
    if values["in_flight_max"] > batch_items_max:
        message = (
            f"{values['in_flight_max']} is more than config.batch_items_max, {batch_items_max}: they run as one batch"
        )
        found.append(Problem(join(_PATH, "in_flight_max"), message))
    if values["pause_max_ms"] < values["pause_base_ms"]:
        message = f"{values['pause_max_ms']} is less than pause_base_ms, {values['pause_base_ms']}"
        found.append(Problem(join(_PATH, "pause_max_ms"), message))
    return Queue(
        lease_s=values["lease_ms"] / 1000,
        attempts_max=values["attempts_max"],
        in_flight_max=values["in_flight_max"],
        pause_base_s=values["pause_base_ms"] / 1000,
        pause_max_s=values["pause_max_ms"] / 1000,
    )
