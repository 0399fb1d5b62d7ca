"""A full disk, provoked for real: `python small_disk.py KIND TREE FOLDER`, run by test_full_disk.

In a user and mount namespace of its own, so that any user may do this, and nothing of it is left. A file system of
a few MiB holds the whole data directory (KIND `everything`) or only the tables (KIND `tables`); stamping fills it.
Then it is enlarged, and the same command finishes the work.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys
from pathlib import Path

from omninode_bridge import Bridge
from tests.chaos.running import Tree, finish, look, running, stamping

MS_REMOUNT = 32  # <sys/mount.h>
EVERYTHING_MIB = 90
TABLES_MIB = 12
"""Room for the tables beyond what a new cluster takes."""


def enter_namespace() -> None:
    user, group = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
    for name, text in ("setgroups", "deny"), ("gid_map", f"0 {group} 1"), ("uid_map", f"0 {user} 1"):
        Path(f"/proc/self/{name}").write_text(text)


def mount(folder: Path, mebibytes: int, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, b"size=%dm,mode=700" % mebibytes) != 0:
        raise OSError(ctypes.get_errno(), f"mounting {folder}")


async def small_tables(data: Path) -> Path:
    """Make a cluster, and move its tables to a disk of their own that has little room left."""
    async with Bridge.embedded(data):
        pass
    tables = data / "pgdata" / "base"
    used = sum(path.stat().st_blocks * 512 for path in tables.rglob("*")) >> 20
    shutil.copytree(tables, data.parent / "base", symlinks=True)
    mount(tables, used + TABLES_MIB)
    shutil.copytree(data.parent / "base", tables, dirs_exist_ok=True)
    return tables


async def fill_and_enlarge(kind: str, tree: Tree, folder: Path) -> None:
    disk, data = folder, folder / "data"
    if kind == "tables":
        disk = await small_tables(data)
    else:
        mount(disk, EVERYTHING_MIB)
    where = ("--data-dir", data)
    async with running(*stamping(*where), cwd=tree.parent) as full:
        assert await full.end() == 3, full.complaints
    assert 0 < len(full.stamps) < len(tree.files)
    assert len(full.complaints) == 1, full.complaints
    assert "No space left on device" in full.complaints[0], full.complaints
    mount(disk, 1024, MS_REMOUNT)
    last = await finish(tree, *where)
    async with Bridge.embedded(data) as bridge:
        await look(bridge, tree, [full, last])


if __name__ == "__main__":
    # Before anything else of this process: only a process with one thread may enter.
    enter_namespace()
    asyncio.run(fill_and_enlarge(sys.argv[1], Tree.standing_in(Path(sys.argv[2])), Path(sys.argv[3])))
