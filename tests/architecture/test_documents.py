"""README and docs stay true: each command they show exists, with the options shown; each file they name is there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = Path(sys.executable).parent / "omninode-bridge"

SHELL_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
# A path of this project in backticks; placeholders and globs name nothing that could be missing.
NAMED_PATH = re.compile(r"`((?:src|tests|scripts|docs|requirements|benchmarks|deploy)/[\w./-]*)`")


def shell_lines(document: Path) -> Iterator[list[str]]:
    """Yield the words of each command in a document's shell blocks, without pipes, prompts and comments."""
    for block in SHELL_BLOCK.findall(document.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;()<>"):
                    if words:
                        yield words
                    words = []
                elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                    words.append(word)


def commands(program: str, documents: list[Path]) -> list[tuple[str, ...]]:
    found = {
        tuple(words[1:])
        for document in documents
        if document.is_file()
        for words in shell_lines(document)
        if words[0] == program or words[0].endswith(f"/bin/{program}")
    }
    return sorted(found)


@cache
def help_text(*words: str) -> str:
    run = subprocess.run(
        [COMMAND, *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert run.returncode == 0, f"omninode-bridge {shlex.join(words)} --help: {run.stdout}{run.stderr}"
    return run.stdout


def test_readme_shows_the_program_at_work() -> None:
    assert README.is_file()
    assert commands("omninode-bridge", [README]), "README.md has no ```sh block with an omninode-bridge command"
    assert ("demo",) in commands("make", [README])


@pytest.mark.parametrize("words", commands("omninode-bridge", DOCUMENTS), ids=shlex.join)
def test_documented_commands_exist_with_their_options(words: tuple[str, ...]) -> None:
    path: tuple[str, ...] = ()
    text = help_text()
    while re.search(r"^\W*Usage:.* COMMAND ", text, re.MULTILINE) and len(words) > len(path):
        if words[len(path)].startswith("-"):
            break
        path = words[: len(path) + 1]
        text = help_text(*path)
    for word in words[len(path) :]:
        option = re.match(r"--[a-z][a-z-]*|-[a-zA-Z]$", word)
        if option:
            assert re.search(rf"(?<![\w-]){re.escape(option[0])}(?![\w-])", text), f"{option[0]} is no option of {path}"


@pytest.mark.parametrize("words", commands("make", DOCUMENTS), ids=shlex.join)
def test_documented_make_targets_exist(words: tuple[str, ...]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert {word for word in words if "=" not in word and not word.startswith("-")} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    lost = [target for target in links if not (document.parent / target).exists()]
    lost += [path for path in NAMED_PATH.findall(text) if not (ROOT / path).exists()]
    assert lost == []
