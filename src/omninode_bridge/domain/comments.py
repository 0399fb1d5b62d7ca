"""How a language writes a comment that is one line of its own, and where such a line can't end a file.

The language is told by the file's name: a well-known one such as Makefile, or else its ending; and where the name says
nothing, by the content type. Endings that several languages share (`.m`, `.v`, `.d`, `.cls`, `.inc`, `.pro`, `.tpl`)
are left out, so there the content type decides: a comment in the wrong language is worse than none.

The content is only asked whether a comment at its end would be something else than a comment. What is still open on its
last line (a here-document, a string, a fenced block) is not looked for: that takes a parser for each language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

__all__ = ["ENDINGS", "LANGUAGES", "MARKS", "NAMES", "Syntax", "syntax_of"]


class Syntax(msgspec.Struct, frozen=True, gc=False):
    """A comment line is `opening`, the text, `closing`.

    `after_blank`: it is one only after a blank line. `joins`: a backslash that ends a line joins the next one to it,
    comment or not. `objection` tells why a content can't take a comment at its end; None where it can.
    """

    opening: bytes
    closing: bytes = b""
    after_blank: bool = False
    joins: bool = False
    objection: Callable[[bytes], str | None] | None = None


def syntax_of(file_path: str | None, content_type: str | None) -> Syntax | None:
    """Return how a file's language writes a comment; None where it has none, or nobody knows."""
    name = (file_path or "").replace("\\", "/").rpartition("/")[2].lower()
    if name in NAMES:
        return NAMES[name]
    stem, dot, ending = name.rpartition(".")
    if dot:
        double = f"{stem.rpartition('.')[2]}.{ending}"
        for known in (double, ending):
            if known in ENDINGS:
                return ENDINGS[known]
        if name.startswith(_FAMILIES) or (ending == "txt" and name.startswith(("requirements", "constraints"))):
            return _HASH
    return _of_type(content_type or "")


def _of_type(content_type: str) -> Syntax | None:
    major, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    suffix = subtype.rpartition("+")[2]
    if suffix in {"xml", "yaml"}:
        return ENDINGS[suffix]
    if major not in {"application", "text"}:
        return None
    language = subtype.removeprefix("x-")
    return LANGUAGES[language] if language in LANGUAGES else ENDINGS.get(language)


def _holds_xml(content: bytes) -> str | None:
    # fonts.conf, Qt's translations (.ts): an ending that mostly stands for something else.
    return (
        "it begins as XML, which its name does not"
        if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:5] == b"<?xml"
        else None
    )


def _leaves_php(content: bytes) -> str | None:
    # A `?>` inside a string does not end PHP, which only a parser could tell; after an opening tag there is no doubt.
    if not _PHP_OPENS.search(content, content.rfind(b"?>") + 1):
        return "it does not end in PHP code (a closing ?> at its end may be left out)"
    return "it has data behind __halt_compiler" if b"__halt_compiler" in content.lower() else None


def _has_data(content: bytes) -> str | None:
    mark = next((mark for mark in (b"__END__", b"__DATA__") if mark in content), None)
    return f"what follows {mark.decode()} is read by the program as data" if mark else None


def _is_odd_perl(content: bytes) -> str | None:
    if _PROLOG.search(content):
        return "it is Prolog, by a line that begins with :-"
    # A paragraph of documentation lasts until =cut, to the end of the file if there is none.
    if _POD.search(content, content.rfind(b"\n=cut") + 1 + len(b"=cut") if b"\n=cut" in content else 0):
        return "it ends in a POD section: close that with =cut"
    return _has_data(content)


def _is_signed(content: bytes) -> str | None:
    return "it is signed, and would not be any more" if b"# SIG # Begin signature block" in content else None


def _goes_on(content: bytes) -> str | None:
    # A caret escapes the line end, a second one behind it too: no number of blank lines ends that in general.
    return "its last line goes on after a ^: remove that" if content.rstrip().endswith(b"^") else None


