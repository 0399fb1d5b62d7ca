"""The command as a user runs it: a process with arguments, a data directory, two streams and an exit code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from omninode_bridge.domain.names import DEFAULT_NAMESPACE, METADATA_BYTES_MAX

COMMAND = Path(sys.executable).parent / "omninode-bridge"
LIBRARY = Path(sysconfig.get_path("stdlib"))
# Far above what a command takes on a busy machine: a hang fails here, by name.
TIMEOUT_S = 90
DOWN = "postgresql://nobody:geheim@127.0.0.1:1/bridge"
CONTRACTS = Path(__file__).resolve().parents[2] / "src" / "omninode_bridge" / "nodes"


@dataclass
class Desk:
    """A folder to work in, with a data directory of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=clean | {"BRIDGE_DATA_DIR": str(self.data_dir)} | self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str | Path, code: int = 0, **environment: str) -> "Said":
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(timeout=TIMEOUT_S)
        said = Said(output.decode(), errors.decode())
        assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{said.output}\n{said.errors}"
        assert "Traceback" not in said.errors
        return said

    def json(self, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
        return self.run(*arguments, "--json", code=code).json()


@dataclass
class Said:
    """What a command printed."""

    output: str
    errors: str

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def sentence(self) -> str:
        """The one sentence on standard error."""
        lines = self.errors.splitlines()
        assert len(lines) == 1, self.errors
        assert lines[0].startswith("omninode-bridge: ")
        return lines[0].removeprefix("omninode-bridge: ")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk on which `docs` is stamped under legal.docs, names that are hard to print included."""
    desk = Desk(tmp_path_factory.mktemp("stamped"))
    write(
        desk.folder,
        {
            "docs/a.txt": "alpha",
            "docs/sub/b.md": "# beta",
            "docs/line\nbreak": "1",
            "docs/back\\slash": "2",
            "docs/both\\\n\\n": "3",
            "docs/-": "4",
            "docs/ spaces ": "5",
            "docs/ünï": "6",
            "docs/empty": "",
            "-": "a dash",
        },
    )
    said = desk.run("stamp", "-n", "legal.docs", "--meta", "team=legal", "--meta", "note=a=b", "docs", "./-")
    assert said.errors == ""
    assert re.search(r"^10 files, 23 B in [\d.]+ s \([\d,]+ files/s, .+/s\)$", said.output, re.MULTILINE)
    assert "legal.docs: 10 new, 0 unchanged, 0 failed" in said.output
    return desk


def test_a_stamp_is_shown_by_path_by_id_and_by_digest(stamped: Desk) -> None:
    [by_path] = stamped.json("show", "./docs//a.txt", "-n", "legal.docs")
    assert by_path["file_path"] == "docs/a.txt"
    assert by_path["metadata"] == {"team": "legal", "note": "a=b"}
    assert (by_path["version"], by_path["file_size"], by_path["content_type"]) == (1, 5, "text/plain")
    assert stamped.json("show", by_path["stamp_id"], "-n", "legal.docs") == [by_path]
    # A digest and an id are the same everywhere, a path is not.
    assert stamped.json("show", by_path["stamp_id"]) == stamped.json("show", by_path["file_hash"]) == [by_path]
    assert "-n" in stamped.run("show", "docs/a.txt", code=1).sentence
    stamped.run("show", by_path["stamp_id"], "-n", "legal.others", code=1)
    assert by_path["stamp_id"] in stamped.run("show", by_path["file_hash"].upper(), "-n", "legal.docs").output


def test_what_was_never_stamped_is_not_found(stamped: Desk) -> None:
    assert "docs/none" in stamped.run("show", "docs/none", "-n", "legal.docs", code=1).sentence
    assert "docs/none" in stamped.run("history", "docs/none", "-n", "legal.docs", code=1).sentence


def test_state_has_what_was_stamped_just_before(stamped: Desk) -> None:
    [row] = [row for row in stamped.json("state") if row["namespace"] == "legal.docs"]
    assert (row["aggregation_type"], row["group_key"]) == ("namespace", "legal.docs")
    assert (row["total_stamps"], row["failed"], row["total_size_bytes"]) == (10, 0, 23)
    kinds = {
        row["group_key"]: row["total_stamps"] for row in stamped.json("state", "legal.docs", "--by", "content_type")
    }
    assert kinds == {"text/plain": 1, "text/markdown": 1, "application/octet-stream": 8}
    assert len(stamped.json("state", "legal.docs", "--by", "workflow")) == 10
    table = stamped.run("state", "legal.docs").output.splitlines()
    assert table[0].split() == ["NAMESPACE", "GROUP", "STAMPS", "FAILED", "SIZE", "MEAN", "TIME", "FIRST", "LAST"]
    assert table[1].split()[:3] == ["legal.docs", "10", "0"]


def test_a_namespace_never_used_has_zeros_and_a_grouping_never_made_is_not_found(stamped: Desk) -> None:
    [row] = stamped.json("state", "never.used")
    assert (row["namespace"], row["total_stamps"], row["first_at"]) == ("never.used", 0, None)
    assert "'colour'" in stamped.run("state", "--by", "colour", code=1).sentence


def test_a_workflow_tells_why_it_is_where_it_is(stamped: Desk) -> None:
    [stamp] = stamped.json("show", "docs/a.txt", "-n", "legal.docs")
    [told] = stamped.json("workflow", stamp["workflow_id"])
    assert (told["state"], told["error"], told["stamp"]) == ("completed", None, stamp)
    assert [visit["state"] for visit in told["history"]] == ["pending", "processing", "completed"]
    assert stamp["stamp_id"] in told["why"]
    assert stamp["stamp_id"] in stamped.run("workflow", stamp["workflow_id"]).output


def test_b3sum_accepts_the_export_whatever_the_names(stamped: Desk) -> None:
    sums = stamped.run("export", "-n", "legal.docs", "--format", "b3sums").output
    checked = subprocess.run(
        ["b3sum", "--check"], cwd=stamped.folder, input=sums.encode(), capture_output=True, check=False
    )
    assert checked.returncode == 0, checked
    assert checked.stdout.count(b": OK\n") == 10
    names = ["docs/back\\slash", "docs/line\nbreak", "docs/both\\\n\\n"]
    printed = subprocess.run(["b3sum", *names], cwd=stamped.folder, capture_output=True, text=True, check=True).stdout
    assert set(printed.splitlines()) < set(sums.splitlines())


def test_an_export_to_a_file_is_whole_or_not_there(stamped: Desk) -> None:
    stamped.run("export", "-n", "legal.docs", "--format", "ndjson", "--output", "out.ndjson")
    stamps = [json.loads(line) for line in (stamped.folder / "out.ndjson").read_text().splitlines()]
    assert {stamp["file_path"] for stamp in stamps} >= {"docs/a.txt", "docs/line\nbreak", "-"}
    assert len(stamps) == 10
    stamped.run("export", "-n", "none", "--format", "ndjson", "-o", "none.ndjson", code=1)
    assert [path.name for path in stamped.folder.iterdir() if "none" in path.name] == []
    assert "no-such-folder" in stamped.run("export", "--format", "b3sums", "-o", "no-such-folder/x", code=2).sentence


def test_full_standard_output_is_told_in_one_sentence(stamped: Desk) -> None:
    for arguments in (["state"], ["--help"]):
        with Path("/dev/full").open("wb") as full:
            run = subprocess.run(
                [COMMAND, *arguments],
                env=os.environ | {"BRIDGE_DATA_DIR": str(stamped.data_dir)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert run.returncode == 3
        assert "No space left on device" in Said("", run.stderr).sentence


def test_audit_finds_the_laws_kept_and_rebuild_changes_nothing(stamped: Desk) -> None:
    before = stamped.json("state", "legal.docs")
    assert stamped.json("rebuild") == [{"rebuilt": "all"}]
    assert stamped.json("state", "legal.docs") == before
    findings = stamped.json("audit")
    assert [finding["law"] for finding in findings] == [1, 2, 3, 5, 6]
    assert all(finding["holds"] for finding in findings)
    assert findings[0]["checked"] >= 10


def test_doctor_finds_all_well(stamped: Desk) -> None:
    checks = {check["name"]: check for check in stamped.json("doctor")}
    assert checks.keys() >= {"Python", "contracts", "BLAKE3", "data directory", "schema", "durability", "sessions"}
    assert all(check["ok"] for check in checks.values())


def test_drift_is_listed_and_answers_no(desk: Desk) -> None:
    write(desk.folder, {"tree/same": "1", "tree/other": "2", "tree/gone": "3"})
    desk.run("stamp", "tree")
    assert f"{DEFAULT_NAMESPACE}: 3 ok, 0 changed, 0 missing, 0 unstamped" in desk.run("verify", "tree").output
    write(desk.folder, {"tree/other": "two", "tree/new": "4"})
    (desk.folder / "tree/gone").unlink()
    said = desk.run("verify", "tree", code=1)
    output, sentences = said.output, said.errors
    assert sentences == ""
    assert re.search(r"^changed +tree/other", output, re.MULTILINE)
    assert re.search(r"^missing +tree/gone", output, re.MULTILINE)
    assert re.search(r"^unstamped +tree/new", output, re.MULTILINE)
    *results, last = desk.json("verify", "tree", code=1)
    statuses = {result["file_path"]: result["status"] for result in results}
    assert statuses == {"tree/same": "ok", "tree/other": "changed", "tree/gone": "missing", "tree/new": "unstamped"}
    assert [last["summary"][kind] for kind in ("ok", "changed", "missing", "unstamped", "failed")] == [1, 1, 1, 1, 0]
    assert "1 unstamped" in desk.run("verify", "tree/new", "--ignore-unstamped").output
    *_, last = desk.json("stamp", "tree")
    assert [last["summary"][kind] for kind in ("new", "unchanged", "failed")] == [2, 1, 0]
    newest, oldest = desk.json("history", "tree/other")
    assert (newest["version"], oldest["version"]) == (2, 1)


def test_an_unchanged_tree_is_not_read_again(desk: Desk) -> None:
    tree = ["stamp", str(LIBRARY / "json"), "--exclude", "__pycache__"]
    *first, _ = desk.json(*tree)
    assert {result["status"] for result in first} == {"new"}
    *second, last = desk.json(*tree)
    # A file that is skipped by its facts has no stamp in its answer, one that was read and hashed has.
    assert [(result["status"], result["stamp"]) for result in second] == [("unchanged", None)] * len(first)
    assert {result["stamp_id"] for result in second} == {result["stamp_id"] for result in first}
    assert last["summary"]["unchanged"] == len(first)
    *third, _ = desk.json(*tree, "--rehash")
    assert all(result["stamp"]["deduplicated"] for result in third)
    *fourth, _ = desk.json(*tree, "--meta", "project=x")
    assert {(result["status"], result["stamp"]["version"]) for result in fourth} == {("new", 2)}


def test_what_cannot_be_stamped_is_named_and_stops_nothing(desk: Desk) -> None:
    write(desk.folder, {"tree/good": "1", "tree/\x1b[31mred": "2"})
    os.mkfifo(desk.folder / "tree/fifo")
    (desk.folder / "tree/loop").symlink_to("loop")
    Path(os.fsdecode(os.fsencode(desk.folder) + b"/tree/\xff\xfe")).write_text("3")
    said = desk.run("stamp", "tree", "missing", code=1)
    assert f"{DEFAULT_NAMESPACE}: 2 new, 0 unchanged, 4 failed" in said.output
    told = said.errors.splitlines()
    assert len(told) == 4
    assert all(line.startswith("omninode-bridge: ") for line in told)
    for name in ("fifo", "loop", "missing", r"\udcff"):
        assert [line for line in told if name in line], name
    *results, last = desk.json("stamp", "tree", "missing", code=1)
    assert sorted(result["status"] for result in results) == ["failed"] * 4 + ["unchanged"] * 2
    assert all(result["error"]["code"] and result["error"]["message"] for result in results if result["error"])
    assert last["summary"]["failed"] == 4
    # Nothing in a name reaches the terminal as a control character.
    (desk.folder / "tree/\x1b[31mred").write_text("two")
    output = desk.run("verify", "tree", code=1).output
    assert r"tree/\x1b[31mred" in output
    assert "\x1b" not in output


def test_an_interrupted_run_is_finished_by_running_it_again(desk: Desk) -> None:
    tree = ["stamp", str(LIBRARY / "encodings"), str(LIBRARY / "asyncio"), str(LIBRARY / "unittest")]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        # Nobody reads on, so it can't end before the signal: what it prints is more than a pipe holds.
        process = desk.start(*tree, "--json", "--rehash", BRIDGE_TREE_BATCH_FILES="10")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, errors
        assert "run it again" in Said("", errors.decode()).sentence
    *_, last = desk.json(*tree)
    assert last["summary"]["failed"] == 0
    assert "law 1, exactly once: holds" in desk.run("audit").output
    [row] = desk.json("state")
    assert row["total_stamps"] == last["summary"]["files"]


def test_a_closed_pipe_ends_a_command_quietly(desk: Desk) -> None:
    # What is exported is more than a pipe and its reader's buffer hold.
    desk.run("stamp", str(LIBRARY / "encodings"), str(LIBRARY / "unittest"), str(LIBRARY / "idlelib"), "-n", "a")
    process = desk.start("export", "-n", "a", "--format", "ndjson")
    assert process.stdout is not None and process.stderr is not None
    with process.stderr:
        with process.stdout:
            json.loads(process.stdout.readline())
        assert process.wait(timeout=TIMEOUT_S) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["stamp", ".", "-n", "Not Allowed"], "'Not Allowed'"),
        (["stamp", ".", "-n", ""], "''"),
        (["stamp", ".", "-n", "a" * 256], "255"),
        (["stamp", ".", "--meta", "novalue"], "'novalue'"),
        (["stamp", ".", "--meta", "a=1", "--meta", "a=2"], "'a'"),
        (["stamp", ".", "--meta", f"a={'x' * METADATA_BYTES_MAX}"], str(METADATA_BYTES_MAX)),
        (["stamp"], "PATH"),
        (["stamp", ".", "--colour"], "--colour"),
        (["stmap", "."], "'stmap'"),
        (["export", "--format", "xml"], "'xml'"),
        (["state", "Not Allowed"], "'Not Allowed'"),
        (["workflow", "not-an-id"], "'not-an-id'"),
        (["verify", ".", "--data-dir", "a", "--database-url", "b"], "--data-dir"),
        (["up", "--port", "70000"], "70000"),
    ],
)  # fmt: skip
def test_bad_usage_is_told_in_one_sentence_and_touches_nothing(desk: Desk, arguments: list[str], named: str) -> None:
    said = desk.run(*arguments, code=2)
    assert named in said.sentence
    assert said.output == ""
    assert list(desk.folder.iterdir()) == []


def test_a_bad_setting_is_named_as_the_variable_it_came_from(desk: Desk) -> None:
    assert "BRIDGE_GROUP_MAX" in desk.run("state", code=2, BRIDGE_GROUP_MAX="many").sentence


def test_a_foreign_and_a_newer_data_directory_are_left_as_they_are(desk: Desk) -> None:
    write(desk.folder, {"foreign/letter.txt": "dear", "newer/bridge.json": '{"format": 99, "postgresql": 18}'})
    for folder, told in (("foreign", "letter.txt"), ("newer", "99")):
        before = sorted(os.listdir(desk.folder / folder))
        sentence = desk.run("state", "--data-dir", folder, code=3).sentence
        assert folder in sentence and told in sentence
        assert "[data_directory]" in desk.run("stamp", ".", "--json", "--data-dir", folder, code=3).sentence
        assert sorted(os.listdir(desk.folder / folder)) == before


def test_a_database_that_is_down_is_unavailable_and_its_password_stays_secret(desk: Desk) -> None:
    for command in (["stamp", "."], ["migrate"]):
        said = desk.run(*command, "--database-url", DOWN, code=3)
        assert "not reachable" in said.sentence
        assert "geheim" not in said.sentence
    assert "not reachable" in desk.run("state", code=3, BRIDGE_DATABASE_URL=DOWN).sentence
    said = desk.run("doctor", "--database-url", DOWN, code=1)
    assert "NOT  PostgreSQL" in said.output
    assert "geheim" not in said.output
    assert list(desk.folder.iterdir()) == []


def test_a_broken_contract_stops_the_program_and_names_the_field(desk: Desk) -> None:
    text = (CONTRACTS / "reducer/v1_0_0/contract.yaml").read_text()
    write(desk.folder, {"broken/contract.yaml": f"colour: blue\n{text}"})
    broken = str(desk.folder / "broken/contract.yaml")
    said = desk.run("stamp", ".", code=2, BRIDGE_REDUCER_CONTRACT=broken)
    assert "colour" in said.sentence
    assert broken in said.sentence
    assert not desk.data_dir.exists()
    [report] = desk.json("contract", "validate", "broken", code=1)
    assert (report["valid"], [problem["field"] for problem in report["problems"]]) == (False, ["colour"])
    assert "colour" in desk.run("contract", "validate", "broken/contract.yaml", code=1).output
    assert "nowhere" in desk.run("contract", "validate", "nowhere", code=1).output
    assert [report["valid"] for report in desk.json("contract", "validate", CONTRACTS)] == [True, True]


def test_a_folder_that_is_named_comes_before_a_database_in_the_environment(desk: Desk) -> None:
    assert desk.run("state", "--data-dir", "data", "--json", BRIDGE_DATABASE_URL=DOWN).output == ""


async def test_a_server_of_ones_own_is_migrated_before_it_is_used(desk: Desk, server: Any) -> None:
    url = await server.create(template="template0")
    try:
        desk.environment["BRIDGE_DATABASE_URL"] = url
        assert "omninode-bridge migrate" in desk.run("state", code=3).sentence
        [schema] = [check for check in desk.json("doctor", code=1) if not check["ok"]]
        assert (schema["name"], schema["remedy"]) == ("schema", "run `omninode-bridge migrate`")
        dry = desk.json("migrate", "--dry-run")
        assert dry and not any(line["applied"] for line in dry)
        assert [line["migration"] for line in desk.json("migrate")] == [line["migration"] for line in dry]
        write(desk.folder, {"a.txt": "alpha"})
        desk.run("stamp", "a.txt", "-n", "own")
        assert [row["total_stamps"] for row in desk.json("state")] == [1]
        desk.run("doctor")
        assert not desk.data_dir.exists()
    finally:
        await server.drop(url)


def test_commands_find_the_server_of_a_running_up(desk: Desk) -> None:
    write(desk.folder, {"a.txt": "alpha"})
    serving = desk.start("up", "--port", "0")
    assert serving.stdout is not None
    try:
        assert re.search(rb"serves on http://127\.0\.0\.1:\d+ ", serving.stdout.readline())
        desk.run("stamp", "a.txt")
        assert [row["total_stamps"] for row in desk.json("state")] == [1]
        assert f"another `up` already (pid {serving.pid})" in desk.run("up", "--port", "0", code=3).sentence
    finally:
        serving.send_signal(signal.SIGTERM)
        output, errors = serving.communicate(timeout=TIMEOUT_S)
    assert (serving.returncode, errors) == (0, b""), output
    assert [row["total_stamps"] for row in desk.json("state")] == [1]


def test_help_and_version_are_there(desk: Desk) -> None:
    assert re.fullmatch(r"omninode-bridge \d+\.\d+\.\d+\n", desk.run("--version").output)
    assert DEFAULT_NAMESPACE in desk.run("stamp", "--help").output
    listing = desk.run("--help").output.partition("Commands:")[2].partition("\n\n")[0]
    commands = re.findall(r"^  ([\w-]+) ", listing, re.MULTILINE)
    assert " ".join(commands) == (
        "up serve stamp verify show history state workflow export audit rebuild migrate doctor erase prune backup "
        "restore bench contract token dead-letters"
    )
    module = subprocess.run(
        [sys.executable, "-m", "omninode_bridge", "--version"], capture_output=True, text=True, check=True
    )
    assert module.stdout == desk.run("--version").output


def test_without_a_command_help_goes_to_standard_error(desk: Desk) -> None:
    process = desk.start()
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (2, b"")
    assert b"Usage: omninode-bridge" in errors


def test_a_benchmark_that_is_none_is_told_with_those_there_are(desk: Desk) -> None:
    errors = desk.run("bench", "no-such-benchmark", code=2).errors
    assert "no-such-benchmark" in errors and "stamp-tree" in errors


def test_benchmarks_outside_a_checkout_say_where_they_are(tmp_path: Path) -> None:
    package = tmp_path / "omninode_bridge"
    shutil.copytree(CONTRACTS.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    run = subprocess.run(
        [sys.executable, "-m", "omninode_bridge", "bench"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "come with the source" in Said("", run.stderr).sentence
