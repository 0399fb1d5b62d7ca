"""Files and folders as a bounded pipeline: walk → known? → hash → record.

Memory is bounded by the batches in flight, whatever the size of the tree. Nothing that is wrong with one
file stops the others: it is reported in its own result. A file whose facts vouch for its latest stamp, under
the same content type and metadata, is not read again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, Protocol

import msgspec

from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.domain.names import canonical_json, normalise_path, path_hash
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import Digest, FileFacts, LocalFile, Stamp, StampRequest
from omninode_bridge.ports import Clock, Hasher, IdSource, Reads


class Found(Protocol):
    """A regular file that the walk met. `file_path` as it is recorded, `os_path` as it is opened."""

    @property
    def file_path(self) -> str: ...
    @property
    def os_path(self) -> str: ...
    @property
    def facts(self) -> FileFacts: ...


class Problem(Protocol):
    """Something in the tree that can't be stamped, and why."""

    @property
    def path(self) -> str: ...
    @property
    def error(self) -> BridgeError: ...


MISSING_BATCH = 1000
"""Stamps whose files are looked for together."""

type Batch = tuple[Sequence[Found], Sequence[Problem]]
type Walk = Callable[[Sequence[str], Sequence[str]], Iterator[Batch]]
"""(paths, exclude globs) → batches of what was found and of what was wrong."""


class Executor(Protocol):
    """The orchestrator's plain door."""

    async def run_many(self, requests: Sequence[StampRequest]) -> Sequence[Answer]: ...


class TreeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file. `stamp` is None for a failure and for a file that was skipped by its facts."""

    file_path: str
    status: Literal["new", "unchanged", "failed"]
    file_size: int = 0
    stamp_id: str | None = None
    stamp: Stamp | None = None
    error: BridgeError | None = None


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one path compares with its latest stamp."""

    file_path: str
    status: Literal["ok", "changed", "missing", "unstamped", "failed"]
    file_size: int = 0
    stamp: Stamp | None = None
    file_hash: str | None = None
    error: BridgeError | None = None


class TreeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to stamp, and as what."""

    paths: tuple[str, ...]
    namespace: str
    metadata: dict[str, Any] = {}
    exclude: tuple[str, ...] = ()
    rehash: bool = False
    enable_intelligence: bool = False
    stamped_by: str = "local"


class Tree:
    """Stamps and verifies files of this machine."""

    def __init__(
        self,
        *,
        walk: Walk,
        content_type: Callable[[str], str],
        executor: Executor,
        hasher: Hasher,
        reads: Reads,
        clock: Clock,
        ids: IdSource,
        in_flight: int,
    ) -> None:
        self._walk = walk
        self._content_type = content_type
        self._executor = executor
        self._hasher = hasher
        self._reads = reads
        self._clock = clock
        self._ids = ids
        self._in_flight = in_flight

    async def stamp(self, request: TreeRequest) -> AsyncIterator[list[TreeResult]]:
        """Stamp everything under the request's paths; yields a batch of results after its commit.

        Raises ServiceUnavailable when a dependency is down; what was yielded before is recorded.
        """
        metadata = canonical_json(request.metadata)
        batches = self._walk(request.paths, request.exclude)
        work = self._pipeline(batches, lambda found: self._stamp_batch(request, metadata, found))
        async with aclosing(work) as done:
            async for results in done:
                yield results

    async def verify(
        self, paths: Sequence[str], namespace: str, exclude: Sequence[str]
    ) -> AsyncIterator[list[VerifyResult]]:
        """Hash everything under `paths` and compare with the latest stamps; then look for stamps without a file."""
        batches = self._walk(paths, exclude)
        async with aclosing(self._pipeline(batches, lambda found: self._verify_batch(namespace, found))) as done:
            async for results in done:
                yield await self._without_stamped(namespace, results)
        for root in dict.fromkeys(map(normalise_path, paths)):
            async for batch in self._missing(namespace, root):
                yield batch

    async def _stamp_batch(self, request: TreeRequest, metadata: bytes, batch: Batch) -> list[TreeResult]:
        found, problems = batch
        results = [TreeResult(file_path=p.path, status="failed", error=p.error) for p in problems]
        if not request.rehash:
            found, skipped = await self._skip(request.namespace, metadata, found)
            results += skipped
        if not found:
            return results
        now = self._clock()
        requests = [
            StampRequest(
                workflow_id=workflow_id,
                namespace=request.namespace,
                file_path=file.file_path,
                content=LocalFile(file.os_path, file.facts),
                created_at=now,
                content_type=self._content_type(file.file_path),
                metadata=request.metadata,
                stamped_by=request.stamped_by,
                enable_intelligence=request.enable_intelligence,
            )
            for file, workflow_id in zip(found, self._ids(len(found)), strict=True)
        ]
        for file, verdict in zip(found, await self._executor.run_many(requests), strict=True):
            results.append(_tree_result(file.file_path, verdict))
        return results

    async def _skip(
        self, namespace: str, metadata: bytes, found: Sequence[Found]
    ) -> tuple[list[Found], list[TreeResult]]:
        """Part the files that must be read from those whose facts vouch for their latest stamp."""
        hashes = [path_hash(namespace, file.file_path) for file in found]
        known = await self._reads.known_files(hashes)
        unknown: list[Found] = []
        skipped: list[TreeResult] = []
        for file, key in zip(found, hashes, strict=True):
            before = known.get(key)
            if (
                before is not None
                and before.facts == file.facts
                and before.metadata == metadata
                and before.content_type == self._content_type(file.file_path)
            ):
                skipped.append(
                    TreeResult(
                        file_path=file.file_path,
                        status="unchanged",
                        file_size=file.facts.size,
                        stamp_id=before.stamp_id,
                    )
                )
            else:
                unknown.append(file)
        return unknown, skipped

    async def _verify_batch(self, namespace: str, batch: Batch) -> list[VerifyResult]:
        found, problems = batch
        results = [VerifyResult(file_path=p.path, status="failed", error=p.error) for p in problems]
        digests, latest = await asyncio.gather(
            self._hasher.digest_many([LocalFile(file.os_path, file.facts) for file in found]),
            self._reads.latest_many(namespace, [file.file_path for file in found]),
        )
        for file, digest in zip(found, digests, strict=True):
            results.append(_verify_result(file.file_path, digest, latest.get(file.file_path)))
        return results

    async def _missing(self, namespace: str, root: str) -> AsyncIterator[list[VerifyResult]]:
        """Yield the stamped paths at or below a root that are no longer there."""
        yield await asyncio.to_thread(_gone, (await self._reads.history(namespace, root))[:1])
        below = None if root == "." else root
        batch: list[Stamp] = []
        async with aclosing(self._reads.latest_under(namespace, below)) as stamps:
            async for stamp in stamps:
                # Below "." is what was typed as a relative path.
                if below is not None or not stamp.file_path.startswith(("/", "../")):
                    batch.append(stamp)
                if len(batch) == MISSING_BATCH:
                    yield await asyncio.to_thread(_gone, batch)
                    batch = []
        yield await asyncio.to_thread(_gone, batch)

    async def _without_stamped(self, namespace: str, results: list[VerifyResult]) -> list[VerifyResult]:
        """Leave out the paths that are gone but have a stamp: they are missing, and said so by `_missing`."""
        failed = [r.file_path for r in results if r.error is not None]
        if not failed:
            return results
        stamps = await self._reads.latest_many(namespace, failed)
        gone = {r.file_path for r in await asyncio.to_thread(_gone, list(stamps.values()))}
        return [r for r in results if r.file_path not in gone]

    async def _pipeline[Result](
        self,
        batches: Iterator[Batch],
        work: Callable[[Batch], Coroutine[Any, Any, list[Result]]],
    ) -> AsyncGenerator[list[Result]]:
        """Run `work` on each batch, a bounded number at once, and yield the results in the walk's order.

        The walk runs in a thread: a slow disk must not stop the event loop.
        """
        running: asyncio.Queue[asyncio.Task[list[Result]] | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._in_flight)

        async def feed() -> None:
            try:
                while True:
                    await room.acquire()
                    batch = await asyncio.to_thread(next, batches, None)
                    if batch is None:
                        return
                    running.put_nowait(asyncio.create_task(work(batch)))
            finally:
                running.put_nowait(None)

        feeder = asyncio.create_task(feed())
        try:
            while (task := await running.get()) is not None:
                yield await task
                room.release()
            await feeder
        finally:
            feeder.cancel()
            leftovers = [feeder]
            while not running.empty():
                if (rest := running.get_nowait()) is not None:
                    rest.cancel()
                    leftovers.append(rest)  # type: ignore[arg-type]
            await asyncio.gather(*leftovers, return_exceptions=True)


def _gone(stamps: Sequence[Stamp]) -> list[VerifyResult]:
    return [
        VerifyResult(file_path=stamp.file_path, status="missing", stamp=stamp)
        for stamp in stamps
        if not os.path.lexists(stamp.file_path)
    ]


def _tree_result(file_path: str, verdict: Answer) -> TreeResult:
    if isinstance(verdict, BridgeError):
        return TreeResult(file_path=file_path, status="failed", error=verdict)
    return TreeResult(
        file_path=file_path,
        status="unchanged" if verdict.deduplicated else "new",
        file_size=verdict.file_size,
        stamp_id=verdict.stamp_id,
        stamp=verdict,
    )


def _verify_result(file_path: str, digest: Digest | BridgeError, stamp: Stamp | None) -> VerifyResult:
    if isinstance(digest, BridgeError):
        return VerifyResult(file_path=file_path, status="failed", stamp=stamp, error=digest)
    status: Literal["ok", "changed", "unstamped"] = (
        "unstamped" if stamp is None else "ok" if stamp.file_hash == digest.file_hash else "changed"
    )
    return VerifyResult(
        file_path=file_path, status=status, file_size=digest.file_size, stamp=stamp, file_hash=digest.file_hash
    )
