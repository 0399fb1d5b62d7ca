"""The laws, checked on live data by code that shares nothing with what it checks.

Totals are computed again from the raw bytes with the standard library's json and plain dictionaries: not
with the domain's fold, not with its decoder. Each event is held against the rows that it tells of, field by
field. Law 1, 2, 5 and 6's positions are looked for by SQL in the same snapshot. Law 3 replays each distinct
history through the contract's machine: a contract that drops or renames a state makes old histories illegal.

Where retention has deleted events, the stamps and failures that have none must add up to the base, group by group;
the state must be the base and the events that are left. Which event of a moment was first or last is the base's word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from omninode_bridge.domain.reduction import State, Totals
from omninode_bridge.domain.workflow import Machine
from omninode_bridge.ports import AuditedEvent, Evidence, Generation

EXAMPLES_MAX = 20
"""Faults listed a law; the count is always whole."""
_JSON = ("metadata", "intelligence")
_ERASED = "urn:omninode-bridge:erased:1"
_NOBODYS = {"namespace": "", "subject": "00000000-0000-0000-0000-000000000000"}
_TOMBSTONE = {
    "dataschema", "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "namespace", "shard",
    "position", "previousid",
}  # fmt: skip

type Group = tuple[str, str, str]
"""(namespace, aggregation type, group key)."""


class KeptEvidence(Evidence, Protocol):
    """Evidence with what acceptance and retention keep."""

    def unlogged(self, live: Generation | None) -> AsyncIterator[dict[str, Any]]:
        """Yield the workflows that count and whose events retention deleted.

        namespace and at (a datetime); of those that made a stamp also content_type, file_size, processing_us and
        metadata (JSON as text), which are None for the others.
        """
        ...

    async def base(self) -> State: ...

    async def waiting(self) -> int: ...

    async def waiting_faults(self) -> list[str]: ...


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


async def audit(evidence: KeptEvidence, machine: Machine) -> list[LawFinding]:
    """Check laws 1, 2, 3, 5 and 6 and return a finding for each."""
    live, base = await evidence.live(), await evidence.base()
    groupings = json.loads(live.fingerprint) if live else None
    deleted = _Sums(groupings)
    async for workflow in evidence.unlogged(live):
        deleted.add_workflow(workflow)
    tally = _Tally(_Sums(groupings, base))
    async for event in evidence.events(live):
        tally.add(event)
    state = await evidence.state()
    counts = [*tally.faults, *await evidence.count_faults(), *_missing(deleted.totals(), base)]
    totals = [*await evidence.position_faults(), *_differences(tally.sums.totals(), state)]
    workflows, illegal = await _check_histories(evidence, machine)
    return [
        _finding(1, "exactly once", tally.events, "events", counts),
        _finding(2, "the event log is gapless", tally.events, "events", await evidence.chain_faults()),
        _finding(3, "only legal transitions", workflows, "workflows", illegal),
        _finding(
            5,
            "nothing accepted is lost",
            await evidence.waiting(),
            "waiting workflows",
            await evidence.waiting_faults(),
        ),
        _finding(6, "state is a pure fold", len(state), "groups", totals),
    ]


class _Tally:
    """The events, one by one: what is wrong with them, and what they add up to."""

    def __init__(self, sums: _Sums) -> None:
        self.sums = sums
        self.events = 0
        self.faults: list[str] = []

    def add(self, event: AuditedEvent) -> None:
        self.events += 1
        record = event.record
        place = f"{record.topic} shard {record.shard} position {record.position}"
        try:
            body = json.loads(record.body)
            erased = body["dataschema"] == _ERASED
            if erased or not record.namespace:
                self._compare_tombstone(event, body, place)
            else:
                self._compare(event, body, place)
            if event.folded and not erased:
                self.sums.add_event(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if event.folded:
                self.faults.append(f"{place}: is not readable, and no dead letter says so ({error!r})")

    def _compare_tombstone(self, event: AuditedEvent, body: dict[str, Any], place: str) -> None:
        self._compare_place(event, body, place)
        if body.keys() != _TOMBSTONE or body | _NOBODYS != body:
            self.faults.append(f"{place}: was erased, and still tells of what it was")

    def _compare_place(self, event: AuditedEvent, body: dict[str, Any], place: str) -> None:
        record = event.record
        # The topic as it was named when the event was written: the contract may have renamed it since.
        said = tuple(body[name] for name in ("id", "previousid", "namespace", "subject", "position", "shard", "type"))
        logged = (
            record.event_id, record.previous_id, record.namespace, record.workflow_id, record.position, record.shard,
            record.topic,
        )  # fmt: skip
        if said != logged:
            self.faults.append(f"{place}: the event says {said}, the log {logged}")

    def _compare(self, event: AuditedEvent, body: dict[str, Any], place: str) -> None:
        self._compare_place(event, body, place)
        record, data = event.record, body["data"]
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


class _Sums:
    """Naive totals: one dictionary a group, added up item by item, from nothing or on top of other totals."""

    def __init__(self, groupings: dict[str, Any] | None, start: State | None = None) -> None:
        self._groupings = groupings
        self._groups: dict[Group, dict[str, Any]] = {key: _opened(totals) for key, totals in (start or {}).items()}

    def totals(self) -> dict[Group, Totals]:
        return {group: _closed(sums) for group, sums in self._groups.items()}

    def add_event(self, body: dict[str, Any]) -> None:
        data, moment = body["data"], (datetime.fromisoformat(body["time"]), body["id"])
        if "stamp_id" in data:
            took = round(data["processing_time_ms"] * 1000)
            self._add(body["namespace"], moment, took, data["content_type"], data["file_size"], data["metadata"])
        else:
            self._add(body["namespace"], moment)

    def add_workflow(self, workflow: dict[str, Any]) -> None:
        """Add a workflow as the tables have it. Which event told of it is not known any more."""
        moment = (workflow["at"], "")
        if workflow["content_type"] is None:
            self._add(workflow["namespace"], moment)
        else:
            content = (workflow["content_type"], workflow["file_size"], json.loads(workflow["metadata"]))
            self._add(workflow["namespace"], moment, workflow["processing_us"], *content)

    def _add(
        self,
        namespace: str,
        moment: tuple[datetime, str],
        took: int | None = None,
        content_type: str = "",
        size: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if self._groupings is None:
            return
        content = None if took is None else (content_type, size, metadata or {})
        for group in _groups_of(self._groupings, namespace, moment[0], content):
            totals = self._groups.setdefault(group, _opened(Totals()))
            if took is not None:
                totals["stamps"] += 1
                totals["bytes"] += size
                totals["sum"] += took
                totals["took"] = [min([took, *totals["took"]]), max([took, *totals["took"]])]
            else:
                totals["failed"] += 1
            totals["first"] = min(totals["first"] or moment, moment)
            totals["last"] = max(totals["last"] or moment, moment)


def _opened(totals: Totals) -> dict[str, Any]:
    took = [took for took in (totals.processing_time_us_min, totals.processing_time_us_max) if took is not None]
    return {
        "stamps": totals.total_stamps,
        "failed": totals.failed,
        "bytes": totals.total_size_bytes,
        "sum": totals.processing_time_us_sum,
        "took": took,
        "first": totals.first,
        "last": totals.last,
    }


def _closed(sums: dict[str, Any]) -> Totals:
    low, high = sums["took"] or (None, None)
    return Totals(sums["stamps"], sums["failed"], sums["bytes"], sums["sum"], low, high, sums["first"], sums["last"])


def _groups_of(
    wanted: dict[str, Any], namespace: str, at: datetime, content: tuple[str, int, dict[str, Any]] | None
) -> list[Group]:
    groups = [(namespace, "namespace", namespace)]
    if wanted["time_window"]:
        past = (at - datetime(1970, 1, 1, tzinfo=UTC)) % _milliseconds(wanted["window_ms"])
        start = (at - past).replace(tzinfo=None)
        digits = "milliseconds" if start.microsecond else "seconds"
        groups.append((namespace, "time_window", start.isoformat(timespec=digits) + "Z"))
    if content is None:
        return groups
    content_type, size, metadata = content
    if wanted["content_type"]:
        groups.append((namespace, "content_type", _short(content_type)))
    if wanted["size_bucket"]:
        lower = [0, *(bound for bound in wanted["size_bounds"] if bound <= size)][-1]
        upper = [str(bound - 1) for bound in wanted["size_bounds"] if bound > size]
        groups.append((namespace, "size_bucket", f"{lower}..{upper[0] if upper else ''}"))
    for field in wanted["metadata_fields"]:
        if field in metadata:
            value = metadata[field]
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


def _differences(told: dict[Group, Totals], state: State) -> list[str]:
    faults = []
    for group in sorted(told.keys() | state.keys()):
        expected, found = told.get(group), state.get(group)
        if expected is None or found is None:
            faults.append(f"{group}: {'is in the state' if found else 'is missing'}, the events say otherwise")
        elif expected != found:
            faults.append(f"{group}: the events say {expected}, the state {found}")
    return faults


def _missing(deleted: dict[Group, Totals], base: State) -> list[str]:
    """Compare the workflows that have no event with the base, all but which event was first or last of a moment."""
    faults = []
    for group in sorted(deleted.keys() | base.keys()):
        expected, found = _timed(base.get(group)), _timed(deleted.get(group))
        if expected != found:
            faults.append(f"{group}: workflows without events add up to {found}, retention deleted {expected}")
    return faults


def _timed(totals: Totals | None) -> Totals | None:
    if totals is None or totals.first is None or totals.last is None:
        return totals
    return msgspec.structs.replace(totals, first=(totals.first[0], ""), last=(totals.last[0], ""))


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
