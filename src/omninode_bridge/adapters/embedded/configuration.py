"""How the embedded server is configured, each setting with its reason.

Everything goes on the command line: it then follows this program's version and not the day the folder was made, and
no edited file or ALTER SYSTEM can take durability away.
"""

from __future__ import annotations

import os
import sys

__all__ = ["DATABASE", "PORT", "USER", "initdb_arguments", "server_arguments"]

USER = "bridge"
DATABASE = "bridge"
PORT = 5432  # only names the socket file: there is no TCP

_SETTINGS = {
    # One door: the unix socket in a folder closed to others. That is what makes `trust` safe.
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # The defaults, stated: an answer is given only for what is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # A bulk run would otherwise checkpoint every few seconds and write each page in full again.
    "max_wal_size": "4GB",
    "min_wal_size": "160MB",
    # `up` holds some tens, every command that attaches a few.
    "max_connections": "100",
    # A client that hangs inside a transaction must not hold a shard's head for ever.
    "idle_in_transaction_session_timeout": "60s",
    # A client killed while its statement runs or waits: notice, so that its locks go.
    "client_connection_check_interval": "1s",
    # Statements are short and repeated: compiling them costs more than it gains.
    "jit": "off",
    # An error goes to its client, who tells; the log keeps what only the server knows, and stays small.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    # Shown by ps: whose server this is.
    "cluster_name": "omninode-bridge",
}


_BUFFERS_MIB = (128, 2048)
_BUFFERS_SHARE = 8
"""The part of the machine's memory, within these bounds, for the pages that every stamp touches, which are those of the
indexes, some millions of stamps later. It is taken as it is needed."""


def server_arguments(sockets: str) -> list[str]:
    """Return the arguments of `postgres`, run inside the data directory, for a server with its socket in `sockets`."""
    settings = {**_SETTINGS, "shared_buffers": f"{_buffers_mib()}MB", "unix_socket_directories": sockets}
    return ["-D", "pgdata", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]


def initdb_arguments(major: int, folder: str) -> list[str]:
    """Return the arguments of `initdb` for a new cluster in `folder`: UTF-8, code-point order, data checksums."""
    if major >= 17:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    elif sys.platform == "linux":
        locale = ["--locale=C", "--lc-ctype=C.UTF-8"]  # the same order, and letters beyond ASCII known as letters
    else:
        locale = ["--locale=C"]
    fixed = ["--auth=trust", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
    return ["-D", folder, "-U", USER, *fixed, *locale]


def _buffers_mib() -> int:
    least, most = _BUFFERS_MIB
    try:
        memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024**2
    except (ValueError, OSError):  # not every system tells
        return least
    return max(least, min(most, memory_mib // _BUFFERS_SHARE))
