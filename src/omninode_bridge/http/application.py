"""`create_app`: the routes, the error handlers and the document, around a bridge."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route

from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.http.endpoints import Endpoints
from omninode_bridge.http.envelope import Envelope
from omninode_bridge.http.openapi import describe
from omninode_bridge.http.problems import bridge_problem, http_problem

__all__ = ["create_app"]


class Application(FastAPI):
    """FastAPI with a document of our own: its routes take the raw request, which tells FastAPI nothing."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(self.title, self.version)
        return self.openapi_schema


def create_app(bridge: Bridge, settings: Settings) -> FastAPI:
    """Return the ASGI application that serves an open bridge. Of the settings, the limits of bodies are used."""
    calls = Endpoints(bridge, settings)
    app = Application(
        title="OmniNode Bridge",
        version=version("omninode-bridge"),
        routes=[
            Route("/stamp", calls.stamp, methods=["POST"]),
            Route("/stamp/{file_hash}", calls.look_up, methods=["GET"]),
            Route("/hash", calls.hash, methods=["POST"]),
            Route("/health/live", calls.live, methods=["GET"]),
            Route("/health/ready", calls.ready, methods=["GET"]),
        ],
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(BridgeError, bridge_problem)
    app.add_exception_handler(HTTPException, http_problem)
    app.add_middleware(Envelope)
    return app
