r"""`export`: the latest stamp of each path of a namespace, for other tools.

`b3sums` is what Debian's b3sum prints and checks: digest, two spaces, path; a path with a newline or a backslash is
escaped, and the line begins with a backslash. What b3sum can't check is named and left out.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from omninode_bridge.cli.output import complain, ndjson, write
from omninode_bridge.cli.running import FINE, NO, opened, run
from omninode_bridge.domain.errors import InvalidInput, NotFound, ServiceUnavailable
from omninode_bridge.domain.names import DEFAULT_NAMESPACE, check_namespace

if TYPE_CHECKING:
    from omninode_bridge.domain.stamp import Stamp

CHUNK_STAMPS = 1000
"""Stamps that are encoded and written together."""

type Write = Callable[[bytes], None]
type Encode = Callable[[list[Stamp]], bytes]


def export(
    namespace: str | None, format: str, output: Path | None, data_dir: Path | None, database_url: str | None
) -> int:
    """Stream a namespace's latest stamps; NO when one of them can't be expressed in the format."""
    tenant = check_namespace(DEFAULT_NAMESPACE if namespace is None else namespace)
    left_out: list[str] = []

    def b3sums(stamps: list[Stamp]) -> bytes:
        lines = []
        for stamp in stamps:
            if "\ufffd" in stamp.file_path:
                left_out.append(stamp.file_path)
                complain(f"{stamp.file_path!r} is left out: b3sum refuses to check names with U+FFFD in them")
            else:
                lines.append(b3sum_line(stamp.file_hash, stamp.file_path))
        return "".join(lines).encode()

    async def work() -> int:
        with _target(output) as write_chunk:
            async with opened(data_dir, database_url) as bridge:
                stamps = bridge.reads.latest_under(tenant)
                exported = await _stream(stamps, ndjson if format == "ndjson" else b3sums, write_chunk)
                if not exported:
                    raise NotFound(f"namespace {tenant} has no stamps to export")
        return NO if left_out else FINE

    return run(work())


def b3sum_line(file_hash: str, path: str) -> str:
    """Return the line that b3sum prints for a file."""
    if "\\" in path or "\n" in path:
        escaped = path.replace("\\", "\\\\").replace("\n", "\\n")
        return f"\\{file_hash}  {escaped}\n"
    # To b3sum a lone dash is standard input, not the file of that name.
    return f"{file_hash}  {'./-' if path == '-' else path}\n"


async def _stream(stamps: AsyncIterator[Stamp], encode: Encode, write_chunk: Write) -> int:
    exported = 0
    chunk: list[Stamp] = []
    async with aclosing(stamps) as latest:  # type: ignore[type-var]
        async for stamp in latest:
            chunk.append(stamp)
            if len(chunk) == CHUNK_STAMPS:
                write_chunk(encode(chunk))
                exported += len(chunk)
                chunk.clear()
    write_chunk(encode(chunk))
    return exported + len(chunk)


@contextmanager
def _target(output: Path | None) -> Iterator[Write]:
    """Give what writes to standard output, or to a file that takes its name only when it is whole."""
    if output is None:
        yield write
        return
    final = Path(os.path.realpath(output))
    # A device or a pipe is written to as it is: there is nothing to put in its place.
    in_place = final.exists() and not final.is_file()
    part = final if in_place else final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise InvalidInput(f"{str(output)!r} can't be written ({error.strerror}): name another file") from error
    try:
        with file:
            yield _writing(file, output)
            if not in_place:
                file.flush()
                os.fsync(file.fileno())
        if not in_place:
            part.replace(final)
    except OSError as error:
        raise _unwritten(output, error) from error
    finally:
        if not in_place:
            part.unlink(missing_ok=True)


def _writing(file: IO[bytes], output: Path) -> Write:
    def write_chunk(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise _unwritten(output, error) from error

    return write_chunk


def _unwritten(output: Path, error: OSError) -> ServiceUnavailable:
    return ServiceUnavailable(f"{str(output)!r} can't be written ({error.strerror}): free some room")
