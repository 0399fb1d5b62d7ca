"""What a run was measured on: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from omninode_bridge.adapters.embedded.binaries import find_binaries

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("omninode-bridge", "omnibase-core", "asyncpg", "blake3", "dbos", "msgspec", "polars", "uvloop")


class Machine(msgspec.Struct, frozen=True):
    """The machine and the versions on it: runs with equal ones may stand in one table."""

    cpu: str
    cores: int
    memory_gib: int
    kernel: str
    file_system: str
    python: str
    postgresql: str
    versions: dict[str, str]


class Occasion(msgspec.Struct, frozen=True):
    """When a run was made, of which commit, and how busy the machine was (load average of the last minute)."""

    date: str
    commit: str
    load: float


def machine(folder: Path) -> Machine:
    """Describe the machine; `folder` is where the data lies."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=_file_system(folder),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        postgresql=_said([find_binaries().program("postgres"), "--version"]).removeprefix("postgres (PostgreSQL) "),
        versions={"b3sum": _said(["b3sum", "--version"]).removeprefix("b3sum "), **_installed()},
    )


def occasion() -> Occasion:
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]) or "unknown"
    changed = _said(["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "benchmarks"])
    now = datetime.now(UTC)
    return Occasion(f"{now:%Y-%m-%d}", commit + ("+" if changed else ""), round(os.getloadavg()[0], 2))


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.machine()


def _file_system(folder: Path) -> str:
    return _said(["stat", "--file-system", "--format=%T", str(folder)]) or "unknown"


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _said(command: list[str]) -> str:
    """Return what a command prints, empty when it can't be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
