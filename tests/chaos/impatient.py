"""The bridge's command, which gives up sooner on a PostgreSQL that is silent: so a test need not wait for minutes.

All else is as it is: only the numbers are smaller.
"""

from __future__ import annotations

from omninode_bridge.adapters.postgres import connection

STATEMENT_S, CANCEL_S, CONNECT_S = 6, 0.5, 2
PROGRAM = ("-m", "tests.chaos.impatient")


if __name__ == "__main__":
    connection.COMMAND_TIMEOUT_S = STATEMENT_S
    connection.CANCEL_TIMEOUT_S = CANCEL_S
    connection.CONNECT_TIMEOUT_S = CONNECT_S

    from omninode_bridge.cli.main import main

    main()
