"""Walk files (first cut, to be replaced)."""
import mimetypes, os
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from omninode_bridge.domain.errors import BridgeError, ContentUnavailable
from omninode_bridge.domain.names import normalise_path
from omninode_bridge.domain.stamp import FileFacts
class Found(NamedTuple):
    file_path: str
    os_path: str
    facts: FileFacts
class Problem(NamedTuple):
    path: str
    error: BridgeError
_M = mimetypes.MimeTypes(filenames=())
def guess_content_type(path: str) -> str:
    return _M.guess_type(path)[0] or "application/octet-stream"
def walk(paths: Sequence[str], exclude: Sequence[str], batch: int) -> Iterator[list[Found | Problem]]:
    out: list[Found | Problem] = []
    for p in paths:
        if not os.path.lexists(p):
            out.append(Problem(p, ContentUnavailable(f"{p}: no such file")))
            continue
        it = [(p, None, [os.path.basename(p)])] if os.path.isfile(p) else os.walk(p)
        for d, ds, fs in it:
            if ds is None:
                names = [p]
            else:
                ds[:] = [x for x in ds if x not in exclude]
                names = [os.path.join(d, f) for f in fs]
            for f in names:
                s = os.stat(f)
                out.append(Found(normalise_path(f), f, FileFacts(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)))
                if len(out) >= batch:
                    yield out
                    out = []
    if out:
        yield out
