"""Find the files under the paths that a user typed, and guess their types. Blocking: callers run it in a thread.

The rules it keeps:

1. Each path is named as it was typed, normalised: `walk(["./docs"])` finds `docs/a.txt`. Each is found once, however
   the typed paths overlap.
2. Symbolic links are followed, to files and to folders, since what a path opens is what its stamp is of. A link that
   leads to a folder it lies in, to itself or to nothing is a problem.
3. What can't be stamped (unreadable, not a regular file, a name that is not UTF-8, …) is a Problem and stops nothing.
4. Memory is bounded by the batch and by the depth of the tree: of one folder, at most ENTRIES_MAX entries are held.
5. The order is the same at each run: by name within a folder. A folder of more than ENTRIES_MAX entries comes in
   pieces as the file system lists them, each sorted.

A glob of `exclude` is read much as git reads .gitignore. Without a slash it is matched with the name of every file and
folder (and of the typed paths themselves); with one, with the path below the typed folder. `*` and `?` stop at
slashes, `**` does not, a slash at the end asks for a folder. A folder that matches is not entered.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from omninode_bridge.domain.errors import BridgeError, ContentUnavailable, InvalidInput, NotFound
from omninode_bridge.domain.names import DEFAULT_CONTENT_TYPE, check_file_path, normalise_path
from omninode_bridge.domain.stamp import FileFacts

__all__ = ["Batch", "Found", "Problem", "Walk", "guess_content_type", "walk"]

BATCH_FILES = 1000
BATCH_BYTES_MAX = 256 * 1024**2
"""A batch ends when its files have this many bytes: each is hashed, recorded and reported in bearable time."""
ENTRIES_MAX = 16_384
"""A folder's entries held and sorted at a time: about 5 MiB."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """A regular file: `file_path` as it is recorded, `os_path` as it is opened."""

    file_path: str
    os_path: str
    facts: FileFacts


class Problem(msgspec.Struct, frozen=True):
    """Something that can't be stamped, and why. `path` as it would be recorded; bytes that are not UTF-8 in hex."""

    path: str
    error: BridgeError


type Batch = tuple[list[Found], list[Problem]]
type Walk = Callable[[Sequence[str], Sequence[str]], Iterator[Batch]]
"""`walk` with its batch size settled."""


def walk(paths: Sequence[str], exclude: Sequence[str] = (), batch: int = BATCH_FILES) -> Iterator[Batch]:
    """Yield what is found under `paths` (files and folders), in batches of `batch` files and problems, or of 256 MiB.

    Raises InvalidInput, before anything is read, for a glob that is none.
    """
    return _batches(_Walk(paths, exclude).items(), batch)


