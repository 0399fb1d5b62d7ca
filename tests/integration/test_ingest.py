"""Group commit in front of real ledger sessions: what it bounds, and what it answers when it is cut off.

The laws: everybody who waits is answered; what is answered as not recorded is not; an error's op ids are the
caller's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from omninode_bridge.app.ingest import OUTCOME_BYTES, Ingest
from omninode_bridge.domain.errors import OutcomeUnknown, Overloaded, SchemaMismatch, ServiceUnavailable
from omninode_bridge.domain.recording import Verdict
from omninode_bridge.domain.stamp import Outcome
from omninode_bridge.ports import LedgerSession
from tests.integration.books import Books, eventually, stamps_of
from tests.integration.proxy import Fault, Proxy, is_commit
from tests.making import draft, new_id

LARGE: dict[str, Any] = {"x": "y" * 10_000}


class Watched:
    """A ledger session that tells which groups it was given and whether it was closed."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self.groups: list[int] = []
        self.closed = False

    async def commit(self, group: Sequence[Outcome]) -> list[Verdict]:
        self.groups.append(len(group))
        return await self._session.commit(group)

    async def close(self) -> None:
        self.closed = True
        await self._session.close()


# Bytes


async def test_batches_share_a_commit_up_to_its_bytes(books: Books) -> None:
    session = Watched(books.session())
    async with Ingest([session], group_bytes_max=25_000) as ledger:
        batches = [ledger.record([draft(f"{n}", metadata=LARGE)]) for n in range(5)]
        for verdicts in await asyncio.gather(*batches):
            stamps_of(books.acknowledge(verdicts))
    assert session.groups == [2, 2, 1]
    await books.balance()


async def test_a_batch_that_is_too_large_for_one_commit_takes_several(books: Books) -> None:
    session = Watched(books.session())
    async with Ingest([session], group_bytes_max=25_000) as ledger:
        group = [draft(f"{n}", intelligence=LARGE if n else None) for n in range(6)]
        stamps = stamps_of(books.acknowledge(await ledger.record(group)))
    assert [stamp.file_path for stamp in stamps] == [f"{n}" for n in range(6)]
    assert session.groups == [3, 2, 1]
    await books.balance()


async def test_a_part_of_a_large_batch_that_fails_is_the_answer_of_the_rest_only(books: Books, proxy: Proxy) -> None:
    group = [draft(f"{n}", metadata=LARGE, op=new_id()) for n in range(6)]
    commits = 0

    def is_second_commit(message: bytes) -> bool:
        nonlocal commits
        commits += is_commit(message)
        return commits == 2

    proxy.arm(Fault.BEFORE, is_second_commit, then_refuse=True)
    async with Ingest([books.session(proxy.url)], group_bytes_max=25_000) as ledger:
        verdicts = await ledger.record(group)
        stamps_of(books.acknowledge(verdicts[:2]))
        for outcome, verdict in zip(group[2:], verdicts[2:], strict=True):
            assert isinstance(verdict, OutcomeUnknown)
            assert verdict.context["op_ids"] == [outcome.request.workflow_id]
        proxy.admit()
        stamps_of(books.acknowledge(await ledger.record(group)))
    await books.balance()


async def test_a_queue_over_its_bytes_is_refused_before_it_holds_them(books: Books, proxy: Proxy) -> None:
    proxy.arm(Fault.STALL_BEFORE, is_commit)
    async with Ingest([books.session(proxy.url)], queue_bytes_max=3 * OUTCOME_BYTES) as ledger:
        first = asyncio.create_task(ledger.record([draft("first")]))
        await proxy.struck.wait()
        waiting = asyncio.create_task(ledger.record([draft("second")]))
        await eventually(lambda: _queued(ledger, 1), "one waits")
        with pytest.raises(Overloaded, match="bytes wait"):
            await ledger.record([draft("third", metadata=LARGE)])
        proxy.release()
        for verdicts in await asyncio.gather(first, waiting):
            stamps_of(books.acknowledge(verdicts))
        # Alone, it is taken however large it is.
        stamps_of(books.acknowledge(await ledger.record([draft("third", metadata=LARGE)])))
    await books.balance()


