"""Sessions and pools, with their timeouts; asyncpg's errors become the bridge's here.

Durability is the server's: `fsync` and `synchronous_commit` are left on. Every wait has a limit, so that a
server that stopped answering is an error and not a hang.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Literal
from urllib.parse import parse_qs, urlsplit
from weakref import WeakSet

import asyncpg
from asyncpg.connection import Connection
from asyncpg.pool import Pool, PoolConnectionProxy

from omninode_bridge.domain.errors import BridgeError, Overloaded, SchemaMismatch, ServiceUnavailable
from omninode_bridge.domain.tenancy import Visible

__all__ = [
    "LONG_TIMEOUT_S",
    "Pool",
    "abandon",
    "connect",
    "connection_lost",
    "given",
    "pool",
    "seeing",
    "translated",
    "usable",
]

type Role = Literal["omninode_bridge_tenant", "omninode_bridge_service"]
TENANT: Role = "omninode_bridge_tenant"
"""Sees and writes the rows of the namespaces that its transaction was given (law 4)."""
SERVICE: Role = "omninode_bridge_service"
"""Sees all: the reducer, the relay, the audit, upkeep, and the local user."""

POSTGRES_MAJOR_MIN = 15
CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60
LONG_TIMEOUT_S = 6 * 3600
"""For one statement over a whole table. To be passed: asyncpg reads `timeout=None` as COMMAND_TIMEOUT_S."""
CANCEL_TIMEOUT_S = 5
"""How long to wait for the end of a statement that was given up; beyond it the session is."""
PEER_GONE_S = 20
"""When the kernel ends a session over TCP whose other side acknowledges nothing, or takes nothing of what is sent. One
that works on a slow statement does both."""
LOCK_TIMEOUT_MS = 10_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000
"""A writer that hangs in a transaction must not keep its shard's head locked for ever."""
POOL_CONNECTIONS_MAX = 8
ACQUIRE_TIMEOUT_S = 15
"""How long to wait for a connection of the pool; beyond CONNECT_TIMEOUT_S, which is an error of its own."""

_SETTINGS = {
    "application_name": "omninode-bridge",
    "timezone": "UTC",
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
    # A peer that vanished without a word is noticed in about 30 s, and its locks are free again.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
}

# The data plane only looks up by key, in batches that the planner can't estimate. On an empty table it would
# choose a sequential scan, and keep it for the life of the session while the table grows to millions.
_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}

_CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says when the server ends a session that it is using
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
    asyncio.IncompleteReadError,
    TimeoutError,
)


