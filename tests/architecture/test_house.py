"""The project's files keep the house rules: no registry address, pins by hash, modules that introduce themselves."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PEERS = sorted((ROOT / "requirements" / "peers").glob("*.txt"))
"""Locks of environments of their own."""
LINES_MAX = 400

# In pieces, so that this file holds no address itself.
REGISTRY_HOSTS = [
    b"py" + b"pi.org",
    b"files.python" + b"hosted.org",
    b"registry.npm" + b"js.org",
    b"registry.yarn" + b"pkg.com",
    b"repo1.maven" + b".org",
    b"repo.maven.apache" + b".org",
    b"crates" + b".io/api",
    b"index.crates" + b".io",
    b"static.crates" + b".io",
    b"proxy.golang" + b".org",
    b"deb.debian" + b".org",
]
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "managers", "misc"}


def project_files() -> list[Path]:
    """Every file git tracks or would track; ignored ones, such as .venv, are nobody's business."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_names_a_package_registry() -> None:
    files = project_files()
    assert ROOT / "pyproject.toml" in files
    named = [
        f"{path.relative_to(ROOT)}: {host.decode()}"
        for path in files
        for content in [path.read_bytes()]
        for host in REGISTRY_HOSTS
        if host in content
    ]
    assert named == []


@pytest.mark.parametrize("path", [*LOCKS, *PEERS], ids=lambda path: path.stem)
def test_pins_are_exact_hashed_and_without_addresses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.replace("\\\n", "").splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert pins
    assert "://" not in text
    assert "index-url" not in text
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_one_environment_can_hold_every_lock() -> None:
    pinned: dict[str, set[str]] = {}
    for path in LOCKS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "==" in line and not line.lstrip().startswith("#"):
                requirement, _, marker = line.rstrip(" \\").partition(" ; ")
                name, _, release = requirement.partition("==")
                pinned.setdefault(f"{name} {marker}", set()).add(release)
    assert {name: releases for name, releases in pinned.items() if len(releases) > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"
    assert len(text.splitlines()) <= LINES_MAX


def test_nothing_is_named_for_being_left_over() -> None:
    names = {path.relative_to(ROOT): {path.stem, *path.relative_to(ROOT).parts} for path in [*SOURCES, *TESTS]}
    assert [str(path) for path, parts in names.items() if parts & FORBIDDEN_NAMES] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_no_test_is_skipped_or_mocked(path: Path) -> None:
    offences = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        words = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute) else ""
        if words.startswith(("pytest.skip", "pytest.mark.skip", "pytest.mark.xfail", "pytest.importorskip")):
            offences.append(f"line {node.lineno}: {words}")
        if words.startswith(("import unittest.mock", "from unittest import mock", "from unittest.mock")):
            offences.append(f"line {node.lineno}: {words}")
    assert offences == []
