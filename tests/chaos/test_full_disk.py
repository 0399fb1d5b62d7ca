"""A disk that fills up in the middle of a `stamp` run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import small_disk
from tests.chaos.running import Tree


@pytest.mark.parametrize("kind", ["everything", "tables"])
def test_a_full_disk_ends_a_stamp_run_with_3_and_one_sentence_and_more_room_finishes_it(
    tree: Tree, tmp_path: Path, kind: str
) -> None:
    done = subprocess.run(
        [sys.executable, small_disk.__file__, kind, tree.parent, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
