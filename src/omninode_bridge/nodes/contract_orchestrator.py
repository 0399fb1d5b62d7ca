"""The orchestrator's contract, compiled to the plan that its executor runs.

Refused here, after omnibase_core and `contract_reading`:

1. Steps that nobody can run, a plan without `hash` and `stamp`, or with `stamp` not last; a step that is
   declared before one it depends on: the declared order is the order of execution.
2. An execution graph that draws something else than `config.steps`: one of them would be a lie.
3. Triggers by which a workflow could not get from its start to `complete`, or, anywhere in between, to `fail`.
4. A circuit breaker that lets more than one probe through, or a call to a stamping service that outlives its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import msgspec
from omnibase_core.models.contracts.model_contract_orchestrator import ModelContractOrchestrator
from omnibase_core.models.contracts.model_retry_policy_contract import ModelRetryPolicyContract
from omnibase_core.models.contracts.model_workflow_step import ModelWorkflowStep
from omnibase_core.models.contracts.subcontracts.model_effect_circuit_breaker import ModelEffectCircuitBreaker

from omninode_bridge.domain.breaker import BreakerLimits, CallPolicy
from omninode_bridge.domain.errors import IllegalTransition
from omninode_bridge.domain.workflow import Plan, Retry, Step, StepKind, Topics
from omninode_bridge.nodes.contract_kafka import compile_kafka
from omninode_bridge.nodes.contract_machine import Fsm, compile_machine
from omninode_bridge.nodes.contract_queue import compile_queue
from omninode_bridge.nodes.contract_reading import (
    DESCRIPTIVE,
    Document,
    Problem,
    join,
    one_of,
    settings,
    unknown_keys,
    validated,
    whole_number,
)
from omninode_bridge.nodes.contract_topics import check_topics

STEP_KINDS: dict[str, StepKind] = {"hash": "compute", "intelligence": "effect", "stamp": "effect"}
"""The steps that the executor can run, and what ONEX calls their kind."""
BATCH_ITEMS_MAX = 65_536
"""More than this in one call would be held in memory for no gain."""
HASH_MIB_PER_S_MAX = 10_000
"""Faster than memory: beyond it the setting would mean nothing."""
IN_FLIGHT_MAX = 1024
"""Calls to one stamping service at a time; each may hold a connection."""
STEP_MS_MAX = 600_000
"""All attempts at one step together; omnibase_core emits no action for a step that may take longer."""

_ACTED = DESCRIPTIVE | {
    "performance.single_operation_max_ms",
    "workflow_coordination.execution_mode",
    "workflow_coordination.timeout_ms",
    "workflow_coordination.workflow_definition.execution_graph",
    "workflow_coordination.workflow_definition.workflow_metadata",
    "yaml_published_events",
    "config",
}
_CONFIG_KEYS = (
    "batch_items_max",
    "hash_mib_per_s_min",
    "kafka",
    "queue",
    "retry",
    "stamping",
    "state_machine",
    "steps",
    "triggers",
)
_STAMPING_KEYS = ("circuit_breaker", "request_timeout_ms", "requests_in_flight_max")
_STEP_ACTED = ("step_name", "step_type", "timeout_ms", "retry_count", "depends_on")
_RETRY_ACTED = ("max_retries", "base_delay_seconds", "max_delay_seconds", "backoff_strategy")
_BREAKER_ACTED = ("enabled", "failure_threshold", "success_threshold", "timeout_ms", "half_open_requests")
_STEP_IDS = UUID("6f2d3c1e-5a0b-5f0a-9d7e-0c4b8a1f2e3d")
"""The namespace of uuid5 step ids: the same step has the same id in every process."""


@dataclass(frozen=True, slots=True)
class OrchestratorContract:
    """What the orchestrator's contract says. `fsm` is compiled into the plan too."""

    plan: Plan
    fsm: Fsm
    workflow_name: str
    description: str
    batch_items_max: int
    timeout_ms: int
    """Bounds the steps before `stamp` together."""
    slow_ms: int
    """A batch that takes longer counts as slow."""
    hash_mib_per_s_min: int
    """What the slowest storage that counts as working gives: the hash step has that much more time for its bytes."""
    stamping: CallPolicy
    """How stamping services are called, where there are any."""
    topics: Topics
    """The topics on Kafka, where there is one."""
    steps: tuple[ModelWorkflowStep, ...]
    """The plan's steps as ONEX plans them; frozen models."""
    model: ModelContractOrchestrator
    fingerprint: str
    source: str

    @property
    def has_intelligence(self) -> bool:
        return self.plan.step("intelligence") is not None


