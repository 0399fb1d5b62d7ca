"""How rows are shown: as a Markdown table, as NDJSON, and between two markers in docs/performance.md.

The document is only written from here: no figure in it was typed by hand. Rows that were not run this time stay, with
their own date and commit, as long as the machine and the versions are the same.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.machine import ROOT, Machine, Occasion
from benchmarks.measure import Debt, Row

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

_COLUMNS = ("name", "what", "against", "ours", "theirs", "ratio (min–max)", "owed", "verdict", "result", "measured")


def json_lines(machine: Machine, occasion: Occasion, rows: Iterable[Row], *, judged: bool) -> Iterable[bytes]:
    """Yield the machine and the occasion, then an object a row."""
    yield msgspec.json.encode({"machine": machine, "occasion": occasion})
    for row in rows:
        medians = {
            "ours_median": statistics.median(row.ours),
            "theirs_median": statistics.median(row.theirs) if row.theirs else None,
            "ratio_median": statistics.median(row.ratios) if row.ratios else None,
            "verdict": row.verdict if judged else None,
        }
        yield msgspec.json.encode(msgspec.to_builtins(row) | medians)


def markdown(machine: Machine, occasion: Occasion, rows: Sequence[Row], *, judged: bool) -> str:
    """Return the machine, the table, and the notes."""
    return _assembled(_machine_line(machine), _table_lines(rows, occasion, judged), _note_lines(rows))


def write_document(
    machine: Machine, occasion: Occasion, rows: Sequence[Row], order: Sequence[str], document: Path = DOCUMENT
) -> None:
    """Put the rows into docs/performance.md; `order` lists the names of all rows there can be."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    present, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{document} lacks the markers {BEGIN} and {END}: restore them")
    line = _machine_line(machine)
    lines, notes = _by_name(_table_lines(rows, occasion, judged=True)), _by_name(_note_lines(rows))
    if line in present:
        run = {row.name for row in rows}
        kept = [old for old in present.splitlines() if (name := _name(old)) and name not in run]
        lines |= _by_name(old for old in kept if old.startswith("|"))
        notes |= _by_name(old for old in kept if old.startswith("*"))
    block = _assembled(line, _ordered(lines, order), _ordered(notes, order))
    document.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}", encoding="utf-8")


def _assembled(machine_line: str, table_lines: Iterable[str], note_lines: Iterable[str]) -> str:
    head = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    notes = list(note_lines)
    return "\n".join([machine_line, "", *head, *table_lines, *(["", *notes] if notes else [])])


def _machine_line(machine: Machine) -> str:
    versions = ", ".join(f"{name} {release}" for name, release in sorted(machine.versions.items()))
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.kernel}, {machine.file_system}; "
        f"{machine.python}, PostgreSQL {machine.postgresql}; {versions}."
    )


def _table_lines(rows: Sequence[Row], occasion: Occasion, judged: bool) -> list[str]:
    return [_table_line(row, occasion, judged) for row in rows]


def _table_line(row: Row, occasion: Occasion, judged: bool) -> str:
    cells = (
        f"`{row.name}`",
        row.what.replace("|", "\\|"),
        row.against.replace("|", "\\|") or "–",
        f"{_figure(statistics.median(row.ours))} {row.unit}",
        f"{_figure(statistics.median(row.theirs))} {row.unit}" if row.theirs else "–",
        _ratio(row.ratios),
        ", ".join(_debt(debt, row.unit) for debt in row.owed) or "–",
        row.verdict if judged else "not judged",
        f"`{row.result}`",
        f"{occasion.date} {occasion.commit}, load {occasion.load:g}",
    )
    return f"| {' | '.join(cells)} |"


def _note_lines(rows: Sequence[Row]) -> list[str]:
    return [f"* `{row.name}`: {row.note}." for row in rows if row.note]


def _name(line: str) -> str | None:
    """Return which row a line of the report is about; None for the others."""
    found = re.match(r"[|*] `([\w-]+)`", line)
    return found[1] if found else None


def _by_name(lines: Iterable[str]) -> dict[str, str]:
    return {name: line for line in lines if (name := _name(line))}


def _ordered(lines: dict[str, str], order: Sequence[str]) -> list[str]:
    return [lines[name] for name in order if name in lines]


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "–"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _debt(debt: Debt, unit: str) -> str:
    return f"{debt.sense} {debt.bound:g} ×" if debt.of == "ratio" else f"{debt.sense} {_figure(debt.bound)} {unit}"


def _figure(value: float) -> str:
    """Three significant digits, as people write them."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
