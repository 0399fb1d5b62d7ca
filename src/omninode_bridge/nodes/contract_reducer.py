"""The reducer's contract, compiled to groupings, topics and the machine that events are held against.

Refused here, after omnibase_core and `contract_reading`: groupings the fold does not know, windows it can't
make, aggregation functions other than those every group has, and storage other than PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnibase_core.models.contracts.model_contract_reducer import ModelContractReducer
from omnibase_core.models.contracts.subcontracts.model_aggregation_subcontract import ModelAggregationSubcontract

from omninode_bridge.domain.reduction import METADATA_PREFIX, Groupings
from omninode_bridge.nodes.contract_machine import Fsm, compile_machine
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

FUNCTIONS = ("count", "sum", "min", "max", "first", "last")
"""What every group has: domain.reduction.Totals."""
GROUPINGS = ("namespace", "content_type", "size_bucket", "time_window", "workflow")
BATCH_EVENTS_MAX = 100_000
BATCH_MS = 20
"""Where the contract does not say."""
BATCH_MS_MAX = 10_000
SIZE_BUCKETS_MAX = 64
SIZE_BOUND_BYTES_MAX = 2**62
METADATA_FIELDS_MAX = 16
# Window starts are named to the millisecond; a year is longer than any total is asked for.
WINDOW_MS_MAX = 366 * 24 * 3600 * 1000
WINDOW_MS_MIN = 1000

_ACTED = DESCRIPTIVE | {
    "aggregation.aggregation_functions",
    "aggregation.grouping.grouping_fields",
    "aggregation.performance.batch_size",
    "aggregation.windowing.window_size_ms",
    "aggregation.windowing.window_type",
    "aggregation.windowing.windowing_enabled",
    "config",
    "state_machine",
    "state_management.persistence.persistence_enabled",
    "state_management.persistence.storage_backend",
    "state_management.state_scope",
    "yaml_consumed_events",
}
_METADATA_KEY = re.compile(r"metadata\.[^\s*?]([^*?]{0,118}[^\s*?])?")
"""One field by its name: a wildcard would be taken for a name that no metadata has."""


@dataclass(frozen=True, slots=True)
class ReducerContract:
    """What the reducer's contract says."""

    groupings: Groupings
    names: tuple[str, ...]
    """The groupings in the contract's order; `workflow` among them is read from the workflows, not stored."""
    fsm: Fsm
    completed_topic: str
    failed_topic: str
    batch_size: int
    """Events folded in one transaction, at most."""
    batch_ms: int
    """How long events gather for one that is smaller."""
    model: ModelContractReducer
    fingerprint: str
    source: str


def compile_reducer(document: Document, found: list[Problem]) -> ReducerContract | None:
    """Return what a contract says; None, after adding what is wrong with it."""
    raw = document.raw
    one_of(raw.get("node_type"), ("REDUCER_GENERIC",), "node_type", found)
    found.extend(
        Problem(key, "is missing: the reducer needs this section, under this name")
        for key in ("aggregation", "state_management", "state_machine")
        if not isinstance(raw.get(key), dict)
    )
    if found:
        return None
    # The machine's own check locates what the whole model would only refuse.
    fsm = compile_machine(raw["state_machine"], "state_machine", found)
    rest = {key: value for key, value in raw.items() if key != "state_machine"}
    model = validated(ModelContractReducer, rest, "", found)
    if model is None or model.aggregation is None or model.state_management is None:
        return None
    settings(rest, model, "", _ACTED, found)
    one_of(model.input_model, ("ModelStampMetadataInput",), "input_model", found)
    one_of(model.output_model, ("ModelReducerOutputState",), "output_model", found)
    topics = [event.event_type for event in model.yaml_consumed_events]
    check_topics(topics, "yaml_consumed_events", found)
    if "namespace" not in model.aggregation.grouping.grouping_fields:
        path = "aggregation.grouping.grouping_fields"
        found.append(Problem(path, "lacks 'namespace': every total belongs to one"))
    config = raw.get("config")
    found.extend(unknown_keys(config or (), "config", ("batch_ms", "size_buckets")))
    batch_ms = BATCH_MS
    if isinstance(config, dict) and "batch_ms" in config:
        batch_ms = whole_number(config, "config", "batch_ms", (0, BATCH_MS_MAX), found)
    groupings = compile_groupings(model.aggregation, config, None, found)
    _check_functions(model.aggregation.aggregation_functions, found)
    batch_size = model.aggregation.performance.batch_size
    if batch_size > BATCH_EVENTS_MAX:
        found.append(Problem("aggregation.performance.batch_size", f"{batch_size} is more than {BATCH_EVENTS_MAX}"))
    state = model.state_management
    one_of(state.state_scope.value, ("global_distributed",), "state_management.state_scope", found)
    persistence = "state_management.persistence"
    one_of(state.persistence.persistence_enabled, (True,), join(persistence, "persistence_enabled"), found)
    one_of(state.persistence.storage_backend.value, ("postgresql",), join(persistence, "storage_backend"), found)
    if found or fsm is None:
        return None
    return ReducerContract(
        groupings,
        tuple(model.aggregation.grouping.grouping_fields),
        fsm,
        topics[0],
        topics[1],
        batch_size,
        batch_ms,
        ModelContractReducer.model_validate(raw),
        document.fingerprint,
        document.source,
    )


