"""Dead letters as an operator uses them, on real servers: looked at, replayed after a fix, discarded.

The law: state is the fold of the log, less the open and the discarded letters. So a replay counts an event once,
whatever runs beside it, and a letter that nobody can help changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest

from omninode_bridge.adapters.postgres.connection import pool
from omninode_bridge.adapters.postgres.letters import PostgresLetters
from omninode_bridge.app.letters import DeadLetters
from omninode_bridge.app.project import Projector, rebuild
from omninode_bridge.app.upkeep import age_of
from omninode_bridge.domain.errors import Conflict, InvalidInput, LimitExceeded, NotFound, ServiceUnavailable
from omninode_bridge.domain.reduction import Groupings
from omninode_bridge.ports import HISTORY_MAX, fingerprint
from omninode_bridge.ports.transport import Publisher
from tests.integration.books import Books, eventually, waited
from tests.integration.keeping import SlowState, acts, forget, is_clean, keeper
from tests.integration.proxy import Fault, Proxy, is_begin, nth_request
from tests.integration.test_cli import Desk
from tests.making import COMPLETED, GROUPINGS, draft, failure

HOURLY = Groupings(window_ms=3_600_000, metadata_fields=("team",))


async def test_a_letter_replayed_after_a_fix_is_counted_once(books: Books) -> None:
    number = await _lettered(books)
    await _mend(books)
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now) == ("replayed", True)
    await books.balance()
    again, now = await _desk(books).replay(number)
    assert (again.status, now) == ("replayed", False)
    assert [(act.actor, act.act, act.status, act.reason) for act in again.history] == [
        ("ann", "replay", "replayed", None)
    ]
    ((actor, act, subject, details),) = await acts(books)
    assert (actor, act, subject) == ("ann", "letter.replay", str(number))
    assert (details["topic"], details["event_id"], details["status"]) == (COMPLETED, letter.record.event_id, "replayed")
    await books.balance()


async def test_a_letter_that_still_cannot_be_read_stays_open_with_the_new_reason(books: Books) -> None:
    number = await _lettered(books)
    before = await books.state.rows(None)
    await books.pool.execute("UPDATE event_log SET body = '{}' WHERE body LIKE 'x%'")
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now) == ("open", False)
    assert letter == await _desk(books).get(number)
    assert letter.history[0].reason != letter.reason
    assert "not an event" in str(letter.history[0].reason)
    # The row of the log of acts outlives an erasure: it does not quote the event.
    ((_, _, _, details),) = await acts(books)
    assert details.keys() == {"topic", "shard", "position", "event_id", "status"}
    assert await books.state.rows(None) == before
    await is_clean(books)


async def test_a_letter_remembers_its_last_acts_and_the_log_of_acts_has_them_all(books: Books) -> None:
    number = await _lettered(books)
    for _ in range(HISTORY_MAX + 2):
        letter, _ = await _desk(books).replay(number)
    assert len(letter.history) == HISTORY_MAX
    assert len(await acts(books)) == HISTORY_MAX + 2


async def test_replays_at_once_count_once(books: Books) -> None:
    number = await _lettered(books)
    await _mend(books)
    done = await asyncio.gather(*(_desk(books).replay(number) for _ in range(8)))
    assert [letter.status for letter, _ in done] == ["replayed"] * 8
    assert [now for _, now in done].count(True) == 1
    assert len(await acts(books)) == 1
    await books.balance()


async def test_a_discarded_letter_stays_out_of_the_totals_until_it_is_replayed(books: Books) -> None:
    number = await _lettered(books)
    await _mend(books)
    before = await books.state.rows(None)
    assert [now for _, now in [await _desk(books).discard(number, "a test") for _ in range(2)]] == [True, False]
    assert await books.state.rows(None) == before
    await is_clean(books)
    assert [letter async for letter in _desk(books).every()] == []
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now) == ("replayed", True)
    await books.balance()
    with pytest.raises(Conflict, match="was replayed"):
        await _desk(books).discard(number, "too late")
    assert [(act.act, act.status, act.reason) for act in letter.history] == [
        ("discard", "discarded", "a test"), ("replay", "replayed", None),
    ]  # fmt: skip
    assert [(act, details.get("reason")) for _, act, _, details in await acts(books)] == [
        ("letter.discard", "a test"), ("letter.replay", None),
    ]  # fmt: skip
    for reason, refused in (("", InvalidInput), ("two\nlines", InvalidInput), ("x" * 1001, LimitExceeded)):
        with pytest.raises(refused):
            await _desk(books).discard(number, reason)


async def test_a_discarded_letter_that_still_cannot_be_read_stays_discarded(books: Books) -> None:
    number = await _lettered(books)
    await _desk(books).discard(number, "a test")
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now, len(letter.history)) == ("discarded", False, 2)
    await is_clean(books)


async def test_a_replay_cut_off_at_every_step_counts_once(books: Books, proxy: Proxy) -> None:
    for fault in (Fault.BEFORE, Fault.AFTER):
        step, cut = 0, True
        while cut:
            number = await _lettered(books, f"{fault.name} {step}")
            await _mend(books)
            async with pool(proxy.url) as opened:
                desk = DeadLetters(PostgresLetters(opened), _no_kafka, actor="ann")
                proxy.arm(fault, nth_request(step, since=is_begin))
                with suppress(ServiceUnavailable):
                    await desk.replay(number)
                cut = proxy.struck.is_set()
                proxy.disarm()
                letter, _ = await desk.replay(number)
            assert letter.status == "replayed"
            await books.balance()
            step += 1
        assert step >= 8  # BEGIN, two locks, the letter, the event, the totals, the history, the log of acts, COMMIT


@pytest.mark.parametrize("namespace", [None, "legal"])
async def test_a_rebuild_that_read_the_event_before_it_was_mended_keeps_its_replay(
    books: Books, namespace: str | None
) -> None:
    number = await _lettered(books)
    building = await books.state.begin(fingerprint(GROUPINGS), namespace)
    builder = Projector(books.source, books.state, GROUPINGS, building=building)
    await builder.catch_up(await books.source.heads(), exactly=True)
    await _mend(books)
    await _desk(books).replay(number)
    assert await books.state.swap(building)
    assert (await _desk(books).get(number)).status == "replayed"
    assert await books.count("dead_letters") == 1
    await books.balance()


async def test_a_rebuild_that_reads_the_event_after_it_was_mended_keeps_its_replay(books: Books) -> None:
    number = await _lettered(books)
    building = await books.state.begin(fingerprint(GROUPINGS))
    await _mend(books)
    builder = Projector(books.source, books.state, GROUPINGS, building=building)
    await builder.catch_up(await books.source.heads(), exactly=True)
    await _desk(books).replay(number)
    assert await books.state.swap(building)
    assert (await _desk(books).get(number)).status == "replayed"
    await books.balance()


async def test_a_rebuild_saves_what_it_read_before_only_after_the_replay(books: Books) -> None:
    number = await _lettered(books)
    slow = SlowState(books.service)
    rebuilding = asyncio.create_task(rebuild(books.source, slow, GROUPINGS))
    await slow.waiting.wait()
    await _mend(books)
    await _desk(books).replay(number)
    slow.go.set()
    await rebuilding
    assert (await _desk(books).get(number)).status == "replayed"
    await books.balance()


async def test_an_event_damaged_again_after_its_replay_is_an_open_letter_after_a_rebuild(books: Books) -> None:
    number = await _lettered(books)
    await _mend(books)
    await _desk(books).replay(number)
    await _spoil(books, "a 1")
    await rebuild(books.source, books.state, GROUPINGS)
    letter = await _desk(books).get(number)
    assert letter.status == "open"
    await is_clean(books)
    await _mend(books)
    await rebuild(books.source, books.state, GROUPINGS)
    letter = await _desk(books).get(number)
    assert [(act.actor, act.act, act.status) for act in letter.history] == [
        ("ann", "replay", "replayed"), ("rebuild", "rebuild", "open"), ("rebuild", "rebuild", "replayed"),
    ]  # fmt: skip
    await books.balance()


async def test_a_replay_waits_for_a_swap_and_counts_in_what_was_swapped_in(books: Books) -> None:
    number = await _lettered(books)
    held, go = asyncio.Event(), asyncio.Event()
    building = await books.state.begin(fingerprint(GROUPINGS))
    builder = Projector(books.source, books.state, GROUPINGS, building=building)
    await builder.catch_up(await books.source.heads(), exactly=True)
    await _mend(books)

    async def finish(_: object) -> None:
        held.set()
        await go.wait()

    swapping = asyncio.create_task(books.state.swap(building, finish))
    await held.wait()
    replaying = asyncio.create_task(_desk(books).replay(number))
    await eventually(lambda: waited(books, replaying, "10 ms"), "the replay waits for the live generation")
    assert not replaying.done()
    go.set()
    assert await swapping
    letter, now = await replaying
    assert (letter.status, now) == ("replayed", True)
    await books.balance()


async def test_replays_beside_rebuilds_a_reducer_and_writers_count_each_event_once(books: Books) -> None:
    reducer, session = books.projector(), books.session()
    running = asyncio.create_task(reducer.run())
    for turn in range(6):
        await books.record(session, *(draft(f"{turn} {n}", namespace="legal") for n in range(5)), failure("x"))
        await books.catch_up()
        for n in range(2):
            await _spoil(books, f"{turn} {n}")
        await rebuild(books.source, books.state, GROUPINGS)
        numbers = [await _number(books, f"{turn} {n}") for n in range(2)]
        namespace = (None, "legal")[turn % 2]
        rebuilding = asyncio.create_task(rebuild(books.source, books.state, GROUPINGS, namespace=namespace))
        await books.record(session, draft(f"{turn}", namespace="legal"))
        await _mend(books)
        done = await asyncio.gather(*(_desk(books).replay(number) for number in [*numbers, *numbers]))
        assert {letter.status for letter, _ in done} == {"replayed"}
        await rebuilding
        await books.balance()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_replay_folds_by_the_contract_of_the_state_and_not_by_its_own(books: Books) -> None:
    await _lettered(books)
    await rebuild(books.source, books.state, HOURLY)
    ((number,),) = await books.pool.fetch("SELECT id FROM dead_letters WHERE status = 'open'")
    await _mend(books)
    await _desk(books).replay(number)
    live = await books.state.rows(None)
    assert {kind for _, kind, _ in live} <= set(HOURLY.names())
    await rebuild(books.source, books.state, HOURLY)
    assert await books.state.rows(None) == live
    await books.balance(groupings=HOURLY)


@pytest.mark.parametrize("beside_a_rebuild", [False, True])
async def test_a_letter_whose_event_was_pruned_counts_in_the_base_as_well(books: Books, beside_a_rebuild: bool) -> None:
    number = await _lettered(books)
    await keeper(books).prune(age_of("0s"))
    await is_clean(books)
    building = await books.state.begin(fingerprint(GROUPINGS)) if beside_a_rebuild else None
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now) == ("open", False)
    # As a program that can read it would.
    await books.pool.execute("UPDATE dead_letters SET body = substr(body, 2) WHERE body LIKE 'x%' AND id = $1", number)
    letter, now = await _desk(books).replay(number)
    assert (letter.status, now) == ("replayed", True)
    await books.balance()
    if building is not None:
        builder = Projector(books.source, books.state, GROUPINGS, building=building)
        await builder.catch_up(await books.source.heads(), exactly=True)
        assert await books.state.swap(building)
        await books.balance()
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()
    assert (await _desk(books).get(number)).status == "replayed"


async def test_a_pruned_event_is_not_replayed_while_a_generation_takes_the_base_over(books: Books) -> None:
    number = await _lettered(books)
    await keeper(books).prune(age_of("0s"))
    await books.pool.execute("UPDATE dead_letters SET body = substr(body, 2) WHERE id = $1", number)
    # As whoever begins one holds it: base and letters are copied by two statements, and a replay must not come between.
    async with books.pool.acquire() as beginning:
        transaction = beginning.transaction()
        await transaction.start()
        await beginning.execute("LOCK TABLE state_generations IN ROW EXCLUSIVE MODE")
        replaying = asyncio.create_task(_desk(books).replay(number))
        await eventually(lambda: waited(books, replaying, "10 ms"), "the replay waits for the generations")
        assert not replaying.done()
        await transaction.rollback()
    letter, now = await replaying
    assert (letter.status, now) == ("replayed", True)
    await books.balance()


async def test_letters_of_a_state_that_is_being_built_are_not_there_for_an_operator(books: Books) -> None:
    await _fill(books)
    await books.catch_up()
    await _spoil(books, "a 1")
    building = await books.state.begin(fingerprint(GROUPINGS))
    await Projector(books.source, books.state, GROUPINGS, building=building).catch_up(await books.source.heads())
    number = await books.pool.fetchval("SELECT id FROM dead_letters")
    await _mend(books)
    for act in (_desk(books).get(number), _desk(books).replay(number), _desk(books).discard(number, "a test")):
        with pytest.raises(NotFound, match=str(number)):
            await act
    assert [letter async for letter in _desk(books).every(settled=True)] == []
    await books.state.discard(building)
    await books.balance()


async def test_an_event_that_can_only_be_quoted_with_a_nul_becomes_a_letter(books: Books) -> None:
    await _fill(books)
    strange = json.dumps({"dataschema": "a\0" + "b" * 5000}).encode()
    await books.pool.execute("UPDATE event_log SET body = $1 WHERE topic = $2 AND position = 2", strange, COMPLETED)
    await is_clean(books)
    (letter,) = [letter async for letter in _desk(books).every()]
    assert "a\ufffdb" in letter.reason
    assert len(letter.reason) <= 1000


async def test_an_erasure_takes_the_letters_of_both_kinds_and_leaves_those_of_others(books: Books) -> None:
    for namespace in ("legal", "research"):
        await _fill(books, namespace)
    await _refused(books)
    await books.catch_up()
    # Refused by the transport, and so in every total.
    await books.balance()
    refused = await books.pool.fetchval("SELECT count(*) FROM dead_letters WHERE namespace = 'legal'")
    done = await keeper(books).erase("legal")
    assert done.dead_letters == refused == 4
    forget(books, "legal")
    await books.balance()
    assert {letter.record.namespace async for letter in _desk(books).every()} == {"research"}


async def test_what_the_transport_refused_is_pruned_counted_and_still_there_for_a_replay(books: Books) -> None:
    await _fill(books)
    await _refused(books)
    await books.catch_up()
    for key, head in (await books.source.heads()).items():  # as the relay does with what it refused
        await books.pool.execute(
            "INSERT INTO consumer_positions VALUES ('relay', $1, $2, $3, $4)", *key, head.position, head.event_id
        )
    before = [await PostgresLetters(books.service).record(letter.number) async for letter in _desk(books).every()]
    await keeper(books).prune(age_of("0s"))
    assert await books.count("event_log") == 0
    await books.balance()
    await rebuild(books.source, books.state, GROUPINGS)
    await books.balance()
    letters = [letter async for letter in _desk(books).every()]
    assert [letter.source for letter in letters] == ["relay"] * 4
    assert [await PostgresLetters(books.service).record(letter.number) for letter in letters] == before
    await _desk(books).discard(letters[0].number, "a test")
    await books.balance()


async def test_the_command_lists_shows_replays_and_discards(books: Books, command: Desk) -> None:
    number = await _lettered(books)
    other = await _lettered(books, "b", "research")
    place = (await _desk(books).get(number)).record
    listed = command.json("dead-letters", "list")
    assert [(row["letter_id"], row["source"], row["status"], row["namespace"]) for row in listed] == [
        (number, "reducer", "open", "legal"), (other, "reducer", "open", "research"),
    ]  # fmt: skip
    assert [row["letter_id"] for row in command.json("dead-letters", "list", "-n", "legal")] == [number]
    table = command.run("dead-letters", "list").output.splitlines()
    assert table[0].split() == ["ID", "OF", "STATUS", "NAMESPACE", "TOPIC", "SHARD", "POSITION", "SINCE", "REASON"]
    assert table[1].split()[:7] == [
        str(number), "reducer", "open", "legal", COMPLETED, str(place.shard), str(place.position),
    ]  # fmt: skip
    (shown,) = command.json("dead-letters", "show", str(number))
    assert (shown["body"][:2], shown["body_hex_head"], shown["reason"]) == ("x{", None, listed[0]["reason"])
    said = command.run("dead-letters", "show", str(number)).output
    assert f"{COMPLETED} shard {place.shard} position {place.position}" in said and shown["body"] in said
    # One can be read again, the other can't: it stays, and keeps no other from it.
    await _mend(books, "a 1")
    told = command.run("dead-letters", "replay", "--all", code=1)
    assert told.output == f"dead letter {number} is replayed: its event counts in legal\n"
    assert told.sentence.startswith(f"dead letter {other} stays open: not an event")
    assert [row["done"] for row in command.json("dead-letters", "replay", str(number))] == [True]
    assert "already" in command.run("dead-letters", "replay", str(number)).output
    (row,) = command.json("dead-letters", "discard", str(other), "--reason", "nobody needs it")
    assert (row["status"], row["history"][-1]["reason"]) == ("discarded", "nobody needs it")
    assert command.run("dead-letters", "list").output == "there are no open dead letters\n"
    assert [row["status"] for row in command.json("dead-letters", "list", "--all")] == ["replayed", "discarded"]
    assert "discard by ann, discarded then: nobody needs it" in command.run("dead-letters", "show", str(other)).output
    await is_clean(books)
    await _mend(books, "b 1")
    command.run("dead-letters", "replay", str(other))
    await books.balance()
    assert "was replayed" in command.run("dead-letters", "discard", str(other), "--reason", "no", code=1).sentence


async def test_the_command_says_no_to_what_is_not_there_and_to_what_cannot_be_meant(
    books: Books, command: Desk
) -> None:
    assert command.run("dead-letters", "list").output == "there are no open dead letters\n"
    assert command.run("dead-letters", "replay", "--all").output == "there are no open dead letters\n"
    for arguments in (["show", "7"], ["replay", "7"], ["discard", "7", "--reason", "no"]):
        assert "there is no dead letter 7" in command.run("dead-letters", *arguments, code=1).sentence
    for arguments in (
        ["replay"], ["replay", "7", "--all"], ["replay", "seven"], ["show", "0"], ["discard", "7"],
        ["discard", "7", "--reason", " "], ["list", "-n", "No Name"],
    ):  # fmt: skip
        assert command.run("dead-letters", *arguments, code=2).output == ""
    await _fill(books)
    await _refused(books, body=b"\x00\xff" * 200)
    numbers = [row["letter_id"] for row in command.json("dead-letters", "list")]
    (shown,) = command.json("dead-letters", "show", str(numbers[0]))
    assert (shown["source"], shown["body"], shown["body_bytes"]) == ("relay", None, 400)
    assert shown["body_hex_head"] == "00ff" * 128
    said = command.run("dead-letters", "show", str(numbers[0])).output
    assert "000000f0  00 ff 00 ff" in said and said.endswith("…\n")
    # Without a Kafka there is nowhere to send it.
    assert "BRIDGE_KAFKA_BOOTSTRAP_SERVERS" in command.run("dead-letters", "replay", str(numbers[0]), code=2).sentence
    assert [row["status"] for row in command.json("dead-letters", "list")] == ["open"] * 4
    await books.balance()


@pytest.fixture
def command(books: Books, desk: Desk) -> Desk:
    """The command on the books' database."""
    desk.environment |= {"BRIDGE_DATABASE_URL": books.url, "BRIDGE_STAMPED_BY": "ann"}
    return desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def _desk(books: Books) -> DeadLetters:
    return DeadLetters(PostgresLetters(books.service), _no_kafka, actor="ann")


