"""The state folded anew beside the live one, while writers write, on real servers.

The law: readers see the old state until the swap and the new one after it, and both are the fold of the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.state import PostgresEventSource, PostgresStateStore
from omninode_bridge.app import bootstrap
from omninode_bridge.app.project import rebuild
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import ServiceUnavailable
from omninode_bridge.domain.reduction import State
from omninode_bridge.nodes.reducer.v1_0_0 import node as reducer_node
from tests.integration.books import Books
from tests.integration.proxy import Fault, Proxy, nth_request
from tests.making import GROUPINGS, draft, failure

HOURLY = msgspec.structs.replace(GROUPINGS, window_ms=3_600_000, metadata_fields=("team",))


async def test_a_rebuild_beside_writers_and_a_reducer_gives_the_same_totals(books: Books) -> None:
    async with _writing(books):
        for _ in range(3):
            await _never_goes_back_while(books, rebuild(books.source, books.state, GROUPINGS))
    await books.balance()


async def test_a_rebuild_mends_a_state_that_was_damaged(books: Books) -> None:
    await _fill(books)
    right = await books.state.rows(None)
    await books.pool.execute("UPDATE bridge_state SET total_stamps = total_stamps + 1")
    await rebuild(books.source, books.state, GROUPINGS)
    assert await books.state.rows(None) == right
    await books.balance()


async def test_a_partial_rebuild_mends_its_namespace_and_touches_no_other(books: Books) -> None:
    await _fill(books, "legal", "research")
    right = await books.state.rows(None)
    await books.pool.execute("UPDATE bridge_state SET failed = failed + 1")
    await rebuild(books.source, books.state, GROUPINGS, namespace="legal")
    found = await books.state.rows(None)
    assert {key: found[key] for key in right if key[0] == "legal"} == _only(right, "legal")
    assert all(found[key] != right[key] for key in _only(right, "research"))
    await rebuild(books.source, books.state, GROUPINGS, namespace="research")
    await books.balance()


async def test_partial_rebuilds_beside_writers_give_the_same_totals(books: Books) -> None:
    async with _writing(books):
        for namespace in ("legal", "research", "legal"):
            await _never_goes_back_while(books, rebuild(books.source, books.state, GROUPINGS, namespace=namespace))
    await books.balance()


async def test_rebuilds_at_once_all_end_and_give_the_same_totals(books: Books) -> None:
    async with _writing(books):
        await asyncio.gather(
            rebuild(books.source, books.state, GROUPINGS),
            rebuild(books.source, books.state, GROUPINGS, namespace="legal"),
            rebuild(books.source, books.state, GROUPINGS),
        )
    assert await _generations(books) == ["live"]
    await books.balance()


async def test_a_changed_contract_is_folded_and_swapped_in_when_a_bridge_starts(books: Books, tmp_path: Path) -> None:
    async with bootstrap.connect(books.url, Settings.read()) as bridge:
        for number in range(5):
            books.acknowledge([await bridge.stamp(b"%d" % number, file_path=f"{number}", namespace="legal")])
        before = await bridge.state("legal")
        shipped = (Path(reducer_node.__file__).parent / "contract.yaml").read_text(encoding="utf-8")
        hours = shipped.replace("window_size_ms: 60000", "window_size_ms: 3600000")
        changed = tmp_path / "contract.yaml"
        changed.write_text(hours.replace("metadata.project", "metadata.team"), encoding="utf-8")
        async with bootstrap.connect(books.url, Settings.read(reducer_contract=changed)) as hourly:
            after = await hourly.state("legal")
            assert after.groupings == tuple(
                "metadata.team" if name == "metadata.project" else name for name in before.groupings
            )
            assert {row.group_key[14:] for row in after.by("time_window")} == {"00:00Z"}
            assert (after.total_stamps, after.total_size_bytes) == (before.total_stamps, before.total_size_bytes)
            # The bridge with the old contract can't fold into this state, and says so.
            books.acknowledge([await bridge.stamp(b"later", file_path="later", namespace="legal")])
            assert (await hourly.state("legal")).total_stamps == 6
            assert all(finding.holds for finding in await hourly.audit())


async def test_a_reducer_with_another_contract_than_the_live_states_folds_nothing(books: Books) -> None:
    await _fill(books)
    old = books.projector()
    await old.catch_up(await books.source.heads())
    await rebuild(books.source, books.state, HOURLY)
    await books.record(books.session(), draft("new"))
    with pytest.raises(ServiceUnavailable, match="another reducer contract"):
        await old.catch_up(await books.source.heads())
    await books.balance(groupings=HOURLY)


async def test_a_rebuild_cut_off_at_every_step_changes_nothing_and_the_next_one_ends(
    books: Books, proxy: Proxy
) -> None:
    await _fill(books)
    right = await books.state.rows(None)
    number = 0
    async with pool(proxy.url) as opened:
        source, state = PostgresEventSource(opened), PostgresStateStore(opened)
        while True:
            proxy.arm((Fault.BEFORE, Fault.AFTER)[number % 2], nth_request(number))
            with suppress(ServiceUnavailable):
                await rebuild(source, state, GROUPINGS)
            assert await books.state.rows(None) == right
            if not proxy.struck.is_set():
                break
            number += 1
    assert number >= 20
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()


async def test_a_cancelled_rebuild_leaves_nothing_behind(books: Books, proxy: Proxy) -> None:
    await _fill(books)
    right = await books.state.rows(None)
    async with pool(proxy.url) as opened:
        for number in range(4, 20, 5):
            proxy.arm(Fault.STALL_BEFORE, nth_request(number))
            running = asyncio.create_task(rebuild(PostgresEventSource(opened), PostgresStateStore(opened), GROUPINGS))
            await proxy.struck.wait()
            running.cancel()
            proxy.release()  # the driver's cancellation waits for the server's word, or for the end of the connection
            await asyncio.gather(running, return_exceptions=True)
            assert await books.state.rows(None) == right
    assert await _generations(books) == ["live"]
    await books.balance()


@asynccontextmanager
async def _writing(books: Books) -> AsyncIterator[None]:
    """Two writers, and a reducer, at work until the end."""
    await _fill(books, "legal", "research")
    stop = asyncio.Event()

    async def write(namespace: str) -> None:
        session, turn = books.session(), 0
        while not stop.is_set():
            turn += 1
            await books.record(
                session,
                draft("a", b"%d" % turn, namespace=namespace, metadata={"project": f"{turn % 3}"}),
                failure("x", namespace=namespace),
            )

    reducer = books.projector()
    writers = [asyncio.create_task(write(namespace)) for namespace in ("legal", "research")]
    running = asyncio.create_task(reducer.run())
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*writers)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _never_goes_back_while(books: Books, work: Coroutine[object, object, object]) -> None:
    """Read the totals while `work` is done."""
    task = asyncio.create_task(work)
    last = 0
    while not task.done():
        found = sum(totals.total_stamps + totals.failed for totals in (await books.state.rows("namespace")).values())
        assert found >= last
        last = found
    await task
    assert last > 0


async def _fill(books: Books, *namespaces: str) -> None:
    session = books.session()
    for namespace in namespaces or ("legal",):
        for number in range(30):
            await books.record(
                session,
                draft(f"{number}", namespace=namespace, metadata={"project": f"{number % 4}"}),
                failure("x", namespace=namespace),
            )
    await books.catch_up()
    await session.close()


async def _generations(books: Books) -> list[str]:
    found = await books.pool.fetch("SELECT status FROM state_generations WHERE status <> 'retired' ORDER BY generation")
    return [row["status"] for row in found]


def _only(state: State, namespace: str) -> State:
    return {key: totals for key, totals in state.items() if key[0] == namespace}