def _is_one_scalar(content: bytes) -> str | None:
    if content.startswith(b"$ANSIBLE_VAULT;"):
        return "it is encrypted, and would be unreadable"
    # A block scalar in a mapping is indented, and a comment at the margin ends it; a whole document need not be.
    return "a document in it is one block scalar" if _ROOT_SCALAR.search(content) else None


_PHP_OPENS = re.compile(rb"<\?(?:php(?=\s)|=)", re.IGNORECASE)
_PROLOG = re.compile(rb"^:-[ \t]", re.MULTILINE)
_POD = re.compile(rb"^=[A-Za-z]", re.MULTILINE)
_ROOT_SCALAR = re.compile(rb"^(?:---[ \t]+)?(?:[!&][^ \t\r\n]*[ \t]+){0,2}[|>][-+0-9]*[ \t]*(?:#.*)?\r?$", re.MULTILINE)

_HASH = Syntax(b"# ", joins=True, objection=_holds_xml)
_HASH_PERL = Syntax(b"# ", objection=_is_odd_perl)
_HASH_POWERSHELL = Syntax(b"# ", objection=_is_signed)
_HASH_RUBY = Syntax(b"# ", joins=True, objection=_has_data)
_HASH_YAML = Syntax(b"# ", objection=_is_one_scalar)
_SLASHES = Syntax(b"// ", objection=_holds_xml)
_SLASHES_PHP = Syntax(b"// ", objection=_leaves_php)
_SEMICOLON = Syntax(b"; ", joins=True, objection=_holds_xml)
_PERCENT = Syntax(b"% ")
_DASHES = Syntax(b"-- ")
_EXCLAMATION = Syntax(b"! ")
_APOSTROPHE = Syntax(b"' ")
_QUOTE = Syntax(b'" ')
_XML = Syntax(b"<!-- ", b" -->")
_STARS = Syntax(b"/* ", b" */")
_ROUND = Syntax(b"(* ", b" *)")
_BRACES = Syntax(b"{{!-- ", b" --}}")
_DOTS = Syntax(b".. ", after_blank=True)
# Without the @, a batch file that echoes its commands would show it.
_REM = Syntax(b"@REM ", objection=_goes_on)

# Makefile.am, .env.local: names that go on.
_FAMILIES = (".env.", "containerfile.", "dockerfile.", "gemfile.", "makefile.")


def _words(table: dict[Syntax | None, str]) -> dict[str, Syntax | None]:
    words: dict[str, Syntax | None] = {}
    for syntax, line in table.items():
        for word in line.split():
            assert word not in words, f"{word} is listed twice"
            words[word] = syntax
    return words


NAMES: Mapping[str, Syntax | None] = _words(
    {
        _HASH: """
            .bash_aliases .bash_login .bash_logout .bash_profile .bashrc .bazelignore .bazelrc .clang-format
            .clang-tidy .coveragerc .dockerignore .editorconfig .env .envrc .eslintignore .flake8 .gitattributes
            .gitconfig .gitignore .gitmodules .helmignore .inputrc .kshrc .mailmap .npmignore .npmrc .prettierignore
            .profile .pylintrc .tool-versions .wgetrc .zlogin .zlogout .zprofile .zshenv .zshrc apkbuild bsdmakefile
            buck build caddyfile cmakelists.txt codeowners containerfile crontab dockerfile earthfile fstab
            gnumakefile hosts justfile kbuild kconfig makefile meson_options.txt meson.build meson.options
            module.bazel pkgbuild robots.txt sconscript sconstruct snakefile tiltfile workspace wscript
        """,
        _HASH_RUBY: """
            .irbrc .pryrc appfile appraisals berksfile brewfile capfile dangerfile fastfile gemfile guardfile podfile
            rakefile thorfile vagrantfile
        """,
        _SLASHES: "go.mod go.work jenkinsfile",
        _QUOTE: ".exrc .gvimrc .vimrc _vimrc",
        _XML: "app.config nuget.config packages.config web.config",
    }
)
"""Syntax by the whole name of a file, in lower case."""

