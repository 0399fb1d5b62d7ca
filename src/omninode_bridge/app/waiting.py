"""What a role needs before it can serve: waited for at the start, said, and given up after a limit.

Services that are started together come up in any order, and a database may be migrated meanwhile. PostgreSQL is there
when it has this program's schema; Kafka and a stamping service when one of their addresses takes a connection, which
says nothing yet about rights, TLS or topics: of those the parts of `/health` tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.adapters.postgres.migrations import require_current
from omninode_bridge.app.bootstrap import Role
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, SchemaMismatch, ServiceUnavailable

PAUSE_S = 0.25
PAUSE_S_MAX = 5.0
CONNECT_S_MAX = 3.0
LOOK_S_MAX = 15.0
"""For one look, where the settings say to look once."""
KAFKA_PORT = 9092
"""What librdkafka takes where an address names none."""

type Look = Callable[[float], Awaitable[None]]
"""Raises ServiceUnavailable or SchemaMismatch while something is not there, and takes so many seconds at most."""

_WITH_KAFKA: frozenset[Role] = frozenset({"relay", "reducer", "all"})
_WITH_STAMPING: frozenset[Role] = frozenset({"api", "orchestrator", "all"})
_KAFKA_SCHEMES = frozenset({"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"})


class Place(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def wait_for_dependencies(settings: Settings, role: Role, notice: Callable[[str], None]) -> None:
    """Return once all is there that the role needs.

    `notice` gets a sentence whenever it is something else that is waited for. Raises InvalidInput at once for an
    address that is none, ServiceUnavailable after `start_timeout_s` of the settings, also in the middle of a look.
    """
    clock_s = asyncio.get_running_loop().time
    until_s = clock_s() + settings.start_timeout_s
    for name, look in needed(settings, role).items():
        pause_s, said = PAUSE_S, ""
        while True:
            try:
                await look(max(0.0, until_s - clock_s()) if settings.start_timeout_s else LOOK_S_MAX)
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
    """Return what a role needs, by name, in the order in which it is looked for. InvalidInput for a bad address."""
    looks: dict[str, Look] = {}
    url = settings.database_url
    if url is not None:
        looks["PostgreSQL"] = lambda limit_s: _database(url, limit_s)
    if settings.kafka_bootstrap_servers is not None and role in _WITH_KAFKA:
        servers = kafka_places(settings.kafka_bootstrap_servers)
        looks["Kafka"] = lambda limit_s: _any("Kafka", servers, limit_s)
    if settings.stamping_urls and role in _WITH_STAMPING:
        services = [_place(number, stamping) for number, stamping in enumerate(settings.stamping_urls, 1)]
        looks["a stamping service"] = lambda limit_s: _any("a stamping service", services, limit_s)
    return looks


def kafka_places(servers: str) -> list[Place]:
    """Return the places in `[SCHEME://]host[:port],…`, as librdkafka reads them; InvalidInput where one is none.

    An IPv6 address with a port stands in brackets.
    """
    places = [_kafka_place(server.strip()) for server in servers.split(",") if server.strip()]
    if not places:
        raise InvalidInput(
            "BRIDGE_KAFKA_BOOTSTRAP_SERVERS names no address: it is to be like kafka-1:9092,kafka-2:9092",
            field="kafka_bootstrap_servers",
        )
    return places


def _kafka_place(server: str) -> Place:
    scheme, found, rest = server.rpartition("://")
    if found and scheme.lower() not in _KAFKA_SCHEMES:
        raise _no_address(server, f"{scheme!r} is not PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    host, colon, port = rest.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # the last colon is the address's own
        host, port = rest, ""
    host = host.removeprefix("[").removesuffix("]") or "localhost"
    if not port:
        return Place(host, KAFKA_PORT)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise _no_address(server, f"{port!r} is no port from 1 to 65535")
    return Place(host, int(port))


def _no_address(server: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"BRIDGE_KAFKA_BOOTSTRAP_SERVERS: {server!r} is no address like kafka:9092 or SASL_SSL://kafka:9093: {why}",
        field="kafka_bootstrap_servers",
    )


def _place(number: int, url: str) -> Place:
    try:
        split = urlsplit(url)
        port = split.port or (443 if split.scheme == "https" else 80)
    except ValueError:
        split, port = urlsplit(""), 0
    if not split.hostname:
        # It may have a password in it: it is told by its number.
        raise InvalidInput(
            f"BRIDGE_STAMPING_URLS: number {number} is no address like http://host:8054", field="stamping_urls"
        )
    return Place(split.hostname, port)


async def _database(url: str, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            session = await postgres.connect(url)
            try:
                await require_current(session)
            except asyncio.CancelledError:
                session.terminate()  # whoever hangs does not take leave in time either
                raise
            finally:
                await session.close()
    except TimeoutError as error:
        raise ServiceUnavailable(f"it did not answer in {limit_s:.2g} s") from error


async def _any(name: str, places: Sequence[Place], limit_s: float) -> None:
    """Return when one of some places takes a connection. All are tried side by side: one that hangs delays none."""
    limit_s = min(limit_s, CONNECT_S_MAX)
    told = f"no answer in {limit_s:.2g} s"
    tries = [asyncio.create_task(_knock(place)) for place in places]
    try:
        async with asyncio.timeout(limit_s):
            for knocked in asyncio.as_completed(tries):
                try:
                    await knocked
                    return
                except (OSError, ValueError) as error:  # ValueError: a host that no name can be
                    told = str(error) or type(error).__name__
    except TimeoutError:
        pass
    finally:
        for one in tries:
            one.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
    raise ServiceUnavailable(f"{name} can't be reached at {', '.join(map(str, places))}: {told}")


async def _knock(place: Place) -> None:
    _, writer = await asyncio.open_connection(place.host, place.port)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
