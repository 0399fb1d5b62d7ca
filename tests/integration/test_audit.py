"""The audit can fail: each law is broken by hand in a real database, and the audit says which one."""

from __future__ import annotations

import pytest

from omninode_bridge.adapters.postgres.evidence import PostgresEvidence
from omninode_bridge.app.audit import audit
from tests.integration.books import Books
from tests.making import COMPLETED, FAILED, MACHINE, draft, failure

LAST = f"topic = '{COMPLETED}' AND position = (SELECT max(position) FROM event_log WHERE topic = '{COMPLETED}')"
DAMAGE = {
    "law 1: an event is gone": (1, "DELETE FROM event_log WHERE position = 3"),
    "law 1: a stamp is gone": (1, "DELETE FROM metadata_stamps WHERE file_path = '3'"),
    "law 1: a version is skipped": (1, "UPDATE metadata_stamps SET version = 7 WHERE file_path = '3'"),
    "law 1: a stamp has another digest than its event": (
        1, "UPDATE metadata_stamps SET digest = sha256('x') WHERE file_path = '3'",
    ),
    "law 1: a workflow is gone": (1, "DELETE FROM fsm_states WHERE file_path = '3'"),
    "law 1: a workflow names no stamp": (1, "UPDATE fsm_states SET stamp_id = NULL WHERE file_path = '3'"),
    "law 1: a workflow names a stamp that is not there": (
        1, "UPDATE fsm_states SET stamp_id = gen_random_uuid() WHERE file_path = '3'",
    ),
    "law 1: a new stamp is called deduplicated": (1, "UPDATE fsm_states SET deduplicated = true WHERE file_path = '3'"),
    "law 1: a failure is forgotten": (1, "UPDATE fsm_states SET error_code = NULL WHERE state = 'failed'"),
    "law 1: a failure has another code": (1, "UPDATE fsm_states SET error_code = 'other' WHERE state = 'failed'"),
    "law 1: a workflow has two events": (
        1,
        f"""WITH new AS (
            INSERT INTO event_log SELECT topic, shard, position + 1, gen_random_uuid(), event_id, namespace, workflow_id, body
            FROM event_log WHERE {LAST} RETURNING *
        ) UPDATE log_heads AS h SET position = new.position, event_id = new.event_id
        FROM new WHERE h.topic = new.topic AND h.shard = new.shard""",
    ),
    "law 1: an event was rewritten": (
        1, "UPDATE event_log SET namespace = 'research' WHERE topic = $1 AND position = 2",
    ),
    "law 1: an event is not readable": (1, "UPDATE event_log SET body = '{' WHERE topic = $1 AND position = 2"),
    "law 2: an event is gone": (2, "DELETE FROM event_log WHERE topic = $1 AND position = 3"),
    "law 2: the first event is gone": (2, "DELETE FROM event_log WHERE topic = $1 AND position = 1"),
    "law 2: the last event is gone": (2, f"DELETE FROM event_log WHERE {LAST}"),
    "law 2: a whole shard is gone": (2, "DELETE FROM event_log WHERE topic = $1"),
    "law 2: a record names another predecessor": (
        2, "UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic = $1 AND position = 3",
    ),
    "law 2: the first record names a predecessor": (
        2, "UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic = $1 AND position = 1",
    ),
    "law 2: a record has another id than its successor names": (
        2, "UPDATE event_log SET event_id = gen_random_uuid() WHERE topic = $1 AND position = 3",
    ),
    "law 2: the head went back": (2, "UPDATE log_heads SET position = position - 1 WHERE topic = $1"),
    "law 2: the head is another event": (2, "UPDATE log_heads SET event_id = gen_random_uuid() WHERE topic = $1"),
    "law 2: the head is gone": (2, "DELETE FROM log_heads WHERE topic = $1"),
    "law 3: a history that the machine has not": (
        3, """UPDATE fsm_states SET history = replace(history::text, '"processing"', '"completed"')::json
        WHERE file_path = '3'""",
    ),
    "law 3: a history without its start": (3, "UPDATE fsm_states SET history = '[]' WHERE file_path = '3'"),
    "law 3: another state than the history ends in": (3, "UPDATE fsm_states SET state = 'pending' WHERE file_path = '3'"),
    "law 6: a count is wrong": (
        6, "UPDATE bridge_state SET total_stamps = total_stamps + 1 WHERE aggregation_type = 'namespace'",
    ),
    "law 6: a sum is wrong by one microsecond": (
        6, "UPDATE bridge_state SET processing_time_us_sum = processing_time_us_sum + 1 WHERE aggregation_type = 'content_type'",
    ),
    "law 6: a first moment is wrong": (
        6, "UPDATE bridge_state SET first_at = first_at - interval '1 microsecond' WHERE aggregation_type = 'size_bucket'",
    ),
    "law 6: a group is gone": (6, "DELETE FROM bridge_state WHERE aggregation_type = 'time_window'"),
    "law 6: a group that no event has": (6, "UPDATE bridge_state SET group_key = 'x' WHERE aggregation_type = 'metadata.project'"),
    "law 6: a position went back": (6, "UPDATE consumer_positions SET position = 2 WHERE topic = $1"),
    "law 6: a position is ahead of the log": (6, "UPDATE consumer_positions SET position = 99 WHERE topic = $1"),
    "law 6: a position is gone": (6, "DELETE FROM consumer_positions WHERE topic = $1"),
    "law 6: a position names another event": (6, "UPDATE consumer_positions SET event_id = gen_random_uuid() WHERE topic = $1"),
    "law 6: an event that is counted has an open dead letter": (
        6, """INSERT INTO dead_letters (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
        SELECT *, 'no reason' FROM event_log WHERE topic = $1 AND position = 2""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", [1, 2, 3, 6])
async def test_damage_is_found_and_put_under_its_law(books: Books, law: int) -> None:
    session = books.session()
    await books.record(session, *(draft(f"{n}", b"%d" % n, metadata={"project": "p"}) for n in range(5)))
    await books.record(session, failure("x"), draft("0", b"0"), failure("y"))
    await books.balance()
    damages = {name: statement for name, (broken, statement) in DAMAGE.items() if broken == law}
    assert len(damages) >= 3
    for name, statement in damages.items():
        async with books.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            done = await connection.execute(statement, *([COMPLETED] if "$1" in statement else []))
            assert not done.endswith(" 0"), name
            findings = {finding.law: finding for finding in await audit(PostgresEvidence(connection), MACHINE)}
            assert not findings[law].holds and findings[law].examples, name
            await transaction.rollback()
    await books.balance()


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
    }


async def test_many_faults_are_counted_whole_and_told_by_some_examples(books: Books) -> None:
    session = books.session()
    await books.record(session, *(draft(f"{n}") for n in range(50)))
    await books.balance()
    await books.pool.execute("UPDATE event_log SET previous_id = gen_random_uuid() WHERE topic <> $1", FAILED)
    (finding,) = [finding for finding in await books.audit() if finding.law == 2]
    assert finding.faults == 50
    assert len(finding.examples) == 20
