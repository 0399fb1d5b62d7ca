"""The data directory: what is in it, whether it is ours, and how it comes to be.

    bridge.json    format number and PostgreSQL major; its presence says that the folder is a bridge's
    restoring      from the beginning to the end of a restore: what is there is not whole
    lock           who uses it (see lock.py); server.lock: whether a server still lives
    pgdata/        the cluster; pgdata.new while initdb runs, so that what is called pgdata is whole
    log/           postgres.log, and the end of the one before
    run/           the server's socket, where the path is short enough for one

A folder that is not ours is told so and left untouched. Everything here is closed to other users.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omninode_bridge.adapters.embedded.binaries import Binaries
from omninode_bridge.adapters.embedded.configuration import PORT
from omninode_bridge.adapters.embedded.identity import nobody
from omninode_bridge.adapters.embedded.lock import Holder
from omninode_bridge.domain.errors import DataDirectoryError

__all__ = ["FORMAT", "DataFolder", "another_major"]

FORMAT = 1

# What a program killed right after making the folder leaves in it, and what a new file system has at its root.
_NO_CONTENT = {"lock", "server.lock", "bridge.json.new", "restoring.new", "lost+found"}
# sun_path of unix(7) less the closing zero; BSD systems have four bytes less
_SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103
# What PostgreSQL takes unquoted in a list of folders, and a URL too.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=~@-]+")
_SOCKETS_PREFIX = "omninode-bridge-"
_LOG_BYTES_MAX = 4 << 20
_LOG_KEPT_BYTES = 256 << 10
_TAIL_LINES = 5
_TAIL_BYTES = 1000
_RESTORING = "restoring"
_ANOTHER = "or choose another folder with --data-dir or BRIDGE_DATA_DIR"


class DataFolder:
    """The data directory `path`. Operating system errors come out as DataDirectoryError.

    `restoring`: it is to be made of a backup, and has to be empty.
    """

    def __init__(self, path: Path, *, restoring: bool = False) -> None:
        self._restoring = restoring
        self.path = Path(os.path.realpath(path))
        self.pgdata = self.path / "pgdata"
        self.pgdata_new = self.path / "pgdata.new"
        self.log = self.path / "log" / "postgres.log"
        if re.search(r"[\n\r]", str(self.path)):
            raise DataDirectoryError(f"{str(self.path)!r} has a line break in its name, which PostgreSQL can't take")

    def open(self) -> None:
        """Make the folder if it is not there, and refuse it if it is not ours."""
        with self.translated():
            if self.path.exists() and not self.path.is_dir():
                raise DataDirectoryError(
                    f"{self.path} is a file, not a folder: remove it, {_ANOTHER}", data_dir=str(self.path)
                )
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.owner()[0]
            if os.geteuid() not in {0, owner}:
                raise DataDirectoryError(
                    f"{self.path} belongs to {_user_name(owner)}: run as that user, {_ANOTHER}", data_dir=str(self.path)
                )
            if self._restoring:
                self._begin_restore()
            self.recorded_major()
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o700)

    def recorded_major(self) -> int | None:
        """Return the PostgreSQL major of a bridge's folder, None for an empty one; raise for any other."""
        if not self._restoring and (self.path / _RESTORING).exists():
            raise DataDirectoryError(
                f"a restore into {self.path} has not come to its end, so what is there is not whole: if it does not "
                f"run any more, empty the folder and restore again, {_ANOTHER}",
                data_dir=str(self.path),
            )
        try:
            text = (self.path / "bridge.json").read_text()
        except FileNotFoundError:
            found = sorted(set(os.listdir(self.path)) - _NO_CONTENT - {_RESTORING})
            if found:
                raise DataDirectoryError(
                    f"{self.path} is not a bridge data directory and not empty (it has {found[0]!r}), so nothing was "
                    "touched: name an empty or a new folder",
                    data_dir=str(self.path),
                ) from None
            return None
        try:
            facts = json.loads(text)
            made, major = int(facts["format"]), int(facts["postgresql"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataDirectoryError(
                f"{self.path / 'bridge.json'} is damaged: restore it from a backup, {_ANOTHER}", data_dir=str(self.path)
            ) from error
        if made > FORMAT:
            raise DataDirectoryError(
                f"{self.path} has format {made}, made by a newer omninode-bridge, and this one knows formats up to "
                f"{FORMAT}: upgrade omninode-bridge, {_ANOTHER}",
                data_dir=str(self.path),
            )
        return major

    def settle(self, binaries: Binaries) -> None:
        """Bring the folder into order before its server starts; call with both locks held."""
        recorded, major = self.recorded_major(), self._cluster_major()
        if major is not None and self._restoring:
            raise self._not_empty("pgdata")  # another restore was first
        if major is not None and major != binaries.major:
            raise another_major(str(self.path), major, binaries)
        if recorded != binaries.major:
            self._write_facts(binaries.major)
        for folder in (self.log.parent, self.path / "run"):
            folder.mkdir(mode=0o700, exist_ok=True)
            self._give_to_owner(folder)
        if self.pgdata_new.exists():
            shutil.rmtree(self.pgdata_new)
        self.bound_log()

    def finish_restore(self) -> None:
        """Let the folder be used: what was restored is whole."""
        (self.path / _RESTORING).unlink()
        _sync(self.path)

    def drop_restore(self) -> None:
        """Empty the folder of what a restore that failed has put into it; call with the lock held."""
        for name in ("pgdata", "pgdata.new", "log", "run"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "bridge.json").unlink(missing_ok=True)
        (self.path / _RESTORING).unlink(missing_ok=True)

    def has_cluster(self) -> bool:
        return self.pgdata.is_dir()

    def install_cluster(self) -> None:
        """Make the finished pgdata.new the cluster. initdb has written it through to the disk."""
        self.pgdata_new.rename(self.pgdata)
        _sync(self.path)

    def give_to_owner(self, tree: Path) -> None:
        """Let everything of a folder, and itself, belong to whom the data directory belongs to."""
        for path in (tree, *tree.rglob("*")):
            self._give_to_owner(path)

    def owner(self) -> tuple[int, int]:
        facts = self.path.stat()
        return facts.st_uid, facts.st_gid

    def give_to_nobody(self) -> None:
        """Let `nobody` own a folder without a cluster, for root where user namespaces are refused."""
        if self.has_cluster():
            raise DataDirectoryError(
                f"{self.path} belongs to root, PostgreSQL never runs as root, and user namespaces are refused here: "
                f"chown -R nobody {self.path}, {_ANOTHER}",
                data_dir=str(self.path),
            )
        closed = [parent for parent in self.path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise DataDirectoryError(
                f"PostgreSQL never runs as root, and as nobody it can't reach {self.path} behind {closed[0]}, which is "
                f"closed to others: run as an ordinary user, {_ANOTHER}",
                data_dir=str(self.path),
            )
        uid, gid = nobody()
        for path in (*self.path.iterdir(), self.path):
            os.chown(path, uid, gid, follow_symlinks=False)

    def make_sockets(self, previous: Holder) -> str:
        """Return an empty folder closed to others whose path is short and plain enough for a socket.

        That is `run`, or else a private one among the temporary files: the one a killed `previous` holder left, or new.
        """
        inside = self.path / "run"
        if _fits(inside):
            _empty(inside)
            return str(inside)
        left = Path(previous.sockets)
        if previous.sockets and left.name.startswith(_SOCKETS_PREFIX) and _fits(left) and self._is_private(left):
            _empty(left)
            return str(left)
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108  # only its parent: mkdtemp makes it 0700, unguessable
            if _fits(Path(parent) / f"{_SOCKETS_PREFIX}12345678"):
                made = Path(tempfile.mkdtemp(prefix=_SOCKETS_PREFIX, dir=parent))
                self._give_to_owner(made)
                return str(made)
        raise DataDirectoryError(f"{self.path} is too long for a socket, and so is TMPDIR: set TMPDIR to a short path")

    def drop_sockets(self, sockets: str) -> None:
        """Remove a socket folder that is not inside the data directory."""
        if sockets and Path(sockets) != self.path / "run":
            shutil.rmtree(sockets, ignore_errors=True)

    def log_bytes(self) -> int:
        """Return where the log ends now: what comes after belongs to the next start."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def log_tail(self, start: int = 0) -> str:
        """Return the last lines of the log from `start` on, in one."""
        try:
            with self.log.open("rb") as file:
                size = self.log_bytes()
                file.seek(max(start if start <= size else 0, size - _LOG_KEPT_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"the log can't be read: {error.strerror}"
        told = [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
        return " | ".join(told)[-_TAIL_BYTES:] or "it said nothing"

    def bound_log(self) -> None:
        """Empty a log that has grown over 4 MiB, its end kept as postgres.log.1; the server goes on appending."""
        if self.log_bytes() <= _LOG_BYTES_MAX:
            return
        with contextlib.suppress(OSError):  # a full disk: the log waits for the next round
            fd = os.open(self.log, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                end = os.pread(fd, _LOG_KEPT_BYTES, max(0, os.fstat(fd).st_size - _LOG_KEPT_BYTES))
                self._replace(self.log.with_name("postgres.log.1"), end)
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn an operating system's error into a DataDirectoryError that names the folder."""
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename and str(error.filename) != str(self.path) else ""
            raise DataDirectoryError(
                f"{self.path} can't be used as data directory: {error.strerror or error}{where}; mend that, {_ANOTHER}",
                data_dir=str(self.path),
            ) from error

    def _begin_restore(self) -> None:
        if found := sorted(set(os.listdir(self.path)) - _NO_CONTENT):
            raise self._not_empty(found[0])
        self._replace(self.path / _RESTORING, b"")

    def _not_empty(self, found: str) -> DataDirectoryError:
        return DataDirectoryError(
            f"{self.path} is not empty (it has {found!r}), so nothing was restored: name an empty or a new folder",
            data_dir=str(self.path),
        )

    def _cluster_major(self) -> int | None:
        """Return the major that the cluster itself names, None where there is no cluster."""
        try:
            return int((self.pgdata / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataDirectoryError(
                f"{self.pgdata / 'PG_VERSION'} is damaged: restore a backup, {_ANOTHER}", data_dir=str(self.path)
            ) from error

    def _write_facts(self, major: int) -> None:
        self._replace(self.path / "bridge.json", json.dumps({"format": FORMAT, "postgresql": major}).encode() + b"\n")

    def _replace(self, path: Path, content: bytes) -> None:
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._give_to_owner(new)
        new.replace(path)
        _sync(path.parent)

    def _give_to_owner(self, path: Path) -> None:
        uid, gid = self.owner()
        if os.geteuid() == 0 and path.lstat().st_uid != uid:
            os.chown(path, uid, gid, follow_symlinks=False)

    def _is_private(self, path: Path) -> bool:
        try:
            facts = path.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(facts.st_mode) and facts.st_uid == self.owner()[0] and facts.st_mode & 0o077 == 0


def another_major(what: str, major: int, binaries: Binaries) -> DataDirectoryError:
    """Return the refusal of a cluster that these programs can't run, with the way to move its data."""
    return DataDirectoryError(
        f"{what} is of PostgreSQL {major}, and {binaries.folder} has PostgreSQL {binaries.major}: go on with {major} "
        "by setting BRIDGE_POSTGRES_BINARIES to a folder with its programs; or move the data, which takes "
        "`omninode-bridge backup FILE --dump` with that setting, and `omninode-bridge restore FILE` without it",
        data_dir=what,
    )


def _fits(folder: Path) -> bool:
    socket = os.fsencode(folder / f".s.PGSQL.{PORT}")
    return len(socket) <= _SOCKET_PATH_BYTES_MAX and bool(_PLAIN_PATH.fullmatch(str(folder)))


def _empty(folder: Path) -> None:
    # A killed server's socket and its lock file; no server lives, or server.lock would not be ours.
    for path in folder.iterdir():
        path.unlink()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
