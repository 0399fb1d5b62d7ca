"""A namespace erased, with writers, workers, reducers and rebuilds at work, on real servers.

The law: what was the tenant's is gone at once and for good, all of it or nothing; everybody else's is as it was; the
log has a tombstone in each place, so that every other law goes on holding.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.queue import PostgresWorkQueue
from omninode_bridge.adapters.postgres.relay import PostgresForwarding
from omninode_bridge.adapters.system import utc_now
from omninode_bridge.app.project import Projector, rebuild
from omninode_bridge.domain.errors import (
    BridgeError,
    InvalidInput,
    LeaseLost,
    NotFound,
    ServiceUnavailable,
    StateBehind,
)
from omninode_bridge.domain.events import ERASED_SCHEMA, Erased, decode
from omninode_bridge.domain.log import NIL_ID, START
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.domain.stamp import FileFacts
from omninode_bridge.ports import DeadLetter
from tests.integration.books import Books, eventually, waited
from tests.integration.keeping import SlowState, acts, chain, forget, is_clean, keeper, waiting
from tests.integration.proxy import Fault, Proxy, nth_request
from tests.making import GROUPINGS, PLAN, acceptance, draft, failure, leased_draft

GONE, KEPT = "gone.tenant", "kept.tenant"
SECRET = "diary-of-the-tenant"
FACTS = FileFacts(size=1, mtime_ns=2, ctime_ns=3, inode=4, device=5)
OTHER = Groupings(window_ms=3_600_000)
# Of everything that is stored; the log of acts names whom it was done to.
TABLES = """
    SELECT table_name::text FROM information_schema.tables
    WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name <> 'admin_log'"""


async def write(books: Books, namespace: str, rounds: int = 4) -> None:
    """Write some of everything that a namespace can have."""
    session = books.session()
    for number in range(rounds):
        path, metadata = f"{SECRET}/{number}", {"project": f"{SECRET}-{number % 2}"}
        await books.record(
            session,
            draft(path, b"%d" % number, namespace=namespace, metadata=metadata, facts=FACTS),
            draft(path, b"x", namespace=namespace),
            draft(path, b"x", namespace=namespace),
            failure(path, namespace=namespace, message=f"{SECRET} was not found"),
            acceptance(f"{path}.later", SECRET.encode(), namespace=namespace),
        )
    await session.close()


async def all_of(books: Books, namespace: str) -> dict[str, int]:
    """Count the rows that have a word of a namespace or of its content in them, by table."""
    found = {}
    for (table,) in await books.pool.fetch(TABLES):
        rows = await books.pool.fetch(f"SELECT to_jsonb(t) - 'body' - 'content' AS told FROM \"{table}\" AS t")
        told = [row["told"] for row in rows]
        if table in {"event_log", "dead_letters"}:
            bodies = await books.pool.fetch(f"SELECT body FROM {table}")
            told = [text + row["body"].decode() for text, row in zip(told, bodies, strict=True)]
        count = sum(namespace in text for text in told)
        if count:
            found[table] = count
    return found


async def test_what_kafka_refuses_after_its_namespace_was_erased_does_not_bring_it_back(books: Books) -> None:
    await write(books, GONE)
    await write(books, KEPT)
    records = await books.source.read({}, 1000)  # as a relay has them in hand that is about to send them
    await keeper(books).erase(GONE)
    ends = await books.source.heads()
    async with PostgresForwarding(books.url, books.service) as forwarding:
        await forwarding.hold()
        moves = {key: (START, head) for key, head in ends.items()}
        assert await forwarding.forwarded(moves, [DeadLetter(record=record, reason="refused") for record in records])
    assert await all_of(books, GONE) == {}
    kept = await books.pool.fetch("SELECT position FROM dead_letters")
    assert len(kept) == sum(record.namespace == KEPT for record in records)


async def test_nothing_of_an_erased_namespace_is_left_and_everything_else_is_as_it_was(books: Books) -> None:
    await write(books, GONE)
    await write(books, KEPT)
    await is_clean(books)
    before, log = await all_of(books, KEPT), await chain(books)
    state = await books.state.rows(None, KEPT)
    done = await keeper(books).erase(GONE)
    assert await all_of(books, GONE) == {}
    assert await all_of(books, KEPT) == before
    assert await books.state.rows(None) == state
    # The chain stands, with tombstones in it that tell nothing.
    assert await chain(books) == log
    erased = await books.pool.fetch("SELECT namespace, workflow_id, body FROM event_log WHERE namespace <> $1", KEPT)
    assert {(row["namespace"], str(row["workflow_id"])) for row in erased} == {("", NIL_ID)}
    assert all(isinstance(decode(row["body"]), Erased) for row in erased)
    assert len(erased) == done.events == 12
    told = {"stamps": 8, "workflows": 20, "inputs": 4, "events": 12, "file_facts": 4, "dead_letters": 0}
    assert await acts(books) == [("ann", "namespace.erase", GONE, told | {"groups": done.groups})]
    forget(books, GONE)
    await books.balance()
    # Nobody would count the erased ones when all is folded anew.
    await rebuild(books.source, books.state, GROUPINGS)
    await rebuild(books.source, books.state, GROUPINGS, namespace=GONE)
    assert await books.state.rows(None) == state
    await books.balance()


async def test_a_namespace_that_was_erased_begins_anew(books: Books) -> None:
    op = "019c0000-0000-7000-8000-00000000cafe"
    session = books.session()
    await books.record(session, draft("a", b"1", namespace=GONE, op=op), draft("a", b"2", namespace=GONE))
    await keeper(books).erase(GONE)
    forget(books, GONE)
    again = await books.stamp(session, draft("a", b"3", namespace=GONE, op=op))
    assert (again.version, again.deduplicated, again.op_id) == (1, False, op)
    assert (await books.stamp(session, draft("a", b"4", namespace=GONE))).version == 2
    await books.balance()
    await keeper(books).erase(GONE)
    forget(books, GONE)
    await books.balance()
    assert [act[1] for act in await acts(books)] == ["namespace.erase"] * 2


async def test_where_nothing_is_there_is_nothing_to_erase(books: Books) -> None:
    await write(books, KEPT)
    for namespace in (GONE, "kept", "kept.tenant.below"):
        with pytest.raises(NotFound, match=namespace):
            await keeper(books).erase(namespace)
    for illegal in ("", "*", "kept.*", "Kept.Tenant"):
        with pytest.raises(InvalidInput):
            await keeper(books).erase(illegal)
    assert await acts(books) == []
    await books.balance()


async def test_a_new_database_has_nothing_to_erase_and_one_never_folded_is_folded_first(books: Books) -> None:
    with pytest.raises(NotFound):
        await keeper(books).erase(GONE)
    await write(books, GONE)
    await write(books, KEPT)
    await keeper(books).erase(GONE)
    forget(books, GONE)
    await books.balance()


async def test_what_is_left_of_a_namespace_is_erased_whatever_laws_it_breaks(books: Books) -> None:
    await write(books, GONE)
    await books.catch_up()
    await books.pool.execute("DELETE FROM workflow_inputs")
    await books.pool.execute("UPDATE fsm_states SET deduplicated = NOT deduplicated WHERE state = 'completed'")
    await books.pool.execute("UPDATE event_log SET body = 'x' || body WHERE position = 2")
    await keeper(books).erase(GONE)
    assert await all_of(books, GONE) == {}
    forget(books, GONE)
    await books.balance()


async def test_letters_of_an_erased_namespace_go_and_those_of_others_stay(books: Books) -> None:
    for namespace in (GONE, KEPT):
        await books.record(books.session(), draft("a", namespace=namespace), draft("b", namespace=namespace))
    await books.pool.execute("UPDATE event_log SET body = 'x' || body WHERE position = 2")
    await is_clean(books)
    assert await books.count("dead_letters") == 2
    assert (await keeper(books).erase(GONE)).dead_letters == 1
    assert [row["namespace"] for row in await books.pool.fetch("SELECT namespace FROM dead_letters")] == [KEPT]
    assert await all_of(books, GONE) == {}
    await is_clean(books)


@pytest.mark.timeout(300)
async def test_erasures_beside_writers_reducers_and_rebuilds_break_no_law(books: Books) -> None:
    async with _busy(books) as told:
        for turn in range(6):
            seen = told[GONE]
            await eventually(lambda seen=seen: _is(told[GONE] > seen + 40), "the tenant is written to")
            # Forgotten before it begins, remembered from its end on: what is answered meanwhile may be either.
            await keeper(books).erase(GONE)
            assert turn == 5 or told[GONE] > seen
    await keeper(books).erase(GONE)
    assert await all_of(books, GONE) == {}
    forget(books, GONE)
    await books.balance()
    assert told[KEPT] > 200
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()


async def test_erasures_at_once_come_one_after_the_other(books: Books) -> None:
    for namespace in (GONE, KEPT, "third.tenant"):
        await write(books, namespace)
    outcomes = await asyncio.gather(
        *(keeper(books).erase(namespace) for namespace in (GONE, KEPT, GONE)), return_exceptions=True
    )
    assert sum(isinstance(outcome, NotFound) for outcome in outcomes) == 1
    assert [act[2] for act in await acts(books)].count(GONE) == 1
    for namespace in (GONE, KEPT):
        assert await all_of(books, namespace) == {}
        forget(books, namespace)
    await books.balance()


async def test_an_erasure_cut_off_at_any_step_is_all_or_nothing(books: Books, proxy: Proxy) -> None:
    await write(books, KEPT)
    number = cut = 0
    async with pool(proxy.url) as opened:
        while True:
            await write(books, GONE, rounds=2)
            await books.catch_up()
            before = await all_of(books, GONE)
            proxy.arm((Fault.BEFORE, Fault.AFTER)[number % 2], nth_request(number))
            done = len(await acts(books))
            with suppress(ServiceUnavailable):
                await keeper(books, opened).erase(GONE)
            struck = proxy.struck.is_set()
            proxy.disarm()
            after = await _settled(books)
            assert after == (before if len(await acts(books)) == done else {})
            await is_clean(books)
            if not struck:
                break
            cut += after == before
            number += 1
    assert cut >= 20
    forget(books, GONE)
    await books.balance()


async def test_a_batch_that_was_read_before_an_erasure_is_not_folded_after_it(books: Books) -> None:
    await write(books, KEPT)
    await is_clean(books)
    slow = SlowState(books.pool)
    stale = Projector(books.source, slow, GROUPINGS)
    await write(books, GONE)
    folding = asyncio.create_task(stale.step())
    await slow.waiting.wait()
    await keeper(books).erase(GONE)
    slow.go.set()
    assert await folding == 0  # refused: the positions are beyond it
    assert await all_of(books, GONE) == {}
    await stale.catch_up(await books.source.heads())
    forget(books, GONE)
    await books.balance()


async def test_a_rebuild_that_read_what_is_erased_is_told_to_start_again(books: Books) -> None:
    await write(books, GONE)
    await write(books, KEPT)
    await is_clean(books)
    slow = SlowState(books.pool)
    rebuilding = asyncio.create_task(rebuild(books.source, slow, GROUPINGS))
    await slow.waiting.wait()
    await keeper(books).erase(GONE)
    slow.go.set()
    with pytest.raises(ServiceUnavailable, match="start the rebuild again"):
        await rebuilding
    assert await all_of(books, GONE) == {}
    assert await books.pool.fetchval("SELECT count(DISTINCT generation) FROM bridge_state") == 1
    await rebuild(books.source, books.state, GROUPINGS)
    forget(books, GONE)
    await books.balance()


async def test_what_a_writer_is_about_to_commit_is_erased_too(books: Books) -> None:
    await write(books, GONE)
    session = books.session()
    async with _held(books, "file_facts") as let_go:  # the last table that both write to
        writing = asyncio.create_task(session.commit([draft("new", namespace=GONE, facts=FACTS)]))
        await eventually(lambda: waiting(books, 1), "the writer is about to commit")
        erasing = asyncio.create_task(keeper(books).erase(GONE))
        await eventually(lambda: waiting(books, 2), "the erasure waits")
        await let_go()
    await asyncio.gather(writing, erasing)
    assert await all_of(books, GONE) == {}
    forget(books, GONE)
    await books.balance()


async def test_a_rebuild_that_begins_during_an_erasure_reads_the_log_after_it(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not to give up and let the rebuild by.
    monkeypatch.setattr("omninode_bridge.adapters.postgres.upkeep.LOCK_TIMEOUT_MS", 30_000)
    await write(books, GONE)
    await write(books, KEPT)
    await books.catch_up()
    slow = SlowState(books.pool)
    async with _held(books, "file_facts") as let_go:
        erasing = asyncio.create_task(keeper(books).erase(GONE))
        await eventually(lambda: waiting(books, 1), "the erasure is in its last part")
        rebuilding = asyncio.create_task(rebuild(books.source, slow, GROUPINGS))
        await eventually(
            lambda: _or(slow.waiting.is_set(), waiting(books, 2)), "the rebuild waits, or has read a batch"
        )
        await let_go()
    await erasing
    slow.go.set()
    await rebuilding
    assert await all_of(books, GONE) == {}
    forget(books, GONE)
    await books.balance()


async def test_a_worker_whose_workflow_was_erased_changes_nothing(books: Books) -> None:
    session = books.session()
    await session.commit([acceptance("a", namespace=GONE), acceptance("b", namespace=KEPT)])
    queue = PostgresWorkQueue(books.pool, PLAN, utc_now)
    held = {each.namespace: each for each in await queue.claim("w", count_max=9, bytes_max=1 << 20, lease_s=60)}
    await keeper(books).erase(GONE)
    lost, ended = await books.record(session, leased_draft(held[GONE]), leased_draft(held[KEPT]))
    assert isinstance(lost, LeaseLost)
    assert not isinstance(ended, BridgeError)
    await queue.renew([held[GONE]], 60)
    await queue.release([held[GONE]], delay_s=0)
    assert await all_of(books, GONE) == {}
    await books.balance()


async def test_a_state_that_nobody_folds_holds_an_erasure_up_and_nothing_is_erased(books: Books) -> None:
    await books.record(books.session(), draft("a", namespace=KEPT))
    await rebuild(books.source, books.state, OTHER)
    await write(books, GONE)
    before = await all_of(books, GONE)
    with pytest.raises(StateBehind, match="nothing was erased"):
        await keeper(books).erase(GONE)
    assert await all_of(books, GONE) == before
    # Its own reducer is all that it takes.
    running = asyncio.create_task(books.projector(groupings=OTHER).run())
    await keeper(books).erase(GONE)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await all_of(books, GONE) == {}
    forget(books, GONE)
    await books.balance(groupings=OTHER)


@pytest.mark.parametrize("lock", ["fsm_states IN ROW EXCLUSIVE MODE", "state_generations IN ROW EXCLUSIVE MODE"])
async def test_an_erasure_waits_for_who_is_at_work_and_lets_others_by_meanwhile(books: Books, lock: str) -> None:
    await write(books, GONE)
    await books.catch_up()
    async with books.pool.acquire() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"LOCK TABLE {lock}")
        erasing = asyncio.create_task(keeper(books).erase(GONE))
        await eventually(lambda: waited(books, erasing), "the erasure waits")
        # Behind it, writers wait for a few seconds at most, and not for the holder.
        await books.stamp(books.session(), draft("a", namespace=KEPT))
        assert not erasing.done()
        await transaction.rollback()
    await erasing
    forget(books, GONE)
    await books.balance()


async def test_an_event_that_should_be_a_tombstone_and_is_none_is_found(books: Books) -> None:
    await write(books, GONE, rounds=1)
    await write(books, KEPT, rounds=1)
    await keeper(books).erase(GONE)
    await is_clean(books)
    place = "WHERE topic = 'workflow.stamping.completed' AND position = 1"
    body = await books.pool.fetchval(f"SELECT body FROM event_log {place} AND namespace = ''")
    told = json.loads(body)
    assert told["dataschema"] == ERASED_SCHEMA
    other = await books.pool.fetchval("SELECT body FROM event_log WHERE namespace <> '' LIMIT 1")
    for changed in ({**told, "namespace": GONE}, {**told, "subject": told["id"]}, {**told, "data": {}}):
        await books.pool.execute(
            f"UPDATE event_log SET body = $1 {place} AND namespace = ''", json.dumps(changed).encode()
        )
        assert not next(finding for finding in await books.audit() if finding.law == 1).holds
    await books.pool.execute(f"UPDATE event_log SET body = $1 {place} AND namespace = ''", other)
    assert not next(finding for finding in await books.audit() if finding.law == 1).holds
    # Who hides an event under a tombstone is found out by its workflow.
    await books.pool.execute(f"UPDATE event_log SET body = $1 {place} AND namespace = ''", body)
    await is_clean(books)
    row = await books.pool.fetchrow("SELECT * FROM event_log WHERE namespace <> '' ORDER BY topic, position LIMIT 1")
    grave = told | {"id": str(row["event_id"]), "previousid": str(row["previous_id"]), "position": row["position"]}
    await books.pool.execute(
        "UPDATE event_log SET body = $1, namespace = '', workflow_id = $2 WHERE event_id = $3",
        json.dumps(grave | {"type": row["topic"]}).encode(),
        NIL_ID,
        row["event_id"],
    )
    assert not next(finding for finding in await books.audit() if finding.law == 1).holds


@asynccontextmanager
async def _held(books: Books, table: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Keep everybody from writing to a table, until the function given is called."""
    async with books.pool.acquire() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield transaction.rollback


