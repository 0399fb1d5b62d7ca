"""Long lists page by page: namespaces, their stamps, their aggregates.

The rule: a namespace in which nothing was stamped, or tried and failed, does not exist; neither does one that the
caller may not see. Both are answered alike.
"""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from omninode_bridge.app.query import Query, StateRow
from omninode_bridge.domain.errors import NotFound
from omninode_bridge.ports import Reads, StampFilter, StampPage

__all__ = ["WORKFLOW", "RowPage", "namespaces", "stamps", "state", "totals"]

WORKFLOW = "workflow"


class RowPage(msgspec.Struct, frozen=True):
    """Rows by group key; `after` is the key that the next page comes after, None at the end."""

    rows: list[StateRow]
    after: str | None


async def namespaces(query: Query, *, after: str | None, limit: int) -> RowPage:
    """Return the totals of namespaces, by name."""
    return _page(await query.overview(after=after, limit=limit + 1), limit)


async def totals(query: Query, namespace: str) -> StateRow:
    """Return a namespace's totals; NotFound when there is nothing in it."""
    rows = await query.rows("namespace", namespace)
    if not rows:
        raise _nothing_in(namespace)
    return rows[0]


async def stamps(reads: Reads, namespace: str, wanted: StampFilter, *, before: str | None, limit: int) -> StampPage:
    """Return stamps of a namespace, newest first; NotFound when there is nothing in it."""
    page = await reads.page(namespace, wanted, before=before, limit=limit)
    if not page.stamps and not await _exists(reads, namespace):
        raise _nothing_in(namespace)
    return page


async def state(query: Query, namespace: str, by: str, *, after: str | None, limit: int) -> RowPage:
    """Return a namespace's rows of one grouping; NotFound when there is no such grouping, or nothing in it."""
    if by != WORKFLOW:
        rows = await query.page(by, namespace, after=after, limit=limit + 1)
        if not rows:
            await totals(query, namespace)
        return _page(rows, limit)
    await totals(query, namespace)
    found: list[StateRow] = []
    async with aclosing(query.workflow_rows(namespace, after=after)) as following:
        async for row in following:
            found.append(row)
            if len(found) > limit:
                break
    return _page(found, limit)


async def _exists(reads: Reads, namespace: str) -> bool:
    if (await reads.page(namespace, StampFilter(), limit=1)).stamps:
        return True
    async with aclosing(reads.workflows(namespace)) as found:
        return await anext(found, None) is not None


def _page(found: list[StateRow], limit: int) -> RowPage:
    """Return the page of what was found, which is one row more than the limit where another page follows."""
    return RowPage(found[:limit], found[limit - 1].group_key if len(found) > limit else None)


def _nothing_in(namespace: str) -> NotFound:
    return NotFound(f"there is nothing in namespace {namespace}", field="namespace")
