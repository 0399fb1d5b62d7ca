"""Following a chain: only the direct successor is taken."""

from omninode_bridge.domain.log import START, Head, follow, shares
from tests.making import chain


def test_successors_are_taken_one_after_another() -> None:
    records = chain(3)
    assert follow(START, records) == (records, None)
    assert follow(records[0].head, records) == (records[1:], None)


def test_repeats_are_dropped_silently() -> None:
    records = chain(3)
    assert follow(START, [records[0], records[0], records[1], records[0], records[2]]) == (records, None)
    assert follow(records[2].head, records) == ([], None)


def test_a_gap_stops_and_is_shown() -> None:
    records = chain(3)
    assert follow(START, [records[0], records[2]]) == ([records[0]], records[2])


def test_a_record_that_names_another_predecessor_stops_and_is_shown() -> None:
    ours, foreign = chain(2), chain(2)
    assert follow(START, [ours[0], foreign[1]]) == ([ours[0]], foreign[1])
    assert follow(Head(1, foreign[0].event_id), ours) == ([], ours[1])


def test_nothing_follows_nothing() -> None:
    assert follow(START, []) == ([], None)


def test_what_waits_is_shared_evenly_and_what_one_does_not_need_goes_to_the_others() -> None:
    assert shares([10, 10, 10], 9) == [3, 3, 3]
    assert shares([1, 10, 4], 9) == [1, 4, 4]
    assert shares([0, 100, 0], 9) == [0, 9, 0]
    assert shares([2, 3], 100) == [2, 3]
    assert shares([], 5) == []


def test_a_limit_below_the_number_of_shards_is_for_those_with_most_waiting() -> None:
    assert shares([5, 1, 9], 1) == [0, 0, 1]
    assert shares([5, 1, 9], 2) == [1, 0, 1]