class _Triggers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    start: list[str]
    complete: str
    fail: str


def compile_orchestrator(document: Document, found: list[Problem]) -> OrchestratorContract | None:
    """Return what a contract says; None, after adding what is wrong with it."""
    raw = document.raw
    one_of(raw.get("node_type"), ("ORCHESTRATOR_GENERIC",), "node_type", found)
    performance = raw.get("performance")
    if not isinstance(performance, dict) or not performance.get("single_operation_max_ms"):
        # omnibase_core demands it too, but does not say where.
        found.append(Problem("performance.single_operation_max_ms", "is missing: from how many ms on a batch is slow"))
    if found:
        return None
    model = validated(ModelContractOrchestrator, raw, "", found)
    config = raw.get("config", {})
    if model is None or not isinstance(config, dict):
        return None
    settings(raw, model, "", _ACTED, found)
    one_of(model.input_model, ("ModelStampRequestInput",), "input_model", found)
    one_of(model.output_model, ("ModelStampResponseOutput",), "output_model", found)
    found.extend(unknown_keys(config, "config", _CONFIG_KEYS))
    topics = [event.topic for event in model.yaml_published_events]
    check_topics(topics, "yaml_published_events", found)
    steps, compiled = _compile_steps(config.get("steps"), found)
    retry = _compile_retry(config.get("retry"), compiled, found)
    timeout_ms = _check_coordination(model, compiled, found)
    _check_graph(model, compiled, found)
    triggers = _triggers(config.get("triggers"), found)
    batch_items_max = whole_number(config, "config", "batch_items_max", (1, BATCH_ITEMS_MAX), found)
    hash_mib_per_s_min = whole_number(config, "config", "hash_mib_per_s_min", (1, HASH_MIB_PER_S_MAX), found)
    stamping = _compile_stamping(config.get("stamping"), compiled, hash_mib_per_s_min, found)
    queue = compile_queue(config.get("queue"), batch_items_max, found)
    kafka = compile_kafka(config.get("kafka"), topics, found)
    fsm = compile_machine(config.get("state_machine"), "config.state_machine", found)
    if found or None in (fsm, retry, triggers, stamping, queue, kafka):
        return None
    assert fsm is not None and retry is not None and triggers is not None and queue is not None
    assert stamping is not None and kafka is not None
    plan = Plan(
        fsm.machine,
        tuple(compiled),
        retry,
        topics[0],
        topics[1],
        tuple(triggers.start),
        triggers.complete,
        triggers.fail,
        queue,
    )
    _check_walk(plan, fsm, found)
    definition = model.workflow_coordination.workflow_definition
    assert definition is not None and model.performance.single_operation_max_ms is not None
    if found:
        return None
    return OrchestratorContract(
        plan,
        fsm,
        definition.workflow_metadata.workflow_name,
        definition.workflow_metadata.description or model.description,
        batch_items_max,
        timeout_ms,
        model.performance.single_operation_max_ms,
        hash_mib_per_s_min,
        stamping,
        kafka,
        tuple(steps),
        model,
        document.fingerprint,
        document.source,
    )


def _compile_steps(raw: object, found: list[Problem]) -> tuple[list[ModelWorkflowStep], list[Step]]:
    path = "config.steps"
    if not isinstance(raw, list) or not raw:
        found.append(Problem(path, "is missing: list the steps of a workflow"))
        return [], []
    steps: list[ModelWorkflowStep] = []
    compiled: list[Step] = []
    for index, entry in enumerate(raw):
        here = join(path, index)
        if not isinstance(entry, dict):
            found.append(Problem(here, "is no mapping with step_name, step_type, timeout_ms and retry_count"))
            continue
        _compile_step(entry, here, steps, compiled, found)
    names = [step.name for step in compiled]
    found.extend(
        Problem(path, f"has no {needed!r}: without it there is no stamp")
        for needed in ("hash", "stamp")
        if needed not in names
    )
    if "stamp" in names and names[-1] != "stamp":
        found.append(Problem(join(path, names.index("stamp"), "step_name"), "'stamp' must be the last step"))
    return steps, compiled


