"""The clock tells aware UTC; ids are UUIDv7, unique, and ascend within a batch."""

from datetime import UTC, datetime
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.adapters.system import utc_now, uuid7_batch


def test_the_time_is_aware_and_in_utc() -> None:
    before = datetime.now(UTC)
    assert before <= utc_now() <= datetime.now(UTC)
    assert utc_now().tzinfo is UTC


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097, 10_000])
def test_ids_are_distinct_canonical_and_ascend(count: int) -> None:
    ids = uuid7_batch(count)
    assert len(ids) == count
    assert ids == sorted(set(ids))
    assert all(str(UUID(text)) == text and UUID(text).version == 7 and UUID(text).variant == RFC_4122 for text in ids)


@given(unix_ms=st.integers(0, 2**47), count=st.integers(1, 5000))
def test_ids_carry_their_time(unix_ms: int, count: int) -> None:
    times = {UUID(text).int >> 80 for text in uuid7_batch(count, unix_ms)}
    assert times == set(range(unix_ms, unix_ms + (count - 1) // 4096 + 1))


def test_no_two_batches_of_one_millisecond_share_an_id() -> None:
    assert not set(uuid7_batch(4096, 1)) & set(uuid7_batch(4096, 1))
