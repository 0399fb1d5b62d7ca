"""Each request counted, and on demand logged: one line when its answer has ended.

It is told by its route, as the server's code has it: a path or a query may hold whatever somebody put there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.routing import Route
from starlette.types import Scope

from omninode_bridge.app.logs import asked_id
from omninode_bridge.app.telemetry import Telemetry
from omninode_bridge.domain.errors import BridgeError, WorkflowFailed
from omninode_bridge.http.problems import row_of

NO_ROUTE = "none"
"""Of requests that were refused before a route was looked for, or fit none."""

_log = logging.getLogger(__name__)
_access = logging.getLogger("omninode_bridge.access")


class Measure:
    """What the envelope tells of each request."""

    def __init__(self, telemetry: Telemetry, routes: Sequence[Route], *, access_log: bool) -> None:
        self._http = telemetry.http
        self._faults = telemetry.faults
        self._direct = frozenset(route.path for route in routes if "{" not in route.path)
        self._templates: dict[object, str] = {route.endpoint: route.path for route in routes}
        self._logs = access_log

    def began(self) -> float:
        """Count a request as under way; return when it began."""
        self._http.in_progress += 1
        return time.perf_counter()

    def answered(self, scope: Scope, status: int, began_s: float) -> None:
        """Count an answer, as its headers are sent."""
        self._http.answered(self._route(scope), scope["method"], status, time.perf_counter() - began_s)
        error = scope["state"].get("error") if "state" in scope else None
        if error is not None:
            self._problem(error)

    def refused(self, status: int, code: str) -> None:
        """Count what the protocol refused before it was a request."""
        self._http.answered(NO_ROUTE, "other", status, 0.0)
        self._http.problem(code)

    def ended(self, scope: Scope, status: int, began_s: float) -> None:
        """Count a request as done; `status` is 0 where nobody was there to be answered."""
        self._http.in_progress -= 1
        if self._logs:
            state = scope.get("state", {})
            error, principal = state.get("error"), state.get("principal")
            route = self._route(scope)
            _access.info(
                "%s %s %d",
                scope["method"],
                route,
                status,
                extra={
                    "route": route,
                    "status": status,
                    "seconds": round(time.perf_counter() - began_s, 6),
                    "code": None if error is None else error.code,
                    "principal": None if principal is None else principal.name,
                },
            )

    def failed(self, scope: Scope, error: Exception, *, answered: bool) -> None:
        """Log and count an error that nobody meant to raise; `answered`: it broke an answer off."""
        _log.error("%s %s failed (%s)", scope["method"], self._route(scope), asked_id(), exc_info=error)
        self._faults.unexpected()
        if answered:
            self._faults.answer_lost()

    def cut_off(self) -> None:
        """Count an answer that broke off because the server's patience was over."""
        self._faults.answer_lost()

    def _problem(self, error: BridgeError) -> None:
        self._http.problem(error.code)
        self._faults.met(error)
        if row_of(error).status == 500 and not isinstance(error, WorkflowFailed):
            # The caller is told that the log has more.
            _log.error("a request met what must not be (%s)", asked_id(), exc_info=error)

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        return path if path in self._direct else self._templates.get(scope.get("endpoint"), NO_ROUTE)