def _compile_step(
    entry: dict[str, Any], here: str, steps: list[ModelWorkflowStep], compiled: list[Step], found: list[Problem]
) -> None:
    # ModelWorkflowStep knows steps by UUID and no triggers: both are taken out and checked here.
    own = {key: value for key, value in entry.items() if key not in ("trigger", "depends_on")}
    depends_on, trigger = entry.get("depends_on", []), entry.get("trigger")
    before = [step.name for step in compiled]
    if not isinstance(depends_on, list) or not all(isinstance(name, str) for name in depends_on):
        found.append(Problem(join(here, "depends_on"), "must be a list of step names"))
        depends_on = []
    for index, name in enumerate(depends_on):
        if name not in before:
            found.append(Problem(join(here, "depends_on", index), f"{name!r:.60} is no step declared before this one"))
    if not isinstance(trigger, str | None) or trigger == "":
        found.append(Problem(join(here, "trigger"), "must be the name of a trigger"))
        trigger = None
    if trigger and entry.get("step_name") == "stamp":
        message = "is not for 'stamp', which ends the workflow: that transition is config.triggers.complete"
        found.append(Problem(join(here, "trigger"), message))
    ids = {"step_id": step_id(str(own.get("step_name"))), "depends_on": [step_id(name) for name in depends_on]}
    # Given ids are not overridden, so that the check of settings sees them.
    model = validated(ModelWorkflowStep, {**ids, **own}, here, found)
    if model is None:
        return
    settings(own, model, here, _STEP_ACTED, found)
    if model.step_name in before:
        found.append(Problem(join(here, "step_name"), f"{model.step_name!r} is there already"))
    one_of(model.step_name, tuple(STEP_KINDS), join(here, "step_name"), found)
    kind = STEP_KINDS.get(model.step_name)
    if kind is None:
        return
    one_of(model.step_type, (kind,), join(here, "step_type"), found)
    longest_ms = (model.retry_count + 1) * model.timeout_ms
    if longest_ms > STEP_MS_MAX:
        message = (
            f"{model.retry_count} retries of {model.timeout_ms} ms may take {longest_ms}; {STEP_MS_MAX} is the limit"
        )
        found.append(Problem(join(here, "retry_count"), message))
    steps.append(model)
    compiled.append(Step(model.step_name, kind, model.timeout_ms, model.retry_count, tuple(depends_on), trigger))


def step_id(name: str) -> UUID:
    """Return the id under which ONEX knows a step."""
    return uuid5(_STEP_IDS, name)


def _compile_retry(raw: object, steps: Sequence[Step], found: list[Problem]) -> Retry | None:
    path = "config.retry"
    if not isinstance(raw, dict):
        found.append(Problem(path, "is missing: say max_retries, base_delay_seconds and max_delay_seconds"))
        return None
    policy = validated(ModelRetryPolicyContract, raw, path, found)
    if policy is None:
        return None
    settings(raw, policy, path, _RETRY_ACTED, found)
    one_of(policy.backoff_strategy, ("exponential",), join(path, "backoff_strategy"), found)
    if policy.max_delay_seconds < policy.base_delay_seconds:
        message = f"{policy.max_delay_seconds} is less than base_delay_seconds, {policy.base_delay_seconds}"
        found.append(Problem(join(path, "max_delay_seconds"), message))
    for index, step in enumerate(steps):
        if step.retries > policy.max_retries:
            message = f"{step.retries} is more than config.retry.max_retries, {policy.max_retries}"
            found.append(Problem(join("config.steps", index, "retry_count"), message))
    return Retry(policy.base_delay_seconds, policy.max_delay_seconds)


def _compile_stamping(
    raw: object, steps: Sequence[Step], mib_per_s_min: int, found: list[Problem]
) -> CallPolicy | None:
    path = "config.stamping"
    if not isinstance(raw, dict):
        found.append(Problem(path, f"is missing: say {', '.join(_STAMPING_KEYS)}"))
        return None
    found.extend(unknown_keys(raw, path, _STAMPING_KEYS))
    timeout_ms = whole_number(raw, path, "request_timeout_ms", (100, STEP_MS_MAX), found)
    for step in steps:
        if step.name == "hash" and step.timeout_ms < timeout_ms:
            # A call that its step cuts off would tell the breaker nothing.
            message = f"{timeout_ms} is more than the timeout_ms of the step 'hash', {step.timeout_ms}"
            found.append(Problem(join(path, "request_timeout_ms"), message))
    in_flight_max = whole_number(raw, path, "requests_in_flight_max", (1, IN_FLIGHT_MAX), found)
    path = join(path, "circuit_breaker")
    written = raw.get("circuit_breaker")
    if not isinstance(written, dict):
        found.append(Problem(path, f"is missing: say {', '.join(_BREAKER_ACTED)}"))
        return None
    breaker = validated(ModelEffectCircuitBreaker, written, path, found)
    if breaker is None:
        return None
    settings(written, breaker, path, _BREAKER_ACTED, found)
    # omnibase_core's defaults say otherwise, and several probes at once are what a service that comes back can't bear.
    one_of(breaker.enabled, (True,), join(path, "enabled"), found)
    one_of(breaker.success_threshold, (1,), join(path, "success_threshold"), found)
    one_of(breaker.half_open_requests, (1,), join(path, "half_open_requests"), found)
    limits = BreakerLimits(breaker.failure_threshold, breaker.timeout_ms / 1000)
    return CallPolicy(timeout_ms, in_flight_max, mib_per_s_min, limits)


