"""What doctor thinks of a server: each thing that could lose or hide stamps is not well, and has a remedy."""

import msgspec
import pytest

from omninode_bridge.adapters.postgres.diagnosis import ServerFacts
from omninode_bridge.app.doctor import judge

WELL = ServerFacts(
    major=15,
    version="15.4",
    encoding="UTF8",
    fsync=True,
    full_page_writes=True,
    synchronous_commit="on",
    synchronous_standby_names="",
    standbys=0,
    read_only=False,
    clock_ahead_s=0.0,
    session_is_ours=True,
    inherits=False,
)


def unwell(facts: ServerFacts, pending: list[str] | None = None, *, embedded: bool = False) -> list[str]:
    found = [check for check in judge(facts, pending or [], embedded=embedded) if not check.ok]
    assert all(check.remedy for check in found)
    return [check.name for check in found]


def test_a_server_that_is_well_has_no_remedy_to_offer() -> None:
    assert unwell(WELL) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"major": 14}, "PostgreSQL version"),
        ({"encoding": "SQL_ASCII"}, "encoding"),
        ({"fsync": False}, "durability"),
        ({"full_page_writes": False}, "durability"),
        ({"synchronous_commit": "off"}, "durability"),
        # With a standby that is waited for, a commit must have reached its disk too.
        ({"standbys": 1, "synchronous_standby_names": "*", "synchronous_commit": "local"}, "durability"),
        ({"standbys": 1, "synchronous_standby_names": "*", "synchronous_commit": "remote_write"}, "durability"),
        ({"standbys": 2}, "replication"),
        ({"read_only": True}, "replication"),
        ({"session_is_ours": False}, "sessions"),
        ({"inherits": True}, "login"),
        ({"clock_ahead_s": -5.0}, "clock"),
    ],
)
def test_each_danger_is_named(change: dict[str, object], name: str) -> None:
    assert unwell(msgspec.structs.replace(WELL, **change)) == [name]


def test_a_standby_that_is_waited_for_is_well() -> None:
    assert unwell(msgspec.structs.replace(WELL, standbys=1, synchronous_standby_names="ANY 1 (a, b)")) == []


def test_migrations_wait_for_a_command_on_ones_own_server_and_apply_themselves_on_the_embedded_one() -> None:
    assert unwell(WELL, ["0002_next.sql"]) == ["schema"]
    assert unwell(WELL, ["0002_next.sql"], embedded=True) == []
