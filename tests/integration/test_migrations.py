"""A database of any earlier schema is brought up to this one, with all that is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from omninode_bridge.adapters.postgres import migrations
from omninode_bridge.adapters.postgres.migrations import migrate
from omninode_bridge.domain.reduction import Totals
from omninode_bridge.ports import Generation
from tests.conftest import Server
from tests.integration.books import opened_books
from tests.making import NOW, new_id

PRINT = "one contract"
NAMES = ["A", "Z", "a", "a-b", "a.b", "b", "z", "ä", "漢"]
"""In the order of code points, which is not that of any language."""


@pytest_asyncio.fixture(params=["embedded", "postgresql15, ordered as English is"])
async def empty_url(request: pytest.FixtureRequest, servers: dict[str, Server]) -> AsyncIterator[str]:
    """A database without a schema."""
    name, _, ordered = request.param.partition(", ")
    server = servers[name]
    url = await server.create("template0", "LOCALE_PROVIDER icu ICU_LOCALE 'en'" if ordered else "")
    yield url
    await server.drop(url)


@pytest.mark.parametrize("reached", range(1, len(migrations.known())))
async def test_an_earlier_schema_is_brought_up_and_its_totals_are_paged(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, reached: int
) -> None:
    shipped = migrations.known()
    session = await asyncpg.connect(empty_url)
    try:
        with monkeypatch.context() as earlier:
            earlier.setattr(migrations, "known", lambda: shipped[:reached])
            assert await migrate(session) == [each.name for each in shipped[:reached]]
        live = await session.fetchval(
            "INSERT INTO state_generations (status, fingerprint) VALUES ('live', $1) RETURNING generation", PRINT
        )
        one = (1, 0, 5, 7, 7, 7, NOW, new_id(), NOW, new_id())
        groups = [("n", "content_type", name) for name in NAMES] + [(name, "namespace", name) for name in NAMES]
        await session.execute(
            "INSERT INTO bridge_state SELECT * FROM unnest($1::bridge_state[])",
            [(live, *group, *one) for group in reversed(groups)],
        )
        assert await migrate(session) == [each.name for each in shipped[reached:]]
    finally:
        await session.close()
    totals = Totals(1, 0, 5, 7, 7, 7, (NOW, one[7]), (NOW, one[9]))
    async with opened_books(empty_url) as books:
        assert await books.state.live() == Generation(live, PRINT)
        assert await books.state.rows(None) == dict.fromkeys(groups, totals)
        for at in range(len(NAMES) - 1):
            page = await books.state.page("content_type", "n", after=NAMES[at], limit=2)
            assert [group[2] for group in page] == NAMES[at + 1 : at + 3]
            page = await books.state.overview(after=NAMES[at], limit=2)
            assert [group[2] for group in page] == NAMES[at + 1 : at + 3]
