"""Load, validate and compile the nodes' contracts. A broken contract raises ContractInvalid naming file and field.

Without an argument the contracts that ship beside the nodes are loaded. Validation goes through
omnibase_core's models first and then through our own checks, because those models let misspelt and
meaningless settings pass. What comes out are frozen domain values: models inside a contract are mutable and
shared, so nothing that runs reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from omninode_bridge.domain.errors import ContractInvalid
from omninode_bridge.nodes.contract_orchestrator import OrchestratorContract, compile_orchestrator
from omninode_bridge.nodes.contract_reading import Document, Problem, parse, read, refuse
from omninode_bridge.nodes.contract_reducer import ReducerContract, compile_reducer

__all__ = [
    "CONTRACT_FILE",
    "Contracts",
    "OrchestratorContract",
    "Problem",
    "ReducerContract",
    "Report",
    "load_contracts",
    "load_orchestrator",
    "load_reducer",
    "shipped_text",
    "validate_file",
    "validate_path",
]

CONTRACT_FILE = "contract.yaml"
_PACKAGES = {
    "orchestrator": "omninode_bridge.nodes.orchestrator.v1_0_0",
    "reducer": "omninode_bridge.nodes.reducer.v1_0_0",
}
_KINDS = {"ORCHESTRATOR_GENERIC": "orchestrator", "REDUCER_GENERIC": "reducer"}

type Source = str | os.PathLike[str] | None
"""A path; or, where it has a line break, the text of a contract; None for the contract that ships with the node."""


@dataclass(frozen=True, slots=True)
class Contracts:
    """Both nodes' contracts, which agree about topics and states."""

    orchestrator: OrchestratorContract
    reducer: ReducerContract


@dataclass(frozen=True, slots=True)
class Report:
    """What validating one file found. `kind` is orchestrator, reducer, or unknown."""

    path: str
    kind: str
    problems: tuple[Problem, ...]


def load_orchestrator(source: Source = None) -> OrchestratorContract:
    """Return the orchestrator's contract, or raise ContractInvalid."""
    return _load(source, "orchestrator", compile_orchestrator)


def load_reducer(source: Source = None) -> ReducerContract:
    """Return the reducer's contract, or raise ContractInvalid."""
    return _load(source, "reducer", compile_reducer)


def load_contracts(orchestrator: Source = None, reducer: Source = None) -> Contracts:
    """Return both contracts; ContractInvalid also where one contradicts the other."""
    contracts = Contracts(load_orchestrator(orchestrator), load_reducer(reducer))
    found = _contradictions(contracts.orchestrator, contracts.reducer)
    if found:
        refuse(contracts.reducer.source, found)
    return contracts


def validate_file(path: str | os.PathLike[str]) -> tuple[str, list[Problem]]:
    """Return the kind of a contract file (orchestrator, reducer or unknown) and everything wrong with it."""
    report, _ = _examine(os.fspath(path))
    return report.kind, list(report.problems)


def validate_path(path: str | os.PathLike[str]) -> list[Report]:
    """Return a report for each contract: of the file, or of every `contract.yaml` below the folder.

    An orchestrator and a reducer alone in a folder are held against each other too.
    """
    root = os.fspath(path)
    if not os.path.isdir(root):
        return [_examine(root)[0]]
    files = sorted(os.path.join(folder, CONTRACT_FILE) for folder, _, names in os.walk(root) if CONTRACT_FILE in names)
    if not files:
        return [Report(root, "unknown", (Problem("", f"has no {CONTRACT_FILE} in it"),))]
    examined = [_examine(file) for file in files]
    reports = [report for report, _ in examined]
    compiled = [contract for _, contract in examined]
    orchestrators = [contract for contract in compiled if isinstance(contract, OrchestratorContract)]
    reducers = [contract for contract in compiled if isinstance(contract, ReducerContract)]
    if len(orchestrators) == len(reducers) == 1:
        at = compiled.index(reducers[0])
        reports[at] = Report(files[at], "reducer", tuple(_contradictions(orchestrators[0], reducers[0])))
    return reports


def shipped_text(kind: str) -> str:
    """Return the text of the contract that ships with a node (orchestrator or reducer)."""
    return resources.files(_PACKAGES[kind]).joinpath(CONTRACT_FILE).read_text(encoding="utf-8")


def _load[C](source: Source, kind: str, compiler: Callable[[Document, list[Problem]], C | None]) -> C:
    if source is None:
        document = parse(shipped_text(kind).encode(), f"{kind}/{CONTRACT_FILE}")
    elif isinstance(source, str) and "\n" in source:
        document = parse(source.encode(), f"{kind} contract")
    else:
        document = read(source)
    found: list[Problem] = []
    contract = compiler(document, found)
    document.refuse(found)
    assert contract is not None, "a contract that does not compile has a problem"
    return contract


def _examine(path: str) -> tuple[Report, OrchestratorContract | ReducerContract | None]:
    try:
        document = read(path)
    except ContractInvalid as error:
        problem = Problem(error.field or "", error.message.removeprefix(f"{path}: "))
        return Report(path, "unknown", (problem,)), None
    node_type = document.raw.get("node_type")
    kind = _KINDS.get(node_type, "unknown") if isinstance(node_type, str) else "unknown"
    found: list[Problem] = []
    contract: OrchestratorContract | ReducerContract | None = None
    if kind == "orchestrator":
        contract = compile_orchestrator(document, found)
    elif kind == "reducer":
        contract = compile_reducer(document, found)
    else:
        found.append(Problem("node_type", f"must be {' or '.join(_KINDS)}, not {node_type!r:.60}"))
    return Report(path, kind, tuple(found)), contract


def _contradictions(orchestrator: OrchestratorContract, reducer: ReducerContract) -> list[Problem]:
    found: list[Problem] = []
    published = [orchestrator.plan.completed_topic, orchestrator.plan.failed_topic]
    consumed = [reducer.completed_topic, reducer.failed_topic]
    if consumed != published:
        message = f"are {', '.join(consumed)}; the orchestrator publishes {', '.join(published)}"
        found.append(Problem("yaml_consumed_events", message))
    if reducer.fsm != orchestrator.fsm:
        message = "is another machine than config.state_machine of the orchestrator: both must be the same"
        found.append(Problem("state_machine", message))
    return found