def _check_coordination(model: ModelContractOrchestrator, steps: Sequence[Step], found: list[Problem]) -> int:
    path = "workflow_coordination"
    coordination = model.workflow_coordination
    one_of(coordination.execution_mode, ("sequential",), join(path, "execution_mode"), found)
    if coordination.timeout_ms is None or coordination.timeout_ms < 1000:
        found.append(Problem(join(path, "timeout_ms"), "must be given, at least 1000: the limit of the steps together"))
        return 0
    for index, step in enumerate(steps):
        if step.timeout_ms > coordination.timeout_ms:
            message = f"{step.timeout_ms} is more than workflow_coordination.timeout_ms, {coordination.timeout_ms}"
            found.append(Problem(join("config.steps", index, "timeout_ms"), message))
    return coordination.timeout_ms


def _check_graph(model: ModelContractOrchestrator, steps: Sequence[Step], found: list[Problem]) -> None:
    path = "workflow_coordination.workflow_definition"
    definition = model.workflow_coordination.workflow_definition
    if definition is None:
        found.append(Problem(path, "is missing: draw the steps as workflow_metadata and execution_graph"))
        return
    nodes = join(path, "execution_graph.nodes")
    drawn, named = [node.node_id for node in definition.execution_graph.nodes], [step.name for step in steps]
    if drawn != named:
        message = f"are {', '.join(drawn)}; config.steps has {', '.join(named)}: they must be the same"
        found.append(Problem(nodes, message))
        return
    for index, (node, step) in enumerate(zip(definition.execution_graph.nodes, steps, strict=True)):
        one_of(node.node_type, (step.kind,), join(nodes, index, "node_type"), found)
        if sorted(node.depends_on) != sorted(step.depends_on):
            message = f"is {node.depends_on}; config.steps[{index}] depends on {list(step.depends_on)}"
            found.append(Problem(join(nodes, index, "depends_on"), message))


def _triggers(raw: object, found: list[Problem]) -> _Triggers | None:
    path = "config.triggers"
    if not isinstance(raw, dict):
        found.append(Problem(path, "is missing: say start, complete and fail"))
        return None
    try:
        return msgspec.convert(raw, _Triggers)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        found.append(Problem(path + place.removesuffix("`"), message))
        return None


def _check_walk(plan: Plan, fsm: Fsm, found: list[Problem]) -> None:
    """Walk the plan through the machine; `fail` must be legal wherever a step can fail."""
    machine, path = plan.machine, "config.triggers"
    pulls = [(join(path, "start", index), trigger) for index, trigger in enumerate(plan.start)]
    after_start = len(pulls)
    pulls += [
        (join("config.steps", index, "trigger"), step.trigger) for index, step in enumerate(plan.steps) if step.trigger
    ]
    pulls.append((join(path, "complete"), plan.complete))
    state = machine.initial
    for index, (here, trigger) in enumerate(pulls):
        if index >= after_start:
            failed = machine.table.get((state, plan.fail))
            if failed is None:
                message = f"{plan.fail!r} is illegal in state {state!r}, where a step can fail"
                found.append(Problem(join(path, "fail"), message))
            elif failed not in machine.terminal or failed not in fsm.error_states:
                message = f"{plan.fail!r} leads to {failed!r}, which must be a terminal state and in error_states"
                found.append(Problem(join(path, "fail"), message))
        try:
            state = machine.transition(state, trigger)
        except IllegalTransition as error:
            found.append(Problem(here, error.message))
            return
    if state not in machine.terminal or state in fsm.error_states:
        message = f"{plan.complete!r} leads to {state!r}, which must be a terminal state and not in error_states"
        found.append(Problem(join(path, "complete"), message))
