"""The SQL of this adapter, as text in files beside this one.

A file holds statements, each under a line `-- name: the_name`; comments below that line belong to the
statement and say why it is as it is. `load("ledger")["the_name"]` is the statement.
"""

from __future__ import annotations

from importlib.resources import files


def load(module: str) -> dict[str, str]:
    """Return the statements of `module.sql` by name."""
    text = files(__package__).joinpath(f"{module}.sql").read_text(encoding="utf-8")
    statements: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        statements[name.strip()] = body.strip()
    return statements
