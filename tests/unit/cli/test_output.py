"""What is printed is safe on a terminal, parses as NDJSON, and reads well."""

import json

import pytest

from omninode_bridge.app.tree import TreeResult
from omninode_bridge.cli.exporting import b3sum_line
from omninode_bridge.cli.output import count, ndjson, printable, size
from omninode_bridge.domain.errors import ContentUnavailable

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain ünï 文", "plain ünï 文"),
        ("line\nbreak\r\t", r"line\nbreak\r\t"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_nothing_unprintable_is_printed(text: str, printed: str) -> None:
    assert printable(text) == printed


@pytest.mark.parametrize(
    ("octets", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_600, "1 MB"), (5_400_000_000, "5.4 GB")],
)
def test_sizes_are_decimal_and_short(octets: int, shown: str) -> None:
    assert size(octets) == shown


def test_counts_have_their_noun_in_number() -> None:
    assert (count(0, "file"), count(1, "file"), count(12_345, "file")) == ("0 files", "1 file", "12,345 files")


def test_an_error_and_a_name_that_is_not_utf8_are_still_json() -> None:
    error = ContentUnavailable("'\udcff' can't be read", field="file_path")
    lines = ndjson(
        [TreeResult(file_path="\udcff", status="failed", error=error), TreeResult(file_path="a", status="new")]
    )
    failed, new = map(json.loads, lines.splitlines())
    assert failed["file_path"] == r"\udcff"
    assert failed["error"]["code"] == "content_unavailable"
    assert failed["error"]["field"] == "file_path"
    assert (new["status"], new["error"]) == ("new", None)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a b", f"{DIGEST}  a b\n"),
        ("a\nb", f"\\{DIGEST}  a\\nb\n"),
        ("a\\nb", f"\\{DIGEST}  a\\\\nb\n"),
        # To b3sum a lone dash would be standard input.
        ("-", f"{DIGEST}  ./-\n"),
        ("a/-", f"{DIGEST}  a/-\n"),
    ],
)
def test_a_line_of_b3sums_is_escaped_as_b3sum_does(path: str, line: str) -> None:
    assert b3sum_line(DIGEST, path) == line
