"""The circuit breaker: when a service that fails is left alone, and how it comes back.

              failures in a row             open_s later, a call
    closed ───────────────────────▶ open ───────────────────────▶ half_open
      ▲                              ▲                                │
      │                              └──── failure, or abandoned ─────┤
      └──────────────────────── success ──────────────────────────────┘

The rules this file obeys:

1. A breaker is a value; `admit` and `settle` give the next one. Time is an argument: seconds of a clock that never
   goes back.
2. MOVES has every change of state. What it lacks is illegal: it raises, and nothing changes.
3. Half-open, one call is under way: the probe. Nobody else is admitted before it is settled.
4. Only what was admitted since the last change of state counts. An older call tells of what was judged already, and
   could close a breaker that the probe is about to open.
5. Whoever is admitted settles: by success, by failure, or as abandoned, when nothing was learnt.

What counts as a failure, and where a call goes that is not admitted, is left to the adapter that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from omninode_bridge.domain.errors import IllegalTransition

type State = Literal["closed", "open", "half_open"]
type Result = Literal["success", "failure", "abandoned"]
type Move = Literal["tripped", "probed"] | Result

MOVES: Mapping[tuple[State, Move], State] = {
    ("closed", "tripped"): "open",
    ("open", "probed"): "half_open",
    ("half_open", "success"): "closed",
    ("half_open", "failure"): "open",
    ("half_open", "abandoned"): "open",
}


class BreakerLimits(msgspec.Struct, frozen=True):
    """After `failure_threshold` failures in a row a service is left alone for `open_s`."""

    failure_threshold: int
    open_s: float


class CallPolicy(msgspec.Struct, frozen=True):
    """How a remote service is called, each of its URLs alike."""

    request_timeout_ms: int
    """Of one call, beside the time that its bytes take at `mib_per_s_min`."""
    in_flight_max: int
    """Calls to one URL at a time; the next ones wait."""
    mib_per_s_min: int
    breaker: BreakerLimits

    def timeout_s(self, size: int) -> float:
        """Return how long a call with so many bytes may take."""
        return self.request_timeout_ms / 1000 + size / (self.mib_per_s_min * 1024**2)


class Breaker(msgspec.Struct, frozen=True):
    """The breaker of one service. A call remembers the `epoch` it was admitted in."""

    limits: BreakerLimits
    state: State = "closed"
    epoch: int = 0
    """How often the state has changed."""
    failures: int = 0
    """In a row, while closed."""
    probe_at_s: float = 0.0
    """When an open one admits its probe."""

    def admits(self, now_s: float) -> bool:
        """Tell whether a call may be made."""
        return self.state == "closed" or (self.state == "open" and now_s >= self.probe_at_s)

    def admit(self, now_s: float) -> Breaker | None:
        """Return the breaker with one more call under way, in its epoch; None when no call may be made."""
        if not self.admits(now_s):
            return None
        return self if self.state == "closed" else self._moved("probed", now_s)

    def settle(self, epoch: int, result: Result, now_s: float) -> Breaker:
        """Return the breaker after a call that was admitted in `epoch` ended."""
        if epoch != self.epoch:
            return self
        if self.state != "closed":
            return self._moved(result, now_s)
        if result == "failure":
            if self.failures + 1 >= self.limits.failure_threshold:
                return self._moved("tripped", now_s)
            return msgspec.structs.replace(self, failures=self.failures + 1)
        if result == "success" and self.failures:
            return msgspec.structs.replace(self, failures=0)
        return self

    def _moved(self, move: Move, now_s: float) -> Breaker:
        state = MOVES.get((self.state, move))
        if state is None:
            raise IllegalTransition(f"{move!r} is illegal in a breaker that is {self.state}", state=self.state)
        # After an abandoned probe the next call is one: that the service is up was not told, nor that it is down.
        waits = state == "open" and move != "abandoned"
        probe_at_s = now_s + self.limits.open_s if waits else self.probe_at_s
        return Breaker(self.limits, state, self.epoch + 1, probe_at_s=probe_at_s)
