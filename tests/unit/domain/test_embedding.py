"""Embedding: where the stamp goes in each language, what is taken for one, and what can't take one."""

import ast
import configparser
import sqlite3
import subprocess
import tomllib
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
import yaml

from omninode_bridge.domain.comments import ENDINGS, LANGUAGES, NAMES, syntax_of
from omninode_bridge.domain.embedding import Embedded, bare, embed, find
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.stamp import Stamp
from tests.making import NOW, hash_of, stamp

ID = "019b76da-a804-7de7-afb3-bdcc7520fd14"
HASH = hash_of(b"a")
TEXT = f"omninode-stamp: v=1 id={ID} blake3={HASH} ns=legal.contracts at=2026-03-01T12:00:00Z"
LINE = f"# {TEXT}\n".encode()
OCTETS = "application/octet-stream"
MIB = 1024**2


def stamped(path: str = "a.py", **fields: object) -> Stamp:
    return stamp(**{"stamp_id": ID, "file_hash": HASH, "file_path": path, "content_type": OCTETS, **fields})


def refusal(content: bytes, path: str, content_type: str = OCTETS) -> str:
    """The message that both ways to the bare content are refused with."""
    with pytest.raises(InvalidInput) as refused:
        bare(content, path, content_type)
    with pytest.raises(InvalidInput) as refused_too:
        embed(content, stamped(path, content_type=content_type))
    assert refused.value.field == refused_too.value.field == "embed"
    assert refused.value.message == refused_too.value.message
    return refused.value.message


@pytest.mark.parametrize(
    ("path", "opening", "closing"),
    [
        ("a.py", "# ", ""),
        ("x/y.z/deploy.YAML", "# ", ""),
        ("main.tf", "# ", ""),
        ("schema.graphql", "# ", ""),
        ("default.nix", "# ", ""),
        ("run.ps1", "# ", ""),
        ("setup.cfg", "# ", ""),
        ("a.properties", "# ", ""),
        (".env", "# ", ""),
        (".env.local", "# ", ""),
        ("Makefile", "# ", ""),
        ("src/Makefile.am", "# ", ""),
        ("Dockerfile", "# ", ""),
        ("Dockerfile.dev", "# ", ""),
        ("dev.dockerfile", "# ", ""),
        ("CMakeLists.txt", "# ", ""),
        ("requirements-dev.txt", "# ", ""),
        ("a\\b\\Gemfile", "# ", ""),
        ("a.rs", "// ", ""),
        ("a.kt", "// ", ""),
        ("a.swift", "// ", ""),
        ("a.proto", "// ", ""),
        ("tsconfig.jsonc", "// ", ""),
        ("a.d.ts", "// ", ""),
        ("go.mod", "// ", ""),
        ("Jenkinsfile", "// ", ""),
        ("a.css", "/* ", " */"),
        ("a.S", "/* ", " */"),
        ("a.sql", "-- ", ""),
        ("a.lua", "-- ", ""),
        ("a.hs", "-- ", ""),
        ("a.tex", "% ", ""),
        ("a.erl", "% ", ""),
        ("a.ini", "; ", ""),
        ("a.asm", "; ", ""),
        ("a.el", "; ", ""),
        ("a.ml", "(* ", " *)"),
        ("a.f90", "! ", ""),
        ("a.cob", "      *> ", ""),
        ("a.vb", "' ", ""),
        (".vimrc", '" ', ""),
        ("a.bat", "@REM ", ""),
        ("a.apl", "⍝ ", ""),
        ("a.html", "<!-- ", " -->"),
        ("a.vue", "<!-- ", " -->"),
        ("a.svg", "<!-- ", " -->"),
        ("README.md", "<!-- ", " -->"),
        ("web.config", "<!-- ", " -->"),
        ("a.rst", ".. ", ""),
        ("a.mdx", "{/* ", " */}"),
        ("a.yaml.j2", "{#- ", " #}"),
        ("a.jinja", "{#- ", " #}"),
        ("a.hbs", "{{!-- ", " --}}"),
        ("a.liquid", "{% comment %} ", " {% endcomment %}"),
        ("a.html.erb", "<%# ", " %>"),
        ("a.blade.php", "{{-- ", " --}}"),
    ],
)
def test_the_stamp_line_is_a_comment_of_the_language_that_the_name_tells(path: str, opening: str, closing: str) -> None:
    line = f"{opening}{TEXT}{closing}\n".encode()
    assert embed(b"\n", stamped(path)) == b"\n" + line
    assert find(b"\n" + line, path, None) == (b"\n", [Embedded(ID, HASH, "legal.contracts", 2)])


