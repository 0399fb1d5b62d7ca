"""A running `omninode-bridge up` of the benchmark's own, and what the kernel says of its memory."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

PROGRAM = Path(sys.executable).parent / "omninode-bridge"
_STOP_S_MAX = 60


def environment() -> dict[str, str]:
    """Return the environment without settings of the bridge: what is measured is the default."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}


class Service:
    """`up` on a data directory and a free port, from its announcement to its orderly end."""

    def __init__(self, data_dir: Path) -> None:
        command = [str(PROGRAM), "up", "--data-dir", str(data_dir), "--host", "127.0.0.1", "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self.pid = self._process.pid
        self._url = ""

    def __enter__(self) -> Self:
        """Wait until it serves."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"http://[^\s/]+", line):
                self._url = found[0]
                return self
        self._end()
        raise RuntimeError(f"omninode-bridge up ended with exit code {self._process.returncode} before it served")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def stamp(self, path: str, body: bytes | Iterable[bytes], length: int) -> dict[str, Any]:
        """Stamp a raw body over HTTP; return the stamp."""
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=600)
        query = urlencode({"namespace": "benchmark.service", "file_path": path})
        try:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
            connection.request("POST", f"/stamp?{query}", body=body, headers=headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status not in {200, 201}:
            raise RuntimeError(f"POST /stamp answered {answer.status}: {said.decode(errors='replace')[:300]}")
        stamp: dict[str, Any] = json.loads(said)
        return stamp

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=_STOP_S_MAX)


def resident_bytes(pid: int | str = "self") -> int:
    """Return a process's memory in RAM now: its own, and of files that it maps."""
    return _status(pid, "VmRSS")


def forget_peak(pid: int | str = "self") -> None:
    """Let the peak start anew, at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most that was resident since `forget_peak`."""
    return _status(pid, "VmHWM")


def _status(pid: int | str, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s*(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"the kernel tells no {field}"
    return int(found[1]) * 1024
