"""What callers ask: state that includes every stamp acknowledged before the call, and look-ups by key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime

import msgspec

from omninode_bridge.app.project import Heads, Projector
from omninode_bridge.domain.errors import ForeignState, NotFound, ServiceUnavailable, StateBehind
from omninode_bridge.domain.log import START
from omninode_bridge.domain.recording import Prior
from omninode_bridge.domain.reduction import EMPTY, Groupings, GroupKey, Moment, State, Totals
from omninode_bridge.domain.stamp import microseconds
from omninode_bridge.domain.tenancy import EVERYTHING, Visible
from omninode_bridge.ports import EventSource, Reads, StateStore, fingerprint

WORKFLOW_ROWS_MAX = 1000
"""A state carries its rows by workflow up to this number; beyond it they are streamed."""


class StateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the aggregates: the totals of one group. Bytes and microseconds are integers."""

    namespace: str
    aggregation_type: str
    group_key: str
    total_stamps: int
    failed: int
    total_size_bytes: int
    processing_time_us_sum: int
    processing_time_us_min: int | None
    processing_time_us_max: int | None
    first_at: datetime | None
    last_at: datetime | None


class NamespaceState(StateRow, frozen=True, kw_only=True):
    """The totals of a namespace; `by(grouping)` has the rows of a grouping, sorted by key.

    A snapshot: two of them are equal while nothing is stamped in between.
    """

    groups: tuple[StateRow, ...]
    groupings: tuple[str, ...]

    def by(self, grouping: str) -> list[StateRow]:
        """Return the rows of one grouping of the reducer's contract; NotFound names those there are."""
        if grouping not in self.groupings:
            raise NotFound(
                f"grouping {grouping!r} is not in this state: it has {', '.join(self.groupings)}", field="by"
            )
        return [row for row in self.groups if row.aggregation_type == grouping]


class Query:
    """Reads that wait for the reducer first. `timeout_s` bounds that wait.

    Rows come from a state of these groupings or not at all: ForeignState when another contract keeps it.
    """

    def __init__(
        self,
        source: EventSource,
        state: StateStore,
        reads: Reads,
        projector: Projector,
        groupings: Groupings,
        timeout_s: float,
        visible: Visible = EVERYTHING,
    ) -> None:
        self._source = source
        self._state = state
        self._reads = reads
        self._projector = projector
        self._groupings = groupings
        self._fingerprint = fingerprint(groupings)
        self._timeout_s = timeout_s
        self._visible = visible

    def seen_by(self, visible: Visible) -> Query:
        """Return the same queries, limited to the namespaces that someone may see."""
        return Query(
            self._source,
            self._state,
            self._reads.seen_by(visible),
            self._projector,
            self._groupings,
            self._timeout_s,
            visible,
        )

    async def up_to_date(self) -> None:
        """Return once the state has every event committed before the call; StateBehind when it takes too long.

        A state that another contract keeps is brought up to date by its own reducers: this returns at once.
        """
        with suppress(ForeignState):
            await self._caught_up()

    async def _caught_up(self) -> None:
        heads: Heads = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                heads = await self._source.heads()
                await self._projector.catch_up(heads)
        except TimeoutError as error:
            if not heads:
                raise ServiceUnavailable(
                    f"PostgreSQL did not tell the log's heads in {self._timeout_s:g} s: try again"
                ) from error
            live = await self._state.live()
            at = await self._state.positions(live) if live else {}
            lag = sum(head.position - min(head.position, at.get(key, START).position) for key, head in heads.items())
            raise StateBehind(
                f"the state is {lag} events behind after {self._timeout_s:g} s: "
                "try again, or raise BRIDGE_STATE_TIMEOUT_S",
                lag=lag,
            ) from error

    async def overview(self, *, after: str | None = None, limit: int) -> list[StateRow]:
        """Return the totals of the namespaces that follow one, by name."""
        await self._caught_up()
        found = await self._state.overview(
            after=after, limit=limit, fingerprint=self._fingerprint, visible=self._visible
        )
        return _rows(found)

    async def page(self, grouping: str, namespace: str, *, after: str | None = None, limit: int) -> list[StateRow]:
        """Return a namespace's rows of one stored grouping that follow a group key, by key."""
        grouping = self._groupings.check(grouping)
        await self._caught_up()
        found = await self._state.page(
            grouping, namespace, after=after, limit=limit, fingerprint=self._fingerprint, visible=self._visible
        )
        return _rows(found)

    async def rows(self, grouping: str, namespace: str | None = None) -> list[StateRow]:
        """Return the rows of one stored grouping, of one namespace or of all."""
        return _rows(await self._stored(self._groupings.check(grouping), namespace))

    async def namespace(self, namespace: str) -> NamespaceState:
        """Return the state of a namespace; one that was never used has zeros."""
        groups = await self._stored(None, namespace)
        totals = groups.get((namespace, "namespace", namespace), EMPTY)
        rows, names = _rows(groups), self._groupings.names()
        if totals.total_stamps + totals.failed <= WORKFLOW_ROWS_MAX:
            rows += [row async for row in self.workflow_rows(namespace)]
            names = (*names, "workflow")
        row = _row((namespace, "namespace", namespace), totals)
        return NamespaceState(**msgspec.structs.asdict(row), groups=tuple(rows), groupings=names)

    async def workflow_rows(
        self, namespace: str | None = None, *, after: str | None = None
    ) -> AsyncGenerator[StateRow]:
        """Yield one row for each workflow that made a stamp or failed: not stored, read from `fsm_states`.

        `after` is the id of one in that namespace: only those that follow it, by id.
        """
        async for prior in self._reads.workflows(namespace, after=after):
            totals = workflow_totals(prior)
            if totals != EMPTY:
                yield _row((prior.workflow.namespace, "workflow", prior.workflow.workflow_id), totals)

    async def _stored(self, grouping: str | None, namespace: str | None = None) -> State:
        await self._caught_up()
        return await self._state.rows(grouping, namespace, fingerprint=self._fingerprint, visible=self._visible)


def workflow_totals(prior: Prior) -> Totals:
    """Return what one workflow adds to the totals: its stamp, its failure, or nothing (deduplicated, running)."""
    workflow, stamp = prior.workflow, prior.stamp
    if workflow.error_code is not None:
        moment: Moment = (workflow.visits[-1].at, workflow.workflow_id)
        return Totals(failed=1, first=moment, last=moment)
    if stamp is None or workflow.deduplicated:
        return EMPTY
    took = microseconds(stamp.processing_time_ms)
    moment = (stamp.completed_at, workflow.workflow_id)
    return Totals(1, 0, stamp.file_size, took, took, took, moment, moment)


def _rows(state: State) -> list[StateRow]:
    return [_row(key, totals) for key, totals in sorted(state.items())]


def _row(key: GroupKey, totals: Totals) -> StateRow:
    return StateRow(
        namespace=key[0],
        aggregation_type=key[1],
        group_key=key[2],
        total_stamps=totals.total_stamps,
        failed=totals.failed,
        total_size_bytes=totals.total_size_bytes,
        processing_time_us_sum=totals.processing_time_us_sum,
        processing_time_us_min=totals.processing_time_us_min,
        processing_time_us_max=totals.processing_time_us_max,
        first_at=totals.first[0] if totals.first else None,
        last_at=totals.last[0] if totals.last else None,
    )