@pytest.mark.parametrize(
    ("content_type", "opening"),
    [
        ("text/x-python", "# "),
        ("Text/X-Python; charset=utf-8", "# "),
        ("application/toml", "# "),
        ("application/vnd.oai.openapi+yaml", "# "),
        ("text/x-makefile", "# "),
        ("application/javascript", "// "),
        ("text/x-c++src", "// "),
        ("application/x-sh", "# "),
        ("text/css", "/* "),
        ("application/sql", "-- "),
        ("text/x-matlab", "% "),
        ("text/html", "<!-- "),
        ("application/atom+xml", "<!-- "),
        ("image/svg+xml", "<!-- "),
        ("text/markdown", "<!-- "),
        ("text/x-rst", ".. "),
    ],
)
@pytest.mark.parametrize("path", ["content", "script.m", "notes.txt", "odd.ending", "folder/"])
def test_where_the_name_says_nothing_the_content_type_tells_the_language(
    path: str, content_type: str, opening: str
) -> None:
    assert embed(b"", stamped(path, content_type=content_type)).startswith(f"{opening}omninode-stamp: ".encode())


def test_the_name_comes_before_the_content_type() -> None:
    assert embed(b"", stamped("a.css", content_type="text/x-python")).startswith(b"/* omninode-stamp: ")
    assert "leave embed out" in refusal(b"{}", "a.json", "text/x-python")


@pytest.mark.parametrize(
    "path", ["a.json", "a.csv", "a.txt", "LICENSE", "a.m", "a.v", "a.unheard-of", "a.pdf", "", "/"]
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "text/csv", OCTETS, "", "text/x-asm", "/"])
def test_a_language_without_comments_is_refused_with_the_path_the_type_and_a_remedy(
    path: str, content_type: str
) -> None:
    message = refusal(b"a", path, content_type)
    assert ascii(path) in message
    assert ascii(content_type) in message
    assert "text/x-python" in message
    assert "leave embed out" in message


def test_an_endless_name_is_shown_short_and_printable() -> None:
    message = refusal(b"", "\udc80\n" * 4000, "\n" * 4000)
    assert len(message) < 500
    assert message.isprintable()
    message.encode()


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfea\0", b"caf\xe9", b"\xed\xa0\x80", b"\x89PNG"])
def test_what_is_no_utf8_text_is_refused_and_nothing_is_found_in_it(content: bytes) -> None:
    assert "no UTF-8 text, or has a NUL" in refusal(content, "a.py")
    assert find(content + b"\n" + LINE, "a.py", None) == (content + b"\n" + LINE, [])


def test_every_word_of_the_tables_is_one_that_is_looked_up() -> None:
    assert all(word == word.lower() for table in (NAMES, ENDINGS, LANGUAGES) for word in table)
    for name, syntax in NAMES.items():
        assert syntax_of(f"x/{name.upper()}", None) is syntax
    for ending, syntax in ENDINGS.items():
        assert syntax_of(f"a.{ending}", None) is syntax
    for language, syntax in LANGUAGES.items():
        assert syntax_of(None, f"text/x-{language}") is syntax