async def _no_kafka() -> Publisher:
    raise AssertionError("no letter of the relay is replayed here")


async def _fill(books: Books, namespace: str = "legal", name: str = "a") -> None:
    """Record three stamps and a failure."""
    session = books.session()
    stamps = [draft(f"{name} {number}", b"%d" % number, namespace=namespace) for number in range(3)]
    await books.record(session, *stamps, failure("x", namespace=namespace))
    await session.close()


async def _lettered(books: Books, name: str = "a", namespace: str = "legal") -> int:
    """Record four workflows, and let the reducer meet one that it can't read; return the letter's number."""
    await _fill(books, namespace, name)
    await _spoil(books, f"{name} 1")
    await is_clean(books)
    return await _number(books, f"{name} 1")


async def _number(books: Books, path: str) -> int:
    found: int = await books.pool.fetchval(
        "SELECT d.id FROM dead_letters AS d JOIN fsm_states AS f USING (workflow_id) WHERE f.file_path = $1", path
    )
    return found


async def _spoil(books: Books, path: str) -> None:
    done = await books.pool.execute(
        """UPDATE event_log AS e SET body = 'x' || e.body FROM fsm_states AS f
        WHERE f.workflow_id = e.workflow_id AND f.file_path = $1""",
        path,
    )
    assert done == "UPDATE 1"


async def _mend(books: Books, path: str | None = None) -> None:
    await books.pool.execute(
        """UPDATE event_log AS e SET body = substr(e.body, 2) FROM fsm_states AS f
        WHERE f.workflow_id = e.workflow_id AND e.body LIKE 'x%' AND ($1::text IS NULL OR f.file_path = $1)""",
        path,
    )


async def _refused(books: Books, body: bytes | None = None) -> None:
    """Let the transport have refused all that is in the log."""
    await books.pool.execute(
        """INSERT INTO dead_letters
            (topic, shard, position, event_id, previous_id, namespace, workflow_id, body, reason)
        SELECT topic, shard, position, event_id, previous_id, namespace, workflow_id, coalesce($1, body), 'too large'
        FROM event_log""",
        body,
    )
