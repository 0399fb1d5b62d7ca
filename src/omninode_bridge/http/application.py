"""`create_app`: the routes, the error handlers and the document, around a bridge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from omninode_bridge.app.bootstrap import Role
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.health import Health
from omninode_bridge.app.settings import Settings
from omninode_bridge.http.batches import Batches
from omninode_bridge.http.bodies import Allowance
from omninode_bridge.http.endpoints import Endpoints
from omninode_bridge.http.envelope import Envelope
from omninode_bridge.http.events import EventStreams
from omninode_bridge.http.gate import Gate
from omninode_bridge.http.measuring import Measure
from omninode_bridge.http.monitoring import Monitoring
from omninode_bridge.http.namespaces import Namespaces
from omninode_bridge.http.openapi import describe
from omninode_bridge.http.reference import page
from omninode_bridge.http.validating import Validating
from omninode_bridge.http.workflows import Workflows

__all__ = ["create_app"]

type Endpoint = Callable[[Request], Awaitable[Response]]

_STYLE_ONLY = "default-src 'none'; style-src 'unsafe-inline'"


class Calls:
    """The routes. Those without parameters are found at once: most requests are for one of them."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._router = Router(routes, redirect_slashes=False)
        self._direct: dict[tuple[str, str], Endpoint] = {
            (method, route.path): route.endpoint
            for route in routes
            if "{" not in route.path
            for method in route.methods or ()
        }
        self._methods = {route.path: route.methods or () for route in routes if "{" not in route.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._direct.get((scope["method"], scope["path"]))
        if endpoint is not None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
            return
        methods = self._methods.get(scope["path"])
        if methods is not None:  # said here: to the router, /stamp/batch is one of /stamp/{file_hash} as well
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        scope["app"] = self  # so that the router raises what it refuses, instead of answering it
        await self._router(scope, receive, send)


def _described() -> list[Route]:
    document = describe("OmniNode Bridge", version("omninode-bridge"))
    as_json, as_page = msgspec.json.encode(document), page(document).encode()

    async def openapi(_: Request) -> Response:
        return Response(as_json, media_type="application/json")

    async def docs(_: Request) -> Response:
        return Response(as_page, media_type="text/html", headers={"Content-Security-Policy": _STYLE_ONLY})

    return [Route("/openapi.json", openapi, methods=["GET"]), Route("/docs", docs, methods=["GET"])]


class Application:
    """The application: what is served, how it is told that the server ends, and what counts the server's refusals."""

    def __init__(self, served: ASGIApp, streams: EventStreams, health: Health, measure: Measure) -> None:
        self.measure = measure
        self._served = served
        self._streams = streams
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._served(scope, receive, send)

    def stop(self) -> None:
        """End the answers that have no end of their own, and be ready for nothing any more."""
        self._health.stop()
        self._streams.stop()


def create_app(bridge: Bridge, settings: Settings, role: Role = "all") -> Application:
    """Return the ASGI application that serves an open bridge, with the calls of a role.

    Each role tells of its health; `stamping` stamps, hashes and looks up; `api` and `all` have every call.
    """
    allowance, monitor = Allowance(), bridge.monitor
    calls, watched = Endpoints(bridge, settings, allowance), Monitoring(monitor)
    streams = EventStreams(
        bridge, monitor.tail, streams_max=settings.event_streams_max, meter=monitor.telemetry.streams
    )
    routes = [
        Route("/health/live", watched.live, methods=["GET"]),
        Route("/health/ready", watched.ready, methods=["GET"]),
        Route("/health", watched.health, methods=["GET"]),
        Route("/metrics", watched.metrics, methods=["GET"]),
    ]
    if role in ("api", "stamping", "all"):
        routes += [
            Route("/stamp", calls.stamp, methods=["POST"]),
            Route("/stamp/{file_hash}", calls.look_up, methods=["GET"]),
            Route("/hash", calls.hash, methods=["POST"]),
        ]
    if role in ("api", "all"):
        namespaces, workflows = Namespaces(bridge), Workflows(bridge, settings, allowance)
        routes += [
            Route("/stamp/batch", Batches(bridge, settings, allowance).stamp, methods=["POST"]),
            Route("/validate", Validating(bridge, settings, allowance).validate, methods=["POST"]),
            Route("/workflows", workflows.accept, methods=["POST"]),
            Route("/workflows/{workflow_id}", workflows.look_up, methods=["GET"]),
            Route("/events", streams.events, methods=["GET"]),
            Route("/namespaces", namespaces.overview, methods=["GET"]),
            Route("/namespaces/{namespace}", namespaces.totals, methods=["GET"]),
            Route("/namespaces/{namespace}/stamps", namespaces.stamps, methods=["GET"]),
            Route("/namespaces/{namespace}/state", namespaces.state, methods=["GET"]),
        ]
    routes += _described()
    measure = Measure(monitor.telemetry, routes, access_log=settings.access_log)
    gate = Gate(Calls(routes), access=bridge.access, host=settings.host)
    return Application(Envelope(gate, measure), streams, monitor.health, measure)
