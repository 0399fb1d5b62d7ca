"""`serve`: the application on a socket, from the first signal to the last answer.

    bind ─▶ open the bridge ─▶ look for tokens ─▶ listen, announce ─▶ serve
    ─▶ (signal, or PostgreSQL died) ─▶ finish answers ─▶ close

The rules it keeps:

1. The address is taken before the bridge is opened, so that a taken port is told at once; it is announced when
   stamps can be recorded.
2. SIGTERM and SIGINT end the server in order: no new connection, what was taken is answered, then the bridge closes.
   The second one ends the wait for slow callers.
3. Without tokens, whoever reaches the port may stamp: only this machine may, and it is said. Where other machines
   reach the port, there is a token before anybody is listened to.
4. When the embedded PostgreSQL ends by itself, so does the server, and says so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from omninode_bridge.app.access import Access
from omninode_bridge.app.bootstrap import Role, open_bridge
from omninode_bridge.app.logs import configured
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from omninode_bridge.http.application import Application, create_app
from omninode_bridge.http.protocol import counted_by

__all__ = ["serve", "serve_app"]

BACKLOG_CONNECTIONS = 2048
KEEP_ALIVE_S = 75
"""Longer than the minute after which common proxies drop an idle connection, so that they do it first."""
FINISH_S_MAX = 30
"""How long callers may take to send and fetch what is under way when the server is told to stop."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    settings: Settings,
    *,
    role: Role = "all",
    announce: Callable[[str], None],
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the settings' bridge, in a role, on their address until a signal; `announce` gets the URL once it serves.

    `notice` gets a sentence about who is served. Runs in the main thread. Raises InvalidInput for an address that other
    machines reach while there are no tokens, ServiceUnavailable when the address can't be taken, the bridge can't be
    opened, or its PostgreSQL ends by itself.
    """
    _allow_open_files()
    with (
        configured(settings.log_level, settings.log_format),
        _bound(settings.host, settings.port) as (listener, foreign),
        _signals() as stop,
    ):
        death: ServiceUnavailable | None = None
        try:
            async with open_bridge(settings, role) as bridge:
                who = await _served(bridge.access, settings, foreign)
                died = asyncio.create_task(bridge.maintenance.database_died(), name="database-died")

                def announced(url: str) -> None:
                    announce(url)
                    notice(who)

                try:
                    app = create_app(bridge, settings, role)
                    death = await serve_app(app, listener, stop=stop, announce=announced, died=died)
                finally:
                    died.cancel()
        except asyncio.CancelledError:
            # Told to stop while the bridge was opening: nothing was served yet, so nothing is left to answer.
            task = asyncio.current_task()
            if not stop.asked or (task is not None and task.uncancel()):
                raise
        except Exception as error:
            # How a bridge fails to close without its database tells less than why it has none.
            raise death or error from error.__cause__
        if death is not None:
            raise death


async def serve_app(
    app: Application,
    listener: socket.socket,
    *,
    stop: Stop,
    announce: Callable[[str], None],
    died: asyncio.Task[ServiceUnavailable],
) -> ServiceUnavailable | None:
    """Serve an application on a bound socket until `stop` is asked, or until `died` tells why: that is returned."""
    config = uvicorn.Config(
        app,
        http=counted_by(app.measure.refused),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FINISH_S_MAX,
    )
    _listen(listener)
    server = _Server(config, started=lambda: announce(_url(listener)), stopping=app.stop)
    stop.server = server
    server.should_exit = stop.asked
    serving = asyncio.create_task(server.serve([listener]), name="http")
    try:
        await asyncio.wait({serving, died}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        await serving
    return died.result() if died.done() else None


class Stop:
    """What a signal does: while the bridge opens, give that up; later, end the server; the second time, at once."""

    def __init__(self, opening: asyncio.Task[None] | None) -> None:
        self._opening = opening
        self.asked = False
        self.server: uvicorn.Server | None = None

    def __call__(self) -> None:
        if self.server is not None:
            self.server.force_exit = self.asked
            self.server.should_exit = True
        elif self._opening is not None and not self.asked:
            self._opening.cancel()
        self.asked = True


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us and tells when it serves, and when it stops."""

    def __init__(self, config: uvicorn.Config, *, started: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First: what has no end of its own would be waited for as long as there is patience.
        self._stopping()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _signals() -> Iterator[Stop]:
    loop = asyncio.get_running_loop()
    stop = Stop(asyncio.current_task())
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            with suppress(RuntimeError):
                loop.remove_signal_handler(number)


@contextmanager
def _bound(host: str, port: int) -> Iterator[tuple[socket.socket, str | None]]:
    """Take an address; tell also which one of those that the host's name means other machines reach, if any."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InvalidInput(
            f"host {host!r} is no address ({error.strerror}): use 127.0.0.1, or leave BRIDGE_HOST out", field="host"
        ) from error
    reached = [str(address[0]) for *_, address in found if not ipaddress.ip_address(address[0]).is_loopback]
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        # Else connections of a predecessor that are still closing would keep the port taken for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise _taken(f"{host}:{port}", error) from error
        yield listener, next(iter(reached), None)


async def _served(access: Access, settings: Settings, foreign: str | None) -> str:
    """Return a sentence on who is served; InvalidInput when that would be everybody."""
    if await access.asks_for_tokens():
        return "every call needs a token"
    if foreign is not None:
        raise InvalidInput(
            f"host {settings.host!r} can be reached from other machines ({foreign}), and there are no tokens: "
            "make one with `omninode-bridge token create`, or use 127.0.0.1, or leave BRIDGE_HOST out",
            field="host",
        )
    return (
        f"there are no tokens: only this machine is served, and whoever asks is taken for {settings.stamped_by!r}; "
        "`omninode-bridge token create` makes the first one, and from then on every call needs one"
    )


def _allow_open_files() -> None:
    """Raise the limit of open files as far as it goes: each caller's connection is one, and 1,024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(listener: socket.socket) -> None:
    """Begin to listen: with SO_REUSEADDR it is here that the later of two who bound at once is refused."""
    try:
        listener.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        raise _taken(_url(listener), error) from error


def _taken(address: str, error: OSError) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"{address} can't be listened on ({error.strerror}): stop what uses it, "
        "or choose another port with --port or BRIDGE_PORT (0 takes a free one)"
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
