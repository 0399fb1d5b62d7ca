"""Laws of embedding, over every syntax and hostile text: a stamp goes in, is found, comes out without a trace."""

import re
from datetime import UTC
from typing import Any

from hypothesis import given, reject
from hypothesis import strategies as st

from omninode_bridge.domain.comments import ENDINGS, LANGUAGES, MARKS, NAMES, Syntax, syntax_of
from omninode_bridge.domain.embedding import bare, embed, find
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.stamp import Stamp
from tests.making import stamp
from tests.property.strategies import HASHES, IDS, NAMESPACES, TEXT_WITHOUT_NUL, TIMES

OCTETS = "application/octet-stream"
# One file for each way to write a comment, or to refuse one.
PATHS = list({syntax: f"a.{ending}" for ending, syntax in ENDINGS.items() if syntax}.values())
HARD_NAMESPACES = NAMESPACES | st.sampled_from(["-", "--", "a---b.--", "-" * 255])
PIECES = [
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    "\\",
    "\\\n",
    " ",
    "\t",
    "\x0c\x1c\x85",
    "\u2028",
    "\ufeff",
    "^",
    "a",
    "漢🙂",
    "+",
]
FRAGMENTS = [
    "omninode-stamp: v=1 ",
    "omninode-stamp: v=1 id=",
    " nl=1",
    " nl=2\n",
    "# ",
    "// ",
    " -->",
    "*/",
    "?>",
    "=cut\n",
]


def syntax_in(path: str) -> Syntax:
    syntax = syntax_of(path, None)
    assert syntax is not None
    return syntax


@st.composite
def made(draw: st.DrawFn, path: str) -> Stamp:
    return stamp(
        stamp_id=draw(IDS),
        file_hash=draw(HASHES),
        namespace=draw(HARD_NAMESPACES),
        completed_at=draw(TIMES),
        file_path=path,
        content_type=OCTETS,
    )


@st.composite
def lines(draw: st.DrawFn, path: str) -> str:
    """A stamp line without its end: a good one, one of another language, or one that is spoilt somewhere."""
    syntax = syntax_in(path)
    text = embed(b"", draw(made("a.py"))).decode()[2:-1] + draw(st.sampled_from(["", " nl=1", " nl=2"]))
    kind = draw(st.sampled_from(["good", "good", "good", "foreign", "spoilt"]))
    opening, closing = syntax.opening, syntax.closing
    if kind == "foreign":
        opening, closing = draw(st.sampled_from(sorted(MARKS)))
    line = f"{opening.decode()}{text}{closing.decode()}"
    if kind == "spoilt":
        place = draw(st.integers(0, len(line)))
        line = line[:place] + draw(st.sampled_from(["", *PIECES, "-", "0"])) + line[place + draw(st.integers(0, 2)) :]
    return line


@st.composite
def contents(draw: st.DrawFn, path: str) -> bytes:
    """Text with every kind of line end, with stamps and what looks like them, in any order."""
    piece = st.one_of(
        st.sampled_from(PIECES),
        st.sampled_from(FRAGMENTS),
        TEXT_WITHOUT_NUL,
        lines(path),
        lines(path).map(lambda line: f"\n{line}\n"),
        lines(path).map(lambda line: f"\r\n{line}\r\n"),
    )
    opening = draw(st.sampled_from(["", "<?php\n", "\ufeff"]))
    return (opening + "".join(draw(st.lists(piece, max_size=8)))).encode()


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, Stamp]:
    path = draw(st.sampled_from(PATHS))
    return draw(contents(path)), draw(made(path))


def embedded(content: bytes, of: Stamp) -> bytes:
    """The content with the stamp in it; where the language refuses it, another case is wanted."""
    try:
        return embed(content, of)
    except InvalidInput:
        reject()


