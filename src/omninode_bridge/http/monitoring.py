"""Health and metrics: `/health/live`, `/health/ready`, `/health`, `/metrics`; and what to know of each answer.

They ask for no token, so they tell nothing of anybody: `app.health` and `app.telemetry` see to that.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app.monitor import Monitor
from omninode_bridge.app.telemetry import CONTENT_TYPE
from omninode_bridge.http.messages import Health
from omninode_bridge.http.wire import answer

_HEADERS = {"cache-control": "no-store"}


class Monitoring:
    """The calls, on one process."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def live(self, _: Request) -> Response:
        """Answer: the process runs."""
        return answer(Health(status="alive"), headers=_HEADERS)

    async def ready(self, _: Request) -> Response:
        """Answer when the process could do its work now; ServiceUnavailable says why it could not."""
        await self._monitor.health.require_ready()
        return answer(Health(status="ready"), headers=_HEADERS)

    async def health(self, _: Request) -> Response:
        """Tell of each part; 503 when one is down that is needed."""
        report = await self._monitor.health.report()
        return answer(report, 503 if report.status == "down" else 200, _HEADERS)

    async def metrics(self, _: Request) -> Response:
        """Tell all metrics, in Prometheus' text format."""
        found = self._monitor.telemetry.render(await self._monitor.health.gauges())
        return Response(found, headers=_HEADERS | {"content-type": CONTENT_TYPE})
