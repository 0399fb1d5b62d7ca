"""Who asks: the principal that the gate put on the request."""

from __future__ import annotations

from starlette.requests import Request

from omninode_bridge.domain.tenancy import Principal, local_principal

_LOCAL = local_principal("local")


def asker(request: Request) -> Principal:
    """Return the principal of a request; where no gate stands, the local user, who may do everything."""
    found: Principal = getattr(request.state, "principal", _LOCAL)
    return found