@asynccontextmanager
async def _busy(books: Books) -> AsyncIterator[dict[str, int]]:
    """Two writers a tenant, a worker, two reducers and rebuilds at work until the end; counts what was recorded."""
    told = {GONE: 0, KEPT: 0}
    stop = asyncio.Event()

    async def writing(namespace: str) -> None:
        session, turn = books.session(), 0
        while not stop.is_set():
            turn += 1
            group = [
                draft(
                    f"{turn % 7}", b"%d" % turn, namespace=namespace, metadata={"project": f"{turn % 3}"}, facts=FACTS
                ),
                failure("x", namespace=namespace),
                draft(f"{turn % 7}", b"%d" % turn, namespace=namespace),
                acceptance("later", namespace=namespace),
            ]
            answers = await session.commit(group)
            told[namespace] += len(answers)
            if namespace == KEPT:
                books.acknowledge(answers)

    async def working() -> None:
        queue, session = PostgresWorkQueue(books.pool, PLAN, utc_now), books.session()
        while not stop.is_set():
            held = await queue.claim("w", count_max=5, bytes_max=1 << 20, lease_s=60)
            ends = [leased_draft(each) for each in held]
            if ends:
                answers = await session.commit(ends)
                books.acknowledge(
                    [each for each, end in zip(answers, ends, strict=True) if end.request.namespace == KEPT]
                )
            await asyncio.sleep(0.01)

    async def rebuilding() -> None:
        while not stop.is_set():
            with suppress(ServiceUnavailable):  # told to start again
                await rebuild(books.source, books.state, GROUPINGS)

    reducers = [asyncio.create_task(books.projector().run()) for _ in range(2)]
    work = [asyncio.create_task(writing(namespace)) for namespace in (GONE, KEPT) for _ in range(2)]
    work += [asyncio.create_task(working()), asyncio.create_task(rebuilding())]
    try:
        yield told
    finally:
        stop.set()
        await asyncio.gather(*work)
        for task in reducers:
            task.cancel()
        await asyncio.gather(*reducers, return_exceptions=True)


async def _is(condition: bool) -> bool:
    return condition


async def _or(condition: bool, other: Awaitable[bool]) -> bool:
    return await other or condition


async def _settled(books: Books) -> dict[str, int]:
    """Count what is there of the namespace, once the backend of an erasure that was cut off has ended."""
    await eventually(
        lambda: books.pool.fetchval(
            """SELECT NOT EXISTS (SELECT FROM pg_locks
                WHERE mode = 'ShareRowExclusiveLock' OR locktype = 'advisory' AND objsubid = 1)"""
        ),
        "the erasure's backend has ended",
    )
    return await all_of(books, GONE)
