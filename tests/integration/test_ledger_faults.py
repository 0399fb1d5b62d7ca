"""The connection between ledger and PostgreSQL cut at every place where it matters, on real servers.

The laws: what was acknowledged is there once; what was not is there or not, but never by half; and whoever asks
again with the same op id learns which. Rows of the crash table are named in the tests' names.
"""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from omninode_bridge.adapters.postgres.connection import connect, translated
from omninode_bridge.adapters.postgres.ledger import SHARD_LOCK_CLASS
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.domain.errors import OutcomeUnknown, ServiceUnavailable
from omninode_bridge.domain.stamp import Stamp
from tests.integration.books import PATIENCE_S, Books, eventually, shard_is_free, stamps_of
from tests.integration.proxy import Fault, Proxy, is_begin, is_commit, nth_request
from tests.making import draft, failure, new_id

LOST = [Fault.AFTER, Fault.BEFORE]


@pytest.mark.parametrize("fault", LOST)
async def test_crash_row_2_a_lost_commit_is_settled_and_counted_once(books: Books, proxy: Proxy, fault: Fault) -> None:
    session = books.session(proxy.url)
    await books.stamp(session, draft("before"))
    proxy.arm(fault, is_commit)
    # Nobody gave op ids: the session looks its own up.
    verdicts = await books.record(session, draft("a"), failure("x"), draft("before"), draft("a", b"2"))
    assert proxy.struck.is_set()
    first, _, again, second = verdicts
    assert isinstance(first, Stamp) and isinstance(second, Stamp) and isinstance(again, Stamp)
    assert (first.version, second.version, again.deduplicated) == (1, 2, True)
    await books.stamp(session, draft("after"))
    await books.balance()


@pytest.mark.parametrize("fault", LOST)
async def test_crash_row_2_an_outcome_that_cannot_be_settled_is_unknown_until_it_can(
    books: Books, proxy: Proxy, fault: Fault
) -> None:
    op = new_id()
    session = books.session(proxy.url)
    await books.stamp(session, draft("before"))
    proxy.arm(fault, is_commit, then_refuse=True)
    with pytest.raises(OutcomeUnknown, match="same op_id"):
        await session.commit([draft("a", op=op)])
    with pytest.raises(OutcomeUnknown):  # what may have been recorded is never reported as if it had not been
        await session.commit([draft("a", op=op)])
    with pytest.raises(ServiceUnavailable) as other:
        await session.commit([draft("b")])
    assert not isinstance(other.value, OutcomeUnknown)
    recorded = await books.reads.history("legal.contracts", "a")
    assert len(recorded) == (fault is Fault.AFTER)
    proxy.admit()
    answer = await books.stamp(session, draft("a", op=op))
    assert [answer.stamp_id] == [stamp.stamp_id for stamp in recorded] or not recorded
    assert await books.stamp(session, draft("a", op=op)) == answer
    await books.stamp(session, draft("b"))
    await books.balance()


async def test_an_outcome_lost_twice_is_unknown_and_not_pretended_to_be_nothing(books: Books, proxy: Proxy) -> None:
    op = new_id()
    session = books.session(proxy.url)
    proxy.arm(Fault.AFTER, is_commit)
    committing = asyncio.create_task(session.commit([draft("a", op=op)]))
    await proxy.struck.wait()
    # The next connection finds the shard free, and dies while it looks the op ids up.
    proxy.arm(Fault.BEFORE, lambda message: b"unnest" in message and b"fsm_states" in message)
    with pytest.raises(OutcomeUnknown):
        await committing
    (kept,) = await books.reads.history("legal.contracts", "a")
    assert (await books.stamp(session, draft("a", op=op))).stamp_id == kept.stamp_id
    await books.balance()


@pytest.mark.parametrize("fault", [Fault.HOLD_BEFORE, Fault.HOLD_AFTER])
async def test_crash_row_2_a_backend_that_still_lives_is_waited_for(books: Books, proxy: Proxy, fault: Fault) -> None:
    session = books.session(proxy.url)
    await books.stamp(session, draft("before"))
    proxy.arm(fault, is_commit)
    committing = asyncio.create_task(session.commit([draft("a"), draft("b")]))
    await eventually(lambda: _waits_for_a_shard(books), "the session waits for its shard")
    assert not committing.done()
    proxy.release()
    stamps = stamps_of(books.acknowledge(await committing))
    assert [stamp.version for stamp in stamps] == [1, 1]
    await books.balance()


@pytest.mark.parametrize("fault", [Fault.HOLD_BEFORE, Fault.HOLD_AFTER])
async def test_crash_row_2_a_backend_that_lives_too_long_leaves_the_outcome_unknown(
    books: Books, proxy: Proxy, fault: Fault
) -> None:
    op = new_id()
    session = books.session(proxy.url, settle_timeout_s=0.05)
    await books.stamp(session, draft("before"))
    proxy.arm(fault, is_commit)
    with pytest.raises(OutcomeUnknown):
        await session.commit([draft("a", op=op)])
    proxy.release()
    await eventually(lambda: shard_is_free(books, session.shard), "the old backend has ended")
    answer = await books.stamp(session, draft("a", op=op))
    assert await books.stamp(session, draft("a", op=op)) == answer
    await books.balance()


async def test_a_shard_that_got_another_owner_meanwhile_is_proof_that_the_old_backend_ended(
    books: Books, proxy: Proxy
) -> None:
    session, heir = books.session(proxy.url), books.session()
    await books.stamp(session, draft("before"))
    shard = session.shard
    proxy.arm(Fault.AFTER, is_commit, then_refuse=True)
    op = new_id()
    with pytest.raises(OutcomeUnknown):
        await session.commit([draft("a", op=op)])
    await eventually(lambda: shard_is_free(books, shard), "the old backend has ended")
    await books.stamp(heir, draft("heir"))
    assert heir.shard == shard
    proxy.admit()
    await books.stamp(session, draft("a", op=op))
    assert session.shard != shard
    await books.balance()


