#!/usr/bin/env python3
"""Run a command with a PostgreSQL and a Redpanda in containers, for the tests that take running services.

    scripts/with-containers.py .venv/bin/python -m pytest tests/integration/test_orchestrator_reducer_flow.py

Needs Docker, and a Python with `testcontainers`, `packaging` and `psycopg2-binary`. It was never run where this project
is made, since there is no Docker.
"""

from __future__ import annotations

import os
import subprocess
import sys

from testcontainers.community.kafka import RedpandaContainer
from testcontainers.community.postgres import PostgresContainer


def main() -> int:
    with (
        PostgresContainer("postgres:18-bookworm", username="bridge", password="bridge", dbname="bridge") as postgres,  # noqa: S106 - of a container that lives for this run
        RedpandaContainer("redpandadata/redpanda:v25.2.1") as kafka,
    ):
        services = {
            "BRIDGE_TEST_DATABASE_URL": postgres.get_connection_url(driver=None),
            "BRIDGE_TEST_KAFKA_BOOTSTRAP_SERVERS": kafka.get_bootstrap_server(),
        }
        return subprocess.run(sys.argv[1:], env=os.environ | services, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