def connection_lost(error: BaseException) -> bool:
    """Tell whether the session is gone, so that nothing can be learned from it any more."""
    # asyncpg files what it refuses to encode under InterfaceError as well: that is the input's fault.
    return isinstance(error, _CONNECTION_LOST) and not isinstance(error, asyncpg.DataError | ValueError)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise the bridge's error for a driver's error; `doing` completes the sentence "… while …"."""
    try:
        yield
    except BridgeError:
        raise
    except asyncpg.InsufficientPrivilegeError as error:
        raise ServiceUnavailable(f"PostgreSQL refused while {doing}: {_said(error)}") from error
    except asyncpg.InvalidParameterValueError as error:
        if 'role "omninode_bridge_' not in _said(error):
            raise
        raise SchemaMismatch(
            f"the database has not the program's roles while {doing} ({_said(error)}): run `omninode-bridge migrate`"
        ) from error
    # All our statements fit our schema: what PostgreSQL does not understand, it understands with another schema.
    except (
        asyncpg.SyntaxOrAccessError,
        asyncpg.FeatureNotSupportedError,  # "cached plan must not change result type" is one
        asyncpg.OutdatedSchemaCacheError,
    ) as error:
        raise SchemaMismatch(
            f"the database's schema does not fit while {doing} ({_said(error)}): run `omninode-bridge migrate`"
        ) from error
    except (asyncpg.DiskFullError, asyncpg.OutOfMemoryError) as error:
        raise ServiceUnavailable(
            f"PostgreSQL is out of room while {doing} ({_said(error)}): free some and try again; "
            "nothing is half-written"
        ) from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise ServiceUnavailable(
            f"PostgreSQL refused the connection while {doing}: {_said(error)}; check the URL"
        ) from error
    except (asyncpg.TooManyConnectionsError, asyncpg.QueryCanceledError) as error:
        raise ServiceUnavailable(f"PostgreSQL refused while {doing}: {_said(error)}") from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ServiceUnavailable(f"PostgreSQL is read-only while {doing}: connect to the primary") from error
    except _CONNECTION_LOST as error:
        if not connection_lost(error):
            raise
        reason = _said(error) or type(error).__name__
        raise ServiceUnavailable(
            f"PostgreSQL is not reachable while {doing} ({reason}): check that it runs, then try again"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise ServiceUnavailable(
            f"another session of PostgreSQL held a lock for too long while {doing} ({_said(error)}): try again"
        ) from error
    except (
        asyncpg.InsufficientResourcesError,
        asyncpg.OperatorInterventionError,
        asyncpg.PostgresSystemError,
        asyncpg.InternalServerError,
    ) as error:
        raise ServiceUnavailable(f"PostgreSQL failed while {doing}: {_said(error)}; its log tells more") from error


def _said(error: BaseException) -> str:
    """Return the driver's sentence without the DETAIL and HINT lines that asyncpg appends."""
    return str(error).partition("\n")[0]


def _where(database_url: str) -> str:
    """Return what a URL names, without its password."""
    try:
        split = urlsplit(database_url)
        host = split.hostname or parse_qs(split.query).get("host", ["the default host"])[0]
        return f"{host}:{split.port}{split.path}" if split.port else f"{host}{split.path}"
    except ValueError:
        return "the given URL"


def usable(session: Connection) -> bool:
    """Tell whether a session that nobody uses may be used again: it is open, and no other has been silent since."""
    return not session.is_closed() and not session.is_suspect


def abandon(session: Connection, why: BaseException | None = None) -> None:
    """End a session at once. Where its statement took too long, the others with its server are suspected as well."""
    if why is not None and isinstance(why.__cause__, TimeoutError):
        session.suspect_others()
    session.terminate()


async def connect(database_url: str, *, by_key: bool = False, role: Role | None = None) -> Connection:
    """Open a session of its own. `by_key`: for the data plane, index scans only. Without a role: the URL's own."""
    with translated(f"connecting to {_where(database_url)}"):
        try:
            return await asyncpg.connect(
                database_url,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                connection_class=_Session,
                server_settings=_SETTINGS | (_BY_KEY if by_key else {}) | ({"role": role} if role else {}),
            )
        except (ValueError, asyncpg.ClientConfigurationError) as error:
            raise ServiceUnavailable(
                f"the database URL is not usable ({error}): use postgresql://user@host:5432/database"
            ) from error


@asynccontextmanager
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Open a pool of the service's sessions, for reads and for the reducer; closed in bounded time."""
    (await connect(database_url, role=SERVICE)).terminate()  # for the clear error
    with translated("connecting"):
        opened = await _Pool(
            database_url,
            # Opened as needed: keeping a floor open, asyncpg would log each vain try while the server is away.
            min_size=0,
            max_size=POOL_CONNECTIONS_MAX,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            loop=None,
            connection_class=_Session,
            record_class=asyncpg.Record,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=_SETTINGS | _BY_KEY | {"role": SERVICE},
        )
    try:
        yield opened
    finally:
        try:
            await asyncio.wait_for(opened.close(), 5)
        except (TimeoutError, *_CONNECTION_LOST):
            opened.terminate()


