"""Each benchmark runs in smoke size, so that none rots. Nothing timed is asserted; what was computed is."""

import json
import random
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
import uvloop

from benchmarks import corpus
from benchmarks.__main__ import BENCHMARKS, ROWS, main
from benchmarks.carrying import QUIX_PYTHON
from benchmarks.folding import by_polars, folded_from_bytes, make_events
from benchmarks.growth import require_room
from benchmarks.lookups import LOOKUPS, percentile
from benchmarks.machine import Machine, Occasion
from benchmarks.measure import Debt, ResultsDiffer, Row, Run, result_hash, take_turns
from benchmarks.place import SMOKE, Place
from benchmarks.report import BEGIN, DOCUMENT, END, write_document
from omninode_bridge.domain.stamp import Claimed, StampRequest, Streamed
from omninode_bridge.nodes.contracts import load_reducer

MACHINE = Machine("a processor", 2, 8, "Linux 6", "ext4", "CPython 3.12.1", "18.4", {"blake3": "1.0"})
OCCASION = Occasion("2026-01-01", "abcdef0", 0.5)
# Both sides of these compute the same thing, and a row is only made when their results are equal.
COMPARED = {"hash-large", "hash-small", "stamp-tree", "stamp-again", "fold", "fold-from-bytes", "fsm"}
if find_spec("dbos") is not None:  # of the group `bench` only: without it, the API is measured alone
    COMPARED.add("api")
COMPARED.add("kafka-reduce-two")
if QUIX_PYTHON.exists():
    COMPARED |= {"kafka-reduce", "kafka-reduce-spared"}
COMPARED |= {name for name in ROWS if name.startswith("growth")}
NOT_OWED = {"fold-from-bytes", "kafka-reduce-spared", "kafka-reduce-two", "growth-after-checkpoint"}
NOT_OWED |= {f"growth-{lookup.name}" for lookup in LOOKUPS if not lookup.owed}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("benchmarks"), SMOKE)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_reports_its_rows(name: str, place: Place) -> None:
    rows = uvloop.run(_run(name, place))
    assert [row.name for row in rows] == [row for row in ROWS if row == name or row.startswith(f"{name}-")]
    for row in rows:
        turns = len(row.ours)
        assert turns > 0
        assert min(row.ours) >= 0
        assert len(row.theirs) == len(row.ratios) == (turns if row.name in COMPARED else 0)
        assert len(row.result) == 16
        # These stand beside the rows that something is owed on.
        assert bool(row.owed) == (row.name not in NOT_OWED)


def test_sides_that_differ_are_not_reported() -> None:
    async def ours() -> Run:
        return Run(2.0, "a")

    async def theirs() -> Run:
        return Run(1.0, "b")

    with pytest.raises(ResultsDiffer, match="different results"):
        uvloop.run(take_turns("uneven", 1, ours, theirs))


def test_the_events_are_the_same_at_each_run_and_polars_agrees_on_them_in_any_order() -> None:
    bodies, contract = make_events(500), load_reducer()
    assert bodies == make_events(500)
    state = folded_from_bytes(bodies, contract)
    random.Random(5).shuffle(bodies)
    assert by_polars(b"\n".join(bodies), contract) == state


def test_a_request_to_stamp_is_told_by_its_number_alone() -> None:
    early, late = corpus.requests(0, 1000), corpus.requests(500, 1500)
    assert [_of(request) for request in early[500:]] == [_of(request) for request in late[:500]]
    for serial, request in enumerate(early):
        assert (request.namespace, request.file_path) == corpus.place_of(serial)
        assert corpus.hash_of(serial) == _of(request)[2]
        assert corpus.tenant_of(request.namespace).sees(request.namespace)


def test_what_is_stamped_has_new_versions_and_contents_that_many_have() -> None:
    asked = [_of(request) for request in corpus.requests(0, 20_000)]
    paths, hashes = (
        Counter((namespace, path) for namespace, path, _ in asked),
        Counter(file_hash for *_, file_hash in asked),
    )
    assert 19_000 >= len(paths) > 18_000
    assert len(hashes) < 20_000 < len(hashes) + 400
    assert len({namespace for namespace, _, file_hash in asked if file_hash == corpus.common_hash(0)}) > 5
    # Never the same content at the same path: that would be no new stamp.
    assert len(set(asked)) == len(asked)


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="name another folder with --folder"):
        require_room(tmp_path, 10**12)
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_is_a_time_within_which_so_many_were_answered() -> None:
    times_ms = [float(number) for number in range(1, 101)]
    random.Random(5).shuffle(times_ms)
    assert [percentile(times_ms, part) for part in (0.5, 0.95, 1.0)] == [51.0, 96.0, 100.0]
    assert percentile([7.0], 0.95) == 7.0


def test_the_order_of_lines_does_not_change_a_result() -> None:
    assert result_hash(["b", "a"]) == result_hash(["a", "b"]) != result_hash(["a", "c"])


def test_a_debt_is_judged_by_the_median() -> None:
    row = Row(name="r", what="w", unit="s", ours=[1.0, 5.0, 9.0], ratios=[0.4, 0.5, 3.0], result="")
    assert Debt("ratio", "≥", 0.5).met(row)
    assert not Debt("ratio", "≥", 0.6).met(row)
    assert Debt("ours", "≤", 5.0).met(row)
    assert not Debt("ours", "≤", 4.0).met(row)
    # What was not measured is not met.
    assert not Debt("ratio", "≥", 0.0).met(msgspec.structs.replace(row, ratios=[]))


def test_the_report_is_one_object_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fsm", "--smoke", "--json", "--folder", str(tmp_path)]) == 0
    head, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert {"machine", "occasion"} <= head.keys()
    assert (row["name"], row["verdict"]) == ("fsm", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-benchmark"],
        ["fsm", "--smoke", "--write"],
        ["growth", "--stamps", "1000000", "--write"],
        ["growth", "--stamps", "0"],
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_the_document_keeps_rows_that_were_not_run_again(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n", encoding="utf-8")
    write_document(MACHINE, OCCASION, [_row("fsm", 1.0), _row("fold", 2.0, note="first")], ROWS, document)
    later = Occasion("2026-02-02", "1234567", 0.1)
    write_document(MACHINE, later, [_row("fsm", 3.0)], ROWS, document)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n")
    fold, fsm = [line for line in text.splitlines() if line.startswith("| `")]
    assert "2 moves/s" in fold and "2026-01-01 abcdef0" in fold
    assert "3 moves/s" in fsm and "2026-02-02 1234567" in fsm
    assert "* `fold`: first." in text
    # Figures of another machine don't stand beside ours.
    another = msgspec.structs.replace(MACHINE, cpu="another")
    write_document(another, later, [_row("fsm", 4.0)], ROWS, document)
    assert "`fold`" not in document.read_text(encoding="utf-8")


def test_the_shipped_document_has_the_markers_and_only_known_rows() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    block = text.partition(BEGIN)[2].partition(END)[0]
    assert END in text
    assert {line.split("`")[1] for line in block.splitlines() if line.startswith("| `")} <= set(ROWS)


def _of(request: StampRequest) -> tuple[str, str, str]:
    content = request.content
    assert isinstance(content, Claimed | Streamed)
    file_hash = content.file_hash if isinstance(content, Claimed) else content.digest.file_hash
    return request.namespace, request.file_path, file_hash


async def _run(name: str, place: Place) -> list[Row]:
    return await BENCHMARKS[name](place)


def _row(name: str, figure: float, note: str = "") -> Row:
    return Row(name=name, what="w", unit="moves/s", ours=[figure], result="0" * 16, note=note)
