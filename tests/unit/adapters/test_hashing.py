"""Digests are BLAKE3's, of bytes that stood still; one bad file harms neither the batch nor the process."""

import ast
import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode_bridge.adapters.hashing import (
    AT_ONCE_BYTES_MAX,
    BLOCK_BYTES,
    LARGE_FILE_BYTES_MIN,
    READ_AHEAD_BYTES,
    SETTLED_NS,
    SMALL_FILE_BYTES_MAX,
    WINDOW_BYTES,
    Blake3Hasher,
)
from omninode_bridge.domain.errors import ContentChanged, ContentUnavailable
from omninode_bridge.domain.stamp import Claimed, Content, Digest, FileFacts, Inline, LocalFile, Streamed

LATER_NS = 10**12


def found(path: str | Path) -> LocalFile:
    status = os.stat(path)
    facts = FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    return LocalFile(str(path), facts)


async def digest(content: Content, hasher: Blake3Hasher | None = None) -> Digest:
    answer = (await (hasher or Blake3Hasher()).digest_many([content]))[0]
    assert isinstance(answer, Digest), answer
    return answer


async def refusal(content: Content) -> ContentUnavailable:
    answer = (await Blake3Hasher().digest_many([content]))[0]
    assert isinstance(answer, ContentUnavailable), answer
    return answer


around = st.builds(
    int.__add__,
    st.sampled_from([2, BLOCK_BYTES, SMALL_FILE_BYTES_MAX, AT_ONCE_BYTES_MAX, LARGE_FILE_BYTES_MIN, READ_AHEAD_BYTES]),
    st.integers(-2, 2),
)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(around, min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_a_digest_is_blake3_of_the_bytes_wherever_they_are(sizes: list[int], seed: int) -> None:
    source = random.Random(seed)
    pieces = [source.randbytes(size) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        contents: list[Content] = []
        for number, piece in enumerate(pieces):
            path = Path(folder, str(number))
            path.write_bytes(piece)
            contents += [Inline(piece), found(path)]
        answers = asyncio.run(Blake3Hasher().digest_many(contents))
    expected = [(blake3(piece).hexdigest(), len(piece), "computed") for piece in pieces for _ in range(2)]
    assert [(a.file_hash, a.file_size, a.origin) for a in answers if isinstance(a, Digest)] == expected


@pytest.mark.parametrize("size", [WINDOW_BYTES - 1, WINDOW_BYTES, 2 * WINDOW_BYTES + 4097])
@pytest.mark.parametrize("writable", [False, True], ids=["mapped where it may be", "read, for a writer has it open"])
async def test_large_files_have_the_same_digest_by_either_way(tmp_path: Path, size: int, writable: bool) -> None:
    path = tmp_path / "large"
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    with path.open("r+b" if writable else "rb"):
        answer = await digest(found(path))
    assert (answer.file_hash, answer.file_size) == (blake3(data).hexdigest(), size)
    assert answer.hash_time_us > 0


async def test_answers_keep_the_order_of_small_large_and_unreadable(tmp_path: Path) -> None:
    contents: list[Content] = []
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * (LARGE_FILE_BYTES_MIN if number % 5 == 0 else number))
        contents.append(found(path))
        if number % 3 == 0:
            path.unlink()
    answers = await Blake3Hasher().digest_many(contents)
    assert [isinstance(answer, Digest) for answer in answers] == [number % 3 != 0 for number in range(20)]
    sizes = [answer.file_size for answer in answers if isinstance(answer, Digest)]
    assert sizes == [c.facts.size for n, c in enumerate(contents) if isinstance(c, LocalFile) and n % 3]


async def test_what_was_hashed_elsewhere_is_passed_on() -> None:
    claimed, known = Claimed("ab" * 32, 7), Digest("cd" * 32, 9, "computed", 5)
    answers = await Blake3Hasher().digest_many([claimed, Streamed(known)])
    assert answers == [Digest("ab" * 32, 7, "claimed"), known]
    assert await Blake3Hasher().digest_many([]) == []


async def test_facts_vouch_only_when_both_times_are_two_seconds_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 0))
    file = found(path)
    settled_ns = file.facts.ctime_ns + SETTLED_NS
    assert (await digest(file, Blake3Hasher(lambda: settled_ns - 1))).facts is None
    assert (await digest(file, Blake3Hasher(lambda: settled_ns))).facts == file.facts
    # A modification time ahead of the clock vouches for nothing.
    os.utime(path, ns=(0, settled_ns + LATER_NS))
    file = found(path)
    assert (await digest(file, Blake3Hasher(lambda: settled_ns + LATER_NS))).facts is None
    assert (await digest(file, Blake3Hasher(lambda: settled_ns + LATER_NS + SETTLED_NS))).facts == file.facts


@pytest.mark.parametrize("size", [100, LARGE_FILE_BYTES_MIN])
async def test_a_change_between_finding_and_reading_is_no_torn_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * size)
    file = found(path)
    path.write_bytes(b"b" * (size + 1))
    answer = await digest(file, Blake3Hasher(lambda: file.facts.ctime_ns + LATER_NS))
    assert answer.file_hash == blake3(b"b" * (size + 1)).hexdigest()
    assert answer.facts == found(path).facts