BARE_AND_STAMPED = [
    ("a.py", b"", LINE),
    ("a.py", b"a\n", b"a\n" + LINE),
    ("a.py", b"a", b"a\n" + LINE[:-1] + b" nl=1\n"),
    ("a.py", b"a\n\n", b"a\n\n" + LINE),
    ("a.py", b"a\r\nb\r\n", b"a\r\nb\r\n" + LINE[:-1] + b"\r\n"),
    ("a.py", b"a\r\nb", b"a\r\nb\r\n" + LINE[:-1] + b" nl=1\r\n"),
    ("a.py", b"a\r\nb\n", b"a\r\nb\n" + LINE),
    # A lone carriage return ends no line; a \n right after it would make it the end of one.
    ("a.py", b"a\r", b"a\r\r\n" + LINE[:-1] + b" nl=1\r\n"),
    ("a.py", b"a\nb\r", b"a\nb\r\r\n" + LINE[:-1] + b" nl=1\r\n"),
    ("a.py", b"\rb", b"\rb\n" + LINE[:-1] + b" nl=1\n"),
    ("a.py", b"\xef\xbb\xbfa\n", b"\xef\xbb\xbfa\n" + LINE),
    ("a.py", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n" + LINE[:-1] + b" nl=1\n"),
    # A blank line, and not the stamp, is joined to the last line.
    ("a.sh", b"echo a \\\n", b"echo a \\\n\n" + LINE[:-1] + b" nl=1\n"),
    ("Makefile", b"A = b \\\r\n", b"A = b \\\r\n\r\n" + LINE[:-1] + b" nl=1\r\n"),
    ("a.ini", b"a=b\\\n", b"a=b\\\n\n; " + LINE[2:-1] + b" nl=1\n"),
    # A blank line here would belong to the text.
    ("a.yaml", b"a: |+\n  b\\\n", b"a: |+\n  b\\\n" + LINE),
    # A comment of reStructuredText stands alone.
    ("a.rst", b"text\n", b"text\n\n.. " + LINE[2:-1] + b" nl=1\n"),
    ("a.rst", b"text", b"text\n\n.. " + LINE[2:-1] + b" nl=2\n"),
    ("a.rst", b"text\r\n", b"text\r\n\r\n.. " + LINE[2:-1] + b" nl=1\r\n"),
    ("a.rst", b"text\n \n", b"text\n \n.. " + LINE[2:]),
    ("a.rst", b"text\n ", b"text\n \n.. " + LINE[2:-1] + b" nl=1\n"),
    ("a.rst", b"", b".. " + LINE[2:]),
]


@pytest.mark.parametrize(("path", "content", "after"), BARE_AND_STAMPED)
def test_the_line_goes_to_the_end_and_comes_out_again_byte_for_byte(path: str, content: bytes, after: bytes) -> None:
    assert embed(content, stamped(path)) == after
    assert bare(after, path, OCTETS) == content
    assert find(after, path, None)[0] == content
    assert embed(after, stamped(path)) == after


def test_another_stamp_takes_the_place_of_the_one_before() -> None:
    before = embed(b"a", stamped(completed_at=NOW - timedelta(days=1), file_hash=hash_of(b"b")))
    assert embed(before, stamped()) == embed(b"a", stamped())


def test_a_deduplicated_answer_has_the_same_line_as_the_first() -> None:
    first = stamped(completed_at=NOW.replace(microsecond=70))
    again = msgspec.structs.replace(first, deduplicated=True, op_id="019b76da-0000-7000-8000-000000000000")
    assert embed(b"a", again) == embed(b"a", first)
    assert b" at=2026-03-01T12:00:00.000070Z " in embed(b"a", first)


def test_what_was_appended_after_a_stamp_is_content_and_keeps_the_line_end_that_the_stamp_brought() -> None:
    appended = embed(b"a", stamped()) + b"b\n"
    assert find(appended, "a.py", None) == (b"a\nb\n", [Embedded(ID, HASH, "legal.contracts", 2)])
    assert embed(appended, stamped()) == b"a\nb\n" + LINE
    # A line end alone is content too.
    assert bare(embed(b"a", stamped()) + b"\n", "a.py", OCTETS) == b"a\n\n"


def test_all_stamps_are_found_with_their_lines_and_the_last_line_needs_no_end() -> None:
    other = LINE.replace(ID.encode(), b"019b76da-a804-7de7-afb3-000000000000")
    content = LINE + b"a\r\n\r\n" + LINE[:-1] + b"\r\nb\rc\x85\xe2\x80\xa8\n" + other + LINE[:-1]
    stripped, found = find(content.replace(b"\x85", b"\xc2\x85"), "a.py", None)
    assert stripped == b"a\r\n\r\nb\rc\xc2\x85\xe2\x80\xa8\n"
    assert [(each.line, each.stamp_id[-4:]) for each in found] == [(1, "fd14"), (4, "fd14"), (6, "0000"), (7, "fd14")]


def test_of_stamps_one_below_the_other_the_first_tells_what_was_put_before_them() -> None:
    flagged = LINE[:-1] + b" nl=1\n"
    assert bare(b"a\n" + flagged + LINE, "a.py", OCTETS) == b"a"
    assert bare(b"a\n" + LINE + flagged, "a.py", OCTETS) == b"a\n"
    assert bare(flagged + LINE, "a.py", OCTETS) == b""


def test_without_a_path_and_a_type_stamps_of_every_language_are_found() -> None:
    stamps = [b"// ", b"<!-- ", "⍝ ".encode(), b"{% comment %} ", b"* "]
    closings = [b"", b" -->", b"", b" {% endcomment %}", b""]
    lines = [opening + TEXT.encode() + end + b"\n" for opening, end in zip(stamps, closings, strict=True)]
    stripped, found = find(b"a\n".join(lines), None, None)
    assert stripped == b"a\n" * 4
    assert [each.line for each in found] == [1, 3, 5, 7, 9]
    assert find(b"a\n".join(lines), "a.rs", None) == (b"a\n" + b"a\n".join(lines[1:]), [found[0]])


@pytest.mark.parametrize(("path", "content_type"), [("a.json", None), ("a.json", "text/x-python"), (None, OCTETS)])
def test_in_a_language_without_comments_nothing_is_found(path: str | None, content_type: str | None) -> None:
    assert find(LINE, path, content_type) == (LINE, [])


@pytest.mark.parametrize(
    "almost",
    [
        f" # {TEXT}",
        f"#  {TEXT}",
        f"#{TEXT}",
        f"# {TEXT} ",
        f"# {TEXT}\t",
        f"# {TEXT}\r\r",
        f"\ufeff# {TEXT}",
        f"a # {TEXT}",
        f"# # {TEXT}",
        f"// {TEXT}",
        f"# {TEXT} -->",
        f"<!-- {TEXT} -->",
        f"# {TEXT} nl=0",
        f"# {TEXT} nl=3",
        f"# {TEXT}nl=1",
        f"# {TEXT} nl=1 nl=1",
        f"# {TEXT} {TEXT}",
        f"# {TEXT.upper()}",
        f"# {TEXT.replace('v=1', 'v=2')}",
        f"# {TEXT.replace('v=1', 'v=10')}",
        f"# {TEXT.replace('v=1 ', 'v=1  ')}",
        f"# {TEXT.replace(HASH, HASH[1:])}",
        f"# {TEXT.replace(HASH, HASH.upper())}",
        f"# {TEXT.replace(HASH, HASH + '0')}",
        f"# {TEXT.replace(ID, ID.upper())}",
        f"# {TEXT.replace(ID, ID.replace('-', ''))}",
        f"# {TEXT.replace(ID, '')}",
        f"# {TEXT.replace('legal.contracts', '')}",
        f"# {TEXT.replace('legal.contracts', 'legal..contracts')}",
        f"# {TEXT.replace('legal.contracts', '.legal')}",
        f"# {TEXT.replace('legal.contracts', 'Legal')}",
        f"# {TEXT.replace('legal.contracts', 'a--b')}",
        f"# {TEXT.replace('legal.contracts', 'a+b')}",
        f"# {TEXT.replace('legal.contracts', 'a-+b')}",
        f"# {TEXT.replace('legal.contracts', 'a' * 256)}",
        f"# {TEXT.replace('Z', '')}",
        f"# {TEXT.replace('Z', '+00:00')}",
        f"# {TEXT.replace('2026', '٢٠٢٦')}",
        f"# {TEXT[:-1]}",
    ],
)
def test_a_line_that_is_almost_a_stamp_is_content(almost: str) -> None:
    content = f"a\n{almost}\nb\n".encode()
    assert find(content, "a.py", None) == (content, [])
    assert bare(content, "a.py", OCTETS) == content
    # Beside a good one, too.
    assert find(LINE + content + LINE, "a.py", None)[0] == content


def test_a_carriage_return_alone_ends_no_stamp_line_at_the_end_either() -> None:
    content = LINE[:-1] + b"\r"
    assert find(content, "a.py", None) == (content, [])
    assert bare(embed(content, stamped()), "a.py", OCTETS) == content


@pytest.mark.parametrize("namespace", ["-", "--", "a--b", "---.--", "-" * 255, "a-b.c_d.0"])
def test_hyphens_of_a_namespace_neither_break_an_xml_comment_nor_get_lost(namespace: str) -> None:
    content = embed(b"<a/>", stamped("a.xml", namespace=namespace))
    assert ElementTree.fromstring(content).tag == "a"
    assert [each.namespace for each in find(content, "a.xml", None)[1]] == [namespace]


@pytest.mark.parametrize(
    "fields",
    [
        {"namespace": "a\nimport os"},
        {"namespace": "a */ b"},
        {"namespace": "a -->"},
        {"namespace": "a+b"},
        {"namespace": "\ud800"},
        {"stamp_id": f"{ID}\n"},
        {"stamp_id": "1"},
        {"file_hash": HASH + "\\"},
        {"completed_at": NOW.replace(tzinfo=None)},
    ],
)
def test_a_value_that_would_leave_the_comment_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="fits in no line"):
        embed(b"a\n", stamped("a.py", **fields))


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("a.php", b"", "PHP code"),
        ("a.php", b"<p>Hello</p>\n", "PHP code"),
        ("a.php", b"<?php echo 1; ?>\n", "PHP code"),
        ("a.php", b"<?php echo 1 ?>\n</html>\n", "PHP code"),
        ("a.php", b"<?phpinfo();\n", "PHP code"),
        ("a.php", b"<?php echo '?>';\n", "PHP code"),
        ("a.php", b"<?php echo 1; __HALT_compiler();\ndata", "__halt_compiler"),
        ("a.pl", b"print <DATA>;\n__DATA__\na\n", "__DATA__"),
        ("a.pm", b"1;\n__END__\n", "__END__"),
        ("a.pm", b"1;\n\n=head1 NAME\n\nA\n", "=cut"),
        ("a.pm", b"=pod\n\nA\n\n=cut\n\n=head1 B\n", "=cut"),
        ("a.pl", b":- module(a, []).\n", "Prolog"),
        ("a.rb", b"DATA.read\n__END__\na\n", "__END__"),
        ("a.ps1", b"a\r\n# SIG # Begin signature block\r\n# a\r\n# SIG # End signature block\r\n", "signed"),
        ("a.bat", b"echo a ^\r\n", "^"),
        ("a.bat", b"echo a ^\r\n\r\n", "^"),
        ("a.yml", b"$ANSIBLE_VAULT;1.1;AES256\n3632\n", "encrypted"),
        ("a.yml", b"--- |\ntext\n", "scalar"),
        ("a.yml", b"a: b\n---\n!t &b >-  # note\r\ntext\n", "scalar"),
        ("fonts.conf", b'\xef\xbb\xbf\n<?xml version="1.0"?>\n<a/>\n', "XML"),
        ("de.ts", b'<?xml version="1.0"?>\n<TS/>\n', "XML"),
        ("a.sh", b"echo a\\", "backslash"),
        ("Makefile", b"A = a\r\nB = b \\", "backslash"),
    ],
)
def test_a_content_where_a_line_at_the_end_would_be_no_comment_is_refused(
    path: str, content: bytes, reason: str
) -> None:
    message = refusal(content, path)
    assert reason in message
    assert "leave embed out" in message
    # Also where it was stamped when it ended otherwise.
    syntax = syntax_of(path, None)
    assert syntax is not None
    assert reason in refusal(syntax.opening + TEXT.encode() + b"\n" + content, path)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.php", b"<?php\necho 1;\n"),
        ("a.php", b"<p>a</p>\n<?= 1 ?>\n<?PHP echo 1;"),
        ("a.php", b"<?php echo 1 ?><?= 2"),
        ("a.pl", b"print 1;\n=pod\n\n=head1 A\n\n=cut\n\nprint 2;\n"),
        ("a.pl", b"my %a = (b=>1);\n$a =1;\n"),
        ("a.bat", b"cd C:\\\r\n"),
        ("a.bat", b"cd C:\\"),
        ("a.yml", b"a: |\n  text\nb:\n  - >-\n    c\n"),
        ("a.yml", b"- |\n  a\n--- a\n"),
        ("a.c", b"#define A \\"),
        ("a.tex", b"a \\\\"),
    ],
)
def test_a_content_where_it_is_a_comment_takes_it(path: str, content: bytes) -> None:
    assert bare(embed(content, stamped(path)), path, OCTETS) == content


