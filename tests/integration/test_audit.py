"""The audit can fail: each law is broken by hand in a real database, and the audit says which one."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from omninode_bridge.adapters.postgres.evidence import PostgresEvidence, evidence
from omninode_bridge.app.audit import LawFinding, audit
from tests.integration.books import Books, eventually, waited
from tests.making import COMPLETED, FAILED, MACHINE, acceptance, draft, failure

# $1 is the topic of completed workflows, whose one shard has the positions 1 to 5.
DAMAGE = {
    1: {
        "an event is gone": "DELETE FROM event_log WHERE position = 3",
        "a stamp is gone": "DELETE FROM metadata_stamps WHERE file_path = '3'",
        "a version is skipped": "UPDATE metadata_stamps SET version = 7 WHERE file_path = '3'",
        "another digest than its event's": "UPDATE metadata_stamps SET digest = sha256('x') WHERE file_path = '3'",
        "a workflow is gone": "DELETE FROM fsm_states WHERE file_path = '3'",
        "a workflow names no stamp": "UPDATE fsm_states SET stamp_id = NULL WHERE file_path = '3'",
        "a stamp that is not there": "UPDATE fsm_states SET stamp_id = gen_random_uuid() WHERE file_path = '3'",
        "a new stamp is called deduplicated": "UPDATE fsm_states SET deduplicated = true WHERE file_path = '3'",
        "a failure is forgotten": "UPDATE fsm_states SET error_code = NULL WHERE state = 'failed'",
        "a failure has another code": "UPDATE fsm_states SET error_code = 'other' WHERE state = 'failed'",
        "an event is there twice": """
            WITH copy AS (
                INSERT INTO event_log
                SELECT topic, shard, position + 1, gen_random_uuid(), event_id, namespace, workflow_id, body
                FROM event_log WHERE topic = $1 AND position = 5 RETURNING *
            )
            UPDATE log_heads AS h SET position = copy.position, event_id = copy.event_id
            FROM copy WHERE h.topic = copy.topic AND h.shard = copy.shard""",
        "an event was rewritten": "UPDATE event_log SET namespace = 'research' WHERE topic = $1 AND position = 2",
        "an event tells of another path": "UPDATE metadata_stamps SET file_path = 'x' WHERE file_path = '3'",
        "an event tells of another size": "UPDATE metadata_stamps SET file_size = 77 WHERE file_path = '3'",
        "an event tells of another type": "UPDATE metadata_stamps SET content_type = 'a/b' WHERE file_path = '3'",
        "an event tells of other metadata": "UPDATE metadata_stamps SET metadata = '{}' WHERE file_path = '3'",
        "an event tells of no intelligence": """
            UPDATE metadata_stamps SET intelligence = '{"tags": []}' WHERE file_path = '3'""",
        "an event tells of another origin": """
            UPDATE metadata_stamps SET digest_origin = 'claimed' WHERE file_path = '3'""",
        "an event tells of another author": "UPDATE metadata_stamps SET stamped_by = 'x' WHERE file_path = '3'",
        "an event tells of another state": "UPDATE metadata_stamps SET workflow_state = 'x' WHERE file_path = '3'",
        "an event took another time": """
            UPDATE metadata_stamps SET processing_us = processing_us + 1 WHERE file_path = '3'""",
        "an event tells of another moment": """
            UPDATE metadata_stamps SET completed_at = completed_at + interval '1 microsecond' WHERE file_path = '3'""",
        "an event happened at another moment than its stamp": """
            UPDATE event_log SET body = convert_to(regexp_replace(
                convert_from(body, 'UTF8'), '"time":"[^"]*"', '"time":"2026-01-01T00:00:00Z"'), 'UTF8')
            WHERE topic = $1 AND position = 2""",
        "a failure is told of another path": "UPDATE fsm_states SET file_path = 'z' WHERE state = 'failed'",
        "a failure is told otherwise": "UPDATE fsm_states SET error_message = 'other' WHERE state = 'failed'",
        "a failure is told of another step": "UPDATE fsm_states SET step = 'other' WHERE state = 'failed'",
        "a stamp is filed under another path's key": """
            UPDATE metadata_stamps SET path_hash = sha256('x') WHERE file_path = '3'""",
        "a repetition names the stamp of another path": """
            UPDATE fsm_states SET stamp_id = (SELECT stamp_id FROM metadata_stamps WHERE file_path = '3')
            WHERE deduplicated""",
        "events are on another topic": """
            WITH moved AS (UPDATE log_heads SET topic = 'other' WHERE topic = $1)
            UPDATE event_log SET topic = 'other' WHERE topic = $1""",
        "an event is not readable": "UPDATE event_log SET body = '{' WHERE topic = $1 AND position = 2",
    },
    2: {
        "an event is gone": "DELETE FROM event_log WHERE topic = $1 AND position = 3",
        "the first event is gone": "DELETE FROM event_log WHERE topic = $1 AND position = 1",
        "the last event is gone": "DELETE FROM event_log WHERE topic = $1 AND position = 5",
        "a whole shard is gone": "DELETE FROM event_log WHERE topic = $1",
        "a record names another predecessor": """
            UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic = $1 AND position = 3""",
        "the first record names a predecessor": """
            UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic = $1 AND position = 1""",
        "a record has another id than its successor names": """
            UPDATE event_log SET event_id = gen_random_uuid() WHERE topic = $1 AND position = 3""",
        "the head went back": "UPDATE log_heads SET position = position - 1 WHERE topic = $1",
        "the head is another event": "UPDATE log_heads SET event_id = gen_random_uuid() WHERE topic = $1",
        "the head is gone": "DELETE FROM log_heads WHERE topic = $1",
    },
    3: {
        "a move that the machine has not": """
            UPDATE fsm_states SET history = replace(history::text, '"processing"', '"completed"')::json
            WHERE file_path = '3'""",
        "a history without its start": "UPDATE fsm_states SET history = '[]' WHERE file_path = '3'",
        "a state that its history does not end in": "UPDATE fsm_states SET state = 'pending' WHERE file_path = '3'",
    },
    6: {
        "a count is wrong": """
            UPDATE bridge_state SET total_stamps = total_stamps + 1 WHERE aggregation_type = 'namespace'""",
        "a sum is wrong by a microsecond": """
            UPDATE bridge_state SET processing_time_us_sum = processing_time_us_sum + 1
            WHERE aggregation_type = 'content_type'""",
        "a first moment is wrong by a microsecond": """
            UPDATE bridge_state SET first_at = first_at - interval '1 microsecond'
            WHERE aggregation_type = 'size_bucket'""",
        "a group is gone": "DELETE FROM bridge_state WHERE aggregation_type = 'time_window'",
        "a group that no event has": """
            UPDATE bridge_state SET group_key = 'x' WHERE aggregation_type = 'metadata.project'""",
        "a position went back": "UPDATE consumer_positions SET position = 2 WHERE topic = $1",
        "a position is ahead of the log": "UPDATE consumer_positions SET position = 99 WHERE topic = $1",
        "a position is gone": "DELETE FROM consumer_positions WHERE topic = $1",
        "a position names another event": """
            UPDATE consumer_positions SET event_id = gen_random_uuid() WHERE topic = $1""",
        "an event that is counted is a dead letter": """
            INSERT INTO dead_letters
                (generation, topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
            SELECT generation, e.*, 'no reason' FROM event_log AS e, state_generations
            WHERE topic = $1 AND position = 2 AND status = 'live'""",
    },
}


@pytest.mark.parametrize("law", DAMAGE)
async def test_damage_is_found_and_put_under_its_law(books: Books, law: int) -> None:
    session = books.session()
    group = [draft(f"{n}", b"%d" % n, metadata={"project": "p"}) for n in range(5)]
    await books.record(session, failure("x"), *group, draft("0", b"0", metadata={"project": "p"}), failure("y"))
    await books.balance()
    for name, statement in DAMAGE[law].items():
        async with books.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            done = await connection.execute(statement, *([COMPLETED] if "$1" in statement else []))
            assert not done.endswith(" 0"), name
            findings = {finding.law: finding for finding in await audit(PostgresEvidence(connection), MACHINE)}
            assert not findings[law].holds and findings[law].examples, name
            await transaction.rollback()
    await books.balance()


WAITING_DAMAGE = {
    "an input is gone": "DELETE FROM workflow_inputs WHERE namespace = 'a'",
    "an input is filed under another namespace": "UPDATE workflow_inputs SET namespace = 'c' WHERE namespace = 'a'",
    "a workflow is gone": "DELETE FROM fsm_states WHERE namespace = 'a'",
    "a workflow has failed and keeps its input": "UPDATE fsm_states SET error_code = 'x' WHERE namespace = 'a'",
    "a workflow has a stamp and keeps its input": """
        UPDATE fsm_states SET stamp_id = gen_random_uuid(), deduplicated = true WHERE namespace = 'a'""",
    "a workflow that ended waits": "UPDATE fsm_states SET error_code = NULL WHERE namespace = 'ended'",
}


@pytest.mark.parametrize("what", WAITING_DAMAGE)
async def test_an_accepted_workflow_has_its_input_until_its_end_and_no_longer(books: Books, what: str) -> None:
    session = books.session()
    accepted = [acceptance("later", namespace=namespace) for namespace in ("a", "b")]
    await session.commit([*accepted, draft("now"), failure("x", namespace="ended")])
    finding = {finding.law: finding for finding in await books.audit()}[5]
    assert (finding.holds, finding.checked) == (True, 2)
    await books.pool.execute(WAITING_DAMAGE[what])
    finding = {finding.law: finding for finding in await books.audit()}[5]
    assert not finding.holds and finding.examples, what


async def test_no_spelling_of_a_number_is_taken_for_a_fault(books: Books) -> None:
    numbers = [1e16, 1e-7, -1.25e-5, 0.0001, -0.0, 1.0, 5e-324, 1.7976931348623157e308, 123456.75, 10**30, -7]
    values = [*numbers, {"z": numbers, "a": [None, True, 'ä\u2028\x7f"\\\t']}, "1e+16"]
    await books.record(books.session(), *(draft(f"{n}", metadata={"project": v}) for n, v in enumerate(values)))
    await books.balance()
    assert len(await books.state.rows("metadata.project")) == len(values)


@pytest.mark.parametrize("table", ["event_log", "bridge_state", "fsm_states"])
async def test_an_audit_may_take_longer_than_other_statements_do(books: Books, table: str) -> None:
    await books.record(books.session(), draft("a"), failure("x"))
    await books.catch_up()
    async with asyncpg.create_pool(books.url, min_size=1, max_size=1, command_timeout=3) as impatient:

        async def audited() -> list[LawFinding]:
            async with evidence(impatient) as snapshot:
                return await audit(snapshot, MACHINE)

        async with books.pool.acquire() as holder:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute(f"LOCK TABLE {table}")
            auditing = asyncio.create_task(audited())
            await eventually(
                lambda: waited(books, auditing, "4 seconds"), "the audit waits longer than its pool's limit"
            )
            await transaction.rollback()
        assert all(finding.holds for finding in await auditing)


async def test_what_a_reducer_has_not_folded_yet_is_no_fault(books: Books) -> None:
    session = books.session()
    await books.record(session, draft("a"), failure("x"))
    assert all(finding.holds for finding in await books.audit())
    await books.catch_up()
    await books.record(session, draft("b"), failure("y"))
    assert all(finding.holds for finding in await books.audit())
    await books.balance()


async def test_the_findings_tell_how_much_was_checked(books: Books) -> None:
    session = books.session()
    await books.record(session, draft("a"), draft("a"), failure("x"))
    await books.balance()
    assert {(finding.law, finding.unit): finding.checked for finding in await books.audit() if finding.law != 6} == {
        (1, "events"): 2,
        (2, "events"): 2,
        (3, "workflows"): 3,
        (5, "waiting workflows"): 0,
    }


async def test_many_faults_are_counted_whole_and_told_by_some_examples(books: Books) -> None:
    session = books.session()
    await books.record(session, *(draft(f"{n}") for n in range(50)))
    await books.balance()
    await books.pool.execute("UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic <> $1", FAILED)
    (finding,) = [finding for finding in await books.audit() if finding.law == 2]
    assert finding.faults == 50
    assert len(finding.examples) == 20