ENDINGS: Mapping[str, Syntax | None] = _words(
    {
        # Python, shells, configuration, and those that took after them.
        _HASH: """
            am automount awk bash bats bazel bbclass bqn bzl capnp cfg cmake coffee conf containerfile cr csh desktop
            device dockerfile ebuild eclass env ex exs feature fish gd gnuplot gp gql graphql graphqls hcl hocon io
            janet jl jq just ksh ldif link mak mk mojo mount n3 netdev network nim nims ninja nix nomad nq nt org
            pbtxt pc plot plt po pot pp preseed promql properties pxd pxi py pyi pyw pyx r rego repo rnc robot rpy rq
            rules sage scope sed service sh sieve slice smk socket sparql spec star swap target tcl tcsh textproto tf
            tfbackend tfvars timer tk toml trig ttl usda vy zeek zsh
        """,
        _HASH_YAML: "eyaml raml sls yaml yml",
        _HASH_PERL: "p6 perl pl pl6 pm pm6 psgi raku rakumod rakutest t",
        _HASH_RUBY: "gemspec podspec rake rb rbi rbs ru thor",
        _HASH_POWERSHELL: "ps1 psd1 psm1",
        # C, and those that took after it.
        _SLASHES: """
            adoc aidl as asciidoc avdl bicep c c++ cairo cc cjs comp cpp cppm cs csx cts cu cue cuh cxx cyp cypher
            dart di do dot fbs frag fs fsi fsx gdshader geom gleam glsl go gradle groovy gv h h++ hh hlsl hpp hx hxx
            idl ino ipp ixx java js json5 jsonc jsonnet jsx kql kt kts kusto libsonnet metal mjs move mts odin pde
            prisma proto qml rs sass sbt sc scad scala scss smithy sol stan styl sv svh swift tcc td thrift tpp ts tsx
            typ vala vapi vert vh webidl wgsl wren xtend yang zig
        """,
        _SLASHES_PHP: "php php3 php4 php5 php7 php8 phtml",
        _STARS: "css dts dtsi ld lds less pcss postcss rex rexx s sas",
        _ROUND: "dpr lpr ml mli mll pas sml thy wl wls",
        # Lisp, assembly, INI files.
        _SEMICOLON: """
            abnf ahk asd asm au3 clj cljc cljs edn el fasm fnl hy inf ini lisp ll lsp nasm nsh nsi reg rkt scm ss zone
        """,
        Syntax(b";; "): "wast wat",
        _PERCENT: "bib eps erl escript hrl latex ltx prolog ps sty tex tikz xrl yrl",
        Syntax(b"%% "): "mermaid mmd",
        _DASHES: """
            ada adb ads agda applescript cabal cql ddl dhall dml elm hs hsc idr lean lua luau moon mysql pgsql pkb pks
            plsql psql purs rockspec sql tsql vhd vhdl
        """,
        _EXCLAMATION: "f f03 f08 f77 f90 f95 for fpp ftn",
        # From column 7, where the fixed format wants it and the free one allows it.
        Syntax(b"      *> "): "cbl cob cobol cpy",
        Syntax(b"* "): "abap",
        _APOSTROPHE: "bas brs frm plantuml puml vb vbs",
        _QUOTE: "vim",
        _REM: "bat cmd",
        Syntax(b"\\ "): "4th forth fth",
        Syntax(b"NB. "): "ijs",
        Syntax("⍝ ".encode()): "apl dyalog",
        # Markup. XML allows comments after its root element.
        _XML: """
            astro atom axaml csproj dbk dita ditamap docbook dtd fodg fodp fods fodt fsproj fxml gpx htm html iml jnlp
            kml launch markdown md mdown mjml mkd musicxml nuspec plist pom props qmd qrc rdf resx rmd rng rss sgml
            shtml storyboard svelte svg targets tei tmx ui urdf vbproj vcxproj vue wadl wsdl wsf xacro xaml xbrl xht
            xhtml xib xlf xliff xmi xml xsd xsl xslt
        """,
        _DOTS: "rst",
        Syntax(b"(: ", b" :)"): "xq xqm xquery xqy",
        Syntax(b"{/* ", b" */}"): "mdx",
        # Templates, in their own language: what they make has no comment. Where there is a sign for it, the line end
        # before the comment goes with it; elsewhere what they make may end in one more.
        Syntax(b"{#- ", b" #}"): "j2 jinja jinja2 njk nunjucks tera twig",
        _BRACES: "handlebars hbs",
        Syntax(b"{{! ", b" }}"): "mustache",
        Syntax(b"{{- /* ", b" */}}"): "gohtml gotmpl",
        Syntax(b"{{-- ", b" --}}"): "blade.php",
        Syntax(b"{% comment %} ", b" {% endcomment %}"): "liquid",
        Syntax(b"<%# ", b" %>"): "ejs erb",
        Syntax(b"<%!-- ", b" --%>"): "eex heex",
        Syntax(b"<%-- ", b" --%>"): "ascx ashx asmx aspx gsp jsp jspf tag",
        Syntax(b"<#-- ", b" -->"): "ftl ftlh ftlx",
        Syntax(b"<!--- ", b" --->"): "cfm cfml",
        Syntax(b"@* ", b" *@"): "cshtml razor vbhtml",
        Syntax(b"## "): "mako vm vtl",
        Syntax(b"-# "): "haml",
        Syntax(b"/ "): "slim",
        Syntax(b"//- "): "jade pug",
        # None, whatever the content type says.
        None: "csv geojson har ipynb json jsonl jsonld map ndjson topojson tsv webmanifest",
    }
)
"""Syntax by what stands behind the last dot of a name, or the last but one; in lower case."""

