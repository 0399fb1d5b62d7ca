"""`Bridge`: all of the bridge behind one object, for Python callers, HTTP and the command line.

Nothing is decided here: inputs are checked by `domain.names`, and each call goes to the node or the reader
that does the work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from omninode_bridge.app.audit import LawFinding
from omninode_bridge.app.backlog import Backlog
from omninode_bridge.app.explaining import WorkflowReport, report
from omninode_bridge.app.gather import Gather
from omninode_bridge.app.query import NamespaceState, Query, StateRow
from omninode_bridge.app.tree import Tree, TreeRequest, TreeResult, VerifyResult
from omninode_bridge.domain.acceptance import CONTENT_BYTES_MAX
from omninode_bridge.domain.errors import InvalidInput, LimitExceeded, NotFound
from omninode_bridge.domain.events import Event, decode
from omninode_bridge.domain.log import Head, ShardKey
from omninode_bridge.domain.names import (
    DEFAULT_NAMESPACE,
    check_content_type,
    check_file_hash,
    check_file_path,
    check_metadata,
    check_namespace,
    check_op_id,
    check_workflow_id,
    is_uuid,
)
from omninode_bridge.domain.recording import Prior, Workflow
from omninode_bridge.domain.stamp import Content, Inline, Stamp, StampRequest
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import Clock, EventSource, IdSource, Reads, RunningDigest

if TYPE_CHECKING:
    import os

    from omninode_bridge.app.access import Access
    from omninode_bridge.app.bootstrap import Maintenance
    from omninode_bridge.app.monitor import Monitor
    from omninode_bridge.app.settings import Settings
    from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
    from omninode_bridge.nodes.reducer.v1_0_0.node import NodeBridgeReducer

EVENTS_PAGE = 500


class Bridge:
    """An assembled bridge. Made by `Bridge.embedded(…)` or `Bridge.connect(…)`, both async context managers."""

    def __init__(
        self,
        *,
        orchestrator: NodeBridgeOrchestrator,
        reducer: NodeBridgeReducer,
        gather: Gather,
        backlog: Backlog,
        tree: Tree,
        query: Query,
        reads: Reads,
        source: EventSource,
        maintenance: Maintenance,
        guess_content_type: Any,
        running_digest: Callable[[], RunningDigest],
        clock: Clock,
        ids: IdSource,
        stamped_by: str,
        access: Access,
        monitor: Monitor,
    ) -> None:
        self.orchestrator = orchestrator
        self.reducer = reducer
        self.query = query
        self.reads = reads
        self.maintenance = maintenance
        self.running_digest = running_digest
        self.source = source
        self.access = access
        self.monitor = monitor
        self._gather = gather
        self._backlog = backlog
        self._tree = tree
        self._guess_content_type = guess_content_type
        self._clock = clock
        self._ids = ids
        self._stamped_by = stamped_by

    @classmethod
    def embedded(
        cls, data_dir: str | os.PathLike[str] | None = None, *, settings: Settings | None = None
    ) -> AbstractAsyncContextManager[Bridge]:
        """Open a bridge on the embedded PostgreSQL of a folder; made when it does not exist.

        Raises DataDirectoryError when the folder can't be used, ContractInvalid for a broken contract.
        """
        from omninode_bridge.app import bootstrap

        return bootstrap.embedded(data_dir, settings)

    @classmethod
    def connect(
        cls, database_url: str, *, kafka: str | None = None, settings: Settings | None = None
    ) -> AbstractAsyncContextManager[Bridge]:
        """Open a bridge on your own PostgreSQL, whose schema `omninode-bridge migrate` has made.

        `kafka`: bootstrap servers, such as "localhost:9092"; events are forwarded there and folded from there.
        Raises ServiceUnavailable when it can't be reached, SchemaMismatch when its schema does not fit.
        """
        from omninode_bridge.app import bootstrap

        return bootstrap.connect(database_url, settings, kafka=kafka)

    def seen_by(self, visible: Visible) -> Bridge:
        """Return the same bridge as someone sees it who may see some namespaces only: the rest does not exist."""
        if visible == EVERYTHING:
            return self
        limited = copy(self)
        limited.reads = self.reads.seen_by(visible)
        limited.query = self.query.seen_by(visible)
        limited.source = self.source.seen_by(visible)
        return limited

    async def accept(self, request: StampRequest) -> Workflow:
        """Accept a request, whose content is in memory, to be run by a worker; returns once it is durable.

        The answer is the workflow as it stands, also when it was accepted before. Raises LimitExceeded for a content
        over 8 MiB, Conflict, Overloaded when too many wait, ServiceUnavailable.
        """
        assert isinstance(request.content, Inline)
        data = request.content.data
        if len(data) > CONTENT_BYTES_MAX:
            raise LimitExceeded(
                f"the content has {len(data)} bytes; {CONTENT_BYTES_MAX} is the limit of a workflow that is run later: "
                "send it to POST /stamp",
                field="content",
            )
        await self._backlog.take(len(data))
        running = self.running_digest()
        running.update(data)
        return await self.orchestrator.accept(request, running.digest())

    async def stamp(
        self,
        content: bytes,
        *,
        file_path: str,
        namespace: str = DEFAULT_NAMESPACE,
        content_type: str | None = None,
        metadata: dict[str, Any] | None = None,
        op_id: str | UUID | None = None,
        enable_intelligence: bool = False,
        traceparent: str | None = None,
    ) -> Stamp:
        """Stamp bytes durably. `deduplicated` tells that the path's latest stamp already says the same.

        Raises InvalidInput, Conflict (the op id was used otherwise), WorkflowFailed, ServiceUnavailable.
        """
        request = self.request(
            Inline(content),
            file_path=file_path,
            namespace=namespace,
            content_type=content_type,
            metadata=metadata,
            op_id=op_id,
            enable_intelligence=enable_intelligence,
            traceparent=traceparent,
        )
        return await self.run(request)

    async def run(self, request: StampRequest) -> Stamp:
        """Return the stamp of a checked request, or raise what it is answered with instead, as `stamp` does."""
        return await self._gather.run(request)

    def request(
        self,
        content: Content,
        *,
        file_path: str,
        namespace: str = DEFAULT_NAMESPACE,
        content_type: str | None = None,
        metadata: dict[str, Any] | None = None,
        op_id: str | UUID | None = None,
        enable_intelligence: bool = False,
        traceparent: str | None = None,
        stamped_by: str | None = None,
    ) -> StampRequest:
        """Return a checked request; InvalidInput names what is wrong with it."""
        return StampRequest(
            workflow_id=check_op_id(op_id) if op_id is not None else self._ids(1)[0],
            op_id_given=op_id is not None,
            namespace=check_namespace(namespace),
            file_path=check_file_path(file_path),
            content=content,
            created_at=self._clock(),
            content_type=self._guess_content_type(file_path)
            if content_type is None
            else check_content_type(content_type),
            metadata=check_metadata(metadata or {}),
            stamped_by=stamped_by or self._stamped_by,
            enable_intelligence=enable_intelligence,
            traceparent=traceparent,
        )

    async def stamp_tree(
        self,
        *paths: str | os.PathLike[str],
        namespace: str = DEFAULT_NAMESPACE,
        metadata: dict[str, Any] | None = None,
        exclude: Sequence[str] = (),
        rehash: bool = False,
        enable_intelligence: bool = False,
    ) -> AsyncIterator[TreeResult]:
        """Stamp files and folders; yields what became of each file, after its commit.

        A file that can't be stamped is a result with status "failed" and its error; it stops nothing.
        """
        async for batch in self.stamp_tree_batches(
            *paths,
            namespace=namespace,
            metadata=metadata,
            exclude=exclude,
            rehash=rehash,
            enable_intelligence=enable_intelligence,
        ):
            for result in batch:
                yield result

    def stamp_tree_batches(
        self, *paths: str | os.PathLike[str], namespace: str = DEFAULT_NAMESPACE, **wanted: Any
    ) -> AsyncIterator[list[TreeResult]]:
        """As `stamp_tree`, a list a batch."""
        return stamp_batches(self._tree, self._stamped_by, *paths, namespace=namespace, **wanted)

    def verify_tree(
        self, *paths: str | os.PathLike[str], namespace: str = DEFAULT_NAMESPACE, exclude: Sequence[str] = ()
    ) -> AsyncIterator[list[VerifyResult]]:
        """Hash files again and compare with their latest stamps; a list a batch."""
        return self._tree.verify(_paths(paths), check_namespace(namespace), tuple(exclude))

    async def state(self, namespace: str = DEFAULT_NAMESPACE) -> NamespaceState:
        """Return a namespace's totals, with every stamp acknowledged before the call; `.by(grouping)` for others."""
        return await self.query.namespace(check_namespace(namespace))

    async def states(self, by: str = "namespace", namespace: str | None = None) -> list[StateRow]:
        """Return the rows of one grouping, of one namespace or of all."""
        return await self.query.rows(by, None if namespace is None else check_namespace(namespace))

    async def find(self, wanted: str, namespace: str | None = None) -> list[Stamp]:
        """Return the stamps of a digest, of a stamp id, or of a path (its latest), newest first; NotFound if none.

        Without a namespace a digest and an id are looked for in all of them, a path in the default one.
        """
        tenant = None if namespace is None else check_namespace(namespace)
        for kind in (self._by_hash, self._by_id, self._by_path):
            if found := await kind(wanted, tenant):
                return found
        where = namespace or f"{DEFAULT_NAMESPACE} (name another with -n)"
        raise NotFound(f"no stamp has {wanted!r} as digest or stamp id, and none in {where} as path")

    async def history(self, file_path: str, namespace: str = DEFAULT_NAMESPACE) -> list[Stamp]:
        """Return every version of a path, newest first; NotFound if there is none."""
        found = await self.reads.history(check_namespace(namespace), check_file_path(file_path))
        if not found:
            raise NotFound(f"{file_path!r} has no stamp in {namespace}")
        return found

    async def workflow(self, workflow_id: str, namespace: str | None = None) -> Prior:
        """Return a workflow with its history and stamp; NotFound if there is none, InvalidInput if it is ambiguous."""
        found = await self.reads.workflow(check_workflow_id(workflow_id), namespace)
        if not found:
            raise NotFound(f"no workflow {workflow_id}" + (f" in {namespace}" if namespace else ""))
        if len(found) > 1:
            names = ", ".join(prior.workflow.namespace for prior in found)
            raise InvalidInput(
                f"workflow {workflow_id} is in several namespaces: name one of {names}", field="namespace"
            )
        return found[0]

    def report(self, found: Prior) -> WorkflowReport:
        """Return what is told of a workflow: where it is, how it came there, and why."""
        return report(found, self.orchestrator.bridge_contract.plan.queue, self._clock())

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return self._clock()

    async def audit(self) -> list[LawFinding]:
        """Check the laws on the live data; returns a finding a law."""
        return await self.maintenance.audit()

    async def rebuild(self, namespace: str | None = None) -> None:
        """Compute the state anew from the log, beside the live one, and swap it in."""
        tenant = None if namespace is None else check_namespace(namespace)
        await self.maintenance.rebuild(tenant, actor=self._stamped_by)

    async def events(
        self, *, namespace: str | None = None, after: dict[ShardKey, Head] | None = None
    ) -> AsyncIterator[Event]:
        """Yield the events that are in the log, from the start or after a position, each shard's in order.

        Ends at the heads as they stand when everything before was yielded.
        """
        positions = dict(after or {})
        while records := await self.source.read(positions, EVENTS_PAGE):
            for record in records:
                positions[record.topic, record.shard] = record.head
                if record.namespace and namespace in (None, record.namespace):
                    yield decode(record.body)

    async def _by_hash(self, wanted: str, namespace: str | None) -> list[Stamp]:
        try:
            file_hash = check_file_hash(wanted)
        except InvalidInput:
            return []
        return await self.reads.by_hash(file_hash, None if namespace is None else [namespace])

    async def _by_id(self, wanted: str, namespace: str | None) -> list[Stamp]:
        found = await self.reads.by_id(wanted) if is_uuid(wanted) else None
        return [found] if found is not None and namespace in (None, found.namespace) else []

    async def _by_path(self, wanted: str, namespace: str | None) -> list[Stamp]:
        return (await self.reads.history(namespace or DEFAULT_NAMESPACE, wanted))[:1]


def stamp_batches(
    tree: Tree,
    stamped_by: str,
    *paths: str | os.PathLike[str],
    namespace: str = DEFAULT_NAMESPACE,
    metadata: dict[str, Any] | None = None,
    exclude: Sequence[str] = (),
    rehash: bool = False,
    enable_intelligence: bool = False,
) -> AsyncIterator[list[TreeResult]]:
    """Stamp files and folders by a tree of this bridge, or of another; a list a batch."""
    return tree.stamp(
        TreeRequest(
            paths=_paths(paths),
            namespace=check_namespace(namespace),
            metadata=check_metadata(metadata or {}),
            exclude=tuple(exclude),
            rehash=rehash,
            enable_intelligence=enable_intelligence,
            stamped_by=stamped_by,
        )
    )


def _paths(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if not paths:
        raise InvalidInput("no path was given: name files or folders", field="paths")
    return tuple(str(path) for path in paths)