# Cut off


async def test_a_shutdown_that_is_cut_off_answers_everybody_and_closes_the_sessions(books: Books, proxy: Proxy) -> None:
    sessions = [Watched(books.session(proxy.url))]
    ledger = Ingest(sessions)
    leave = asyncio.Event()

    async def serve() -> None:
        async with ledger:
            await leave.wait()

    serving = asyncio.create_task(serve())
    proxy.arm(Fault.STALL_BEFORE, is_commit)
    op = new_id()
    committing = asyncio.create_task(ledger.record([draft("committing", op=op)]))
    await proxy.struck.wait()
    waiting = asyncio.create_task(ledger.record([draft("waiting")]))
    await eventually(lambda: _queued(ledger, 1), "one waits")
    leave.set()
    await eventually(lambda: _closing(ledger), "the shutdown began")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(OutcomeUnknown) as unknown:
        await committing
    assert unknown.value.context["op_ids"] == [op]
    with pytest.raises(ServiceUnavailable, match="shutting down"):
        await waiting
    assert [session.closed for session in sessions] == [True]
    proxy.release()
    async with Ingest([books.session()]) as heir:
        stamps_of(books.acknowledge(await heir.record([draft("committing", op=op)])))
    await books.balance()


async def test_an_unknown_outcome_names_the_op_ids_of_its_caller_only(books: Books, proxy: Proxy) -> None:
    proxy.arm(Fault.AFTER, is_commit, then_refuse=True)
    ops = [new_id(), new_id()]
    async with Ingest([books.session(proxy.url)]) as ledger:
        answers = await asyncio.gather(*(ledger.record([draft(op, op=op)]) for op in ops), return_exceptions=True)
        for op, answer in zip(ops, answers, strict=True):
            assert isinstance(answer, OutcomeUnknown)
            assert answer.context["op_ids"] == [op]
        proxy.admit()
        for op in ops:
            stamps_of(books.acknowledge(await ledger.record([draft(op, op=op)])))
    await books.balance()


# A schema that changes under a running process


async def test_a_column_added_under_a_running_process_is_a_schema_mismatch(books: Books) -> None:
    session = books.session()
    await books.stamp(session, draft("before"))
    await books.pool.execute("ALTER TABLE metadata_stamps ADD COLUMN more text")
    for writer in (session, books.session()):
        with pytest.raises(SchemaMismatch, match="does not fit while recording"):
            await writer.commit([draft("a"), draft("b")])
    await books.pool.execute("ALTER TABLE metadata_stamps DROP COLUMN more")
    await books.stamp(session, draft("a"))
    await books.balance()


async def test_a_half_that_meets_another_schema_does_not_lose_the_answers_of_the_other(books: Books) -> None:
    session = books.session()
    await books.stamp(session, draft("before"))
    # Only the second half writes stamps of this tenant; what it meets is as a new column would be.
    await books.pool.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE datatype_mismatch USING MESSAGE = 'another schema'; END$$"
    )
    await books.pool.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON metadata_stamps FOR EACH ROW"
        " WHEN (NEW.namespace = 'refused') EXECUTE FUNCTION refuse()"
    )
    spoilt = draft("spoilt")
    spoilt = msgspec.structs.replace(spoilt, request=msgspec.structs.replace(spoilt.request, stamped_by="no\0body"))
    verdicts = await session.commit([draft("a"), spoilt, draft("c", namespace="refused"), draft("d")])
    stamps_of(books.acknowledge(verdicts[:1]))
    assert [type(verdict) for verdict in verdicts[2:]] == [SchemaMismatch, SchemaMismatch]
    assert "another schema" in str(verdicts[2])
    await books.balance()


async def _queued(ledger: Ingest, count: int) -> bool:
    return ledger.queued == count


async def _closing(ledger: Ingest) -> bool:
    return ledger.closing
