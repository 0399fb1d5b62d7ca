"""Laws of the circuit breaker, for any interleaving of calls, results and time."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.breaker import MOVES, Breaker, BreakerLimits

OPEN_S = 10.0
# Ask for admission; let time pass; settle one of the calls under way. Without many failures it would hardly open.
EVENTS = st.one_of(
    st.just(("call", None)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 5.0, OPEN_S])),
    st.tuples(st.integers(0, 3), st.sampled_from(["failure", "failure", "failure", "success", "abandoned"])),
)


@given(st.integers(1, 4), st.lists(EVENTS, min_size=20, max_size=120))
def test_any_run_keeps_the_rules(threshold: int, run: list[tuple[Any, Any]]) -> None:
    breaker = Breaker(BreakerLimits(threshold, OPEN_S))
    now_s = 0.0
    under_way: list[int] = []
    in_a_row = 0
    closed_until_s = -1.0
    for what, detail in run:
        before = breaker
        if what == "wait":
            now_s += detail
        elif what == "call":
            admitted = breaker.admit(now_s)
            assert breaker.admits(now_s) is (admitted is not None)
            # Nobody is admitted while it is open, nor while a probe is under way.
            assert (admitted is None) is (breaker.state == "half_open" or now_s < closed_until_s)
            if admitted is None:
                continue
            breaker = admitted
            under_way.append(admitted.epoch)
            # Half-open, exactly the probe is under way.
            assert breaker.state == "closed" or under_way.count(breaker.epoch) == 1
        elif under_way:
            epoch = under_way.pop(what % len(under_way))
            counts = epoch == breaker.epoch
            breaker = breaker.settle(epoch, detail, now_s)
            if not counts:
                assert breaker is before
            elif before.state == "closed":
                in_a_row = in_a_row + 1 if detail == "failure" else 0 if detail == "success" else in_a_row
                assert (breaker.state == "open") is (in_a_row == threshold)
            else:
                assert breaker.state == ("closed" if detail == "success" else "open")
            if breaker.state == "open" and detail == "failure" and counts:
                closed_until_s = now_s + OPEN_S
        # Every change of state is one of the table's, and starts an epoch in which nothing is held against it.
        if breaker.state != before.state:
            assert breaker.state in [target for (origin, _), target in MOVES.items() if origin == before.state]
            assert (breaker.epoch, breaker.failures) == (before.epoch + 1, 0)
            in_a_row = 0
        else:
            assert breaker.epoch == before.epoch

    # However the run went: once its calls are settled and its time is over, one success closes it.
    for epoch in under_way:
        breaker = breaker.settle(epoch, "failure", now_s)
    probe = breaker.admit(now_s + OPEN_S)
    assert probe is not None
    assert probe.settle(probe.epoch, "success", now_s + OPEN_S).state == "closed"
