"""How the topics on Kafka are made where they are missing: `config.kafka` of the orchestrator's contract.

Refused: numbers that mean nothing. Topics that are there already are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from omninode_bridge.domain.log import SHARDS_MAX
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.nodes.contract_reading import Problem, join, unknown_keys

_PATH = "config.kafka"
_BOUNDS = {"partitions": (1, SHARDS_MAX), "retention_ms": (60_000, 10 * 365 * 86_400_000)}


def compile_kafka(raw: object, names: Sequence[str], found: list[Problem]) -> Topics | None:
    """Return what a contract says of the topics; None, after adding what is wrong with it."""
    if not isinstance(raw, dict):
        found.append(Problem(_PATH, f"is missing: say {', '.join(_BOUNDS)}"))
        return None
    found.extend(unknown_keys(raw, _PATH, tuple(_BOUNDS)))
    values = {}
    for name, (least, most) in _BOUNDS.items():
        value = raw.get(name)
        if type(value) is not int or not least <= value <= most:
            found.append(Problem(join(_PATH, name), f"must be a whole number from {least} to {most}"))
            return None
        values[name] = value
    return Topics(tuple(names), values["partitions"], values["retention_ms"])