class Seen(HTMLParser):
    """Tags and text of a page, in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.seen += data.split()


def settings(text: bytes) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser()
    parser.read_string(text.decode())
    return {name: dict(section) for name, section in parser.items()}


def rows(script: bytes) -> list[object]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script.decode())
        return connection.execute("SELECT * FROM a").fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "content", "read"),
    [
        ("a.py", b'"""A."""\n\ndef f():\n\treturn 1', lambda text: ast.dump(ast.parse(text))),
        ("a.py", b"\xef\xbb\xbfif 1:\r\n  a = (1,\r\n  2)\r\n", lambda text: ast.dump(ast.parse(text))),
        ("a.toml", b"[a]\nb = 'c'", tomllib_loads := lambda text: tomllib.loads(text.decode())),
        ("a.toml", b"a = '''\n\n'''\r\n", tomllib_loads),
        ("a.yaml", b"a: |+\n  b\n\n\nc: >\n  d\n", yaml.safe_load),
        ("a.yaml", b"a:\n- b\n-   c: d\n...\n", yaml.safe_load),
        ("a.yaml", b"plain text\n", yaml.safe_load),
        ("a.xml", b'<?xml version="1.0"?>\n<a b="c">d</a>', lambda text: ElementTree.canonicalize(text.decode())),
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>\n', lambda text: ElementTree.canonicalize(text.decode())),
        ("a.html", b"<html><p>a<p>b</html>\n", lambda text: Seen(text).seen),
        ("a.ini", b"[a]\nb = c\n  d\n[e]\nf: g", settings),
        ("a.cfg", b"[a]\nb = c\n  d", settings),
        ("a.sql", b"CREATE TABLE a (b); INSERT INTO a VALUES ('c')", rows),
    ],
)
def test_a_reader_of_the_language_reads_the_same_with_the_stamp(path: str, content: bytes, read: object) -> None:
    assert callable(read)
    after = embed(content, stamped(path, namespace="a--b"))
    assert b"omninode-stamp" in after
    assert read(after) == read(content)


@pytest.mark.parametrize(
    ("path", "content", "command"),
    [
        ("a.sh", b"echo a \\\n", ["sh"]),
        ("a.sh", b"cat <<E\na\nE", ["sh"]),
        ("a.sh", b"echo a &&\n  echo 'b\n'\n", ["sh"]),
        ("Makefile", b"a:\n\t@echo a \\\n", ["make", "-f"]),
        ("Makefile", b"a:\n\t@echo $(B)\nB = c \\\n  d \\\n", ["make", "-f"]),
    ],
)
def test_a_program_does_the_same_with_the_stamp(tmp_path: Path, path: str, content: bytes, command: list[str]) -> None:
    answers = []
    for text in (content, embed(content, stamped(path))):
        (tmp_path / path).write_bytes(text)
        run = subprocess.run([*command, path], cwd=tmp_path, capture_output=True, check=True)
        answers.append((run.stdout, run.stderr))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "piece",
    [
        b"\n",
        b"\r",
        b"omninode-stamp: v=1 ",
        b"# omninode-stamp: v=1 \n",
        LINE,
        LINE[2:],
        b"a\n" + LINE[:-1] + b" nl=1\n",
        LINE[:130] + b"-" * 600 + b"\n",
        b"\n=cut",
        b"--- !a &b ",
        b"|- - ",
        b"?><?ph",
        b"^ ",
        b"\\",
    ],
)
@pytest.mark.parametrize("path", ["a.py", "a.pl", "a.php", "a.bat", "a.yml", "a.rst", None])
def test_megabytes_of_anything_are_answered(piece: bytes, path: str | None) -> None:
    content = piece * (2 * MIB // len(piece))
    stripped, found = find(content, path, None)
    assert len(stripped) <= len(content)
    assert find(stripped, path, None) == (stripped, [])
    # A mebibyte has some six thousand stamps: all of them are told.
    assert found == [] or len(found) > 6000
