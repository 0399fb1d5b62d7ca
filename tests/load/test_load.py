"""A thousand users at once, for a few seconds: nothing is lost, nothing doubled, nothing miscounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.load.trial import trial

USERS, SECONDS = 1000, 10


@pytest.mark.timeout(240)
async def test_a_thousand_users_at_once_lose_nothing_double_nothing_and_are_all_answered(tmp_path: Path) -> None:
    seed = os.environ.get("LOAD_SEED", "20260304")
    print(f"LOAD_SEED={seed}")
    outcome = await trial(tmp_path, users=USERS, seconds=SECONDS, seed=seed)
    print("\n".join(outcome.lines()))
    assert outcome.figures["users"] == USERS
    assert outcome.calls_without_answer == 0
    assert outcome.counted["stamps"] > USERS