def given(namespaces: Iterable[str], patterns: Iterable[str] = ()) -> str:
    """Return the statements that give a transaction its namespaces, and the patterns that its reads may match.

    They are settings of this transaction alone: a session that is handed on takes nothing along.
    """
    names, more = (",".join(values).replace("'", "''") for values in (namespaces, patterns))
    return f"SET LOCAL omninode_bridge.namespaces = '{names}'; SET LOCAL omninode_bridge.patterns = '{more}'"


@asynccontextmanager
async def seeing(pool: Pool, visible: Visible | None) -> AsyncIterator[Connection]:
    """Give a connection that sees the rows of some namespaces, in a transaction; with None all rows, and none."""
    async with pool.acquire() as connection:
        if visible is None:
            yield connection
            return
        what = given(visible.names, visible.wildcards)
        try:
            await connection.execute(f"BEGIN READ ONLY; SET LOCAL ROLE {TENANT}; {what}")
            yield connection
        finally:
            if not connection.is_closed():
                await connection.execute("ROLLBACK")


class _Session(Connection):  # type: ignore[misc]  # asyncpg has no types
    """A session that is not waited for once more, where it was silent.

    What comes after a statement that was given up, a ROLLBACK or the way back to the pool, waits until the server has
    ended that statement; asyncpg would wait as long as for the statement itself.
    """

    def __init__(self, protocol: object, transport: asyncio.Transport, *connect_args: object) -> None:
        super().__init__(protocol, transport, *connect_args)
        _watch(transport.get_extra_info("socket"))
        self.is_suspect = False
        self.pool: _Pool | None = None
        _sessions.add(self)

    def suspect_others(self) -> None:
        """Suspect all with the same server of being as silent: their users shall not find out one after the other."""
        for other in list(_sessions - {self}):
            if (other._addr, other._loop) == (self._addr, self._loop) and not other.is_closed():
                other.is_suspect = True
                if other.pool is not None:
                    other.pool.drop_idle(other)

    def _cancel_current_command(self, *waiters: asyncio.Future[None]) -> None:
        super()._cancel_current_command(*waiters)
        self._loop.call_later(CANCEL_TIMEOUT_S, self._give_up, waiters[-1])

    def _give_up(self, statement_ended: asyncio.Future[None]) -> None:
        if not statement_ended.done():
            self.terminate()
            self.suspect_others()


_sessions: WeakSet[_Session] = WeakSet()
"""Those of this process."""


def _watch(way: socket.socket) -> None:
    """Have the kernel end a session over TCP after PEER_GONE_S, as libpq's settings of these names do."""
    if way.family not in (socket.AF_INET, socket.AF_INET6):
        return
    way.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {
        "TCP_KEEPIDLE": PEER_GONE_S // 4,
        "TCP_KEEPINTVL": PEER_GONE_S // 4,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": PEER_GONE_S * 1000,
    }.items():
        with suppress(AttributeError, OSError):  # some systems have not all of these
            way.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Pool(Pool):  # type: ignore[misc]  # asyncpg has no types
    """A pool whose connections are waited for in bounded time, by whichever of its methods."""

    def __init__(self, *connect_args: object, **options: object) -> None:
        super().__init__(*connect_args, init=self._adopt, **options)

    def drop_idle(self, session: _Session) -> None:
        """End a session if nobody uses it; new ones are opened as needed."""
        if any(holder._con is session and holder.is_idle() for holder in self._holders):
            session.terminate()

    async def _adopt(self, session: _Session) -> None:
        session.pool = self

    async def _acquire(self, timeout: float | None) -> PoolConnectionProxy:  # noqa: ASYNC109 - asyncpg's signature
        try:
            return await super()._acquire(ACQUIRE_TIMEOUT_S if timeout is None else timeout)
        except TimeoutError as error:
            if self.get_size() < self.get_max_size():
                raise  # it was the connecting that took too long
            raise Overloaded(
                f"all {self.get_max_size()} connections to PostgreSQL were busy for {ACQUIRE_TIMEOUT_S} s: try again"
            ) from error
