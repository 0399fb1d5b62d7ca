"""`stamp --server`: files of this machine, stamped by a bridge on another, which may go away meanwhile."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from tests.integration.test_cli import Desk

NAMESPACE = "acme.docs"
LARGE = bytes(range(256)) * 8192
"""2 MiB: a file that travels alone."""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@contextmanager
def serving(desk: Desk, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `up` on the desk's data directory; yields its URL and process."""
    process = desk.start("up", "--port", str(port))
    assert process.stdout is not None
    try:
        said = process.stdout.readline().decode()
        assert "serves on " in said, said
        yield said.split("serves on ")[1].split()[0], process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def grow(desk: Desk, count: int = 1200) -> dict[str, bytes]:
    files = {f"tree/{n // 100}/{n}.txt": b"%d" % n * (n % 50) for n in range(count)}
    files["tree/large.bin"] = LARGE
    files["tree/empty"] = b""
    for name, content in files.items():
        path = desk.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def stamps_of(desk: Desk) -> dict[str, tuple[int, str, int]]:
    """Version, digest and size of every path, as the database has them."""
    exported = desk.run("export", "-n", NAMESPACE, "--format", "ndjson").json()
    return {one["file_path"]: (one["version"], one["file_hash"], one["file_size"]) for one in exported}


def expected(files: dict[str, bytes]) -> dict[str, tuple[int, str, int]]:
    return {path: (1, blake3(content).hexdigest(), len(content)) for path, content in files.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_tree_is_stamped_at_a_server_and_the_second_time_unchanged(desk: Desk) -> None:
    files = grow(desk)
    with serving(desk) as (url, _):
        first = desk.run("stamp", "tree", "-n", NAMESPACE, "--server", url, "--meta", "team=legal", "--json").json()
        again = desk.run("stamp", "tree", "-n", NAMESPACE, "--meta", "team=legal", "--json", BRIDGE_SERVER=url).json()
        assert [first[-1]["summary"][kind] for kind in ("new", "unchanged", "failed")] == [len(files), 0, 0]
        assert [again[-1]["summary"][kind] for kind in ("new", "unchanged", "failed")] == [0, len(files), 0]
        assert {line["file_path"] for line in first[:-1]} == set(files)
        assert stamps_of(desk) == expected(files)
        (state,) = desk.json("state", NAMESPACE)
        assert state["total_stamps"] == len(files)
    assert all(finding["holds"] for finding in desk.json("audit"))


def test_a_file_that_cannot_be_read_or_is_refused_stops_no_other(desk: Desk) -> None:
    files = grow(desk, 5)
    os.symlink("nowhere", desk.folder / "tree" / "dangling")
    with serving(desk) as (url, _):
        said = desk.run("stamp", "tree", "-n", NAMESPACE, "--server", url, "--json", code=1)
        assert said.json()[-1]["summary"]["failed"] == 1
        assert stamps_of(desk) == expected(files)


def test_a_server_killed_on_the_way_is_waited_for_and_nothing_is_stamped_twice(desk: Desk) -> None:
    files = grow(desk, 6000)
    port = free_port()
    with serving(desk, port) as (url, server):
        client = desk.start("stamp", "tree", "-n", NAMESPACE, "--server", url, "--json")
        assert client.stdout is not None
        told = [client.stdout.readline()]  # a batch is acknowledged: now
        server.send_signal(signal.SIGKILL)
        server.wait(timeout=60)
        with serving(desk, port), client:
            assert client.stdout is not None
            lines = [json.loads(line) for line in [*told, *client.stdout]]
            assert client.wait(timeout=60) == 0
            assert lines[-1]["summary"]["failed"] == 0
            assert {line["file_path"] for line in lines[:-1]} == set(files)
            assert stamps_of(desk) == expected(files)
    assert all(finding["holds"] for finding in desk.json("audit"))


def test_a_server_that_is_not_there_or_no_bridge_is_an_error_that_names_it(desk: Desk) -> None:
    grow(desk, 1)
    port = free_port()
    for url in ("ftp://x", "nonsense", "http://user:secret@host"):
        sentence = desk.run("stamp", "tree", "--server", url, code=2).sentence
        assert "--server" in sentence and "secret" not in sentence
    both = desk.run("stamp", "tree", "--server", f"http://127.0.0.1:{port}", "--data-dir", "x", code=2)
    assert "--data-dir" in both.sentence


def test_a_token_that_the_server_does_not_take_ends_the_command(desk: Desk) -> None:
    grow(desk, 3)
    with serving(desk) as (url, _):
        created = desk.run("token", "create", "ci", "-n", "acme.*", "--scope", "write", "--json").json()[0]
        with_token = {"BRIDGE_SERVER": url, "BRIDGE_TOKEN": created["token"]}
        desk.run("stamp", "tree", "-n", NAMESPACE, **with_token)
        assert {one["stamped_by"] for one in desk.run("export", "-n", NAMESPACE, "--format", "ndjson").json()} == {"ci"}
        elsewhere = desk.run("stamp", "tree", "-n", "globex.docs", code=2, **with_token)
        assert "may not write to globex.docs" in elsewhere.sentence
        wrong = desk.run("stamp", "tree", "-n", NAMESPACE, code=2, BRIDGE_SERVER=url, BRIDGE_TOKEN="obt_wrong")
        assert "token" in wrong.sentence and "obt_wrong" not in wrong.sentence
