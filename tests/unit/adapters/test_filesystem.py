"""A walk finds every regular file once, by the name it was typed with; what it can't stamp it reports, and goes on."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters import filesystem
from omninode_bridge.adapters.filesystem import Found, Problem, guess_content_type, walk
from omninode_bridge.domain.errors import BridgeError, ContentUnavailable, InvalidInput, LimitExceeded, NotFound
from omninode_bridge.domain.names import DEFAULT_CONTENT_TYPE, check_content_type


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type paths in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path, encoding="utf-8", errors="surrogateescape")


def names(*paths: str, exclude: tuple[str, ...] = ()) -> list[str]:
    files, problems = everything(*paths, exclude=exclude)
    assert problems == {}
    return [file.file_path for file in files]


def everything(*paths: str, exclude: tuple[str, ...] = ()) -> tuple[list[Found], dict[str, BridgeError]]:
    batches = list(walk(paths, exclude))
    problems = {problem.path: problem.error for _, found in batches for problem in found}
    assert len(problems) == sum(len(found) for _, found in batches)
    return [file for found, _ in batches for file in found], problems


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("docs", ["docs/a.txt", "docs/sub/b.txt"]),
        ("./docs/", ["docs/a.txt", "docs/sub/b.txt"]),
        ("docs//sub/..", ["docs/a.txt", "docs/sub/b.txt"]),
        ("docs/a.txt", ["docs/a.txt"]),
        (".", ["docs/a.txt", "docs/sub/b.txt", "top"]),
    ],
)
def test_paths_are_named_as_typed_and_normalised(here: Path, typed: str, expected: list[str]) -> None:
    make("docs/a.txt", "docs/sub/b.txt", "top")
    assert names(typed) == expected


def test_paths_above_and_absolute_paths_keep_their_start(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("a", "inner/b")
    monkeypatch.chdir("inner")
    assert names("..") == ["../a", "../inner/b"]
    assert names(str(here)) == [f"{here}/a", f"{here}/inner/b"]
    assert names("//" + str(here)) == [f"{here}/a", f"{here}/inner/b"]


def test_facts_are_those_of_the_file_and_its_path_opens_it(here: Path) -> None:
    make("docs/a.txt")
    (file,), _ = everything("./docs")
    status = Path("docs/a.txt").stat()
    assert file.facts.size == len("docs/a.txt")
    assert (file.facts.mtime_ns, file.facts.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
    assert (file.facts.inode, file.facts.device) == (status.st_ino, status.st_dev)
    assert Path(file.os_path).read_text(encoding="utf-8") == "docs/a.txt"


def test_the_order_is_by_name_within_a_folder(here: Path) -> None:
    make(*(f"t/{name}" for name in ("b/2", "b/1", "a.txt", "c", "B", "é")))
    assert names("t") == ["t/B", "t/a.txt", "t/b/1", "t/b/2", "t/c", "t/é"]


def test_batches_hold_at_most_what_was_asked(here: Path) -> None:
    make(*(f"t/{number:02}" for number in range(10)))
    os.mkfifo("t/fifo")
    batches = list(walk(["t"], batch=4))
    assert [len(found) + len(problems) for found, problems in batches] == [4, 4, 3]
    assert all(isinstance(problem, Problem) for _, problems in batches for problem in problems)


def test_a_folder_larger_than_a_piece_is_found_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "ENTRIES_MAX", 8)
    expected = [f"t/{number:03}" for number in range(100)] + [f"t/{number:03}.d/x" for number in range(0, 100, 7)]
    make(*expected)
    assert sorted(names("t")) == sorted(expected)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["t", "t/a"], ["t/b", "t/s/c", "t/a"]),
        (["t/a", "t"], ["t/a", "t/b", "t/s/c"]),
        (["t/s", "t", "./t/s/"], ["t/s/c", "t/a", "t/b"]),
        (["t", "t", "t/."], ["t/a", "t/b", "t/s/c"]),
        ([".", "t/s"], ["t/a", "t/b", "t/s/c"]),
    ],
)
def test_each_path_is_found_once_however_the_typed_ones_overlap(
    here: Path, typed: list[str], expected: list[str]
) -> None:
    make("t/a", "t/b", "t/s/c")
    assert names(*typed) == expected


def test_links_are_followed_to_files_and_folders(here: Path) -> None:
    make("real/a", "t/b")
    os.symlink("../real/a", "t/file")
    os.symlink("../real", "t/folder")
    os.symlink("t", "typed")
    assert names("t") == ["t/b", "t/file", "t/folder/a"]
    assert names("typed") == ["typed/b", "typed/file", "typed/folder/a"]
    linked = next(file for file in everything("t")[0] if file.file_path == "t/file")
    assert linked.facts.inode == Path("real/a").stat().st_ino


def test_loops_and_links_to_nothing_are_reported(here: Path) -> None:
    make("t/s/a")
    os.symlink(".", "t/itself")
    os.symlink("../..", "t/s/above")
    os.symlink("two", "t/one")
    os.symlink("one", "t/two")
    os.symlink("nowhere", "t/broken")
    files, problems = everything("t")
    assert [file.file_path for file in files] == ["t/s/a"]
    assert {path: str(error).partition(": ")[0] for path, error in problems.items()} == {
        "t/itself": "'t/itself' is a link to a folder that it lies in",
        "t/s/above/t": "'t/s/above/t' is a link to a folder that it lies in",
        "t/one": "'t/one' is a link that leads back to itself",
        "t/two": "'t/two' is a link that leads back to itself",
        "t/broken": "'t/broken' is a link to nothing",
    }
    assert names("t", exclude=("itself", "above/", "one", "two", "broken")) == ["t/s/a"]


def test_sockets_and_fifos_are_reported(here: Path) -> None:
    make("t/a")
    os.mkfifo("t/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("t/socket")
        files, problems = everything("t", "/dev/null")
    assert [file.file_path for file in files] == ["t/a"]
    assert {path: str(error) for path, error in problems.items()} == {
        "t/fifo": "'t/fifo' is a FIFO: only regular files are stamped; exclude it",
        "t/socket": "'t/socket' is a socket: only regular files are stamped; exclude it",
        "/dev/null": "'/dev/null' is a character device: only regular files are stamped; exclude it",
    }
    assert {error.code for error in problems.values()} == {"content_unavailable"}


def test_odd_names_are_found_and_undecodable_ones_reported(here: Path) -> None:
    odd = ["t/new\nline", "t/back\\slash", "t/ leading", "t/quote'", "t/*", "t/é"]
    make(*odd)
    latin = os.fsdecode(b"t/caf\xe9")
    make(latin, os.fsdecode(b"t/dir\xff/inside"))
    files, problems = everything("t", latin)
    assert sorted(file.file_path for file in files) == sorted(odd)
    assert {path: type(error) for path, error in problems.items()} == {
        "t/caf\\xe9": InvalidInput,
        "t/dir\\xff": InvalidInput,
    }
    assert "is not valid Unicode: rename the file" in str(problems["t/caf\\xe9"])
    for path, error in problems.items():
        assert f"{path}{error}".encode()


@pytest.mark.parametrize("typed", ["missing", "t/missing", "t/a/below", "t/a/"])
def test_a_typed_path_that_is_not_there_is_reported_and_the_rest_found(here: Path, typed: str) -> None:
    make("t/a", "b")
    files, problems = everything(typed, "b")
    assert [file.file_path for file in files] == ["b"]
    assert [(type(error), error.message) for error in problems.values()] == [
        (NotFound, f"no such file or folder: {typed!r}: check the spelling")
    ]


def test_an_empty_path_is_not_the_current_folder(here: Path) -> None:
    make("a")
    files, problems = everything("")
    assert files == []
    assert [type(error) for error in problems.values()] == [InvalidInput]


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


def test_a_folder_that_can_not_be_read_is_reported() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(f"{folder}/closed/a", f"{folder}/open/b")
        os.chmod(folder, 0o755)
        os.chmod(f"{folder}/closed", 0)
        with an_ordinary_user():
            files, problems = everything(folder)
            _, typed = everything(f"{folder}/closed")
        os.chmod(f"{folder}/closed", 0o755)
    assert [file.file_path for file in files] == [f"{folder}/open/b"]
    assert problems.keys() == typed.keys() == {f"{folder}/closed"}
    for error in (*problems.values(), *typed.values()):
        assert isinstance(error, ContentUnavailable)
        assert "Permission denied: let this user read it, or exclude it" in error.message


def test_what_disappears_during_the_walk_is_reported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("t/a", "t/b", "t/s/c")
    batches = walk(["t"], batch=1)
    assert next(batches)[0][0].file_path == "t/a"
    for path in ("t/b", "t/s/c"):
        Path(path).unlink()
    Path("t/s").rmdir()
    problems = [problem for _, found in batches for problem in found]
    assert [problem.path for problem in problems] == ["t/b", "t/s"]
    assert all("was removed while its folder was being read" in str(problem.error) for problem in problems)


@pytest.fixture
def deep(here: Path) -> Iterator[str]:
    """A folder 1500 levels down."""
    folder = "t" + "/d" * 1500
    os.makedirs(folder[:1800])
    os.makedirs(folder)
    yield folder
    # Neither shutil nor pytest can remove what is deeper than the stack.
    subprocess.run(["rm", "-rf", "t"], cwd=here, check=True)


def test_a_tree_deeper_than_the_stack_is_walked(deep: str) -> None:
    make(f"{deep}/a")
    assert names("t") == [f"{deep}/a"]


def test_a_path_beyond_the_limit_is_reported(deep: str, here: Path) -> None:
    # Only by relative steps can a path be made that is longer than any call takes.
    steps = "/".join(letter * 200 for letter in "vwxyz")
    os.chdir(deep)
    os.makedirs(steps)
    os.chdir(steps)
    make("short", "l" * 255)
    os.chdir(here)
    files, problems = everything("t")
    assert [file.file_path for file in files] == [f"{deep}/{steps}/short"]
    assert [type(error) for error in problems.values()] == [LimitExceeded]


@pytest.mark.parametrize(
    ("globs", "left"),
    [
        (("*.log",), ["t/a.txt", "t/build/a.txt", "t/src/build", "t/src/x/a.txt", "t/.git/a"]),
        ((".*",), ["t/a.log", "t/a.txt", "t/build/a.txt", "t/src/build", "t/src/x/a.log", "t/src/x/a.txt"]),
        (("build",), ["t/.git/a", "t/a.log", "t/a.txt", "t/src/x/a.log", "t/src/x/a.txt"]),
        (("build/",), ["t/.git/a", "t/a.log", "t/a.txt", "t/src/build", "t/src/x/a.log", "t/src/x/a.txt"]),
        (("/a.*",), ["t/.git/a", "t/build/a.txt", "t/src/build", "t/src/x/a.log", "t/src/x/a.txt"]),
        (("src/*",), ["t/.git/a", "t/a.log", "t/a.txt", "t/build/a.txt"]),
        (("src/*.txt",), names_all := ["t/.git/a", "t/a.log", "t/a.txt", "t/build/a.txt", "t/src/build",
                                       "t/src/x/a.log", "t/src/x/a.txt"]),
        (("src/**/*.txt",), [name for name in names_all if name != "t/src/x/a.txt"]),
        (("**/x",), [name for name in names_all if "/x/" not in name]),
        (("[ab].tx?", "[!a-z]*"), ["t/a.log", "t/src/build", "t/src/x/a.log"]),
        (("*.log", "build", ".git/"), ["t/a.txt", "t/src/x/a.txt"]),
        (("T", "[", "a.txt]"), names_all),
        (("t",), []),
    ],
)  # fmt: skip
def test_what_a_glob_excludes(here: Path, globs: tuple[str, ...], left: list[str]) -> None:
    make("t/a.txt", "t/a.log", "t/build/a.txt", "t/src/build", "t/src/x/a.txt", "t/src/x/a.log", "t/.git/a")
    assert sorted(names("t", exclude=globs)) == sorted(left)


def test_typed_files_are_excluded_by_name_and_typed_places_are_not(here: Path) -> None:
    make("a.txt", "draft.txt", ".hidden")
    assert names("a.txt", "draft.txt", exclude=("draft*",)) == ["a.txt"]
    assert names(".", exclude=(".*",)) == ["a.txt", "draft.txt"]


@pytest.mark.parametrize("glob", ["", "/", "//"])
def test_a_glob_that_is_none_is_refused_before_anything_is_read(glob: str) -> None:
    with pytest.raises(InvalidInput, match="is no glob") as raised:
        walk(["."], [glob])
    assert raised.value.field == "exclude"


@given(st.lists(st.text(min_size=1).filter(lambda glob: glob.strip("/")), min_size=1))
def test_any_text_is_a_glob(globs: list[str]) -> None:
    walk([], globs)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.md", "text/markdown"), ("src/a.PY", "text/x-python"), ("a.tar.gz", "application/gzip"),
        ("a.parquet", "application/vnd.apache.parquet"), ("a.json", "application/json"), ("a.pdf", "application/pdf"),
        ("a.yml", "application/yaml"), ("Makefile", "text/plain"), ("docs/.gitignore", "text/plain"),
        ("a.ts", "application/typescript"), ("v1.2/file", DEFAULT_CONTENT_TYPE), ("a.", DEFAULT_CONTENT_TYPE),
        (".py", DEFAULT_CONTENT_TYPE), ("a.unheard-of", DEFAULT_CONTENT_TYPE), ("data:,x.txt", "text/plain"),
    ],
)  # fmt: skip
def test_content_types_by_suffix(path: str, expected: str) -> None:
    assert guess_content_type(path) == expected


@given(st.text())
def test_a_guess_is_always_a_media_type(path: str) -> None:
    check_content_type(guess_content_type(path))


def test_a_batch_ends_when_its_files_are_large(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "BATCH_BYTES_MAX", 10)
    for name in "abcd":
        (here / name).write_bytes(bytes(6))
    assert [[found.file_path for found in batch] for batch, _ in walk(["."])] == [["a", "b"], ["c", "d"]]


def test_dots_behind_a_link_are_refused_where_the_recorded_path_is_another_file(here: Path) -> None:
    make("real/in/y.txt", "real/x.txt", "x.txt", "plain/x.txt")
    (here / "link").symlink_to("real/in")
    found, problems = everything("link/../x.txt", "plain/../x.txt", "link/../nowhere.txt")
    assert [file.file_path for file in found] == []
    assert isinstance(problems["x.txt"], InvalidInput)
    assert names("plain/../x.txt") == ["x.txt"]
