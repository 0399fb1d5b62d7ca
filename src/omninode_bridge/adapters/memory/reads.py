"""Queries by key, in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence

from omninode_bridge.adapters.memory.store import MemoryStore
from omninode_bridge.domain.names import canonical_json, path_hash
from omninode_bridge.domain.recording import (
    PathKey,
    Prior,
)
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import (
    PAGE_BYTES_MAX,
    KnownFile,
    StampFilter,
    StampPage,
)


class MemoryReads:
    def __init__(self, store: MemoryStore, visible: Visible = EVERYTHING) -> None:
        self._store = store
        self._visible = visible

    def seen_by(self, visible: Visible) -> MemoryReads:
        return MemoryReads(self._store, visible)

    async def by_hash(self, file_hash: str, namespaces: Sequence[str] | None = None, limit: int = 100) -> list[Stamp]:
        found = [
            stamp
            for stamp in self._store.stamps.values()
            if stamp.file_hash == file_hash and (namespaces is None or stamp.namespace in namespaces)
        ]
        return _page(self._newest(found)[:limit])

    async def page(
        self, namespace: str, wanted: StampFilter, *, before: str | None = None, limit: int = 100
    ) -> StampPage:
        found = [
            stamp
            for stamp in self._store.stamps.values()
            if stamp.namespace == namespace and _wanted(stamp, wanted) and (before is None or stamp.stamp_id < before)
        ]
        stamps = self._newest(found)
        page = _page(stamps[:limit])
        return StampPage(page, page[-1].stamp_id if len(stamps) > len(page) else None)

    async def by_id(self, stamp_id: str) -> Stamp | None:
        stamp = self._store.stamps.get(stamp_id)
        return stamp if stamp and self._visible.sees(stamp.namespace) else None

    async def history(self, namespace: str, file_path: str) -> list[Stamp]:
        return self._newest(self._store.versions.get(path_hash(namespace, file_path), []))

    async def latest_many(self, namespace: str, file_paths: Sequence[str]) -> dict[str, Stamp]:
        latest = ((path, self._store.latest(path_hash(namespace, path))) for path in file_paths)
        return {path: stamp for path, stamp in latest if stamp and self._visible.sees(namespace)}

    async def latest_under(self, namespace: str, prefix: str | None = None) -> AsyncGenerator[Stamp]:
        below = "" if prefix is None else prefix.rstrip("/") + "/"
        latest = [versions[-1] for versions in self._store.versions.values() if versions[-1].namespace == namespace]
        for stamp in sorted(latest, key=lambda stamp: stamp.file_path):
            if stamp.file_path.startswith(below) and self._visible.sees(namespace):
                yield stamp

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> list[Prior]:
        return [
            self._store.prior(workflow)
            for (owner, name), workflow in sorted(self._store.workflows.items(), key=lambda item: item[0])
            if name == workflow_id and namespace in (None, owner) and self._visible.sees(owner)
        ]

    async def workflows(self, namespace: str | None = None, *, after: str | None = None) -> AsyncGenerator[Prior]:
        for (owner, name), workflow in sorted(self._store.workflows.items(), key=lambda item: item[0]):
            counts = not workflow.deduplicated and (workflow.stamp_id or workflow.error_code) is not None
            wanted = namespace in (None, owner) and (after is None or name > after)
            if counts and wanted and self._visible.sees(owner):
                yield self._store.prior(workflow)

    async def known_files(self, keys: Sequence[PathKey]) -> dict[PathKey, KnownFile]:
        known: dict[PathKey, KnownFile] = {}
        for key in keys:
            row, latest = self._store.facts.get(key), self._store.latest(key)
            if row is None or latest is None or row.version != latest.version:
                continue
            if self._visible.sees(latest.namespace):
                metadata = canonical_json(latest.metadata)
                known[key] = KnownFile(row.facts, row.stamp_id, latest.content_type, metadata)
        return known

    def _newest(self, stamps: Iterable[Stamp]) -> list[Stamp]:
        seen = (stamp for stamp in stamps if self._visible.sees(stamp.namespace))
        return sorted(seen, key=lambda stamp: stamp.stamp_id, reverse=True)


def _page(stamps: Sequence[Stamp]) -> list[Stamp]:
    """Return the stamps that a page has room for: the first, and more up to PAGE_BYTES_MAX."""
    bytes_ = 0
    for at, stamp in enumerate(stamps):
        parts = (stamp.metadata, stamp.intelligence or {})
        bytes_ += len(stamp.file_path.encode()) + sum(len(canonical_json(part)) for part in parts)
        if at and bytes_ > PAGE_BYTES_MAX:
            return list(stamps[:at])
    return list(stamps)


def _wanted(stamp: Stamp, wanted: StampFilter) -> bool:
    return (
        wanted.file_path in (None, stamp.file_path)
        and wanted.file_hash in (None, stamp.file_hash)
        and wanted.content_type in (None, stamp.content_type)
        and wanted.stamped_by in (None, stamp.stamped_by)
        and wanted.origin in (None, stamp.digest_origin)
        and (wanted.since is None or stamp.completed_at >= wanted.since)
        and (wanted.until is None or stamp.completed_at < wanted.until)
    )
