"""The laws, checked on live data by code that shares nothing with what it checks.

Totals are computed again from the raw bytes with the standard library's json and plain dictionaries: not
with the domain's fold, not with its decoder. Each event is held against the rows that it tells of, field by
field. Law 1, 2 and 6's positions are looked for by SQL in the same snapshot. Law 3 replays each distinct
history through the contract's machine: a contract that drops or renames a state makes old histories illegal.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from omninode_bridge.domain.reduction import Totals
from omninode_bridge.domain.workflow import Machine
from omninode_bridge.ports import AuditedEvent, Evidence

EXAMPLES_MAX = 20
"""Faults listed a law; the count is always whole."""
_JSON = ("metadata", "intelligence")


class LawFinding(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one law. `checked` counts what was looked at, in `unit`s."""

    law: int
    title: str
    checked: int
    unit: str
    faults: int
    examples: list[str]

    @property
    def holds(self) -> bool:
        return self.faults == 0


async def audit(evidence: Evidence, machine: Machine) -> list[LawFinding]:
    """Check laws 1, 2, 3 and 6 and return a finding for each."""
    live = await evidence.live()
    tally = _Tally(json.loads(live.fingerprint) if live else None)
    async for event in evidence.events(live):
        tally.add(event)
    counts = [*tally.faults, *await evidence.count_faults()]
    state = await evidence.state()
    totals = [*await evidence.position_faults(), *_differences(tally.groups, state)]
    workflows, illegal = await _check_histories(evidence, machine)
    return [
        _finding(1, "exactly once", tally.events, "events", counts),
        _finding(2, "the event log is gapless", tally.events, "events", await evidence.chain_faults()),
        _finding(3, "only legal transitions", workflows, "workflows", illegal),
        _finding(6, "state is a pure fold", len(state), "groups", totals),
    ]


