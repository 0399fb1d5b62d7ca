"""The two locks of a data directory: who may use it, and whether a server of it still lives.

`lock` belongs to the program that owns the folder and goes with that process. `server.lock` is inherited by initdb,
postgres and every process they start, so it is free only when the last of them is gone, whatever was killed and
in which order: two servers on one folder cannot be. Both are flock(2) locks: the kernel frees them, no pid is believed.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

__all__ = ["FolderLock", "Holder", "Kind"]

Kind = Literal["up", "command", "restore"]

_HOLDER_BYTES_MAX = 8192


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a folder, as written into `lock`. `dsn` is empty until the server is ready."""

    pid: int
    kind: Kind
    dsn: str = ""
    sockets: str = ""


class FolderLock:
    """Both locks of the folder `path`, taken one after the other, given back together."""

    def __init__(self, path: Path) -> None:
        self._paths = (path / "lock", path / "server.lock")
        self._holder_fd: int | None = None
        self._server_fd: int | None = None

    @property
    def server_fd(self) -> int:
        """The descriptor that a server must inherit."""
        assert self._server_fd is not None
        return self._server_fd

    def take(self, kind: Kind) -> Holder | None:
        """Try to own the folder; return the previous holder's note (or an empty one) on success, else None."""
        fd = _lock(self._paths[0])
        if fd is None:
            return None
        self._holder_fd = fd
        previous = _parse(os.pread(fd, _HOLDER_BYTES_MAX, 0)) or Holder(0, kind)
        self.note(Holder(os.getpid(), kind))
        return previous

    def take_server(self) -> bool:
        """Try to lock out every other server of this folder."""
        self._server_fd = _lock(self._paths[1])
        return self._server_fd is not None

    def give_server_back(self) -> None:
        """Let others look again whether a server lives."""
        server_fd, self._server_fd = self._server_fd, None
        if server_fd is not None:
            os.close(server_fd)

    def holder(self) -> Holder | None:
        """Return what the present holder wrote; None while it is being written."""
        try:
            return _parse(self._paths[0].read_bytes()[:_HOLDER_BYTES_MAX])
        except FileNotFoundError:
            return None

    def note(self, holder: Holder) -> None:
        """Write who holds the folder. A reader in between sees no valid JSON and asks again."""
        assert self._holder_fd is not None
        text = json.dumps(asdict(holder)).encode()
        os.pwrite(self._holder_fd, text, 0)
        os.ftruncate(self._holder_fd, len(text))

    def release(self) -> None:
        """Give both back. A server still running keeps `server.lock`."""
        self.give_server_back()
        holder_fd, self._holder_fd = self._holder_fd, None
        if holder_fd is not None:
            try:
                os.ftruncate(holder_fd, 0)
            finally:
                os.close(holder_fd)


def _lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _give_to_owner(fd, path.parent)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def _give_to_owner(fd: int, folder: Path) -> None:
    # root in somebody else's folder: the owner must be able to lock it later
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _parse(text: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
