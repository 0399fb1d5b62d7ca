"""Accepted workflows are run by workers, whoever of them dies, and end once, as completed or as failed."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.app.bootstrap import connect
from omninode_bridge.app.bridge import Bridge
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import Overloaded
from omninode_bridge.domain.recording import Prior
from omninode_bridge.domain.stamp import Inline
from tests.integration.books import PATIENCE_S, Books, eventually
from tests.integration.proxy import Fault, Match, Proxy, is_commit
from tests.load.fleet import CONTRACT, hasty_contract
from tests.making import NAMESPACE
from tests.services import Service, hang


@asynccontextmanager
async def process(url: str, role: str, **settings: object) -> AsyncIterator[Bridge]:
    async with connect(url, Settings.read(**settings), role) as bridge:
        yield bridge


async def accept(bridge: Bridge, path: str, content: bytes = b"a") -> str:
    request = bridge.request(Inline(content), file_path=path, namespace=NAMESPACE)
    return (await bridge.accept(request)).workflow_id


async def ended(bridge: Bridge, *ids: str) -> list[Prior]:
    """Wait for the end of workflows."""
    found: list[Prior] = []

    async def are_over() -> bool:
        found[:] = [await bridge.workflow(name) for name in ids]
        return all(prior.waiting is None for prior in found)

    await eventually(are_over, f"{len(ids)} workflows have ended")
    return found


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def balanced(bridge: Bridge, completed: int, failed: int = 0) -> None:
    state = await bridge.state(NAMESPACE)
    assert (state.total_stamps, state.failed) == (completed, failed)
    assert all(finding.holds for finding in await bridge.audit())


async def test_workers_of_two_processes_run_what_a_third_accepted(database_url: str) -> None:
    async with (
        process(database_url, "api") as api,
        process(database_url, "orchestrator"),
        process(database_url, "orchestrator"),
    ):
        ids = await asyncio.gather(*(accept(api, f"{n}", b"%d" % n) for n in range(200)))
        priors = await ended(api, *ids)
        assert all(prior.stamp is not None for prior in priors)
        assert {tuple(v.state for v in prior.workflow.visits) for prior in priors} == {
            ("pending", "processing", "completed")
        }
        await balanced(api, 200)


async def test_what_was_accepted_waits_until_there_is_a_worker(database_url: str) -> None:
    async with process(database_url, "api") as api:
        name = await accept(api, "a")
    async with process(database_url, "api") as api:
        assert (await api.workflow(name)).workflow.state == "pending"
        async with process(database_url, "orchestrator"):
            await ended(api, name)
        await balanced(api, 1)


async def test_the_same_bytes_accepted_twice_are_one_stamp_and_two_answers(database_url: str) -> None:
    async with process(database_url, "all") as bridge:
        first = await ended(bridge, await accept(bridge, "a"))
        second = await ended(bridge, await accept(bridge, "a"))
        assert second[0].workflow.deduplicated
        assert first[0].stamp and second[0].stamp and first[0].stamp.stamp_id == second[0].stamp.stamp_id
        await balanced(bridge, 1)


async def test_without_a_stamping_service_a_workflow_fails_for_good_after_the_contracts_attempts(
    database_url: str, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{closed_port()}"
    hasty = tmp_path / "orchestrator.yaml"
    pauses = "pause_base_ms: 1000, pause_max_ms: 60000"
    assert pauses in CONTRACT.read_text()
    hasty.write_text(CONTRACT.read_text().replace(pauses, "pause_base_ms: 1, pause_max_ms: 10"))
    async with process(database_url, "all", stamping_urls=[nobody], orchestrator_contract=hasty) as bridge:
        (prior,) = await ended(bridge, await accept(bridge, "a"))
        workflow = prior.workflow
        assert (workflow.state, workflow.step, workflow.error_code) == ("failed", "hash", "stamping_unavailable")
        assert [visit.state for visit in workflow.visits] == ["pending", "processing", "failed"]
        events = [event async for event in bridge.events(namespace=NAMESPACE)]
        assert [event.type for event in events] == ["workflow.stamping.failed"]
        await balanced(bridge, 0, failed=1)


async def test_a_worker_that_is_stopped_gives_its_work_back_at_once_and_uncounted(
    database_url: str, books: Books
) -> None:
    async with Service(hang) as silent, process(database_url, "api") as api:
        async with process(database_url, "orchestrator", stamping_urls=[silent.url]):
            name = await accept(api, "a")

            async def is_held() -> bool:
                waiting = (await api.workflow(name)).waiting
                return waiting is not None and waiting.worker is not None

            await eventually(is_held, "the worker holds the workflow")
        waiting = (await api.workflow(name)).waiting
        assert waiting is not None and (waiting.worker, waiting.attempts) == (None, 0)
        async with process(database_url, "orchestrator"):
            await ended(api, name)
        await balanced(api, 1)


async def test_work_whose_workers_died_again_and_again_ends_as_failed(database_url: str, books: Books) -> None:
    async with process(database_url, "api") as api:
        name = await accept(api, "a")
        await books.pool.execute("UPDATE workflow_inputs SET attempts = 8, fence = 8, worker = 'dead'")
        async with process(database_url, "orchestrator"):
            (prior,) = await ended(api, name)
        assert (prior.workflow.state, prior.workflow.error_code) == ("failed", "attempts_exhausted")
        await balanced(api, 0, failed=1)


async def test_what_the_ledger_refuses_for_its_content_ends_as_failed(database_url: str, books: Books) -> None:
    async with process(database_url, "api") as api:
        name = await accept(api, "a")
        await books.pool.execute("ALTER TABLE metadata_stamps ADD CONSTRAINT no_a CHECK (file_path <> 'a')")
        await books.pool.execute("UPDATE workflow_inputs SET attempts = 7")
        async with process(database_url, "orchestrator"):
            fine = await accept(api, "b")
            refused, stamped = await ended(api, name, fine)
        assert (refused.workflow.state, refused.workflow.step) == ("failed", "stamp")
        assert stamped.stamp is not None
        await balanced(api, 1, failed=1)


async def test_workers_wait_out_an_absent_database(database_url: str, books: Books) -> None:
    async with process(database_url, "all") as bridge:
        for turn in range(3):
            await books.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            await eventually(lambda: _accepted(bridge, f"{turn}"), "the database is back")  # noqa: B023 - used in this turn

        async def is_empty() -> bool:
            return await books.count("workflow_inputs") == 0

        await eventually(is_empty, "all accepted workflows have ended")
        assert all(finding.holds for finding in await bridge.audit())


def end_of_a_claim() -> Match:
    """Match the end of the first claim that takes something: what it takes it moves on."""
    took = False

    def matches(message: bytes) -> bool:
        nonlocal took
        took = took or b"SET state = m.state" in message
        return took and is_commit(message)

    return matches


async def test_what_was_taken_when_the_answer_was_lost_is_taken_again_at_once(
    database_url: str, tmp_path: Path
) -> None:
    """And not when its lease has run out, which is in an hour: the worker lives, and says that it holds nothing."""
    contract = hasty_contract(tmp_path, lease_ms=3600 * 1000)
    async with process(database_url, "api") as api, Proxy(database_url) as proxy:
        proxy.arm(Fault.AFTER, end_of_a_claim())
        async with process(proxy.url, "orchestrator", orchestrator_contract=contract):
            name = await accept(api, "a")
            await ended(api, name)
            assert proxy.struck.is_set()
        await balanced(api, 1)


async def test_a_worker_that_stops_before_a_claim_is_answered_gives_back_what_it_took(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CANCEL_TIMEOUT_S", 0.2)
    contract = hasty_contract(tmp_path, lease_ms=3600 * 1000)
    async with process(database_url, "api") as api, Proxy(database_url) as proxy:
        proxy.arm(Fault.STALL_AFTER, end_of_a_claim())
        async with process(proxy.url, "orchestrator", orchestrator_contract=contract):
            name = await accept(api, "a")
            async with asyncio.timeout(PATIENCE_S):
                await proxy.struck.wait()
        prior = await api.workflow(name)
        assert prior.waiting is not None and prior.waiting.worker is None and prior.waiting.attempts == 0
        async with process(database_url, "orchestrator"):
            await ended(api, name)
        await balanced(api, 1)


async def _accepted(bridge: Bridge, path: str) -> bool:
    try:
        await accept(bridge, path)
    except Exception:
        return False
    return True


async def test_an_input_that_cannot_be_read_holds_up_no_other_and_ends_as_failed(
    database_url: str, books: Books
) -> None:
    async with process(database_url, "api") as api:
        broken, fine = await accept(api, "a"), await accept(api, "b")
        await books.pool.execute(
            "UPDATE workflow_inputs SET request = '{}', attempts = 7 WHERE workflow_id = $1", broken
        )
        async with process(database_url, "orchestrator"):
            await ended(api, fine)

            async def is_due_again() -> bool:
                done = await books.pool.execute(
                    "UPDATE workflow_inputs SET available_at = now() WHERE workflow_id = $1 AND attempts = 8", broken
                )
                return str(done) == "UPDATE 1"

            await eventually(is_due_again, "the broken one was taken once more")
            (prior,) = await ended(api, broken)
        assert (prior.workflow.state, prior.workflow.error_code) == ("failed", "attempts_exhausted")
        await balanced(api, 1, failed=1)


async def test_more_than_may_wait_is_refused_and_accepted_when_there_is_room(database_url: str) -> None:
    async with process(database_url, "api", workflows_waiting_max=3) as api:
        ids = [await accept(api, f"{n}") for n in range(3)]
        with pytest.raises(Overloaded, match="3 accepted workflows"):
            await accept(api, "more")
        async with process(database_url, "orchestrator"):
            await ended(api, *ids)
            await eventually(lambda: _accepted(api, "more"), "there is room again")
            await eventually(lambda: _all_over(api), "the last has ended")
        await balanced(api, 4)


async def _all_over(bridge: Bridge) -> bool:
    return (await bridge.state(NAMESPACE)).total_stamps == 4
