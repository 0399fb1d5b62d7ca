"""Arbitrary domain values: odd Unicode, huge numbers, deep metadata; all of them legal, none of them usual."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from omninode_bridge.domain.events import FailureData, StampingCompleted, StampingFailed
from omninode_bridge.domain.reduction import Groupings, Item
from omninode_bridge.domain.stamp import Outcome, Stamp
from tests.making import COMPLETED, FAILED, completed, draft, failed, failure

# All of Unicode but surrogates, which UTF-8 can't hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TEXT_WITHOUT_NUL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
IDS = st.uuids().map(str)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)).map(
    lambda at: at.replace(tzinfo=UTC)
)
NAMESPACES = st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z0-9_-]{1,8}){0,3}", fullmatch=True)
SIZES = st.one_of(st.integers(0, 2**62), st.sampled_from([0, 1, 1023, 1024, 2**31, 2**53 + 1, 2**62]))
MICROSECONDS = st.integers(0, 2**41 * 1000)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)

JSON_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT_WITHOUT_NUL,
)
JSON = st.recursive(
    JSON_SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT_WITHOUT_NUL, inner, max_size=4)),
    max_leaves=12,
)
METADATA = st.dictionaries(TEXT_WITHOUT_NUL, JSON, max_size=5)


@st.composite
def stamps(draw: st.DrawFn) -> Stamp:
    workflow_id = draw(IDS)
    return Stamp(
        stamp_id=draw(IDS),
        stamped_by=draw(TEXT),
        workflow_id=workflow_id,
        op_id=workflow_id,
        namespace=draw(NAMESPACES),
        file_path=draw(TEXT),
        file_hash=draw(HASHES),
        digest_origin=draw(st.sampled_from(["computed", "claimed"])),
        file_size=draw(SIZES),
        content_type=draw(TEXT),
        version=draw(st.integers(1, 2**31)),
        metadata=draw(METADATA),
        intelligence=draw(st.none() | METADATA),
        workflow_state=draw(TEXT),
        deduplicated=draw(st.booleans()),
        created_at=draw(TIMES),
        completed_at=draw(TIMES),
        processing_time_ms=draw(MICROSECONDS) / 1000,
        hash_generation_time_ms=draw(MICROSECONDS) / 1000,
        workflow_steps_executed=draw(st.integers(-(2**70), 2**70)),
    )


def _envelope(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "id": draw(IDS),
        "time": draw(TIMES),
        "shard": draw(st.integers(0, 255)),
        "position": draw(st.integers(1, 2**62)),
        "previousid": draw(IDS),
        "traceparent": draw(st.none() | TEXT),
    }


@st.composite
def completions(draw: st.DrawFn) -> StampingCompleted:
    return completed(draw(stamps()), **_envelope(draw), type=draw(st.sampled_from([COMPLETED, "another.topic"])))


@st.composite
def failures(draw: st.DrawFn) -> StampingFailed:
    data = FailureData(
        workflow_id=draw(IDS),
        namespace=draw(NAMESPACES),
        file_path=draw(TEXT),
        step=draw(TEXT),
        error_code=draw(TEXT),
        error_message=draw(TEXT),
    )
    return failed(data, **_envelope(draw), type=draw(st.sampled_from([FAILED, "another.topic"])))


EVENTS = st.one_of(completions(), failures())


@st.composite
def items(draw: st.DrawFn) -> Item:
    """Items out of a small world, so that groups, ties and repeated keys are frequent."""
    completed_one = draw(st.booleans())
    common = (
        str(draw(st.integers(0, 30))),
        draw(
            st.sampled_from([datetime(2026, 1, 1, 0, minute, microsecond=7, tzinfo=UTC) for minute in range(4)]) | TIMES
        ),
        draw(st.sampled_from(["a", "b.c"])),
    )
    if not completed_one:
        return Item(*common, False)
    return Item(
        *common,
        True,
        draw(st.sampled_from(["text/plain", "x" * 300, ""]) | TEXT),
        draw(st.sampled_from([0, 1023, 1024, 1024**3]) | SIZES),
        draw(st.integers(0, 5) | MICROSECONDS),
        draw(
            st.dictionaries(
                st.sampled_from(["project", "team", "other"]), st.sampled_from(["x", "y"]) | JSON, max_size=3
            )
        ),
    )


GROUPINGS = st.builds(
    Groupings,
    content_type=st.booleans(),
    size_bucket=st.booleans(),
    time_window=st.booleans(),
    metadata_fields=st.sampled_from([(), ("project",), ("project", "team")]),
    size_bounds=st.sampled_from([(1024, 1024**2, 1024**3), (1,), ()]),
    window_ms=st.sampled_from([1_000, 1_500, 60_000, 7 * 86_400_000]),
)


@st.composite
def outcomes(draw: st.DrawFn) -> list[Outcome]:
    """Outcomes in a world of two paths, two contents and a few op ids, so that all the rules meet."""
    found: list[Outcome] = []
    for _ in range(draw(st.integers(0, 12))):
        number = draw(st.integers(0, 15))
        asked: dict[str, Any] = {
            "op": f"00000000-0000-7000-8000-{number:012d}",
            "namespace": draw(st.sampled_from(["a", "b"])),
        }
        path = draw(st.sampled_from(["p", "q"]))
        if draw(st.integers(0, 3)) == 0:
            found.append(failure(path, **asked))
        else:
            found.append(
                draft(
                    path,
                    draw(st.sampled_from([b"1", b"2"])),
                    origin=draw(st.sampled_from(["computed", "claimed"])),
                    metadata=draw(st.sampled_from([{}, {"k": 1}])),
                    **asked,
                )
            )
    return found
