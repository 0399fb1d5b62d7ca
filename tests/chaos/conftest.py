"""One tree for all: the tests only read it."""

from __future__ import annotations

import pytest

from tests.chaos.running import Tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree.grow(tmp_path_factory.mktemp("forest"), 20_000)