def guess_content_type(path: str) -> str:
    """Return the media type that a path's last suffix stands for, on every machine the same."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    if dot > 0:
        return _CONTENT_TYPES.get(name[dot:].lower(), DEFAULT_CONTENT_TYPE)
    return _CONTENT_TYPES_BY_NAME.get(name.lower(), DEFAULT_CONTENT_TYPE)


def _check_dots(typed: str, file_path: str, status: os.stat_result) -> None:
    """Raise InvalidInput where `..` follows a link: the path as recorded would name another file than was read."""
    if ".." not in typed.split("/"):
        return
    try:
        named = os.stat(file_path)
    except OSError:
        named = None
    if named is None or (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
        raise InvalidInput(
            f"{typed!r} leads through a link, and {file_path!r} is not the same file: type the path without `..`",
            field="file_path",
        )


def _batches(items: Iterator[Found | Problem], batch: int) -> Iterator[Batch]:
    found: list[Found] = []
    problems: list[Problem] = []
    size = 0
    for item in items:
        if isinstance(item, Found):
            found.append(item)
            size += item.facts.size
        else:
            problems.append(item)
        if len(found) + len(problems) == batch or size >= BATCH_BYTES_MAX:
            yield found, problems
            found, problems, size = [], [], 0
    if found or problems:
        yield found, problems


class _Folder(NamedTuple):
    """A folder being read. `prefix` comes before the names in it, `below` the same without the typed path."""

    entries: Iterator[os.DirEntry[str]]
    prefix: str
    below: str
    identity: tuple[int, int]


class _Walk:
    def __init__(self, paths: Sequence[str], exclude: Sequence[str]) -> None:
        # Two ways to type one path are one root.
        self._roots = {normalise_path(typed): typed for typed in reversed(paths)}
        self._order = dict.fromkeys(map(normalise_path, paths))
        self._excluded = _matcher(exclude)

    def items(self) -> Iterator[Found | Problem]:
        for file_path in self._order:
            yield from self._root(file_path, self._roots[file_path])

    def _root(self, file_path: str, typed: str) -> Iterator[Found | Problem]:
        name = file_path.rpartition("/")[2]
        try:
            check_file_path(typed)
            status = os.stat(typed)
            _check_dots(typed, file_path, status)
        except BridgeError as error:
            yield Problem(_shown(file_path), error)
            return
        except OSError as error:
            yield Problem(_shown(file_path), _unreadable(typed, error, typed=True))
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        # `.` and `..` name where to look, not what to look at.
        if self._excluded and name not in {"", ".", ".."} and self._excluded(name, is_folder):
            return
        if is_folder:
            yield from self._tree(file_path, typed, (status.st_dev, status.st_ino))
        else:
            yield _file(file_path, typed, status)

    def _tree(self, root: str, typed: str, identity: tuple[int, int]) -> Iterator[Found | Problem]:
        """Walk depth first, without recursion: a tree may be deeper than the interpreter's stack."""
        others = len(self._roots) > 1
        excluded = self._excluded
        stack: list[_Folder] = []
        try:
            prefix = "" if root == "." else root.rstrip("/") + "/"
            stack.append(_Folder(_sorted_entries(typed), prefix, "", identity))
        except OSError as error:
            yield Problem(_shown(root), _unreadable(root, error))
        while stack:
            current = stack[-1]
            try:
                entry = next(current.entries, None)
            except OSError as error:
                folder = current.prefix.removesuffix("/") or root
                yield Problem(_shown(folder), _unreadable(folder, error))
                entry = None
            if entry is None:
                stack.pop()
                continue
            name = entry.name
            file_path = current.prefix + name
            if others and file_path in self._roots:
                continue
            try:
                # Of a plain file or folder the listing tells the kind; only a link costs a call here.
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if excluded and excluded(current.below + name, is_folder):
                continue
            try:
                check_file_path(file_path)
                status = entry.stat()
                if not is_folder:
                    yield _file(file_path, entry.path, status)
                    continue
                inside = (status.st_dev, status.st_ino)
                if any(above.identity == inside for above in stack):
                    raise ContentUnavailable(
                        f"{file_path!r} is a link to a folder that it lies in: remove it, or exclude it",
                        field="file_path",
                    )
                below = f"{current.below}{name}/"
                stack.append(_Folder(_sorted_entries(entry.path), f"{file_path}/", below, inside))
            except BridgeError as error:
                yield Problem(_shown(file_path), error)
            except OSError as error:
                yield Problem(_shown(file_path), _unreadable(file_path, error))


def _sorted_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Open a folder and return an iterator over its entries; raises OSError at once when it can't be opened."""
    listing = os.scandir(folder)
    return _pieces(listing)


def _pieces(listing: os._ScandirIterator[str]) -> Iterator[os.DirEntry[str]]:
    with listing:
        while piece := sorted(islice(listing, ENTRIES_MAX), key=_name):
            # A folder that was read to its end needs no descriptor while those in it are walked.
            if len(piece) < ENTRIES_MAX:
                listing.close()
            yield from piece


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _file(file_path: str, os_path: str, status: os.stat_result) -> Found | Problem:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        error = ContentUnavailable(
            f"{file_path!r} is {kind}: only regular files are stamped; exclude it", field="file_path"
        )
        return Problem(_shown(file_path), error)
    facts = FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    return Found(file_path, os_path, facts)


_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def _unreadable(path: str, error: OSError, *, typed: bool = False) -> BridgeError:
    if error.errno == errno.ELOOP:
        message = f"{path!r} is a link that leads back to itself: remove it, or exclude it"
    elif error.errno == errno.ENOENT and os.path.islink(error.filename or path):
        message = f"{path!r} is a link to nothing: remove it, or exclude it"
    elif error.errno in {errno.ENOENT, errno.ENOTDIR} and typed:
        return NotFound(f"no such file or folder: {path!r}: check the spelling", field="paths")
    elif error.errno == errno.ENOENT:
        message = f"{path!r} was removed while its folder was being read: run again"
    elif error.errno in {errno.EACCES, errno.EPERM}:
        message = f"cannot read {path!r}: {error.strerror}: let this user read it, or exclude it"
    else:
        message = f"cannot read {path!r}: {error.strerror or error}: exclude it, or make it readable"
    return ContentUnavailable(message, field="file_path")


