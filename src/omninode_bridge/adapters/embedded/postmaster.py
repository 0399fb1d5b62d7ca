"""What `postmaster.pid` says about a cluster, and whether to believe it.

The file outlives a server that was killed, and its pid may by then be a zombie or somebody else's. PostgreSQL itself
copes with a pid that is gone; this module adds the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["clear_stale", "is_ready", "running_pid"]

_STATUS_LINE = 7  # the eighth line, PostgreSQL's src/include/utils/pidfile.h


def is_ready(pgdata: Path, pid: int) -> bool:
    """Return whether the server with this pid says that it takes connections."""
    lines = _lines(pgdata)
    return len(lines) > _STATUS_LINE and lines[0].strip() == str(pid) and lines[_STATUS_LINE].strip() == "ready"


def running_pid(pgdata: Path) -> int | None:
    """Return the pid of a live server of this cluster, or None."""
    pid = _recorded_pid(pgdata)
    return pid if pid and _exists(pid) and _serves(pid, pgdata) else None


def clear_stale(pgdata: Path) -> None:
    """Remove the file when its pid is a zombie's or a stranger's, which PostgreSQL would take for a live server."""
    pid = _recorded_pid(pgdata)
    if pid and _exists(pid) and not _serves(pid, pgdata):
        (pgdata / "postmaster.pid").unlink(missing_ok=True)


def _lines(pgdata: Path) -> list[str]:
    try:
        return (pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _recorded_pid(pgdata: Path) -> int | None:
    lines = _lines(pgdata)
    try:
        return abs(int(lines[0]))  # a standalone backend writes its pid negative
    except (IndexError, ValueError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _serves(pid: int, pgdata: Path) -> bool:
    if sys.platform != "linux":
        return True  # cannot be told there: never risk a second server
    try:
        # A zombie has no working directory; a server's is its data directory.
        return os.path.samefile(f"/proc/{pid}/cwd", pgdata)
    except FileNotFoundError:
        return False
    except PermissionError:
        return _program_name(pid) == "postgres"


def _program_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
