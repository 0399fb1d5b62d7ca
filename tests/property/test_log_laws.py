"""Laws of the log: whatever a transport does to records, only the successor chain is taken."""

from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.log import START, Head, Record, follow
from tests.making import chain

# One long chain and a foreign one; the laws take parts of them.
OURS = chain(12)
FOREIGN = chain(12)

ARRIVALS = st.lists(st.sampled_from(OURS), max_size=40)
MIXED = st.lists(st.sampled_from(OURS + FOREIGN), max_size=40)
LENGTHS = st.integers(0, len(OURS))


def head(length: int) -> Head:
    return OURS[length - 1].head if length else START


@given(LENGTHS, ARRIVALS)
def test_any_duplication_reordering_and_loss_gives_a_piece_of_the_chain_that_starts_at_the_head(
    length: int, arrivals: list[Record]
) -> None:
    accepted, _ = follow(head(length), arrivals)
    assert accepted == OURS[length : length + len(accepted)]


@given(LENGTHS, MIXED)
def test_records_of_another_chain_are_never_taken_into_ours(length: int, arrivals: list[Record]) -> None:
    accepted, _ = follow(head(length), arrivals)
    if length:
        assert accepted == OURS[length : length + len(accepted)]
    else:
        assert accepted in (OURS[: len(accepted)], FOREIGN[: len(accepted)])


@given(LENGTHS, MIXED)
def test_what_is_taken_is_gapless_and_each_names_its_predecessor(length: int, arrivals: list[Record]) -> None:
    accepted, _ = follow(head(length), arrivals)
    before = head(length)
    for record in accepted:
        assert (record.position, record.previous_id) == (before.position + 1, before.event_id)
        before = record.head


@given(LENGTHS, ARRIVALS)
def test_a_misfit_is_shown_exactly_when_something_lies_beyond_what_was_taken(
    length: int, arrivals: list[Record]
) -> None:
    accepted, misfit = follow(head(length), arrivals)
    reached = length + len(accepted)
    if misfit is None:
        assert all(record.position <= reached for record in arrivals)
    else:
        assert misfit.position > reached + 1


@given(LENGTHS, ARRIVALS, st.integers(0, 40))
def test_taking_records_in_two_goes_gives_what_taking_them_at_once_gives(
    length: int, arrivals: list[Record], cut: int
) -> None:
    whole, misfit = follow(head(length), arrivals)
    first, stopped = follow(head(length), arrivals[:cut])
    if stopped is None:
        rest, later = follow(head(length + len(first)), arrivals[cut:])
        assert (first + rest, later) == (whole, misfit)
    else:
        assert (first, stopped) == (whole, misfit)


@given(ARRIVALS)
def test_reading_again_until_all_have_come_takes_each_record_once(arrivals: list[Record]) -> None:
    taken: list[Record] = []
    while len(taken) < len(OURS):
        # A faulty delivery, then the log itself for the gap.
        for delivery in (arrivals, OURS[len(taken) : len(taken) + 3]):
            accepted, _ = follow(head(len(taken)), delivery)
            taken += accepted
    assert taken == OURS
