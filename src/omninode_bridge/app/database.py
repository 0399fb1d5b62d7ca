"""Which database: the one that the settings name, or the embedded server's, run for as long as it is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from omninode_bridge.adapters.embedded import EmbeddedPostgres
from omninode_bridge.adapters.postgres import connection as postgres
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import ServiceUnavailable

DEATH_S = 10.0
"""How long to look whether a server that refuses connections recovers or dies."""
DEATH_LOOK_S = 0.1


@asynccontextmanager
async def database(settings: Settings, data_dir: str | os.PathLike[str] | None = None) -> AsyncIterator[str]:
    """Yield the URL of the database: the configured one, or the embedded server's while it runs."""
    if data_dir is None and settings.database_url is not None:
        yield settings.database_url
        return
    async with server(settings, data_dir, "command") as running:
        yield running.dsn


@asynccontextmanager
async def server(
    settings: Settings, data_dir: str | os.PathLike[str] | None, kind: Literal["up", "command"]
) -> AsyncIterator[EmbeddedPostgres]:
    """Run the embedded server, or attach to the one that runs on its folder; its death is told as what it died of."""
    folder = Path(data_dir) if data_dir is not None else settings.data_dir
    async with await EmbeddedPostgres.start(folder, kind=kind, binaries=settings.postgres_binaries) as running:
        try:
            yield running
        except ServiceUnavailable as error:
            if (death := await _death(running)) is not None:
                raise death from error
            raise


async def _death(running: EmbeddedPostgres) -> ServiceUnavailable | None:
    """Return what our server died of, None when it serves.

    A server whose disk is full dies in two steps: it crashes, and then fails to recover. That is waited for:
    what its users saw was only a lost connection, and the server says why.
    """
    death = asyncio.ensure_future(running.died())
    try:
        async with asyncio.timeout(DEATH_S):
            while not death.done():
                with suppress(ServiceUnavailable):
                    (await postgres.connect(running.dsn)).terminate()
                    return None
                await asyncio.wait({death}, timeout=DEATH_LOOK_S)
            return death.result()
    except TimeoutError:
        return None
    finally:
        death.cancel()