def compile_groupings(
    aggregation: ModelAggregationSubcontract, config: object, defaults: Groupings | None, found: list[Problem]
) -> Groupings:
    """Return the groupings of an aggregation section; add what is wrong with it.

    Where `config.size_buckets` or the windowing section is left out, size bounds and window are those of
    `defaults`; without defaults a grouping that needs them is a problem.
    """
    names = aggregation.grouping.grouping_fields
    _check_names(names, found)
    fallback = defaults or Groupings()
    bounds = _size_bounds(config, defaults is None and "size_bucket" in names, fallback.size_bounds, found)
    window_ms = _window_ms(aggregation, defaults is None and "time_window" in names, fallback.window_ms, found)
    return Groupings(
        content_type="content_type" in names,
        size_bucket="size_bucket" in names,
        time_window="time_window" in names,
        metadata_fields=tuple(name.removeprefix(METADATA_PREFIX) for name in names if name.startswith(METADATA_PREFIX)),
        size_bounds=bounds,
        window_ms=window_ms,
    )


def _check_names(names: Sequence[str], found: list[Problem]) -> None:
    path = "aggregation.grouping.grouping_fields"
    for index, name in enumerate(names):
        if name not in GROUPINGS and not _METADATA_KEY.fullmatch(name):
            known = ", ".join(GROUPINGS)
            found.append(Problem(join(path, index), f"{name!r:.60} is no grouping: use {known} or metadata.KEY"))
        if name in names[:index]:
            found.append(Problem(join(path, index), f"{name!r} is there already"))
    if sum(name.startswith(METADATA_PREFIX) for name in names) > METADATA_FIELDS_MAX:
        found.append(Problem(path, f"has more than {METADATA_FIELDS_MAX} metadata fields: the groups would multiply"))


def _check_functions(functions: Sequence[str], found: list[Problem]) -> None:
    path = "aggregation.aggregation_functions"
    for index, function in enumerate(functions):
        if function not in FUNCTIONS:
            message = f"{function!r} is not computed: every group has {', '.join(FUNCTIONS)}"
            found.append(Problem(join(path, index), message))
        if function in functions[:index]:
            found.append(Problem(join(path, index), f"{function!r} is there already"))
    missing = [function for function in FUNCTIONS if function not in functions]
    if missing:
        found.append(Problem(path, f"lacks {', '.join(missing)}: every group has {', '.join(FUNCTIONS)}"))


def _size_bounds(config: object, wanted: bool, default: tuple[int, ...], found: list[Problem]) -> tuple[int, ...]:
    path = "config.size_buckets"
    bounds = config.get("size_buckets") if isinstance(config, Mapping) else None
    if bounds is None:
        if wanted:
            found.append(Problem(path, "is missing, and size_bucket is grouped by: list upper bounds in bytes"))
        return default
    if not isinstance(bounds, list) or not 0 < len(bounds) <= SIZE_BUCKETS_MAX:
        found.append(Problem(path, f"must be a list of 1 to {SIZE_BUCKETS_MAX} upper bounds in bytes"))
        return default
    for index, bound in enumerate(bounds):
        here = join(path, index)
        if type(bound) is not int or not 0 < bound <= SIZE_BOUND_BYTES_MAX:
            found.append(Problem(here, f"{bound!r:.60} is no positive whole number of bytes"))
            return default
        if index and bound <= bounds[index - 1]:
            found.append(Problem(here, f"{bound} does not exceed the bound before it, {bounds[index - 1]}"))
    return tuple(bounds)


def _window_ms(aggregation: ModelAggregationSubcontract, wanted: bool, default: int, found: list[Problem]) -> int:
    path = "aggregation.windowing"
    windowing = aggregation.windowing
    if windowing is None or not windowing.windowing_enabled:
        if wanted:
            found.append(Problem(path, "is missing or not enabled, and time_window is grouped by"))
        return default
    one_of(windowing.window_type, ("tumbling",), join(path, "window_type"), found)
    if not WINDOW_MS_MIN <= windowing.window_size_ms <= WINDOW_MS_MAX:
        message = f"{windowing.window_size_ms} is not between {WINDOW_MS_MIN} and {WINDOW_MS_MAX} (a leap year)"
        found.append(Problem(join(path, "window_size_ms"), message))
    return windowing.window_size_ms
