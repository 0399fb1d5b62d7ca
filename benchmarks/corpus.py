"""What a growing bridge is asked to stamp, by serial number: the same in each run, from whatever number on.

Fifty files in a row are a folder of one namespace. Namespaces are of very different sizes (Zipf), ten a tenant. One
folder of twenty is one that was stamped before, with new contents; one file of a hundred has a content that other
tenants have too, such as a licence. Half of the namespaces hold trees as `stamp` hashes them, with the facts of
their files; the others are stamped by callers who claim the digests.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from datetime import datetime
from functools import lru_cache

from omninode_bridge.adapters.filesystem import guess_content_type
from omninode_bridge.adapters.system import utc_now, uuid7_batch
from omninode_bridge.domain.stamp import Claimed, Content, Digest, FileFacts, Stamp, StampRequest, Streamed
from omninode_bridge.domain.tenancy import Visible

TENANTS = 24
NAMESPACES = tuple(f"tenant-{rank % TENANTS:02}.area-{rank // TENANTS}" for rank in range(10 * TENANTS))
"""Largest first: the n-th has 1/n of the stamps of the first."""
COMMON_CONTENTS = 1000
"""Contents that many have, the n-th 1/n as often as the first."""
FOLDER_FILES = 50

_FOLDERS_ANEW = 20
_FILES_COMMON = 100
"""One of so many is stamped anew, or common."""
_AREAS = ("services", "libraries", "contracts", "documents", "datasets", "reports")
_STEMS = ("model", "handler", "schema", "invoice", "notes", "index", "record", "settings")
_SUFFIXES = (".py", ".md", ".json", ".txt", ".html", ".csv", ".png", "")
_BYTES_MEDIAN, _BYTES_SIGMA = 1280, 1.6
_NAMESPACE_WEIGHTS = tuple(itertools.accumulate(1 / rank for rank in range(1, len(NAMESPACES) + 1)))
_COMMON_WEIGHTS = tuple(itertools.accumulate(1 / rank for rank in range(1, COMMON_CONTENTS + 1)))


def requests(first: int, count: int) -> list[StampRequest]:
    """Return requests by serial number, made now, with ids of their own."""
    now, ids = utc_now(), uuid7_batch(count)
    return [_request(serial, workflow_id, now) for serial, workflow_id in enumerate(ids, first)]


def place_of(serial: int) -> tuple[str, str]:
    """Return the namespace and the path of a request."""
    folder, number = divmod(serial, FOLDER_FILES)
    origin = _origin(folder)
    namespace, path = _folder(origin)
    return namespace, f"{path}/{_STEMS[number % 8]}-{number:02}{_SUFFIXES[(origin + number) % 8]}"


def hash_of(serial: int) -> str:
    """Return the digest of a request's content."""
    return _content(serial)[0]


def common_hash(rank: int) -> str:
    """Return the digest of one of the contents that many have, the most frequent being 0."""
    return hashlib.sha256(b"common %d" % rank).hexdigest()


@lru_cache(maxsize=len(NAMESPACES))
def is_claimed(namespace: str) -> bool:
    """Tell whether the digests of a namespace are claimed by callers."""
    return NAMESPACES.index(namespace) % 2 == 1


def size_of(request: StampRequest) -> int:
    """Return the bytes of a request's content."""
    content = request.content
    assert isinstance(content, Claimed | Streamed)
    return content.file_size if isinstance(content, Claimed) else content.digest.file_size


def tenant_of(namespace: str) -> Visible:
    """Return what the tenant sees that a namespace belongs to: all of its own, and the largest of another's."""
    return Visible((namespace.partition(".")[0] + ".*", NAMESPACES[0]))


def said(stamp: Stamp) -> str:
    """Return what a stamp says that is the same in each run."""
    facts = (stamp.namespace, stamp.file_path, stamp.file_hash, stamp.file_size, stamp.content_type)
    return " ".join(map(str, (*facts, stamp.digest_origin)))


def _request(serial: int, workflow_id: str, now: datetime) -> StampRequest:
    namespace, path = place_of(serial)
    return StampRequest(
        workflow_id=workflow_id,
        namespace=namespace,
        file_path=path,
        content=_claimed_or_hashed(serial, namespace),
        created_at=now,
        content_type=guess_content_type(path),
        stamped_by="benchmark",
    )


def _claimed_or_hashed(serial: int, namespace: str) -> Content:
    file_hash, size = _content(serial)
    if is_claimed(namespace):
        return Claimed(file_hash, size)
    mtime_ns = 1_750_000_000_000_000_000 + serial * 1_000_003
    return Streamed(Digest(file_hash, size, hash_time_us=9, facts=FileFacts(size, mtime_ns, mtime_ns, serial, 2049)))


def _content(serial: int) -> tuple[str, int]:
    """Return the digest and the size of a content."""
    rng = random.Random(serial)
    folder = serial // FOLDER_FILES
    if rng.randrange(_FILES_COMMON) == 0 and _origin(folder) == folder:
        (rank,) = rng.choices(range(COMMON_CONTENTS), cum_weights=_COMMON_WEIGHTS)
        return common_hash(rank), 100 + rank
    return hashlib.sha256(b"%d" % serial).hexdigest(), int(rng.lognormvariate(0, _BYTES_SIGMA) * _BYTES_MEDIAN)


@lru_cache(maxsize=64)
def _origin(folder: int) -> int:
    """Return the folder that a folder is: itself, or the one that is stamped anew."""
    while folder % _FOLDERS_ANEW == _FOLDERS_ANEW - 1:
        folder = random.Random(folder).randrange(folder)
    return folder


@lru_cache(maxsize=64)
def _folder(origin: int) -> tuple[str, str]:
    """Return the namespace and the path of a folder."""
    (namespace,) = random.Random(f"folder {origin}").choices(NAMESPACES, cum_weights=_NAMESPACE_WEIGHTS)
    return namespace, f"{_AREAS[origin % 6]}/part-{origin // 400:04}/folder-{origin % 400:03}"
