"""Real processes killed in the middle of a `stamp` run, on the embedded PostgreSQL.

The laws: whatever is killed, whenever, running the command again finishes the work; nothing that was acknowledged is
lost, nothing is counted twice, and the audit is clean.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from omninode_bridge import Bridge
from tests.chaos.running import Tree, finish, look, running, stamping

SEED = 20_260_302


async def test_crash_rows_1_to_3_kill_9_of_a_stamp_run_at_any_moment_loses_and_repeats_nothing(
    tree: Tree, tmp_path: Path
) -> None:
    where = ("--data-dir", tmp_path / "data")
    rng = random.Random(SEED)
    killed = []
    for _ in range(5):
        moment = rng.randrange(1, 4_500)
        async with running(*stamping(*where), cwd=tree.parent) as run:
            # 500 files are told of at a time, while later ones are being committed: that is where it dies.
            assert await run.until_new(moment), (SEED, run.complaints)
            await run.kill()
        assert run.process.returncode == -signal.SIGKILL
        killed.append(run)
    assert sum(len(run.stamps) for run in killed) < len(tree.files)
    assert not any(a.stamps.keys() & b.stamps.keys() for a in killed for b in killed if a is not b)
    last = await finish(tree, *where)
    async with Bridge.embedded(tmp_path / "data") as bridge:
        await look(bridge, tree, [*killed, last])


async def test_a_postgresql_that_dies_in_a_stamp_run_ends_it_with_3_and_one_sentence(
    tree: Tree, tmp_path: Path
) -> None:
    where = ("--data-dir", tmp_path / "data")
    rng = random.Random(SEED)
    runs = []
    for number in (signal.SIGQUIT, signal.SIGKILL):  # an immediate shutdown, and none at all
        async with running(*stamping(*where), cwd=tree.parent) as run:
            assert await run.until_new(rng.randrange(1, 7_000))
            os.kill(int((tmp_path / "data" / "pgdata" / "postmaster.pid").read_text().split()[0]), number)
            assert await run.end() == 3
        assert len(run.complaints) == 1, run.complaints
        assert "ended by itself" in run.complaints[0]
        runs.append(run)
    last = await finish(tree, *where)
    assert last.summary["new"] > 0
    async with Bridge.embedded(tmp_path / "data") as bridge:
        await look(bridge, tree, [*runs, last])
