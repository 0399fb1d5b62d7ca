"""What a person and a program see: results on standard output, progress and complaints on standard error.

The rule: nothing that comes from a file's name or content reaches a terminal as a control character. Colour and the
progress bar are for terminals; in a pipe there are plain lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import msgspec

from omninode_bridge.domain.errors import BridgeError, ServiceUnavailable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_PROGRESS_S = 5.0
"""Between two lines of progress in a pipe."""
BAR_REFRESHES_PER_SECOND = 5

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"


class ReaderGone(Exception):
    """Whoever read standard output does so no more."""


def write(data: bytes) -> None:
    """Write bytes to standard output; see `raise_for_output`."""
    try:
        sys.stdout.buffer.write(data)
        if sys.stdout.isatty():
            sys.stdout.buffer.flush()
    except OSError as error:
        raise_for_output(error)


def raise_for_output(error: OSError) -> NoReturn:
    """Raise ReaderGone for a closed pipe, ServiceUnavailable for a full disk and the like."""
    if isinstance(error, BrokenPipeError):
        raise ReaderGone from error
    raise ServiceUnavailable(f"standard output can't be written ({error.strerror}): free some room") from error


def say(line: str) -> None:
    """Write a line of text to standard output."""
    write(line.encode(errors="backslashreplace") + b"\n")


def say_json(*objects: Any) -> None:
    """Write objects as NDJSON to standard output."""
    write(ndjson(objects))


def complain(sentence: str) -> None:
    """Write a sentence to standard error, under the program's name."""
    _to_stderr(f"omninode-bridge: {printable(sentence)}")


def ndjson(objects: Sequence[Any]) -> bytes:
    """Return objects as NDJSON; errors as {code, message, field}."""
    try:
        return _encoder.encode_lines(objects)
    except UnicodeEncodeError:  # a name that is not UTF-8
        plain = [_without_surrogates(msgspec.to_builtins(item, enc_hook=_known)) for item in objects]
        return _encoder.encode_lines(plain)


def printable(text: str) -> str:
    r"""Return text with everything unprintable as `\x1b`, `\n` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def painted(text: str, colour: str) -> str:
    """Return text in a colour, where standard output is a terminal that wants it."""
    return f"\x1b[{colour}m{text}\x1b[0m" if _colourful() else text


def count(number: int, noun: str = "") -> str:
    """Return `1 file`, `12,345 files`."""
    return f"{number:,}" + (f" {noun}{'' if number == 1 else 's'}" if noun else "")


def size(octets: float) -> str:
    """Return a number of bytes in decimal units: `999 B`, `1.2 GB`."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while octets >= 999.5 and len(units) > 1:
        octets /= 1000
        units.pop(0)
    return f"{octets:.0f} {units[0]}" if units[0] == "B" else f"{octets:.3g} {units[0]}"


def moment(at: datetime | None) -> str:
    """Return a time, UTC, to the second."""
    return "-" if at is None else at.strftime("%Y-%m-%d %H:%M:%SZ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> None:
    """Print rows in aligned columns, those listed in `numeric` to the right. The rows are held in memory."""
    lines = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def joined(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if at in numeric else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    say(painted(joined(header), BOLD))
    for line in lines:
        say(joined(line))


class Progress:
    """Files and bytes so far: a bar on a terminal, now and then a line in a pipe. A context manager.

    `verb` is what is done to the files: stamped, verified. `bar=False` when the results themselves fill the screen.
    """

    def __init__(self, verb: str, *, bar: bool = True) -> None:
        self.files = 0
        self.octets = 0
        self._verb = verb
        self._bar: Bar | None = None
        self._wanted = bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._started = self._told = time.monotonic()
        self._ended: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Time since the start, until the end; never zero, so that rates exist."""
        return max((self._ended or time.monotonic()) - self._started, 1e-6)

    def rates(self) -> str:
        took = self.elapsed_s
        return f"{self.files / took:,.0f} files/s, {size(self.octets / took)}/s"

    def __enter__(self) -> Self:
        if self._wanted:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task(self._verb, total=None, told="")
        self._started = self._told = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away, and stop the clock."""
        if self._ended is None:
            self._ended = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, files: int, octets: int) -> None:
        self.files += files
        self.octets += octets
        if self._bar is not None:
            told = f"{count(self.files, 'file')}, {size(self.octets)} ({self.rates()})"
            self._bar.update(self._bar.task_ids[0], told=told)
        elif not self._wanted and time.monotonic() - self._told >= PLAIN_PROGRESS_S:
            self._told = time.monotonic()
            _to_stderr(f"{self._verb} {count(self.files, 'file')}, {size(self.octets)} so far ({self.rates()})")

    def complain(self, sentence: str) -> None:
        """Complain above the bar."""
        if self._bar is None:
            complain(sentence)
        else:
            self._above(f"omninode-bridge: {printable(sentence)}")

    def say(self, line: str) -> None:
        """Say above the bar, or to whatever standard output is."""
        if self._bar is not None and sys.stdout.isatty():
            self._above(line)
        else:
            say(line)

    def _above(self, line: str) -> None:
        from rich.text import Text

        assert self._bar is not None
        self._bar.console.print(Text.from_ansi(line), soft_wrap=True, highlight=False)


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        refresh_per_second=BAR_REFRESHES_PER_SECOND,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _colourful() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _to_stderr(line: str) -> None:
    # One write a line: lines of several processes must not mix. There is nobody to tell when this fails.
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        pass


def _known(value: Any) -> Any:
    if isinstance(value, BridgeError):
        return {"code": value.code, "message": value.message, **({"field": value.field} if value.field else {})}
    raise NotImplementedError(f"{type(value).__name__} is not printed as JSON")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value


_encoder = msgspec.json.Encoder(enc_hook=_known)