def lines_of(content: bytes) -> list[bytes]:
    """The lines with their ends; the last one may have none."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def plainly_bare(content: bytes, syntax: Syntax) -> bytes:
    """The same rule once more, by matching line after line as a whole."""
    name = rb"(?:[a-z0-9_]|-(?!-)|(?<=-)\+(?=-))+"
    stamp_line = re.compile(
        re.escape(syntax.opening)
        + rb"omninode-stamp: v=1 id=[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12} blake3=[0-9a-f]{64}"
        + rb" ns=(?P<namespace>%b(?:\.%b)*)" % (name, name)
        + rb" at=[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})?Z(?: nl=(?P<ends>[12]))?"
        + re.escape(syntax.closing)
        + rb"(?:\r?\n)?"
    )
    kept: list[bytes] = []
    ends: int | None = None
    for line in lines_of(content):
        match = stamp_line.fullmatch(line)
        if match is None or len(match["namespace"].replace(b"+", b"")) > 255:
            kept.append(line)
            ends = None
        elif ends is None:
            ends = int(match["ends"] or 0)
    text = b"".join(kept)
    for _ in range(ends or 0):
        text = re.sub(rb"\r?\n\Z", b"", text)
    return text


@given(cases())
def test_what_is_embedded_comes_out_again_byte_for_byte(case: tuple[bytes, Stamp]) -> None:
    content, made_stamp = case
    after = embedded(content, made_stamp)
    stripped = bare(content, made_stamp.file_path, OCTETS)
    assert bare(after, made_stamp.file_path, OCTETS) == stripped
    assert after.startswith(stripped)


@given(cases())
def test_embedding_again_gives_the_same_bytes(case: tuple[bytes, Stamp]) -> None:
    content, made_stamp = case
    after = embedded(content, made_stamp)
    assert embed(after, made_stamp) == after


@given(st.data())
def test_only_the_latest_stamp_stays(data: st.DataObject) -> None:
    content, first = data.draw(cases())
    second = data.draw(made(first.file_path))
    assert embed(embedded(content, first), second) == embedded(content, second)


@given(cases())
def test_the_embedded_stamp_is_found_on_the_last_line_and_no_other(case: tuple[bytes, Stamp]) -> None:
    content, made_stamp = case
    after = embedded(content, made_stamp)
    stripped, found = find(after, made_stamp.file_path, OCTETS)
    assert stripped == bare(content, made_stamp.file_path, OCTETS)
    assert [(each.stamp_id, each.file_hash, each.namespace, each.line) for each in found] == [
        (made_stamp.stamp_id, made_stamp.file_hash, made_stamp.namespace, after.count(b"\n"))
    ]
    assert found[0] in find(after, None, None)[1]


@given(st.data())
def test_the_stamp_is_found_after_lines_were_appended_and_they_are_kept(data: st.DataObject) -> None:
    content, made_stamp = data.draw(cases())
    after = embedded(content, made_stamp)
    appended = data.draw(TEXT_WITHOUT_NUL.filter(lambda text: text != "")).encode()
    stripped, found = find(after + appended, made_stamp.file_path, None)
    assert [each.stamp_id for each in found] == [made_stamp.stamp_id]
    assert stripped.startswith(bare(content, made_stamp.file_path, OCTETS))
    assert stripped.endswith(appended)
    every, own = lines_of(after + appended), len(lines_of(after)) - 1
    assert stripped == b"".join(every[:own] + every[own + 1 :])


@given(st.data())
def test_the_stamps_are_those_that_a_plain_reading_by_lines_finds(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    content = data.draw(contents(path))
    stripped, found = find(content, path, None)
    assert stripped == plainly_bare(content, syntax_in(path))
    assert find(stripped, path, None) == (stripped, [])
    for each in found:
        assert each.stamp_id.encode() in content.split(b"\n")[each.line - 1]


@given(st.data())
def test_finding_and_the_bare_content_agree_wherever_there_is_one(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    content = data.draw(contents(path))
    try:
        stripped = bare(content, path, OCTETS)
    except InvalidInput:
        return
    assert find(content, path, None)[0] == find(content, path, OCTETS)[0] == stripped


@given(st.data())
def test_a_content_without_stamps_stays_as_it_is(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES) | TEXT_WITHOUT_NUL)))
    content = text.encode()
    assert find(content, path, None) == (content, [])
    assert find(content, None, None) == (content, [])


@given(st.data())
def test_no_namespace_breaks_out_of_its_comment_or_comes_back_as_another(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    syntax = syntax_in(path)
    made_stamp = data.draw(made(path))
    line = embedded(b"<?php\n", made_stamp).splitlines()[-1]
    inside = line.removeprefix(syntax.opening).removesuffix(syntax.closing)
    assert re.fullmatch(rb"[a-zA-Z0-9_.:=+ -]+", inside)
    assert b"--" not in inside
    assert made_stamp.completed_at.astimezone(UTC).strftime("%m-%dT%H:%M:%S").encode() in inside


@given(
    st.binary(max_size=60) | st.sampled_from(PATHS).flatmap(contents),
    st.none() | st.text(max_size=20) | st.sampled_from([*PATHS, *NAMES, "a.json", "a.txt", "a"]),
    st.none() | st.text(max_size=20) | st.sampled_from([f"text/x-{language}" for language in LANGUAGES]),
)
def test_finding_never_raises(content: bytes, path: str | None, content_type: str | None) -> None:
    stripped, found = find(content, path, content_type)
    assert found or stripped == content
    assert find(stripped, path, content_type) == (stripped, [])


@given(st.binary(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_any_content_path_and_type_is_embedded_into_or_refused_as_invalid_input(
    content: bytes, path: str, content_type: str
) -> None:
    made_stamp: dict[str, Any] = {"file_path": path, "content_type": content_type}
    try:
        after = embed(content, stamp(**made_stamp))
    except InvalidInput as refused:
        error = refused
    else:
        assert bare(after, path, content_type) == content
        return
    assert error.field == "embed"
    error.message.encode()
