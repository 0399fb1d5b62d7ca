"""The tables, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from omninode_bridge.domain.acceptance import Input, Waiting
from omninode_bridge.domain.log import START, Head, Record, ShardKey
from omninode_bridge.domain.names import path_hash
from omninode_bridge.domain.recording import (
    Decision,
    FactsRow,
    OpKey,
    PathKey,
    Prior,
    Workflow,
)
from omninode_bridge.domain.reduction import State
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.ports import (
    DeadLetter,
    Generation,
)


class Folding:
    """What `bridge_state`, `consumer_positions` and `dead_letters` hold of one generation."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.state: State = {}
        self.positions: dict[ShardKey, Head] = {}
        self.dead_letters: dict[tuple[str, int, int], DeadLetter] = {}
        """By topic, shard and position."""


class MemoryStore:
    """The tables. Ledgers, sources, state stores and reads made over the same store see the same data."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}
        """By stamp id."""
        self.versions: dict[PathKey, list[Stamp]] = {}
        """Version n of a path is at index n - 1."""
        self.workflows: dict[OpKey, Workflow] = {}
        self.inputs: dict[OpKey, tuple[Input, Waiting]] = {}
        self.accepted: dict[OpKey, datetime] = {}
        self.facts: dict[PathKey, FactsRow] = {}
        self.log: dict[ShardKey, list[Record]] = {}
        """Position n of a shard is at index n - 1."""
        self.foldings: dict[int, Folding] = {}
        """The live generation and those being built, by number."""
        self.generations = 0
        self.live: int | None = None

    @property
    def dead_letters(self) -> dict[tuple[str, int, int], DeadLetter]:
        """What the live generation lacks, by topic, shard and position."""
        return {} if self.live is None else self.foldings[self.live].dead_letters

    def head(self, key: ShardKey) -> Head:
        records = self.log.get(key)
        return records[-1].head if records else START

    def prior(self, workflow: Workflow) -> Prior:
        _, waiting = self.inputs.get((workflow.namespace, workflow.workflow_id), (None, None))
        return Prior(workflow, self.stamps[workflow.stamp_id] if workflow.stamp_id else None, waiting)

    def latest(self, key: PathKey) -> Stamp | None:
        versions = self.versions.get(key)
        return versions[-1] if versions else None

    def write(self, decision: Decision, heads: Mapping[str, Head], now: datetime) -> bool:
        """Write a decision that was made from `heads`; False, and nothing written, when a race was lost."""
        moved = any(self.head(key) != heads[key[0]] for key in decision.heads)
        known = any((row.namespace, row.workflow_id) in self.workflows for row in decision.workflows)
        if moved or known or not self._fits(decision.stamps) or not all(map(self._holds, decision.ended)):
            return False
        for workflow, _ in decision.ended:
            key = (workflow.namespace, workflow.workflow_id)
            del self.inputs[key]
            self.workflows[key] = workflow
        for accepted in decision.inputs:
            key = (accepted.request.namespace, accepted.request.workflow_id)
            self.accepted[key] = now
            self.inputs[key] = (accepted, Waiting(fence=0, attempts=0, available_at=now))
        for stamp in decision.stamps:
            self.stamps[stamp.stamp_id] = stamp
            self.versions.setdefault(_path(stamp), []).append(stamp)
        for workflow in decision.workflows:
            self.workflows[workflow.namespace, workflow.workflow_id] = workflow
        for record in decision.records:
            self.log.setdefault((record.topic, record.shard), []).append(record)
        for row in decision.facts:
            path = row.path_hash
            if path not in self.facts or self.facts[path].version <= row.version:
                self.facts[path] = row
        return True

    def _holds(self, ended: tuple[Workflow, int]) -> bool:
        """Tell whether the lease that a workflow was run under is still the last one."""
        workflow, fence = ended
        _, waiting = self.inputs.get((workflow.namespace, workflow.workflow_id), (None, None))
        return waiting is not None and waiting.fence == fence

    def _fits(self, stamps: Iterable[Stamp]) -> bool:
        """Tell whether each stamp is the next version of its path."""
        added: dict[PathKey, int] = {}
        for stamp in stamps:
            path = _path(stamp)
            if path not in added:
                added[path] = len(self.versions.get(path, ()))
            added[path] += 1
            if stamp.version != added[path]:
                return False
        return True


def _path(stamp: Stamp) -> PathKey:
    return path_hash(stamp.namespace, stamp.file_path)
