"""Queries by key over what the ledger has recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from omninode_bridge.domain.recording import PathKey, Prior
from omninode_bridge.domain.stamp import DigestOrigin, FileFacts, Stamp
from omninode_bridge.domain.tenancy import Visible

PAGE_BYTES_MAX = 4 * 1024**2
"""What a page of stamps may have in paths, metadata and intelligence; its first stamp it has in any case."""


class KnownFile(msgspec.Struct, frozen=True, gc=False):
    """The latest stamp of a path, and the facts of the file when its digest was computed."""

    facts: FileFacts
    stamp_id: str
    content_type: str
    metadata: bytes
    """Canonical JSON."""


class StampFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which stamps of a namespace are wanted; None: any. Times are those of completion, `until` excluded."""

    file_path: str | None = None
    file_hash: str | None = None
    content_type: str | None = None
    stamped_by: str | None = None
    origin: DigestOrigin | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def by_index(self) -> bool:
        """Whether every stamp that an index finds is wanted."""
        others = (self.content_type, self.stamped_by, self.origin, self.since, self.until)
        return others == (None,) * 5 and None in (self.file_path, self.file_hash)


class StampPage(msgspec.Struct, frozen=True):
    """Stamps, newest first; `before` is where the next page begins, None at the end."""

    stamps: list[Stamp]
    before: str | None


class Reads(Protocol):
    """Queries by key over what the ledger has recorded. Lists are newest first."""

    def seen_by(self, visible: Visible) -> Reads:
        """Return the same reads, limited to what someone may see: the rest does not exist."""
        ...

    async def page(
        self, namespace: str, wanted: StampFilter, *, before: str | None = None, limit: int = 100
    ) -> StampPage:
        """Return stamps of a namespace older than the one whose id is `before`.

        A page may have less than `limit` stamps, or none, and still have a next one: what a filter looks through
        for one page is bounded, and so are the page's bytes (PAGE_BYTES_MAX).
        """
        ...

    async def by_hash(self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100) -> list[Stamp]:
        """Return the newest stamps of a digest: as many as `limit` and PAGE_BYTES_MAX allow."""
        ...

    async def by_id(self, stamp_id: str) -> Stamp | None: ...

    async def history(self, namespace: str, file_path: str) -> list[Stamp]: ...

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        """Return the latest stamp of each of the paths that has one."""
        ...

    def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        """Yield the latest stamp of each path in a namespace (or below `prefix/`), by path."""
        ...

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]: ...

    def workflows(self, namespace: str | None = None, *, after: str | None = None) -> AsyncGenerator[Prior]:
        """Yield each workflow that made a stamp or failed, by namespace and id.

        `after` is an id in that namespace: only those that follow it.
        """
        ...

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        """Return what is known of each path whose recorded file facts vouch for its latest version."""
        ...
