"""How the topics on Kafka are made where they are missing: `config.kafka` of the orchestrator's contract.

Refused: numbers that mean nothing. Topics that are there already are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from omninode_bridge.domain.log import SHARDS_MAX
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.nodes.contract_reading import Problem, whole_numbers

_PATH = "config.kafka"
_BOUNDS = {"partitions": (1, SHARDS_MAX), "retention_ms": (60_000, 10 * 365 * 86_400_000)}


def compile_kafka(raw: object, names: Sequence[str], found: list[Problem]) -> Topics | None:
    """Return what a contract says of the topics; None, after adding what is wrong with it."""
    values = whole_numbers(raw, _PATH, _BOUNDS, found)
    return None if values is None else Topics(tuple(names), values["partitions"], values["retention_ms"])