def _shown(path: str) -> str:
    """Return a path in valid Unicode, undecodable bytes in hex."""
    return path if path.isascii() else os.fsencode(path).decode(errors="backslashreplace")


def _matcher(globs: Sequence[str]) -> Callable[[str, bool], bool] | None:
    """Return a test of (path below the typed folder, is it a folder), or None when nothing is excluded."""
    if not globs:
        return None
    matches = re.compile("|".join(map(_pattern, globs)), re.DOTALL).fullmatch
    return lambda below, is_folder: matches(f"{below}/" if is_folder else below) is not None


def _pattern(glob: str) -> str:
    """Translate a glob; in what it matches, a folder's path ends with a slash."""
    body = glob.rstrip("/")
    if not body:
        raise InvalidInput(f"{glob!r} is no glob: use a name or a path, such as *.log or build/", field="exclude")
    anywhere = "(?:.*/)?" if "/" not in body else ""
    end = "/" if glob.endswith("/") else "/?"
    parts = [_translated(part) for part in _PARTS.findall(body.removeprefix("/"))]
    return f"(?:{anywhere}{''.join(parts)}{end})"


_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]/]*\]|.", re.DOTALL)


def _translated(part: str) -> str:
    match part:
        case "**/":
            return "(?:.*/)?"
        case "**":
            return ".*"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
    if part.startswith("[") and len(part) > 1:
        negated, members = ("^/", part[2:-1]) if part.startswith("[!") else ("", part[1:-1])
        return f"[{negated}{re.sub(r'([\\\[\]^&~|])', r'\\\1', members)}]"
    return re.escape(part)


# From IANA's registry where it has one, else what the tools of that format use. Here too: what CPython's own table
# says differently in 3.12 and 3.13, so that another interpreter finds no file changed.
_MORE_CONTENT_TYPES = {
    "application/epub+zip": ".epub",
    "application/gzip": ".gz .tgz",
    "application/java-archive": ".jar",
    "application/json": ".json .ipynb .geojson",
    "application/pdf": ".pdf",
    "application/sql": ".sql",
    "application/toml": ".toml",
    "application/typescript": ".ts .tsx",
    "application/vnd.apache.arrow.file": ".arrow .feather",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.sqlite3": ".sqlite .sqlite3 .db",
    "application/x-7z-compressed": ".7z",
    "application/x-bzip2": ".bz2",
    "application/x-ndjson": ".jsonl .ndjson",
    "application/x-sh": ".sh .bash",
    "application/x-xz": ".xz",
    "application/yaml": ".yaml .yml",
    "application/zip": ".zip .whl .npz",
    "application/zstd": ".zst",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg .oga",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/webp": ".webp",
    "text/css": ".css .scss",
    "text/javascript": ".js .mjs .cjs .jsx",
    "text/markdown": ".md .markdown",
    "text/plain": ".txt .log .cfg .conf .ini .env .lock .properties",
    "text/rtf": ".rtf",
    "text/x-c": ".c .h",
    "text/x-c++": ".cc .cpp .cxx .hh .hpp",
    "text/x-csharp": ".cs",
    "text/x-go": ".go",
    "text/x-java": ".java",
    "text/x-kotlin": ".kt .kts",
    "text/x-php": ".php",
    "text/x-python": ".py .pyi .pyw",
    "text/x-rst": ".rst",
    "text/x-ruby": ".rb",
    "text/x-rust": ".rs",
    "text/x-swift": ".swift",
    "video/x-matroska": ".mkv",
}
# No files are read: the machine's own tables would make the answer depend on the machine.
_CONTENT_TYPES = mimetypes.MimeTypes(filenames=()).types_map[True] | {
    suffix: content_type for content_type, suffixes in _MORE_CONTENT_TYPES.items() for suffix in suffixes.split()
}
_PLAIN_NAMES = (
    ".dockerignore .editorconfig .env .gitattributes .gitignore "
    "authors changelog copying dockerfile license licence makefile notice readme"
)
_CONTENT_TYPES_BY_NAME = dict.fromkeys(_PLAIN_NAMES.split(), "text/plain")
