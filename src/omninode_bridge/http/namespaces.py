"""Namespaces: which there are, their totals, their stamps and their aggregates, page by page.

What the caller may not see is answered like what does not exist.
"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from omninode_bridge.app import listing
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import check_content_type, check_file_hash, check_file_path, check_namespace
from omninode_bridge.http import cursors
from omninode_bridge.http.asking import asker
from omninode_bridge.http.messages import (
    NamespacesPage,
    NoParameters,
    PageParameters,
    StampsPage,
    StampsParameters,
    StatePage,
    StateParameters,
    page_parameters,
    parameters,
)
from omninode_bridge.http.wire import answer
from omninode_bridge.ports import StampFilter


class Namespaces:
    """The calls, on one bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def overview(self, request: Request) -> Response:
        """Return the totals of the namespaces that the caller may see, by name."""
        seen = self._seen(request)
        asked = page_parameters(request.scope["query_string"], PageParameters)
        after = cursors.read(asked.cursor, "namespaces")
        page = await listing.namespaces(seen.query, after=after, limit=asked.limit)
        following = None if page.after is None else cursors.written("namespaces", page.after)
        return answer(NamespacesPage(namespaces=page.rows, next=following), headers=cursors.link(request, following))

    async def totals(self, request: Request) -> Response:
        """Return a namespace's totals."""
        seen = self._seen(request)
        parameters(request.scope["query_string"], NoParameters)
        return answer(await listing.totals(seen.query, _namespace(request)))

    async def stamps(self, request: Request) -> Response:
        """Return stamps of a namespace, newest first."""
        seen, namespace = self._seen(request), _namespace(request)
        asked = page_parameters(request.scope["query_string"], StampsParameters)
        wanted, of = _filter(asked), f"stamps {namespace}"
        before = cursors.read_id(asked.cursor, of)
        page = await listing.stamps(seen.reads, namespace, wanted, before=before, limit=asked.limit)
        following = None if page.before is None else cursors.written(of, page.before)
        return answer(StampsPage(stamps=page.stamps, next=following), headers=cursors.link(request, following))

    async def state(self, request: Request) -> Response:
        """Return a namespace's aggregates of one grouping, by group key."""
        seen, namespace = self._seen(request), _namespace(request)
        asked = page_parameters(request.scope["query_string"], StateParameters)
        of = f"state {namespace} {asked.by}"
        read = cursors.read_id if asked.by == listing.WORKFLOW else cursors.read
        after, as_of = read(asked.cursor, of), self._bridge.now()
        page = await listing.state(seen.query, namespace, asked.by, after=after, limit=asked.limit)
        following = None if page.after is None else cursors.written(of, page.after)
        return answer(
            StatePage(namespace=namespace, as_of=as_of, rows=page.rows, next=following),
            headers=cursors.link(request, following),
        )

    def _seen(self, request: Request) -> Bridge:
        """Return the bridge as the caller may see it."""
        who = asker(request)
        who.require("read")
        return self._bridge.seen_by(who.visible)


def _namespace(request: Request) -> str:
    return check_namespace(request.path_params["namespace"])


def _filter(asked: StampsParameters) -> StampFilter:
    return StampFilter(
        file_path=None if asked.file_path is None else check_file_path(asked.file_path),
        file_hash=None if asked.file_hash is None else check_file_hash(asked.file_hash),
        content_type=None if asked.content_type is None else check_content_type(asked.content_type),
        stamped_by=None if asked.stamped_by is None else _signature(asked.stamped_by),
        origin=asked.digest_origin,
        since=_moment(asked.since, "since"),
        until=_moment(asked.until, "until"),
    )


def _signature(value: str) -> str:
    if "\0" in value:
        raise InvalidInput("stamped_by has a NUL: nobody is called so", field="stamped_by")
    return value


def _moment(at: datetime | None, field: str) -> datetime | None:
    try:
        return None if at is None else at.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInput(f"{field} is no time of the years 1 to 9999 in UTC: send another", field=field) from error
