"""Backups of a data directory, taken from the running server, and folders made of them.

    folder   a copy by pg_basebackup: pgdata/ with its manifest, and backup.json, whose presence says that it is whole.
             Read by the PostgreSQL major that wrote it; every file is checked against the manifest when it is restored
    dump     a file by pg_dump: what to move to another PostgreSQL major or to a server of your own with

Neither stops anybody: both are of one moment of the database, the copy of its end, the dump of its beginning. No backup
is written over, and none is used where it lies: a folder is restored by copying, and is a data directory only then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from omninode_bridge.adapters.embedded.binaries import Binaries, find_binaries
from omninode_bridge.adapters.embedded.folder import another_major
from omninode_bridge.adapters.embedded.launcher import EmbeddedPostgres
from omninode_bridge.adapters.embedded.process import environment
from omninode_bridge.domain.errors import InvalidInput, NotFound, ServiceUnavailable

__all__ = ["Backup", "Form", "back_up", "restore"]

type Form = Literal["folder", "dump"]
type Prepare = Callable[[str], Awaitable[None]]
"""Readies the empty database at a URL for a dump: makes what the dump names and does not have."""

FORMAT = 1
_PGDATA = "pgdata"
_DUMP_MAGIC = b"PGDMP"
_CHUNK_BYTES = 1 << 20
# Not in the manifest: the manifest itself, and the write-ahead log, which has checksums of its own.
_UNLISTED = ("backup_manifest", "pg_wal")


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup. `major` is the PostgreSQL's that it was taken from, None where a dump does not tell."""

    path: Path
    form: Form
    major: int | None
    octets: int


async def back_up(data_dir: Path, target: Path, form: Form, *, binaries: Path | None = None) -> Backup:
    """Write a backup of a data directory to a new path. A running `up` goes on; else the server runs for as long.

    Raises NotFound when there is no such data directory, InvalidInput when the target is there already or lies inside,
    ServiceUnavailable when PostgreSQL's program fails: nothing is left then.
    """
    source, target = _checked(data_dir, target, form)
    programs = find_binaries(binaries)
    async with await EmbeddedPostgres.start(source, binaries=binaries) as server:
        try:
            take = _copy_out if form == "folder" else _dump_out
            return await take(server.dsn, target, programs)
        except OSError as error:
            raise ServiceUnavailable(f"{target} can't be written: {error.strerror or error}") from error


async def restore(
    source: Path, data_dir: Path, *, binaries: Path | None = None, prepare: Prepare | None = None
) -> Backup:
    """Make a new data directory of a backup. The folder must be empty or not there; a failure leaves it so.

    The server is started on it once, which proves that it can be. Raises InvalidInput for what is no whole backup,
    DataDirectoryError for a folder that can't be used, or a copy of another PostgreSQL major.
    """
    found = _inspect(source)
    programs = find_binaries(binaries)
    if found.form == "folder" and found.major != programs.major:
        assert found.major is not None
        raise another_major(str(found.path), found.major, programs)
    make_cluster = partial(_copy_in, found.path / _PGDATA) if found.form == "folder" else None
    server = await EmbeddedPostgres.start(data_dir, kind="restore", binaries=binaries, make_cluster=make_cluster)
    async with server:
        if found.form == "dump":
            if prepare is not None:
                await prepare(server.dsn)
            options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-password"]
            await _run([programs.program("pg_restore"), *options, f"--dbname={server.dsn}", str(found.path)])
        server.finish_restore()
    return found


async def _copy_out(dsn: str, target: Path, programs: Binaries) -> Backup:
    made = _make(target)
    options = ["--wal-method=stream", "--checkpoint=fast", "--manifest-checksums=SHA256", "--no-password"]
    try:
        await _run([programs.program("pg_basebackup"), *options, f"--dbname={dsn}", f"--pgdata={target / _PGDATA}"])
        return await asyncio.to_thread(_finish_copy, target)
    except BaseException:
        shutil.rmtree(target if made else target / _PGDATA, ignore_errors=True)
        raise