async def test_a_file_appended_to_while_it_is_read_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(8 * WINDOW_BYTES))
    file = found(path)
    writing, enough = threading.Event(), threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as growing:
            while not enough.is_set():
                growing.write(b"x")
                writing.set()

    writer = threading.Thread(target=append)
    writer.start()
    assert writing.wait(10)
    try:
        answers = [(await Blake3Hasher().digest_many([file]))[0] for _ in range(5)]
    finally:
        enough.set()
        writer.join()
    assert any(isinstance(answer, ContentChanged) for answer in answers)
    assert {answer.message for answer in answers if isinstance(answer, ContentChanged)} == {
        f"{str(path)!r} changed while it was being read: stamp it again when nothing writes to it"
    }


TRUNCATED = """
import asyncio, os, sys, threading
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.domain.stamp import FileFacts, LocalFile

path, size = sys.argv[1], 64 * 1024 * 1024
with open(path, "wb") as file:
    file.write(bytes(size))
status = os.stat(path)
facts = FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
done = threading.Event()

resized = 0

def resize():
    global resized
    while not done.is_set():
        os.truncate(path, 4096)
        with open(path, "wb") as file:
            file.write(bytes(size))
        resized += 1

resizer = threading.Thread(target=resize)
answers = []
async def main():
    hasher = Blake3Hasher()
    resizer.start()
    while resized < 10:
        answers.extend(await hasher.digest_many([LocalFile(path, facts)]))
asyncio.run(main())
done.set()
resizer.join()
print(sorted({type(answer).__name__ for answer in answers}))
"""


def test_a_file_truncated_while_it_is_hashed_does_not_kill_the_process(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", TRUNCATED, tmp_path / "shrinking"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.returncode, run.stderr)
    assert set(ast.literal_eval(run.stdout)) <= {"ContentChanged", "Digest"}


MEMORY = """
import asyncio, os, sys
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.domain.stamp import Digest, FileFacts, LocalFile

status = os.stat(sys.argv[1])
facts = FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

async def main():
    hasher = Blake3Hasher()
    await hasher.digest_many([LocalFile("/dev/null", FileFacts(0, 0, 0, 0, 0))])
    before = peak()
    # Read at first, for a hole is not in memory; then mapped, where the file system allows it.
    first, second = [(await hasher.digest_many([LocalFile(sys.argv[1], facts)]))[0] for _ in range(2)]
    assert isinstance(first, Digest) and first.file_hash == second.file_hash, (first, second)
    print(peak() - before)
asyncio.run(main())
"""


def test_a_large_file_adds_at_most_32_mebibytes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 512 * 1024 * 1024)
    run = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 32 * 1024


async def test_a_cancelled_call_frees_the_thread_that_hashed_for_it(tmp_path: Path) -> None:
    endless, other = tmp_path / "endless", tmp_path / "other"
    endless.touch()
    os.truncate(endless, 2**40)
    other.write_bytes(bytes(LARGE_FILE_BYTES_MIN))
    hasher = Blake3Hasher()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await hasher.digest_many([found(endless)])
    async with asyncio.timeout(30):
        assert (await digest(found(other), hasher)).file_size == LARGE_FILE_BYTES_MIN


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Root may read everything: be nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_what_can_not_be_read_is_said_with_its_reason_and_remedy() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed, gone, odd = Path(folder, "closed"), Path(folder, "gone"), Path(folder, "a\n\\b")
        for path in (closed, gone, odd):
            path.write_bytes(b"content")
        contents = [found(path) for path in (closed, gone, odd)]
        os.chmod(closed, 0)
        os.remove(gone)
        os.chmod(odd, 0o644)
        with an_ordinary_user():
            answers = await Blake3Hasher().digest_many(contents)
    refused, lost, read = answers
    assert isinstance(refused, ContentUnavailable)
    assert refused.message.endswith("Permission denied: let this user read it, or exclude it")
    assert refused.field == "file_path"
    assert isinstance(lost, ContentUnavailable)
    assert "No such file or directory: it was removed" in lost.message
    assert isinstance(read, Digest)


async def test_a_failing_read_is_that_files_answer() -> None:
    # Nothing is mapped at address 0, so this reads as a bad sector would.
    error = await refusal(found("/proc/self/mem"))
    assert error.message == "cannot read '/proc/self/mem': Input/output error: check the disk"


@pytest.mark.parametrize("size", [7, LARGE_FILE_BYTES_MIN])
async def test_what_took_a_files_place_neither_hangs_nor_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    file = found(path)
    path.unlink()
    os.mkfifo(path)
    async with asyncio.timeout(10):
        assert "is no regular file any more" in (await refusal(file)).message
    path.unlink()
    path.mkdir()
    assert isinstance(await refusal(file), ContentUnavailable)
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert isinstance(await refusal(file), ContentUnavailable)


async def test_a_waiting_writer_gets_the_file_and_the_digest_is_of_what_stood(tmp_path: Path) -> None:
    path = tmp_path / "wanted"
    path.write_bytes(bytes(8 * WINDOW_BYTES))
    file = found(path)
    hashing = asyncio.create_task(digest(file))
    # Opens for writing, which a lease makes wait, and writes nothing.
    opened = asyncio.create_task(asyncio.to_thread(lambda: path.open("r+b").close()))
    async with asyncio.timeout(30):
        await opened
        assert (await hashing).file_hash == blake3(bytes(8 * WINDOW_BYTES)).hexdigest()
