"""The event log pruned, with writers, reducers and rebuilds at work, on real servers.

The law: retention deletes what every consumer has read and is old, and no total changes by it, now or in any rebuild;
the audit knows what was there without having it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.evidence import PostgresEvidence
from omninode_bridge.adapters.postgres.ledger import PostgresLedgerSession
from omninode_bridge.adapters.postgres.upkeep import PostgresUpkeep
from omninode_bridge.adapters.system import uuid7_batch
from omninode_bridge.app import bootstrap
from omninode_bridge.app.audit import audit
from omninode_bridge.app.project import Projector, rebuild
from omninode_bridge.app.settings import Settings
from omninode_bridge.app.upkeep import age_of
from omninode_bridge.domain.errors import ForeignState, InvalidInput, LawBroken, ServiceUnavailable
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.nodes.reducer.v1_0_0 import node as reducer_node
from omninode_bridge.ports import fingerprint
from tests.integration.books import Books, eventually
from tests.integration.keeping import acts, chain, forget, is_clean, keeper, waiting
from tests.integration.proxy import Fault, Proxy, nth_request
from tests.making import COMPLETED, GROUPINGS, MACHINE, PLAN, draft, failure, new_id

ALL = timedelta(days=-1)
"""Older than tomorrow: every event there is."""
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
HOURLY = Groupings(metadata_fields=("project",), window_ms=3_600_000)


async def fill(books: Books, *namespaces: str, rounds: int = 10) -> None:
    """Stamp, repeat and fail: two events a round and namespace."""
    session = books.session()
    for number, namespace in itertools.product(range(rounds), namespaces or ("legal",)):
        content, metadata = new_id().encode(), {"project": f"{number % 3}"}
        await books.record(
            session,
            draft(f"{number % 4}", content, namespace=namespace, metadata=metadata),
            draft(f"{number % 4}", content, namespace=namespace, metadata=metadata),
            failure("x", namespace=namespace),
        )
    await session.close()


async def floors(books: Books) -> list[tuple[int, int]]:
    found = await books.pool.fetch("SELECT floor, position FROM log_heads ORDER BY topic, shard")
    return [(row["floor"], row["position"]) for row in found]


async def test_what_is_pruned_changes_no_total_and_none_of_a_rebuild(books: Books) -> None:
    await fill(books, "legal", "research")
    await books.balance()
    right = await books.state.rows(None)
    done = await keeper(books).prune(ALL)
    assert (done.events, done.shards, done.held, done.held_for) == (40, 2, 0, None)
    assert done.octets > 10_000
    assert await books.count("event_log") == 0
    assert await floors(books) == [(20, 20), (20, 20)]
    assert await books.state.rows(None) == right
    await books.balance()
    for namespace in (None, "legal", "never.used"):
        await rebuild(books.source, books.state, GROUPINGS, namespace=namespace)
        assert await books.state.rows(None) == right
        await books.balance()
    assert (await keeper(books).prune(ALL)).events == 0
    assert [(actor, act, subject) for actor, act, subject, _ in await acts(books)] == [
        ("ann", "events.prune", "event_log")
    ]


async def test_the_log_goes_on_where_it_was_pruned(books: Books) -> None:
    for turn in range(3):
        await fill(books, rounds=4)
        await books.balance()
        assert (await keeper(books, batch_max=3).prune(ALL)).events == 8
        await books.balance()
        assert await floors(books) == [(4 * (turn + 1),) * 2] * 2
    await fill(books, rounds=4)
    await books.balance()
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()
    assert [record.position for record in await books.source.read({}, 100) if record.topic == COMPLETED] == [
        13,
        14,
        15,
        16,
    ]


async def test_only_what_is_older_is_pruned_up_to_the_first_that_is_not(books: Books) -> None:
    now = datetime.now(UTC)
    ages = [40, 35, 20, 33, 1]  # days; of a clock that was set back once
    session = _clocked(books, [now - timedelta(days=age) for age in ages])
    for number, _ in enumerate(ages):
        await books.record(session, draft(f"{number}"))
    await books.balance()
    upkeep = keeper(books)
    assert (await upkeep.prune(timedelta(days=60))).events == 0
    told = await upkeep.prune(timedelta(days=30), dry_run=True)
    assert (told.events, told.shards, told.dry_run) == (2, 1, True)
    assert await acts(books) == []
    assert await books.count("event_log") == 5
    done = await upkeep.prune(timedelta(days=30))
    assert (done.events, done.octets) == (told.events, told.octets)
    assert [row["position"] for row in await chain(books)] == [3, 4, 5]
    await books.balance()
    assert (await upkeep.prune(timedelta(days=10))).events == 2
    await books.balance()


async def test_what_a_consumer_has_not_read_is_kept_for_it(books: Books) -> None:
    await fill(books, rounds=10)
    await books.catch_up()
    fifth = await books.pool.fetchval("SELECT event_id FROM event_log WHERE topic = $1 AND position = 5", COMPLETED)
    await books.pool.execute("INSERT INTO consumer_positions VALUES ('relay', $1, 0, 5, $2)", COMPLETED, fifth)
    for dry_run in (True, False):
        done = await keeper(books).prune(ALL, dry_run=dry_run)
        # Of the other topic it has read nothing.
        assert (done.events, done.held, done.held_for, done.dry_run) == (5, 15, "relay", dry_run)
    assert await floors(books) == [(5, 10), (0, 10)]
    await books.balance()
    await books.pool.execute("DELETE FROM consumer_positions WHERE consumer = 'relay'")
    assert (await keeper(books).prune(ALL)).events == 15
    await books.balance()


async def test_what_another_contracts_state_has_not_folded_is_kept_for_it(books: Books) -> None:
    await rebuild(books.source, books.state, HOURLY)
    await fill(books, rounds=3)
    done = await keeper(books).prune(ALL)
    assert (done.events, done.held) == (0, 6)
    assert done.held_for is not None and done.held_for.startswith("reducer/")
    await books.catch_up(HOURLY)
    assert (await keeper(books).prune(ALL)).events == 6
    await books.balance(groupings=HOURLY)
    await rebuild(books.source, books.state, HOURLY)
    await books.balance(groupings=HOURLY)


async def test_a_log_is_not_pruned_while_a_state_is_being_built_from_it(books: Books) -> None:
    await fill(books, rounds=3)
    await books.catch_up()
    building = await books.state.begin(fingerprint(HOURLY))
    done = await keeper(books).prune(ALL)
    assert (done.events, done.held, done.held_for) == (0, 6, building.consumer)
    builder = Projector(books.source, books.state, HOURLY, building=building)
    await builder.catch_up(await books.source.heads())
    with pytest.raises(ServiceUnavailable, match="being rebuilt"):
        await keeper(books).prune(ALL)
    assert await books.count("event_log") == 6
    await books.state.discard(building)
    await keeper(books).prune(ALL)
    await books.balance()


async def test_another_contract_can_not_fold_what_is_gone_and_says_so(books: Books, tmp_path: Path) -> None:
    async with bootstrap.connect(books.url, Settings.read(), "all") as bridge:
        for number in range(5):
            books.acknowledge([await bridge.stamp(b"%d" % number, file_path=f"{number}", namespace="legal")])
        await bridge.query.up_to_date()
        before = await bridge.state("legal")
    groupings = bridge.query._groupings
    assert (await keeper(books, groupings=groupings).prune(ALL)).events == 5
    changed = tmp_path / "contract.yaml"
    shipped = (Path(reducer_node.__file__).parent / "contract.yaml").read_text(encoding="utf-8")
    changed.write_text(shipped.replace("metadata.project", "metadata.team"), encoding="utf-8")
    other = Settings.read(reducer_contract=changed)
    with pytest.raises(ForeignState, match=r"deleted .*metadata\.project.*start this process with that contract"):
        async with bootstrap.connect(books.url, other, "all"):
            pass
    async with bootstrap.connect(books.url, other) as bridge:
        with pytest.raises(ForeignState, match=r"metadata\.project"):
            await bridge.rebuild()
    # The contract that it was folded by starts, serves and rebuilds as ever.
    async with bootstrap.connect(books.url, Settings.read(), "all") as bridge:
        assert await bridge.state("legal") == before
        books.acknowledge([await bridge.stamp(b"6", file_path="6", namespace="legal")])
        await bridge.rebuild()
        assert (await bridge.state("legal")).total_stamps == 6
        assert all(finding.holds for finding in await bridge.audit())


async def test_letters_of_pruned_records_stay_and_are_in_no_total(books: Books) -> None:
    await fill(books, "legal", "research", rounds=3)
    await books.pool.execute("UPDATE event_log SET body = 'x' || body WHERE position = 3")
    await is_clean(books)
    await books.pool.execute("UPDATE dead_letters SET status = 'discarded' WHERE topic <> $1", COMPLETED)
    right = await books.state.rows(None)
    letters = await books.pool.fetch("SELECT id, topic, status, reason, body FROM dead_letters ORDER BY id")
    assert [row["status"] for row in letters] == ["open", "discarded"]
    await keeper(books).prune(ALL)
    await is_clean(books)
    for namespace in (None, "legal", "research", None):
        await rebuild(books.source, books.state, GROUPINGS, namespace=namespace)
        assert await books.state.rows(None) == right
        await is_clean(books)
    assert await books.pool.fetch("SELECT id, topic, status, reason, body FROM dead_letters ORDER BY id") == letters
    await books.pool.execute("DELETE FROM dead_letters WHERE status = 'open'")
    assert not next(finding for finding in await books.audit() if finding.law == 1).holds


async def test_a_record_that_nobody_can_account_for_stops_the_pruning_before_it_is_lost(books: Books) -> None:
    await fill(books, rounds=4)
    await books.catch_up()
    await books.pool.execute("UPDATE event_log SET body = 'x' || body WHERE topic = $1 AND position = 3", COMPLETED)
    with pytest.raises(LawBroken, match="position 3 is not readable, and no dead letter says so"):
        await keeper(books, batch_max=2).prune(ALL)
    assert await floors(books) == [(2, 4), (0, 4)]
    await books.pool.execute("UPDATE event_log SET body = substr(body, 2) WHERE body LIKE 'x%'")
    await keeper(books).prune(ALL)
    await books.balance()


async def test_a_namespace_is_erased_from_what_was_pruned_too(books: Books) -> None:
    await fill(books, "legal", "research", rounds=4)
    await books.balance()
    await keeper(books).prune(ALL)
    await fill(books, "legal", "research", rounds=2)
    await keeper(books).erase("legal")
    forget(books, "legal")
    assert await books.pool.fetchval("SELECT count(*) FROM bridge_state WHERE namespace = 'legal'") == 0
    await books.balance()
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()
    # Tombstones are pruned like any other record.
    assert (await keeper(books).prune(ALL)).events == 8
    await fill(books, "legal", rounds=2)
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()


@pytest.mark.timeout(300)
async def test_pruning_beside_writers_reducers_and_rebuilds_breaks_no_law(books: Books) -> None:
    async with _busy(books) as rebuilds:
        for _ in range(25):
            with suppress(ServiceUnavailable):  # a rebuild is at work
                await keeper(books, batch_max=20).prune(ALL)
            assert all(finding.holds for finding in await books.audit())
        async with rebuilds:  # none is at work, however long they take
            await keeper(books, batch_max=20).prune(ALL)
    await books.balance()
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()
    # Of a pruning that a rebuild stopped, too, what was deleted is counted.
    assert sum(floor for floor, _ in await floors(books)) > 30


async def test_a_pruning_cut_off_at_any_step_loses_nothing_and_the_next_goes_on(books: Books, proxy: Proxy) -> None:
    number = 0
    async with pool(proxy.url) as opened:
        while True:
            await fill(books, rounds=3)
            await books.catch_up()
            right = await books.state.rows(None)
            proxy.arm((Fault.BEFORE, Fault.AFTER)[number % 2], nth_request(number))
            with suppress(ServiceUnavailable):
                await keeper(books, opened, batch_max=2).prune(ALL)
            struck = proxy.struck.is_set()
            proxy.disarm()
            await books.balance()
            await rebuild(books.source, books.state, GROUPINGS)
            assert await books.state.rows(None) == right
            if not struck:
                break
            number += 1
    assert number >= 30
    await keeper(books).prune(ALL)
    assert await books.count("event_log") == 0
    await books.balance()


async def test_a_reducer_that_slept_while_others_folded_and_pruned_goes_on(books: Books) -> None:
    await fill(books, rounds=2)
    asleep = books.projector()
    await asleep.catch_up(await books.source.heads())
    for beyond in (0, 1):
        await fill(books, rounds=3)
        await books.catch_up()
        await keeper(books).prune(ALL)
        await fill(books, rounds=beyond)
        await asleep.catch_up(await books.source.heads())
    await books.balance()


async def test_a_rebuild_that_slept_while_it_was_dropped_and_the_log_pruned_is_told(books: Books) -> None:
    await fill(books, rounds=2)
    await books.catch_up()
    building = await books.state.begin(fingerprint(GROUPINGS))
    asleep = Projector(books.source, books.state, GROUPINGS, building=building)
    await asleep.step()
    await books.state.discard(building)
    await fill(books, rounds=2)
    await keeper(books).prune(ALL)
    await fill(books, rounds=2)
    with pytest.raises(ServiceUnavailable, match="start the rebuild again"):
        await asleep.catch_up(await books.source.heads())
    await books.balance()


async def test_a_state_that_is_begun_during_a_pruning_begins_with_what_was_deleted(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not to give up and let the new state by.
    monkeypatch.setattr("omninode_bridge.adapters.postgres.upkeep.LOCK_TIMEOUT_MS", 30_000)
    await fill(books, rounds=6)
    await books.catch_up()
    right = await books.state.rows(None)
    upkeep = PostgresUpkeep(books.pool)
    part = next(part for part in await upkeep.prunable(FUTURE) if part.topic == COMPLETED)
    async with books.pool.acquire() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT FROM log_heads FOR UPDATE")  # stops it before its last step
        pruning = asyncio.create_task(upkeep.prune(part, FUTURE))
        await eventually(lambda: waiting(books, 1), "the pruning is about to end")
        beginning = asyncio.create_task(books.state.begin(fingerprint(GROUPINGS)))
        await eventually(lambda: _waits_or(books, beginning), "the new state waits for it, or is begun")
        await transaction.rollback()
    assert (await pruning)[0] == 6
    building = await beginning
    await Projector(books.source, books.state, GROUPINGS, building=building).catch_up(await books.source.heads())
    assert await books.state.swap(building)
    assert await books.state.rows(None) == right
    await books.balance()


DAMAGE = {
    1: {
        "a total of what was deleted is wrong": """
            UPDATE bridge_state SET total_stamps = total_stamps + 1
            WHERE generation = 0 AND aggregation_type = 'namespace'""",
        "a sum of what was deleted is wrong by a microsecond": """
            UPDATE bridge_state SET processing_time_us_sum = processing_time_us_sum + 1
            WHERE generation = 0 AND aggregation_type = 'metadata.project'""",
        "a moment of what was deleted is wrong": """
            UPDATE bridge_state SET last_at = last_at + interval '1 microsecond' WHERE generation = 0""",
        "what was deleted is forgotten": "DELETE FROM bridge_state WHERE generation = 0",
        "a stamp whose event was deleted is gone": """
            WITH gone AS (DELETE FROM metadata_stamps WHERE file_path = '1' RETURNING stamp_id)
            DELETE FROM fsm_states AS f USING gone WHERE f.stamp_id = gone.stamp_id""",
        "a stamp that never had an event": """
            INSERT INTO fsm_states
            SELECT gen_random_uuid(), namespace, file_path, state, history, request_digest, NULL, false, step, 'x', 'y'
            FROM fsm_states WHERE state = 'failed' LIMIT 1""",
        "an event above the floor is gone": "DELETE FROM event_log WHERE topic = $1 AND position = 7",
    },
    2: {
        "the first event above the floor is gone": "DELETE FROM event_log WHERE topic = $1 AND position = 7",
        "the first event above the floor names another predecessor": """
            UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic = $1 AND position = 7""",
        "the floor is too high": "UPDATE log_heads SET floor = floor + 1 WHERE topic = $1",
        "the floor is too low": "UPDATE log_heads SET floor = floor - 1 WHERE topic = $1",
        "the base stands at another event": """
            UPDATE consumer_positions SET event_id = gen_random_uuid() WHERE consumer = 'reducer/0' AND topic = $1""",
        "all that is left is gone": "DELETE FROM event_log WHERE topic = $1",
        "all that is left is gone, and the head says so too": """
            WITH gone AS (DELETE FROM event_log WHERE topic = $1)
            UPDATE log_heads SET position = floor WHERE topic = $1""",
    },
    6: {
        "a position is below the floor": """
            UPDATE consumer_positions SET position = 2 WHERE consumer <> 'reducer/0' AND topic = $1""",
        "a position is gone": "DELETE FROM consumer_positions WHERE consumer <> 'reducer/0' AND topic = $1",
        "the base has no position": "DELETE FROM consumer_positions WHERE consumer = 'reducer/0' AND topic = $1",
        "the base stands elsewhere than the floor": """
            UPDATE consumer_positions SET position = 3 WHERE consumer = 'reducer/0' AND topic = $1""",
        "a live total is wrong": """
            UPDATE bridge_state SET total_stamps = total_stamps + 1
            WHERE generation > 0 AND aggregation_type = 'size_bucket'""",
        "a live group is gone": "DELETE FROM bridge_state WHERE generation > 0 AND aggregation_type = 'time_window'",
    },
}


@pytest.mark.parametrize("law", DAMAGE)
async def test_damage_to_a_pruned_log_is_found_and_put_under_its_law(books: Books, law: int) -> None:
    await fill(books, rounds=6)
    await books.catch_up()
    await keeper(books).prune(ALL)
    await fill(books, rounds=2)
    await books.balance()
    for name, statement in DAMAGE[law].items():
        async with books.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            done = await connection.execute(statement, *([COMPLETED] if "$1" in statement else []))
            assert not done.endswith(" 0"), name
            found = {finding.law: finding for finding in await audit(PostgresEvidence(connection), MACHINE)}
            assert not found[law].holds and found[law].examples, name
            await transaction.rollback()
    await books.balance()


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "30 d", "1y", "99999999999d", "36501d", "١d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no age"):
        age_of(text)


def test_ages_are_numbers_with_units() -> None:
    days = {"30d": 30, "2w": 14, "48h": 2, "1440m": 1, "86400s": 1, "0s": 0, "36500d": 36_500}
    assert {text: age_of(text) for text in days} == {text: timedelta(days=count) for text, count in days.items()}


def _clocked(books: Books, moments: list[datetime]) -> PostgresLedgerSession:
    """A session that commits one outcome at each moment."""
    at = iter(moments)
    now = moments[0]

    def clock() -> datetime:
        return now

    def ids(count: int) -> list[str]:
        nonlocal now
        now = next(at)
        return uuid7_batch(count, round(now.timestamp() * 1000))

    session = PostgresLedgerSession(books.url, PLAN, clock, ids)
    books._sessions.append(session)
    return session


async def _waits_or(books: Books, work: asyncio.Future[object]) -> bool:
    return work.done() or await waiting(books, 2)


@asynccontextmanager
async def _busy(books: Books) -> AsyncIterator[asyncio.Lock]:
    """Two writers, a reducer and rebuilds now and then, until the end. Who has the lock keeps rebuilds out."""
    await fill(books, "legal", "research", rounds=2)
    stop, rebuilds = asyncio.Event(), asyncio.Lock()

    async def writing(namespace: str) -> None:
        while not stop.is_set():
            await fill(books, namespace, rounds=3)

    async def rebuilding() -> None:
        while not stop.is_set():
            async with rebuilds:
                await rebuild(books.source, books.state, GROUPINGS)
            await asyncio.sleep(0.2)

    reducer = asyncio.create_task(books.projector().run())
    work = [asyncio.create_task(writing(namespace)) for namespace in ("legal", "research")]
    work.append(asyncio.create_task(rebuilding()))
    try:
        yield rebuilds
    finally:
        stop.set()
        await asyncio.gather(*work)
        reducer.cancel()
        await asyncio.gather(reducer, return_exceptions=True)
