"""An API that is told to stop (SIGTERM): what it took it answers, what it does not answer it has not taken.

A connection that waits for its next request is closed; one that the server has not read from yet is cut, and what was
on its way there is not recorded: to send it again elsewhere is safe.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from tests.chaos.wire import Connection, Lost, encoded
from tests.load.caller import Ask
from tests.load.fleet import Fleet, Process
from tests.load.reckoning import Told, reckon

SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))
SEED = os.environ.get("CHAOS_SEED", "20260307")
NAMESPACE = "stop.docs"
CALLERS = 16
THINKING_S_MAX = 0.05
PATIENCE_S = 30.0
STOP_S_MAX = 20.0
"""Less than the time that the server gives to slow callers: nobody here is slow."""


def a_stamp(rng: random.Random) -> tuple[str, Ask]:
    """Return a request for a stamp that nobody has asked for, and its op id."""
    op_id = str(UUID(int=rng.getrandbits(128), version=4))
    body = {"namespace": NAMESPACE, "file_path": f"{op_id}.txt", "content": op_id, "op_id": op_id}
    headers = {"content-type": "application/json"}
    return op_id, Ask("stamp", "POST", "/stamp", msgspec.json.encode(body), headers)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S:.0f} s: {what}") from None


async def listens(process: Process) -> bool:
    try:
        async with await Connection.open(process.port):
            return True
    except Lost:
        return False


@asynccontextmanager
async def commits_held(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Let no commit of the ledger go on."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE fsm_states IN EXCLUSIVE MODE")
            yield connection
    finally:
        await connection.close()


async def test_every_request_under_way_at_a_sigterm_is_answered_and_idle_connections_are_closed(tmp_path: Path) -> None:
    rng, told = random.Random(SEED), Told()
    async with Fleet.sailing(tmp_path, ["api"]) as fleet, AsyncExitStack() as open_ones:
        (api,) = fleet.processes
        connections = [await open_ones.enter_async_context(await Connection.open(api.port)) for _ in range(60)]
        waiting, halved, idle = connections[:40], connections[40:50], connections[50:]
        asked = [a_stamp(rng) for _ in (*waiting, *halved)]
        told.ask(*(op_id for op_id, _ in asked))
        for connection in idle:
            assert (await connection.ask(Ask("live", "GET", "/health/live"))).status == 200
        async with commits_held(fleet.postgres.url) as holder:
            for connection, (_, ask) in zip(waiting, asked, strict=False):
                await connection.send(encoded(ask))
            rests = []
            for connection, (_, ask) in zip(halved, asked[len(waiting) :], strict=True):
                sent = encoded(ask)
                await connection.send(sent[:-10])
                rests.append(sent[-10:])

            async def commits_wait() -> bool:
                found: bool = await holder.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
                return found

            await eventually(commits_wait, "a commit is waiting")
            for _ in range(3):  # the server has been round its sockets since all was sent
                assert (await idle[0].ask(Ask("live", "GET", "/health/live"))).status == 200
            api.tell_to_stop()

            async def is_closed() -> bool:
                return not await listens(api)

            await eventually(is_closed, "no new connection is taken")
            assert [await connection.rest() for connection in idle] == [b""] * len(idle)
            for connection, rest in zip(halved, rests, strict=True):
                await connection.send(rest)
        for connection, (op_id, _) in zip([*waiting, *halved], asked, strict=True):
            answer = await connection.answer()
            assert answer.status == 201, answer
            assert connection.closing
            told.acknowledge(op_id, answer.json())
        assert await api.ended() == 0
        counted = await reckon(fleet, told)
        assert counted["stamps"] == len(asked)
        assert not fleet.complaints()


async def test_under_load_a_sigterm_cuts_no_request_that_has_had_an_effect(tmp_path: Path) -> None:
    print(f"CHAOS_SEED={SEED}")
    rng, told = random.Random(SEED), Told()
    unrecorded: set[str] = set()
    stops = 0
    async with Fleet.sailing(tmp_path, ["api", "api"]) as fleet:
        over = asyncio.Event()

        async def call(port: int) -> None:
            """Ask for stamps on one connection after another, each stamp once."""
            while not over.is_set():
                try:
                    async with await Connection.open(port) as connection:
                        while not over.is_set() and not connection.closing:
                            op_id, ask = a_stamp(rng)
                            told.ask(op_id)
                            unrecorded.add(op_id)
                            answer = await connection.ask(ask)
                            await asyncio.sleep(rng.uniform(0, THINKING_S_MAX))
                            if answer.status == 201:
                                unrecorded.remove(op_id)
                                told.acknowledge(op_id, answer.json())
                            else:
                                assert answer.status == 503 and answer.headers["retry-after"], answer
                except Lost as lost:
                    if lost.began:
                        told.fault("an answer was cut")
                    await asyncio.sleep(0.05)

        callers = [asyncio.create_task(call(fleet.processes[n % 2].port)) for n in range(CALLERS)]
        try:
            end_s = asyncio.get_running_loop().time() + SECONDS
            while asyncio.get_running_loop().time() < end_s or stops < 2:
                process = fleet.processes[stops % 2]
                process.tell_to_stop()
                async with asyncio.timeout(STOP_S_MAX):
                    assert await process.ended() == 0
                stops += 1
                await process.start()
        finally:
            over.set()
            await asyncio.gather(*callers)
        counted = await reckon(fleet, told)
        print(stops, "stops;", counted, len(unrecorded), "without an answer, or refused")
        connection = await asyncpg.connect(fleet.postgres.url)
        recorded = await connection.fetch("SELECT workflow_id::text FROM fsm_states")
        await connection.close()
        assert not unrecorded & {row[0] for row in recorded}
        assert stops > 1
        assert not fleet.complaints()
