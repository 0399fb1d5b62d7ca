"""What a role needs before it can serve: waited for at the start, said, and given up after a limit.

Services that are started together come up in any order, and a database may be migrated meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.migrations import require_current
from omninode_bridge.app.bootstrap import Role
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import SchemaMismatch, ServiceUnavailable

PAUSE_S = 0.25
PAUSE_S_MAX = 5.0
CONNECT_S_MAX = 3.0

type Look = Callable[[], Awaitable[None]]
"""Raises ServiceUnavailable or SchemaMismatch while something is not there."""

_WITH_KAFKA: frozenset[Role] = frozenset({"relay", "reducer", "all"})
_WITH_STAMPING: frozenset[Role] = frozenset({"api", "orchestrator", "all"})


async def wait_for_dependencies(settings: Settings, role: Role, notice: Callable[[str], None]) -> None:
    """Return once all is there that the role needs.

    `notice` gets a sentence whenever it is something else that is waited for. Raises ServiceUnavailable after
    `start_timeout_s` of the settings.
    """
    clock_s = asyncio.get_running_loop().time
    until_s = clock_s() + settings.start_timeout_s
    for name, look in needed(settings, role).items():
        pause_s, said = PAUSE_S, ""
        while True:
            try:
                await look()
                break
            except (ServiceUnavailable, SchemaMismatch) as error:
                if clock_s() + pause_s > until_s:
                    raise ServiceUnavailable(
                        f"{name} was not there in {settings.start_timeout_s:g} s (BRIDGE_START_TIMEOUT_S): "
                        f"{error.message}"
                    ) from error
                if error.message != said:
                    notice(f"waits for {name}: {error.message}")
                    said = error.message
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)


def needed(settings: Settings, role: Role) -> Mapping[str, Look]:
    """Return what a role needs, by name, in the order in which it is looked for."""
    looks: dict[str, Look] = {}
    url = settings.database_url
    if url is not None:
        looks["PostgreSQL"] = lambda: _database(url)
    if settings.kafka_bootstrap_servers is not None and role in _WITH_KAFKA:
        servers = settings.kafka_bootstrap_servers.split(",")
        looks["Kafka"] = lambda: _any("Kafka", [server.strip() for server in servers])
    if settings.stamping_urls and role in _WITH_STAMPING:
        places = [_place(stamping) for stamping in settings.stamping_urls]
        looks["a stamping service"] = lambda: _any("a stamping service", places)
    return looks


async def _database(url: str) -> None:
    session = await postgres.connect(url)
    try:
        await require_current(session)
    finally:
        await session.close()


async def _any(name: str, places: list[str]) -> None:
    """Return when one of some places (host:port) takes connections."""
    reason: Exception | None = None
    for place in places:
        host, _, port = place.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, ValueError, TimeoutError) as error:
            reason = error
            continue
        writer.close()
        return
    told = str(reason) or type(reason).__name__
    raise ServiceUnavailable(f"{name} can't be reached at {', '.join(places)}: {told}")


def _place(url: str) -> str:
    split = urlsplit(url)
    return f"{split.hostname}:{split.port or (443 if split.scheme == 'https' else 80)}"