async def _dump_out(dsn: str, target: Path, programs: Binaries) -> Backup:
    unfinished = _unfinished(target)
    try:
        options = ["--format=custom", "--no-password"]
        await _run([programs.program("pg_dump"), *options, f"--dbname={dsn}", f"--file={unfinished}"])
        return await asyncio.to_thread(_finish_dump, unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(data_dir: Path, target: Path, form: Form) -> tuple[Path, Path]:
    """Return the real data directory and the absolute target; refuse them when they can't be meant."""
    source, target = data_dir.resolve(), target.absolute()
    if not (source / _PGDATA).is_dir():
        raise NotFound(f"{source} has no data to back up: name the data directory with --data-dir", field="data_dir")
    if target.exists() and not (form == "folder" and target.is_dir() and not any(target.iterdir())):
        raise _taken(target)
    if target.resolve().is_relative_to(source):
        raise InvalidInput(f"{target} is inside the data directory: keep the backup elsewhere", field="target")
    return source, target


def _make(target: Path) -> bool:
    """Make a folder closed to others, with an empty `pgdata` that is this backup's alone.

    Returns whether the folder was not there before.
    """
    made = not target.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(mode=0o700, exist_ok=True)
    try:
        (target / _PGDATA).mkdir(mode=0o700)
    except FileExistsError as error:
        raise _taken(target) from error
    return made


def _taken(target: Path) -> InvalidInput:
    return InvalidInput(f"{target} is there already: name a new path for each backup", field="target")


def _unfinished(target: Path) -> Path:
    """Return a new file beside the target, closed to others."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    return Path(name)


def _finish_copy(target: Path) -> Backup:
    pgdata = target / _PGDATA
    major = int((pgdata / "PG_VERSION").read_text())
    octets = sum(path.stat().st_size for path in _tree(pgdata) if not path.is_dir())
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"format": FORMAT, "postgresql": major, "taken_at": taken_at, "octets": octets}
    _write(target / "backup.json", json.dumps(facts).encode() + b"\n")
    return Backup(target, "folder", major, octets)


def _finish_dump(unfinished: Path, target: Path) -> Backup:
    _sync(unfinished)
    try:
        os.link(unfinished, target)  # unlike renaming, fails where another one was first
    except FileExistsError as error:
        raise _taken(target) from error
    except OSError:  # a file system without hard links
        if target.exists():
            raise _taken(target) from None
        unfinished.rename(target)
    _sync(target.parent)
    return Backup(target, "dump", None, target.stat().st_size)


def _inspect(path: Path) -> Backup:
    path = path.absolute()
    try:
        if path.is_dir():
            facts = json.loads((path / "backup.json").read_text())
            if facts["format"] > FORMAT:
                raise InvalidInput(f"{path} was made by a newer omninode-bridge: restore it with that", field="backup")
            return Backup(path, "folder", int(facts["postgresql"]), int(facts["octets"]))
        with path.open("rb") as file:
            if file.read(len(_DUMP_MAGIC)) == _DUMP_MAGIC:
                return Backup(path, "dump", None, path.stat().st_size)
    except FileNotFoundError as error:
        missing = "it has no backup.json" if path.is_dir() else "it is not there"
        raise InvalidInput(
            f"{path} is no whole backup ({missing}): name one that came to its end", field="backup"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is no backup that can be read ({error}): name another", field="backup") from error
    raise InvalidInput(f"{path} is neither a folder nor a dump that `omninode-bridge backup` made", field="backup")


def _copy_in(source: Path, target: Path) -> None:
    """Copy a backup's cluster, each file held against the manifest on the way, and write it through to the disk."""
    try:
        listed = _manifest(source / "backup_manifest")
        target.mkdir(mode=0o700)
        for path in _tree(source):
            relative = str(path.relative_to(source))
            if path.is_dir():
                (target / relative).mkdir(mode=0o700)
            elif relative in listed:
                size, digest = _copy(path, target / relative)
                if (size, digest) != listed.pop(relative):
                    raise _damaged(source, f"{relative} is not what was backed up")
            elif relative.partition("/")[0] in _UNLISTED:
                _copy(path, target / relative)
            else:
                raise _damaged(source, f"{relative} was not backed up")
        if listed:
            raise _damaged(source, f"{min(listed)} is missing")
        (target / "backup_manifest").unlink()
        for path in _tree(target):
            if path.is_dir():
                _sync(path)
        _sync(target)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise ServiceUnavailable(f"{source} can't be copied to {target}: {error}") from error


def _manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of each file, by path. Format: PostgreSQL's manual, "Backup Manifest Format"."""
    text = path.read_bytes()
    whole: dict[str, Any] = json.loads(text)
    if hashlib.sha256(text[: text.rindex(b'"Manifest-Checksum"')]).hexdigest() != whole["Manifest-Checksum"]:
        raise _damaged(path.parent, "its manifest is not what was written")
    return {_listed_path(file): (file["Size"], file["Checksum"]) for file in whole["Files"]}


def _listed_path(file: dict[str, Any]) -> str:
    return file["Path"] if "Path" in file else os.fsdecode(bytes.fromhex(file["Encoded-Path"]))


def _damaged(source: Path, what: str) -> InvalidInput:
    return InvalidInput(f"the backup {source.parent} is damaged: {what}; restore another", field="backup")


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file through to the disk; return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as read, os.fdopen(fd, "wb") as write:
        while chunk := read.read(_CHUNK_BYTES):
            write.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        write.flush()
        os.fsync(write.fileno())
    return size, digest.hexdigest()


def _tree(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, a folder before what is in it."""
    for base, folders, files in os.walk(folder):
        yield from (Path(base, name) for name in [*folders, *files])


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _run(program: list[str]) -> None:
    """Run one of PostgreSQL's programs to its end; ServiceUnavailable with what it said when it fails."""
    name = Path(program[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment()
        )
    except OSError as error:
        raise ServiceUnavailable(
            f"{program[0]} can't be run ({error.strerror or error}): install all of PostgreSQL's programs, or name "
            "a folder that has them in BRIDGE_POSTGRES_BINARIES"
        ) from error
    try:
        _, said = await process.communicate()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        raise ServiceUnavailable(f"{name} failed: {' | '.join(lines[:3])[:500] or f'exit code {process.returncode}'}")
