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


def write_document(machine: Machine, occasion: Occasion, rows: Sequence[Row], order: Sequence[str]) -> None:
    """Put the rows into docs/performance.md; `order` lists the names of all rows there can be."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    present, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{DOCUMENT} lacks the markers {BEGIN} and {END}: restore them")
    line = _machine_line(machine)
    lines = dict(zip((row.name for row in rows), _table_lines(rows, occasion, judged=True), strict=True))
    notes = dict(_named_notes(rows))
    if line in present:
        lines = {name: text for name, text in _present(present, r"\| `([\w-]+)` \|.*") if name not in lines} | lines
        kept = {name: text for name, text in _present(present, r"\* `([\w-]+)`: .*") if name not in dict(_names(rows))}
        notes = kept | notes
    place = {name: number for number, name in enumerate(order)}
    ordered = sorted(lines, key=lambda name: place.get(name, len(place)))
    block = _assembled(line, [lines[name] for name in ordered], [notes[name] for name in ordered if name in notes])
    DOCUMENT.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}", encoding="utf-8")


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
    return [text for _, text in _named_notes(rows)]


def _named_notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.name, f"* `{row.name}`: {row.note}.") for row in rows if row.note]


def _names(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.name, row.name) for row in rows]


def _present(text: str, pattern: str) -> list[tuple[str, str]]:
    return [(found[1], found[0]) for found in re.finditer(f"^{pattern}$", text, re.MULTILINE)]


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
