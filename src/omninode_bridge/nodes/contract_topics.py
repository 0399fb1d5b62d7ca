"""The topics of a contract: that of completed workflows, then that of failed ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omninode_bridge.nodes.contract_reading import Problem, join

DEAD_LETTER_SUFFIX = ".dlq"
# Kafka allows 249 characters; the dead-letter topic's suffix must fit too.
TOPIC_CHARACTERS_MAX = 249 - len(DEAD_LETTER_SUFFIX)
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")


def check_topics(names: Sequence[str], path: str, found: list[Problem]) -> None:
    """Add what is wrong with a contract's topics: exactly two, distinct, legal names, in the right order."""
    if len(names) != 2:
        message = f"must name two topics, of completed and of failed workflows, in this order; it names {len(names)}"
        found.append(Problem(path, message))
        return
    for index, name in enumerate(names):
        if not _TOPIC.fullmatch(name) or name in (".", "..") or len(name) > TOPIC_CHARACTERS_MAX:
            message = f"{name!r:.60} is no Kafka topic: 1-{TOPIC_CHARACTERS_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'"
            found.append(Problem(join(path, index), message))
    # Kafka's metric names fold '.' and '_' together, and so refuses two topics that differ only in them.
    if names[0].replace("_", ".") == names[1].replace("_", "."):
        message = f"{names[1]!r} is the same as the first: completed and failed are told apart by the topic"
        found.append(Problem(join(path, 1), message))
    if names[0].endswith(".failed") or names[1].endswith(".completed"):
        found.append(Problem(path, "names the topic of failed workflows first: completed comes first"))
