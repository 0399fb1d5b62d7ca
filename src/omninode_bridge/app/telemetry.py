"""The metrics of one process: what is counted where it happens, and what is read when somebody asks.

The rules this file obeys:

1. Labels have few values, known beforehand: route templates, methods, statuses, error codes, places in a list. Never a
   tenant, a path, a digest, an id, an address.
2. Counting costs a microsecond or two a request: each series is looked up once and kept.
3. What is known of elsewhere (a queue's depth) is read when it is asked for. What can't be read then is left out of
   the answer: an old number would look like a good one.

The only importer of prometheus_client. `docs/monitoring.md` says what each metric means and what to be woken by.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from omninode_bridge.domain.errors import BridgeError, LawBroken, OutcomeUnknown, WorkflowFailed
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Stamp

__all__ = ["CONTENT_TYPE", "Reading", "Telemetry", "reading"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "omninode_bridge"
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_COMMIT_STAMPS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Reading(NamedTuple):
    """A gauge as it was read, or what `counts`: one value, or by `labels` several."""

    name: str
    what: str
    values: Sequence[tuple[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()
    counts: bool = False


def reading(name: str, what: str, value: float) -> Reading:
    """Return a gauge without labels."""
    return Reading(name, what, [((), value)])


class _Answers:
    """Answers of one route, method and status, counted by plain integers: only the event loop's thread counts."""

    __slots__ = ("count", "durations")

    def __init__(self, durations: _Durations) -> None:
        self.count = 0
        self.durations = durations


class _Durations:
    """A histogram: `buckets` has one more than there are bounds."""

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_REQUEST_S) + 1)
        self.sum_s = 0.0


class HttpMeter(Collector):
    """Requests by route, method and status, and how long their answers took to begin.

    With counters of its own, because these count every request: the library's would take ten times as long.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_progress = 0
        self._answers: dict[tuple[str, str, int], _Answers] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}
        self._problems = Counter(
            "http_problems", "Answers that are problems, by code.", ["code"], namespace=_PREFIX, registry=registry
        )
        registry.register(self)

    def answered(self, route: str, method: str, status: int, took_s: float) -> None:
        """Count an answer; `route` is the template that the path fitted."""
        found = self._answers.get((route, method, status))
        if found is None:
            found = self._new(route, method if method in _METHODS else "other", status)
        found.count += 1
        durations = found.durations
        durations.buckets[bisect_left(_REQUEST_S, took_s)] += 1
        durations.sum_s += took_s

    def problem(self, code: str) -> None:
        """Count a problem."""
        self._problems.labels(code).inc()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{_PREFIX}_http_requests_in_progress", "Requests whose answer has not ended.", self.in_progress
        )
        answers = CounterMetricFamily(f"{_PREFIX}_http_requests", "Answers.", labels=("route", "method", "status"))
        for (route, method, status), found in self._answers.items():
            answers.add_metric((route, method, str(status)), found.count)
        yield answers
        seconds = HistogramMetricFamily(
            f"{_PREFIX}_http_request_duration_seconds",
            "From the request's headers to the answer's: with reading the body, without sending the answer.",
            labels=("route", "method"),
        )
        for labels, durations in self._durations.items():
            counts = [float(count) for count in accumulate(durations.buckets)]
            bounds = [*map(floatToGoString, _REQUEST_S), "+Inf"]
            seconds.add_metric(labels, list(zip(bounds, counts, strict=True)), durations.sum_s)
        yield seconds

    def _new(self, route: str, method: str, status: int) -> _Answers:
        durations = self._durations.setdefault((route, method), _Durations())
        return self._answers.setdefault((route, method, status), _Answers(durations))


class LedgerMeter:
    """Stamps by what they were answered, and the commits that they shared."""

    def __init__(self, registry: CollectorRegistry, faults: FaultMeter) -> None:
        self._faults = faults
        answers = Counter(
            "stamps", "Requests for a stamp, by what was answered.", ["outcome"], namespace=_PREFIX, registry=registry
        )
        self._new, self._deduplicated, self._accepted, self._failed, self._refused = (
            answers.labels(outcome) for outcome in ("new", "deduplicated", "accepted", "failed", "refused")
        )
        self._unknown = Counter(
            "outcomes_unknown",
            "Stamps whose commit was cut off: trying again with the same op_id settles it.",
            namespace=_PREFIX,
            registry=registry,
        )
        self._stamps = Histogram(
            "ledger_commit_stamps",
            "Stamps that shared a commit.",
            namespace=_PREFIX,
            registry=registry,
            buckets=_COMMIT_STAMPS,
        )
        self._seconds = Histogram(
            "ledger_commit_duration_seconds",
            "A commit, from its first statement to its end.",
            namespace=_PREFIX,
            registry=registry,
            buckets=_COMMIT_S,
        )

    def committed(self, verdicts: Sequence[Verdict], took_s: float) -> None:
        """Count a group's commit, and its answers."""
        self._stamps.observe(len(verdicts))
        self._seconds.observe(took_s)
        stamps = [verdict for verdict in verdicts if isinstance(verdict, Stamp)]
        deduplicated = sum(stamp.deduplicated for stamp in stamps)
        self._new.inc(len(stamps) - deduplicated)
        self._deduplicated.inc(deduplicated)
        if len(stamps) == len(verdicts):
            return
        for verdict in verdicts:
            if isinstance(verdict, BridgeError):
                self.refused(verdict, 1)
            elif not isinstance(verdict, Stamp):
                self._accepted.inc()

    def refused(self, error: BaseException, outcomes: int) -> None:
        """Count outcomes that an error is the answer of."""
        (self._failed if isinstance(error, WorkflowFailed) else self._refused).inc(outcomes)
        if isinstance(error, OutcomeUnknown):
            self._unknown.inc(outcomes)
        self._faults.met(error)


