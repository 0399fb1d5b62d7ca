"""What is counted is what happened, and no label has more values than are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from omninode_bridge.app.telemetry import CONTENT_TYPE, Reading, Telemetry, reading
from omninode_bridge.domain.errors import (
    BridgeError,
    InvalidInput,
    LawBroken,
    OutcomeUnknown,
    Overloaded,
    ServiceUnavailable,
    WorkflowFailed,
)
from omninode_bridge.domain.recording import Verdict, Workflow
from tests.making import stamp

WORKFLOW = Workflow(
    namespace="a.b", workflow_id="0", file_path="a", request_digest=b"", state="pending", visits=()
)  # fmt: skip


def samples(rendered: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name.removeprefix("omninode_bridge_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(rendered.decode())
        for sample in family.samples
    }


def value(telemetry: Telemetry, name: str, readings: Iterable[Reading] = (), **labels: str) -> float | None:
    return samples(telemetry.render(readings)).get((name, tuple(sorted(labels.items()))))


def test_answers_are_counted_by_route_method_and_status() -> None:
    telemetry = Telemetry()
    for status in (201, 201, 503):
        telemetry.http.answered("/stamp", "POST", status, 0.001)
    telemetry.http.answered("/stamp/{file_hash}", "GET", 404, 0.001)
    assert value(telemetry, "http_requests_total", route="/stamp", method="POST", status="201") == 2
    assert value(telemetry, "http_requests_total", route="/stamp", method="POST", status="503") == 1
    assert value(telemetry, "http_requests_total", route="/stamp/{file_hash}", method="GET", status="404") == 1
    assert value(telemetry, "http_request_duration_seconds_count", route="/stamp", method="POST") == 3


@given(st.lists(st.floats(0, 100, allow_nan=False) | st.sampled_from([0.001, 0.0025, 1.0, 60.0]), max_size=30))
def test_durations_are_told_as_the_library_would_tell_them(durations: list[float]) -> None:
    telemetry, registry = Telemetry(), CollectorRegistry()
    telemetry.http.answered("/stamp", "POST", 200, 0.5)
    found = samples(telemetry.render())
    bounds = [dict(labels)["le"] for name, labels in found if name == "http_request_duration_seconds_bucket"]
    oracle = Histogram("http_request_duration_seconds", "-", ["route", "method"], registry=registry, buckets=bounds)
    for duration in [0.5, *durations]:
        oracle.labels("/stamp", "POST").observe(duration)
    for duration in durations:
        telemetry.http.answered("/stamp", "POST", 200, duration)
    ours = {
        key: number for key, number in samples(telemetry.render()).items() if "duration" in key[0] and "http" in key[0]
    }
    theirs = {key: number for key, number in samples(generate_latest(registry)).items() if "_created" not in key[0]}
    assert ours.keys() == theirs.keys()
    assert all(math.isclose(ours[key], theirs[key]) for key in ours)


def test_a_method_that_nobody_knows_makes_no_series_of_its_own() -> None:
    telemetry = Telemetry()
    telemetry.http.answered("/stamp", "GET", 405, 0.1)
    before = len(samples(telemetry.render()))
    for method in ("BREW", "PURGE", "M-SEARCH"):
        telemetry.http.answered("/stamp", method, 405, 0.1)
    assert value(telemetry, "http_requests_total", route="/stamp", method="other", status="405") == 3
    grown = len(samples(telemetry.render()))
    for number in range(50):
        telemetry.http.answered("/stamp", f"M{number}", 405, 0.1)
    assert len(samples(telemetry.render())) == grown
    assert grown > before


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (stamp(), "new"),
        (stamp(deduplicated=True), "deduplicated"),
        (WORKFLOW, "accepted"),
        (WorkflowFailed("no"), "failed"),
        (InvalidInput("no"), "refused"),
    ],
)
def test_each_verdict_of_a_group_has_its_outcome(verdict: Verdict, outcome: str) -> None:
    telemetry = Telemetry()
    telemetry.ledger.committed([verdict, stamp(), verdict], 0.002)
    expected = {"new": 1.0, "deduplicated": 0.0, "accepted": 0.0, "failed": 0.0, "refused": 0.0}
    expected[outcome] += 2
    assert {name: value(telemetry, "stamps_total", outcome=name) for name in expected} == expected
    assert value(telemetry, "ledger_commit_stamps_sum") == 3
    assert value(telemetry, "ledger_commit_duration_seconds_count") == 1


def test_a_refused_batch_counts_all_that_is_in_it() -> None:
    telemetry = Telemetry()
    telemetry.ledger.refused(Overloaded("full"), 7)
    telemetry.ledger.refused(OutcomeUnknown("cut"), 2)
    assert value(telemetry, "stamps_total", outcome="refused") == 9
    assert value(telemetry, "outcomes_unknown_total") == 2
    assert value(telemetry, "ledger_commit_stamps_count") == 0


@pytest.mark.parametrize(
    ("error", "code", "law_broken", "unexpected"),
    [
        (ServiceUnavailable("away"), "service_unavailable", 0, 0),
        (LawBroken("hole"), "law_broken", 1, 0),
        (ValueError("what"), "unexpected", 0, 1),
    ],
)
def test_what_must_be_zero_is_counted_wherever_it_is_met(
    error: Exception, code: str, law_broken: int, unexpected: int
) -> None:
    telemetry = Telemetry()
    assert value(telemetry, "law_broken_total") == value(telemetry, "unexpected_errors_total") == 0
    telemetry.reducer.failed(error)
    assert value(telemetry, "reducer_errors_total", code=code) == 1
    assert value(telemetry, "law_broken_total") == law_broken
    assert value(telemetry, "unexpected_errors_total") == unexpected
    telemetry.ledger.refused(error, 1)
    assert value(telemetry, "law_broken_total") == 2 * law_broken
    telemetry.faults.answer_lost()
    assert value(telemetry, "answers_lost_total") == 1


def test_what_was_read_just_now_is_told_once() -> None:
    telemetry = Telemetry()
    found = [
        reading("depth", "Depth.", 3),
        Reading("calls", "Calls.", [(("0",), 5), (("1",), 7)], ("target",), counts=True),
    ]
    assert value(telemetry, "depth", found) == 3
    assert value(telemetry, "calls_total", found, target="1") == 7
    assert value(telemetry, "depth") is None


def test_streams_are_counted() -> None:
    telemetry = Telemetry()
    for count in (telemetry.streams.opened, telemetry.streams.opened, telemetry.streams.closed):
        count()
    telemetry.streams.told(4)
    telemetry.streams.refused()
    found = [value(telemetry, f"event_streams{name}") for name in ("", "_events_total", "_refused_total")]
    assert found == [1, 4, 1]


def test_two_of_them_share_nothing_and_the_process_is_told_too() -> None:
    one, other = Telemetry(), Telemetry()
    one.http.problem("overloaded")
    assert value(one, "http_problems_total", code="overloaded") == 1
    assert value(other, "http_problems_total", code="overloaded") is None
    assert (value(one, "process_resident_memory_bytes") or 0) > 1_000_000
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_every_code_an_error_may_have_is_a_short_word() -> None:
    def codes(kind: type[BridgeError]) -> set[str]:
        return {kind.code}.union(*(codes(child) for child in kind.__subclasses__()))

    assert all(code.isascii() and code.replace("_", "").isalpha() and len(code) < 40 for code in codes(BridgeError))