LANGUAGES: Mapping[str, Syntax | None] = _words(
    {
        _HASH: """
            coffeescript crystal cython dockerfile-config elixir gdscript gherkin java-properties julia kconfig
            makefile meson n-quads n-triples nginx-conf nimrod python python-code python2 python3 rpm-spec rsrc
            script.python script.sh shell shellscript sparql-query terraform turtle uri-list
        """,
        _HASH_PERL: "perl script.perl",
        _HASH_RUBY: "ruby script.ruby",
        _HASH_POWERSHELL: "powershell",
        _SLASHES: """
            actionscript c++hdr c++src chdr csharp csrc ecmascript fsharp glslsrc gosrc haxe javascript kotlin node
            objc objective-c objectivec objectivec++ protobuf rust rustsrc systemverilog typescript typst verilog
            vnd.dart vnd.graphviz
        """,
        _SLASHES_PHP: "httpd-php httpd-php-source",
        _ROUND: "coq mathematica ocaml pascal standardml",
        _SEMICOLON: "clojure clojurescript common-lisp dns elisp emacs-lisp llvm racket scheme windows-registry",
        _STARS: "less-css",
        _PERCENT: "bibtex erlang matlab postscript stex",
        _DASHES: "haskell idris lean4 plpgsql postgresql purescript vnd.lua",
        _EXCLAMATION: "fortran",
        _APOSTROPHE: "vba vbnet vbscript",
        _REM: "msdos-batch",
        _XML: "xml-dtd xml-external-parsed-entity",
        _DOTS: "prs.fallenstein.rst restructuredtext",
        _BRACES: "handlebars-template",
        # Every assembler has its own; S is assembly or an older R.
        None: "asm s",
    }
)
"""Syntax by content type, without its `text/x-` or `application/x-`, where ENDINGS lacks that or means another."""

MARKS = frozenset(
    (syntax.opening, syntax.closing)
    for table in (NAMES, ENDINGS, LANGUAGES)
    for syntax in table.values()
    if syntax is not None
)
"""(opening, closing) in every language."""