class ReducerMeter:
    """Events that were folded, and what kept the loop from it."""

    def __init__(self, registry: CollectorRegistry, faults: FaultMeter) -> None:
        self._faults = faults
        self._events = Counter("reducer_events", "Events folded.", namespace=_PREFIX, registry=registry)
        self._errors = Counter(
            "reducer_errors",
            "Turns of the reducer's loop that failed, by code; they are tried again.",
            ["code"],
            namespace=_PREFIX,
            registry=registry,
        )

    def folded(self, events: int) -> None:
        self._events.inc(events)

    def failed(self, error: Exception) -> None:
        self._errors.labels(_code(error)).inc()
        self._faults.met(error)
        if not isinstance(error, BridgeError):
            self._faults.unexpected()


class RelayMeter:
    """Events that were forwarded to Kafka."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter("relay_events", "Events forwarded to Kafka.", namespace=_PREFIX, registry=registry)
        self._refused = Counter(
            "relay_refused_events", "Events that Kafka refused: dead letters.", namespace=_PREFIX, registry=registry
        )

    def forwarded(self, events: int, refused: int) -> None:
        self._events.inc(events - refused)
        self._refused.inc(refused)


class StreamMeter:
    """Streams of events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("event_streams", "Streams of events that are open.", namespace=_PREFIX, registry=registry)
        self._told = Counter("event_streams_events", "Events sent.", namespace=_PREFIX, registry=registry)
        self._refused = Counter(
            "event_streams_refused",
            "Streams refused because too many were open.",
            namespace=_PREFIX,
            registry=registry,
        )

    def opened(self) -> None:
        self._open.inc()

    def closed(self) -> None:
        self._open.dec()

    def told(self, events: int) -> None:
        self._told.inc(events)

    def refused(self) -> None:
        self._refused.inc()


class FaultMeter:
    """Counters that must be zero: each of them at one is a fault of the program, or of stored data."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._laws = Counter("law_broken", "Stored data contradicted a law.", namespace=_PREFIX, registry=registry)
        self._unexpected = Counter(
            "unexpected_errors", "Errors that nobody meant to raise.", namespace=_PREFIX, registry=registry
        )
        self._lost = Counter(
            "answers_lost",
            "Answers that broke off, or never came, though the caller was there.",
            namespace=_PREFIX,
            registry=registry,
        )

    def met(self, error: BaseException) -> None:
        """Count an error, if it is one that must not be."""
        if isinstance(error, LawBroken):
            self._laws.inc()

    def unexpected(self) -> None:
        self._unexpected.inc()

    def answer_lost(self) -> None:
        self._lost.inc()


class Telemetry:
    """All metrics of a process, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.faults = FaultMeter(self._registry)
        self.http = HttpMeter(self._registry)
        self.ledger = LedgerMeter(self._registry, self.faults)
        self.reducer = ReducerMeter(self._registry, self.faults)
        self.relay = RelayMeter(self._registry)
        self.streams = StreamMeter(self._registry)
        build = Gauge("build_info", "The program.", ["version"], namespace=_PREFIX, registry=self._registry)
        build.labels(version("omninode-bridge")).set(1)
        ProcessCollector(registry=self._registry)
        # A second series for each counter, with the time of its birth: nobody asks for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]

    def render(self, readings: Iterable[Reading] = ()) -> bytes:
        """Return all metrics in Prometheus' text format, with what was read just now."""
        return generate_latest(self._registry) + generate_latest(_Readings(readings))


class _Readings(Collector):
    """What was read, as prometheus_client wants it."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for found in self._readings:
            kind = CounterMetricFamily if found.counts else GaugeMetricFamily
            family = kind(f"{_PREFIX}_{found.name}", found.what, labels=found.labels)
            for labels, value in found.values:
                family.add_metric(labels, value)
            yield family


def _code(error: Exception) -> str:
    return error.code if isinstance(error, BridgeError) else "unexpected"
