"""The circuit breaker: it opens after failures in a row, lets one probe through, and believes only what is recent."""

import pytest

from omninode_bridge.domain.breaker import MOVES, Breaker, BreakerLimits, CallPolicy, Result
from omninode_bridge.domain.errors import IllegalTransition

LIMITS = BreakerLimits(failure_threshold=3, open_s=10.0)
CLOSED = Breaker(LIMITS)


def after(breaker: Breaker, *results: Result, now_s: float = 0.0) -> Breaker:
    """The breaker after calls that were made and settled one after the other."""
    for result in results:
        admitted = breaker.admit(now_s)
        assert admitted is not None
        breaker = admitted.settle(admitted.epoch, result, now_s)
    return breaker


OPEN = after(CLOSED, "failure", "failure", "failure", now_s=100.0)


def probing(now_s: float = 110.0) -> Breaker:
    probe = OPEN.admit(now_s)
    assert probe is not None
    return probe


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    assert after(CLOSED, "failure", "failure").state == "closed"
    assert OPEN.state == "open"
    assert after(CLOSED, "failure", "failure", "success", "failure", "failure").state == "closed"
    assert after(CLOSED, "failure", "failure", "abandoned", "failure").state == "open"


def test_a_closed_one_that_sees_only_success_stays_the_value_it_is() -> None:
    assert after(CLOSED, "success", "abandoned", "success") is CLOSED


def test_an_open_one_admits_nobody_until_its_time_is_over() -> None:
    assert OPEN.admit(100.0) is None
    assert OPEN.admit(109.999) is None
    assert OPEN.admits(110.0)


def test_half_open_one_call_is_under_way_and_nobody_else_is_admitted() -> None:
    probe = probing()
    assert probe.state == "half_open"
    assert probe.admit(110.0) is None
    assert probe.admit(10_000.0) is None


def test_the_probe_decides() -> None:
    probe = probing()
    closed = probe.settle(probe.epoch, "success", 111.0)
    assert (closed.state, closed.failures) == ("closed", 0)
    opened = probe.settle(probe.epoch, "failure", 111.0)
    assert opened.state == "open"
    assert not opened.admits(120.999)
    assert opened.admits(121.0)


def test_after_an_abandoned_probe_the_next_call_is_one() -> None:
    probe = probing()
    again = probe.settle(probe.epoch, "abandoned", 111.0).admit(111.0)
    assert again is not None
    assert again.state == "half_open"
    assert again.settle(probe.epoch, "success", 112.0) is again


@pytest.mark.parametrize("result", ["success", "failure", "abandoned"])
def test_a_call_of_before_the_last_change_of_state_counts_for_nothing(result: Result) -> None:
    probe = probing()
    for breaker in (OPEN, probe, probe.settle(probe.epoch, "success", 111.0)):
        assert breaker.settle(CLOSED.epoch, result, 112.0) is breaker


def test_what_the_table_lacks_raises() -> None:
    with pytest.raises(IllegalTransition, match="'success' is illegal in a breaker that is open"):
        OPEN.settle(OPEN.epoch, "success", 110.0)
    assert ("open", "success") not in MOVES


def test_a_call_has_its_timeout_and_the_time_of_its_bytes() -> None:
    policy = CallPolicy(request_timeout_ms=500, in_flight_max=1, mib_per_s_min=4, breaker=LIMITS)
    assert policy.timeout_s(0) == 0.5
    assert policy.timeout_s(8 * 1024**2) == 2.5
