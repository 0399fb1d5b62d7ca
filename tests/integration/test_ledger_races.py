"""Ledger sessions that get in each other's way, on real servers.

The laws: every caller is answered, versions of a path are 1, 2, 3, … each once, one op id has one stamp, a shard's
chain has no gap whoever believes to own it, and one bad item harms no other.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import asyncpg
import msgspec
import pytest

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.ledger import SHARD_LOCK_CLASS, PostgresLedgerSession
from omninode_bridge.domain.errors import Conflict, InvalidInput, Overloaded, WorkflowFailed
from omninode_bridge.domain.log import SHARDS_MAX
from omninode_bridge.domain.stamp import Digest, Draft, Stamp
from tests.integration.books import Books, eventually, shard_is_free, stamps_of
from tests.integration.proxy import Proxy
from tests.making import FACTS, draft, failure, new_id


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_writers_of_the_same_paths_and_op_ids_in_mixed_order_are_all_answered(books: Books, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"{n}" for n in range(6)]
    shared = [(new_id(), name, b"shared %d" % n) for n, name in enumerate(names * 2)]
    answers: dict[str, list[Stamp]] = defaultdict(list)

    async def write(writer: int) -> None:
        session = books.session()
        for turn in range(6):
            # Some items only this writer has, some that every writer sends at some time, as a client that retries does.
            group = [draft(name, b"%d %d" % (writer, turn), facts=FACTS) for name in rng.sample(names, 3)]
            group += [draft(name, content, op=op) for op, name, content in rng.sample(shared, 6)]
            rng.shuffle(group)
            for outcome, stamp in zip(group, stamps_of(await books.record(session, *group)), strict=True):
                if outcome.request.op_id_given:
                    answers[outcome.request.workflow_id].append(stamp)

    await asyncio.gather(*map(write, range(5)))
    assert answers
    for stamps in answers.values():
        assert len({(stamp.stamp_id, stamp.deduplicated) for stamp in stamps}) == 1
    for name in names:
        history = await books.reads.history("legal.contracts", name)
        assert [stamp.version for stamp in history] == list(range(len(history), 0, -1))
    await books.balance()


async def test_writers_that_meet_the_same_paths_in_opposite_orders_never_deadlock(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who waits for large transactions on a slow machine is not to give up; PostgreSQL finds a deadlock after 1 s.
    monkeypatch.setitem(connection._SETTINGS, "lock_timeout", "60000")
    names = [f"{number:03d}" for number in range(500)]  # enough for the transactions to overlap

    async def write(writer: int) -> None:
        session = books.session()
        for turn in range(3):
            ordered = names if writer % 2 else names[::-1]
            await books.record(session, *(draft(name, b"%d %d" % (writer, turn), facts=FACTS) for name in ordered))
        await session.close()

    await asyncio.gather(*map(write, range(4)))
    await eventually(lambda: _sessions_are_gone(books), "the writers' backends have told what they counted")
    assert await books.pool.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    await books.balance()


async def test_writers_of_one_op_id_with_different_requests_make_one_stamp_and_conflicts(books: Books) -> None:
    op = new_id()
    sessions = [books.session() for _ in range(5)]
    asked = [draft("a", b"%d" % number, op=op) for number in range(5)]
    verdicts = [v for vs in await asyncio.gather(*map(books.record, sessions, asked)) for v in vs]
    assert Counter(type(verdict) for verdict in verdicts) == {Stamp: 1, Conflict: 4}
    await books.balance()


async def test_writers_that_change_and_repeat_one_path_at_once_count_each_version_once(books: Books) -> None:
    sessions = [books.session() for _ in range(4)]
    for content in (b"1", b"2", b"1"):
        asked = [draft("a", content, facts=FACTS) for _ in sessions]
        verdicts = [v for vs in await asyncio.gather(*map(books.record, sessions, asked)) for v in vs]
        assert Counter(stamp.deduplicated for stamp in stamps_of(verdicts)) == {False: 1, True: 3}
    assert len(await books.reads.history("legal.contracts", "a")) == 3
    await books.balance()


async def test_more_writers_than_shards_get_a_shard_each_and_a_free_one_is_taken_again(books: Books) -> None:
    sessions = [books.session() for _ in range(6)]
    for session in sessions:
        await books.stamp(session, draft(f"{sessions.index(session)}"))
    assert [session.shard for session in sessions] == list(range(6))
    await sessions[3].close()
    await eventually(lambda: shard_is_free(books, 3), "the backend has ended")
    heir = books.session()
    await books.stamp(heir, draft("heir"))
    assert heir.shard == 3
    await books.balance()


async def test_a_writer_beyond_the_last_shard_is_told_so(books: Books) -> None:
    holder = await asyncpg.connect(books.url)
    try:
        every_shard = "SELECT pg_advisory_lock($1, s) FROM generate_series(0, $2) AS s"
        await holder.fetch(every_shard, SHARD_LOCK_CLASS, SHARDS_MAX - 1)
        session = books.session()
        with pytest.raises(Overloaded, match="256 shards"):
            await session.commit([draft("a")])
    finally:
        await holder.close()
    await books.stamp(session, draft("a"))
    await books.balance()


async def test_two_owners_of_a_shard_in_turn_never_commit_the_same_position(books: Books, proxy: Proxy) -> None:
    first, second = await _two_owners(books, proxy)
    for number in range(5):
        for session in (first, second):
            await books.record(session, draft(f"{number}"), draft("a", b"%d %d" % (id(session), number)), failure("x"))
    assert first.shard == second.shard
    await books.balance()


async def test_two_owners_of_a_shard_at_once_never_commit_the_same_position(books: Books, proxy: Proxy) -> None:
    first, second = await _two_owners(books, proxy)

    async def write(session: PostgresLedgerSession, writer: int) -> None:
        for number in range(15):
            await books.record(session, draft(f"{number}", b"%d" % writer), failure("x"))

    await asyncio.gather(write(first, 1), write(second, 2))
    assert first.shard == second.shard
    assert len(await books.source.heads()) == 2
    await books.balance()


def _with_nul(asked: Draft) -> Draft:
    return msgspec.structs.replace(asked, request=msgspec.structs.replace(asked.request, stamped_by="no\0body"))


def _with_surrogate(asked: Draft) -> Draft:
    return msgspec.structs.replace(asked, request=msgspec.structs.replace(asked.request, content_type="text/\ud800"))


def _too_large(asked: Draft) -> Draft:
    return msgspec.structs.replace(asked, digest=Digest(asked.digest.file_hash, 2**63))


def _with_wrong_digest(asked: Draft) -> Draft:
    return msgspec.structs.replace(asked, digest=Digest("ab", 1))


@pytest.mark.parametrize("spoil", [_with_nul, _with_surrogate, _too_large, _with_wrong_digest])
async def test_content_that_postgresql_refuses_is_its_own_items_answer(
    books: Books, spoil: Callable[[Draft], Draft]
) -> None:
    session = books.session()
    group = [draft(f"{number}", b"%d" % number) for number in range(9)]
    group[4] = spoil(group[4])
    verdicts = await books.record(session, *group, failure("x"), draft("0", b"0"))
    assert isinstance(verdicts[4], InvalidInput)
    assert "'4'" in verdicts[4].message
    assert len(stamps_of([*verdicts[:4], *verdicts[5:9]])) == 8
    assert isinstance(verdicts[9], WorkflowFailed)
    (again,) = stamps_of(verdicts[10:])
    assert again.deduplicated
    (alone,) = await session.commit([spoil(draft("4"))])
    assert isinstance(alone, InvalidInput)
    assert await books.reads.history("legal.contracts", "4") == []
    await books.balance()


async def test_a_group_of_all_kinds_is_answered_in_order(books: Books) -> None:
    session, op, failing = books.session(), new_id(), new_id()
    first = await books.stamp(session, draft("a", op=op))
    verdicts = await books.record(
        session,
        draft("b"),
        failure("x", op=failing),
        draft("a"),
        draft("a", op=op),
        draft("a", b"other", op=op),
        failure("x", op=failing),
        draft("a", b"2"),
        draft("a", b"2", namespace="research"),
    )
    one, failed, again, repeated, conflict, failed_again, two, elsewhere = verdicts
    assert (*map(type, (failed, conflict, failed_again)),) == (WorkflowFailed, Conflict, WorkflowFailed)
    stamps = stamps_of([one, again, repeated, two, elsewhere])
    assert [(stamp.version, stamp.deduplicated) for stamp in stamps] == [
        (1, False), (1, True), (1, False), (2, False), (1, False),
    ]  # fmt: skip
    assert stamps[2] == first
    await books.balance()


async def _two_owners(books: Books, proxy: Proxy) -> tuple[PostgresLedgerSession, PostgresLedgerSession]:
    """Two sessions on one shard: the first lost its lock, as it would under a transaction pooler."""
    first, second = books.session(proxy.url), books.session()
    await books.stamp(first, draft("first"))
    await proxy.inject("SELECT pg_advisory_unlock_all()")
    await books.stamp(second, draft("second"))
    assert first.shard == second.shard == 0
    return first, second


async def _sessions_are_gone(books: Books) -> bool:
    gone: bool = await books.pool.fetchval(
        "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = $1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        SHARD_LOCK_CLASS,
    )
    return gone
