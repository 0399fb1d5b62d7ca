"""The fixtures of the tests on one real PostgreSQL; each runs on the embedded one and on PostgreSQL 15."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.books import Books, opened_books
from tests.integration.proxy import Proxy


@pytest_asyncio.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    async with opened_books(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(database_url) as running:
        yield running
