"""The state folded anew beside the live one, while writers write, on real servers.

The law: readers see the old state until the swap and the new one after it, and both are the fold of the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.state import BUILD_LEASE_S, PostgresEventSource, PostgresStateStore
from omninode_bridge.app import bootstrap
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.project import Projector, rebuild
from omninode_bridge.app.query import NamespaceState
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import ForeignState, ServiceUnavailable
from omninode_bridge.domain.reduction import State
from omninode_bridge.nodes.reducer.v1_0_0 import node as reducer_node
from omninode_bridge.ports import fingerprint
from tests.integration.books import Books, eventually, waited
from tests.integration.proxy import Fault, Proxy, nth_request
from tests.making import GROUPINGS, draft, failure

# One record can't be read, and can be again.
CORRUPT = "UPDATE event_log SET body = 'x' || body WHERE topic = 'workflow.stamping.completed' AND position = 3"
MEND = "UPDATE event_log SET body = substr(body, 2) WHERE body LIKE 'x%'"
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


async def test_a_changed_contract_is_folded_and_swapped_in_when_up_starts(books: Books, tmp_path: Path) -> None:
    async with bootstrap.connect(books.url, Settings.read()) as bridge:
        await _stamp_five(books, bridge)
        before = await bridge.state("legal")
        async with bootstrap.connect(books.url, _hourly(tmp_path), "all") as hourly:
            after = await hourly.state("legal")
            assert after.groupings == tuple(
                "metadata.team" if name == "metadata.project" else name for name in before.groupings
            )
            assert {row.group_key[14:] for row in after.by("time_window")} == {"00:00Z"}
            assert (after.total_stamps, after.total_size_bytes) == (before.total_stamps, before.total_size_bytes)
            # The bridge with the old contract can't fold into this state nor read it, and says so, also while
            # there is nothing new; it still stamps.
            await _is_told(bridge)
            books.acknowledge([await bridge.stamp(b"later", file_path="later", namespace="legal")])
            await _is_told(bridge)
            assert (await hourly.state("legal")).total_stamps == 6
            assert all(finding.holds for finding in await hourly.audit())
            with pytest.raises(ForeignState, match="another reducer contract"):
                await bridge.rebuild("legal")
            assert (await hourly.state("legal")).total_stamps == 6


async def test_a_command_with_another_contract_leaves_the_state_alone_until_it_is_told_to_rebuild(
    books: Books, tmp_path: Path
) -> None:
    async with bootstrap.connect(books.url, Settings.read()) as bridge:
        await _stamp_five(books, bridge)
        async with bootstrap.connect(books.url, _hourly(tmp_path)) as hourly:
            await _is_told(hourly)
            books.acknowledge([await hourly.stamp(b"6", file_path="6", namespace="legal")])
            await hourly.query.up_to_date()
            assert len(await hourly.history("6", "legal")) == 1
            assert all(finding.holds for finding in await hourly.audit())
            await _is_told(hourly)
            assert (await bridge.state("legal")).total_stamps == 6
            await hourly.rebuild()
            assert {row.group_key[14:] for row in (await hourly.state("legal")).by("time_window")} == {"00:00Z"}
            await _is_told(bridge)
            await bridge.rebuild()
            assert (await bridge.state("legal")).total_stamps == 6
            await _is_told(hourly)


async def test_of_two_contracts_that_start_at_once_on_a_new_database_one_is_followed(
    books: Books, tmp_path: Path
) -> None:
    minutely = bootstrap.connect(books.url, Settings.read(), "all")
    hourly = bootstrap.connect(books.url, _hourly(tmp_path), "all")
    async with AsyncExitStack() as stack:
        bridges = await asyncio.gather(stack.enter_async_context(minutely), stack.enter_async_context(hourly))
        for number, bridge in enumerate(bridges):
            books.acknowledge([await bridge.stamp(b"%d" % number, file_path=f"{number}", namespace="legal")])
        answers = await asyncio.gather(*(bridge.state("legal") for bridge in bridges), return_exceptions=True)
        (state,) = (answer for answer in answers if not isinstance(answer, ForeignState))
        assert isinstance(state, NamespaceState)
        assert state.total_stamps == 2
    # Whoever was displaced comes back with a new start.
    async with bootstrap.connect(books.url, Settings.read(), "all") as bridge:
        assert (await bridge.state("legal")).total_stamps == 2


async def test_a_folder_that_nobody_else_uses_follows_the_contract_and_one_that_up_runs_does_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    async with bootstrap.embedded(folder, Settings.read(), "all") as running:
        await running.stamp(b"1", file_path="1", namespace="legal")
        async with bootstrap.embedded(folder, _hourly(tmp_path)) as attached:
            await _is_told(attached)
            await attached.stamp(b"2", file_path="2", namespace="legal")
        assert (await running.state("legal")).total_stamps == 2
    async with bootstrap.embedded(folder, _hourly(tmp_path)) as alone:
        state = await alone.state("legal")
        assert state.total_stamps == 2
        assert {row.group_key[14:] for row in state.by("time_window")} == {"00:00Z"}


async def test_a_record_that_can_be_read_again_is_counted_and_its_letter_closed(books: Books) -> None:
    await _fill(books)
    right = await books.state.rows(None)
    first = None
    for _ in range(2):
        await books.pool.execute(CORRUPT)
        await rebuild(books.source, books.state, GROUPINGS)
        assert await books.state.rows(None) != right
        ((identity, status),) = await books.pool.fetch("SELECT id, status FROM dead_letters")
        first = first or identity
        assert (identity, status) == (first, "open")  # the same letter again
        assert all(finding.holds for finding in await books.audit())
        await books.pool.execute(MEND)
        await rebuild(books.source, books.state, GROUPINGS)
        assert await books.state.rows(None) == right
        assert await books.pool.fetchval("SELECT status FROM dead_letters") == "replayed"
        await books.balance()


@pytest.mark.parametrize("namespace", [None, "legal"])
async def test_a_discarded_letter_stays_so_while_its_record_is_not_readable(
    books: Books, namespace: str | None
) -> None:
    await _fill(books)
    await books.pool.execute(CORRUPT)
    await rebuild(books.source, books.state, GROUPINGS)
    await books.pool.execute("UPDATE dead_letters SET status = 'discarded'")
    await rebuild(books.source, books.state, GROUPINGS, namespace=namespace)
    assert [row["status"] for row in await books.pool.fetch("SELECT status FROM dead_letters")] == ["discarded"]
    assert all(finding.holds for finding in await books.audit())
    await books.pool.execute(MEND)
    await rebuild(books.source, books.state, GROUPINGS, namespace=namespace)
    await books.balance()


async def test_a_letter_of_a_state_that_is_being_built_says_nothing_of_the_live_one(books: Books) -> None:
    await _fill(books)
    await books.pool.execute(CORRUPT)
    building = await books.state.begin(fingerprint(GROUPINGS))
    await Projector(books.source, books.state, GROUPINGS, building=building).catch_up(await books.source.heads())
    await books.pool.execute(MEND)
    assert await books.count("dead_letters") == 1
    await books.balance()
    await books.state.discard(building)
    assert await books.count("dead_letters") == 0


async def test_what_a_killed_rebuild_leaves_is_dropped_by_the_next_one(books: Books) -> None:
    await _fill(books)
    await books.pool.execute(CORRUPT)
    killed = await books.state.begin(fingerprint(GROUPINGS))
    await Projector(books.source, books.state, GROUPINGS, building=killed).step()
    await books.pool.execute(MEND)
    await books.pool.execute(
        "UPDATE state_generations SET touched_at = touched_at - make_interval(secs => $1)", BUILD_LEASE_S + 1
    )
    working = await books.state.begin(fingerprint(GROUPINGS))
    assert await _generations(books) == ["live", "building"]
    await rebuild(books.source, books.state, GROUPINGS)
    assert await books.pool.fetchval("SELECT count(*) FROM bridge_state WHERE generation = $1", killed.number) == 0
    assert await books.state.positions(killed) == {}
    assert await books.count("dead_letters") == 0
    # The one that came back from the dead is refused; the one at work goes on.
    with pytest.raises(ServiceUnavailable, match="start the rebuild again"):
        await Projector(books.source, books.state, GROUPINGS, building=killed).step()
    heads = await books.source.heads()
    await Projector(books.source, books.state, GROUPINGS, building=working).catch_up(heads, exactly=True)
    assert await books.state.swap(working)
    await books.balance()


async def test_a_rebuild_at_work_keeps_its_lease(books: Books) -> None:
    await _fill(books)
    building = await books.state.begin(fingerprint(GROUPINGS))
    builder = Projector(books.source, books.state, GROUPINGS, building=building, batch_max=5)
    for _ in range(3):
        await books.pool.execute(
            "UPDATE state_generations SET touched_at = touched_at - make_interval(secs => $1)", BUILD_LEASE_S + 1
        )
        assert await builder.step()
        await books.state.sweep()
        assert await _generations(books) == ["live", "building"]
    await books.state.discard(building)
    await books.balance()


async def test_a_swap_may_take_longer_than_other_statements_do(books: Books) -> None:
    await _fill(books)
    building = await books.state.begin(fingerprint(GROUPINGS))
    heads = await books.source.heads()
    await Projector(books.source, books.state, GROUPINGS, building=building).catch_up(heads, exactly=True)
    async with asyncpg.create_pool(books.url, min_size=1, max_size=1, command_timeout=3) as impatient:
        async with books.pool.acquire() as holder:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("LOCK TABLE bridge_state")
            swapping = asyncio.create_task(PostgresStateStore(impatient).swap(building))
            await eventually(
                lambda: waited(books, swapping, "4 seconds"), "the swap waits longer than its pool's limit"
            )
            await transaction.rollback()
        assert await swapping
    await books.balance()


async def test_a_reducer_with_another_contract_than_the_live_states_folds_nothing(books: Books) -> None:
    await _fill(books)
    old = books.projector()
    await old.catch_up(await books.source.heads())
    await rebuild(books.source, books.state, HOURLY)
    await books.record(books.session(), draft("new"))
    with pytest.raises(ForeignState, match="another reducer contract"):
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
            reducer.wake.set()

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


async def _stamp_five(books: Books, bridge: Bridge) -> None:
    for number in range(5):
        books.acknowledge([await bridge.stamp(b"%d" % number, file_path=f"{number}", namespace="legal")])


async def _is_told(bridge: Bridge) -> None:
    """Whatever of the state is asked for: never the rows of another contract, always the sentence."""
    for ask in (
        lambda: bridge.state("legal"),
        lambda: bridge.state("never.used"),
        bridge.states,
        lambda: bridge.query.overview(limit=1),
        lambda: bridge.query.page("namespace", "never.used", limit=1),
    ):
        with pytest.raises(ForeignState, match=r"another reducer contract \(generation \d+\).*rebuild"):
            await ask()


def _hourly(folder: Path) -> Settings:
    """Settings with a changed contract."""
    shipped = (Path(reducer_node.__file__).parent / "contract.yaml").read_text(encoding="utf-8")
    hours = shipped.replace("window_size_ms: 60000", "window_size_ms: 3600000")
    changed = folder / "contract.yaml"
    changed.write_text(hours.replace("metadata.project", "metadata.team"), encoding="utf-8")
    return Settings.read(reducer_contract=changed)


async def _generations(books: Books) -> list[str]:
    found = await books.pool.fetch("SELECT status FROM state_generations WHERE status <> 'retired' ORDER BY generation")
    return [row["status"] for row in found]


def _only(state: State, namespace: str) -> State:
    return {key: totals for key, totals in state.items() if key[0] == namespace}
