"""A private, real PostgreSQL for one data directory: started, stopped and never left behind.

One program at a time owns the folder; what it started dies with it, also by `kill -9`, and the folder can then be
used again. Which SQL runs on the server, and through which driver, is not this package's business: it hands out a DSN.
"""

from omninode_bridge.adapters.embedded.launcher import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