class _Tally:
    """Naive totals: one dictionary a group, added up event by event."""

    def __init__(self, groupings: dict[str, Any] | None) -> None:
        self.groupings = groupings
        self.events = 0
        self.faults: list[str] = []
        self.groups: dict[tuple[str, str, str], dict[str, Any]] = {}

    def add(self, event: AuditedEvent) -> None:
        self.events += 1
        record = event.record
        place = f"{record.topic} shard {record.shard} position {record.position}"
        try:
            body = json.loads(record.body)
            self._compare(event, body, place)
            if event.folded and self.groupings is not None:
                self._count(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if event.folded:
                self.faults.append(f"{place}: is not readable, and no dead letter says so ({error!r})")

    def _compare(self, event: AuditedEvent, body: dict[str, Any], place: str) -> None:
        record, data = event.record, body["data"]
        # The topic as it was named when the event was written: the contract may have renamed it since.
        said = tuple(body[name] for name in ("id", "previousid", "namespace", "subject", "position", "shard", "type"))
        logged = (
            record.event_id, record.previous_id, record.namespace, record.workflow_id, record.position, record.shard,
            record.topic,
        )  # fmt: skip
        if said != logged:
            self.faults.append(f"{place}: the event says {said}, the log {logged}")
        what = "stamp_id" if "stamp_id" in data else "error_code"
        if what not in event.kept:
            self.faults.append(f"{place}: the event tells of {what} {data[what]}, which its workflow does not have")
            return
        kept = event.kept | {"namespace": record.namespace, "workflow_id": record.workflow_id}
        differing = sorted(name for name, value in kept.items() if _told(data, name) != _comparable(name, value))
        if what == "stamp_id" and datetime.fromisoformat(body["time"]) != kept["completed_at"]:
            differing.append("time")
        if differing:
            self.faults.append(f"{place}: the event of {what} {data[what]} and the ledger differ in {differing}")

    def _count(self, body: dict[str, Any]) -> None:
        for group in self._groups_of(body):
            totals = self.groups.setdefault(
                group, {"stamps": 0, "failed": 0, "bytes": 0, "took": [], "sum": 0, "first": None, "last": None}
            )
            data = body["data"]
            if "stamp_id" in data:
                took = round(data["processing_time_ms"] * 1000)
                totals["stamps"] += 1
                totals["bytes"] += data["file_size"]
                totals["sum"] += took
                totals["took"] = [min([took, *totals["took"]]), max([took, *totals["took"]])]
            else:
                totals["failed"] += 1
            moment = (datetime.fromisoformat(body["time"]), body["id"])
            totals["first"] = min(totals["first"] or moment, moment)
            totals["last"] = max(totals["last"] or moment, moment)

    def _groups_of(self, body: dict[str, Any]) -> list[tuple[str, str, str]]:
        assert self.groupings is not None
        namespace, data, wanted = body["namespace"], body["data"], self.groupings
        groups = [(namespace, "namespace", namespace)]
        if wanted["time_window"]:
            at = datetime.fromisoformat(body["time"])
            past = (at - datetime(1970, 1, 1, tzinfo=UTC)) % _milliseconds(wanted["window_ms"])
            start = (at - past).replace(tzinfo=None)
            digits = "milliseconds" if start.microsecond else "seconds"
            groups.append((namespace, "time_window", start.isoformat(timespec=digits) + "Z"))
        if "stamp_id" not in data:
            return groups
        if wanted["content_type"]:
            groups.append((namespace, "content_type", _short(data["content_type"])))
        if wanted["size_bucket"]:
            lower = [0, *(bound for bound in wanted["size_bounds"] if bound <= data["file_size"])][-1]
            upper = [str(bound - 1) for bound in wanted["size_bounds"] if bound > data["file_size"]]
            groups.append((namespace, "size_bucket", f"{lower}..{upper[0] if upper else ''}"))
        for field in wanted["metadata_fields"]:
            if field in data["metadata"]:
                value = data["metadata"][field]
                key = value if isinstance(value, str) else _json(value)
                groups.append((namespace, f"metadata.{field}", _short(key)))
        return groups


def _told(data: dict[str, Any], name: str) -> Any:
    """Return what an event says of a column, in the form of `_comparable`."""
    if name.endswith("_us"):
        return round(data[f"{name[:-2]}ms"] * 1000)
    if name.endswith("_at"):
        return datetime.fromisoformat(data[name])
    return _json(data[name]) if name in _JSON else data[name]


def _comparable(name: str, value: Any) -> Any:
    return _json(None if value is None else json.loads(value)) if name in _JSON else value


def _json(value: Any) -> str:
    """Return the one spelling of a JSON value: sorted keys, no spaces, numbers as short as they can be."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(key)}:{_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return _number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """Return a float's shortest digits: Python pads the exponent, signs it, and needs one below 0.0001 already."""
    digits, _, exponent = repr(value).partition("e")
    if not exponent:
        return digits
    if int(exponent) == -5:
        return f"{'-' if value < 0 else ''}0.0000{digits.lstrip('-').replace('.', '')}"
    return f"{digits}e{int(exponent)}"


def _differences(
    naive: dict[tuple[str, str, str], dict[str, Any]], state: dict[tuple[str, str, str], Totals]
) -> list[str]:
    faults = []
    for group in sorted(naive.keys() | state.keys()):
        expected, found = naive.get(group), state.get(group)
        if expected is None or found is None:
            faults.append(f"{group}: {'is in the state' if found else 'is missing'}, the events say otherwise")
            continue
        low, high = expected["took"] or (None, None)
        told = Totals(
            expected["stamps"],
            expected["failed"],
            expected["bytes"],
            expected["sum"],
            low,
            high,
            expected["first"],
            expected["last"],
        )
        if told != found:
            faults.append(f"{group}: the events say {told}, the state {found}")
    return faults


async def _check_histories(evidence: Evidence, machine: Machine) -> tuple[int, list[str]]:
    checked, faults = 0, []
    for history in await evidence.histories():
        checked += history.workflows
        visits = tuple((trigger, state) for trigger, state in json.loads(history.shape or "[]"))
        if not machine.explains(visits) or visits[-1][1] != history.state:
            faults.append(
                f"{history.workflows} workflows, such as {history.example}, in state {history.state!r} "
                f"have the illegal history {history.shape}"
            )
    return checked, faults


def _finding(law: int, title: str, checked: int, unit: str, faults: list[str]) -> LawFinding:
    return LawFinding(
        law=law, title=title, checked=checked, unit=unit, faults=len(faults), examples=faults[:EXAMPLES_MAX]
    )


def _milliseconds(count: int) -> timedelta:
    return timedelta(milliseconds=count)


def _short(key: str) -> str:
    key = key.replace("\0", "\ufffd")
    data = key.encode()
    if len(data) <= 256:
        return key
    return f"sha256:{hashlib.sha256(data).hexdigest()}:{data[:184].decode(errors='ignore')}"
