"""OmniNode Bridge: durable, exactly-once metadata stamps for content of many tenants, and their running totals.

    from omninode_bridge import Bridge

Importing the package loads nothing else: `Bridge`, with all that it stands on, is loaded when it is asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omninode_bridge.app.bridge import Bridge

    __version__: str

__all__ = ["Bridge", "__version__"]

# What is logged is for programs that set logging up, as `serve` does: a command says itself what ended it.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name == "Bridge":
        from omninode_bridge.app.bridge import Bridge

        return Bridge
    if name == "__version__":
        from importlib.metadata import version

        return version("omninode-bridge")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