async def test_crash_row_1_a_connection_cut_before_commit_leaves_nothing_at_every_step(
    books: Books, proxy: Proxy
) -> None:
    session = books.session(proxy.url)
    await books.record(session, draft("warm"), failure("warm"))
    number = 0
    while True:
        a = draft("a", b"%d" % number, op=new_id())
        group = (a, failure("x", op=new_id()), draft("b", b"%d" % number))
        before = await _written(books)
        step = nth_request(number, since=is_begin)
        proxy.arm(Fault.AFTER, lambda message: step(message) and not is_commit(message))  # noqa: B023 - used in this turn
        committing = asyncio.create_task(session.commit(group))
        await asyncio.wait({committing})
        if not proxy.struck.is_set():
            books.acknowledge(await committing)
            break
        assert type(committing.exception()) is ServiceUnavailable
        assert await _written(books) == before
        await books.record(session, *group)
        number += 1
    assert number >= 4  # BEGIN, op ids, latest versions, and all that is written
    proxy.disarm()
    await books.balance()


async def test_crash_row_3_a_caller_that_is_gone_after_the_commit_gets_the_same_stamp_when_it_asks_again(
    books: Books, proxy: Proxy
) -> None:
    op = new_id()
    session = books.session(proxy.url)
    proxy.arm(Fault.HOLD_AFTER, is_commit)
    async with Ingest([session]) as ledger:
        asking = asyncio.create_task(ledger.record([draft("a", op=op)]))
        await proxy.struck.wait()
        asking.cancel()
        (kept,) = await books.reads.history("legal.contracts", "a")
        proxy.release()
        (again,) = stamps_of(books.acknowledge(await ledger.record([draft("a", op=op)])))
    assert again.stamp_id == kept.stamp_id
    await books.balance()


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE, Fault.STALL_AFTER])
async def test_a_commit_that_was_cancelled_is_settled_by_the_next_one(books: Books, proxy: Proxy, fault: Fault) -> None:
    op = new_id()
    session = books.session(proxy.url)
    await books.stamp(session, draft("before"))
    proxy.arm(fault, is_commit)
    committing = asyncio.create_task(session.commit([draft("a", op=op)]))
    await proxy.struck.wait()
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    retried = asyncio.create_task(session.commit([draft("a", op=op)]))
    await eventually(lambda: _waits_for_a_shard(books), "the session waits for its shard")
    proxy.release()
    books.acknowledge(await retried)
    await books.balance()


async def test_a_session_cancelled_at_any_step_of_its_first_commit_opens_again(books: Books, proxy: Proxy) -> None:
    number = 0
    while True:
        session = books.session(proxy.url)
        asked = draft(f"{number}", op=new_id())
        proxy.arm(Fault.STALL_BEFORE, nth_request(number))
        committing = asyncio.create_task(session.commit([asked]))
        stalled = asyncio.create_task(proxy.struck.wait())
        await asyncio.wait({committing, stalled}, return_when=asyncio.FIRST_COMPLETED)
        if committing.done():
            books.acknowledge(await committing)
            stalled.cancel()
            break
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        async with asyncio.timeout(PATIENCE_S):
            await proxy.left.wait()  # with what it had locked
        proxy.release()
        await books.stamp(session, asked)
        await session.close()
        number += 1
    assert number >= 15  # shards, lock, heads, look-ups, BEGIN, … COMMIT: two requests each at first
    await books.balance()


async def test_an_outage_is_an_error_and_then_over(books: Books, proxy: Proxy) -> None:
    session = books.session(proxy.url)
    await books.stamp(session, draft("a"))
    proxy.arm(Fault.BEFORE, is_begin, then_refuse=True)
    for _ in range(3):
        with pytest.raises(ServiceUnavailable, match="check that it runs"):
            await session.commit([draft("b")])
    proxy.admit()
    await books.stamp(session, draft("b"))
    await books.balance()


async def test_a_backend_ended_by_its_administrator_is_an_error_and_then_over(books: Books) -> None:
    session = books.session()
    await books.stamp(session, draft("a"))
    await books.pool.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1", SHARD_LOCK_CLASS
    )
    await eventually(lambda: shard_is_free(books, session.shard), "the backend has ended")
    try:
        await books.stamp(session, draft("b"))
    except ServiceUnavailable:  # the end came while the statement was on its way
        await books.stamp(session, draft("b"))
    await books.balance()


async def test_a_lock_that_is_held_for_too_long_is_a_service_unavailable(database_url: str) -> None:
    holder, waiter = await connect(database_url), await connect(database_url)
    try:
        await holder.execute("SELECT pg_advisory_lock(1)")
        await waiter.execute("SET lock_timeout = '5ms'")
        with pytest.raises(ServiceUnavailable, match="another session"), translated("waiting"):
            await waiter.execute("SELECT pg_advisory_lock(1)")
        with pytest.raises(asyncpg.UniqueViolationError), translated("losing a race, which is the ledger's to see"):
            await waiter.execute("INSERT INTO log_heads SELECT 't', 0, 0, gen_random_uuid() FROM generate_series(1, 2)")
    finally:
        await holder.close()
        await waiter.close()


async def _written(books: Books) -> object:
    counts = [await books.count(table) for table in ("metadata_stamps", "fsm_states", "event_log")]
    return counts, await books.source.heads()


async def _waits_for_a_shard(books: Books) -> bool:
    waiting: bool = await books.pool.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        SHARD_LOCK_CLASS,
    )
    return waiting
