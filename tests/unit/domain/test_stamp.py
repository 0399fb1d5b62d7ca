"""The stamp: what counts as the same content, what as the same request."""

from typing import Any

import msgspec
import pytest

from omninode_bridge.domain.stamp import Claimed, fingerprint, microseconds, same_content
from tests.making import digest, draft, hash_of, request, stamp


def test_a_draft_with_equal_bytes_type_and_metadata_repeats_a_stamp() -> None:
    latest = stamp(metadata={"a": 1, "b": {"c": 2, "d": 3}})
    assert same_content(latest, draft(metadata={"b": {"d": 3, "c": 2}, "a": 1}))


@pytest.mark.parametrize(
    "changed",
    [{"content": b"b"}, {"content_type": "text/html"}, {"metadata": {"a": 1}}],
    ids=["bytes", "content type", "metadata"],
)
def test_anything_else_does_not_repeat_it(changed: dict[str, Any]) -> None:
    assert same_content(stamp(), draft())
    assert not same_content(stamp(), draft(**changed))


def test_a_size_that_differs_is_another_content() -> None:
    assert not same_content(stamp(file_size=2), draft())


@pytest.mark.parametrize(
    ("known", "new", "same"),
    [
        ("computed", "computed", True),
        ("computed", "claimed", True),
        ("claimed", "claimed", True),
        ("claimed", "computed", False),
    ],
)
def test_a_computed_digest_never_repeats_a_claimed_one(known: Any, new: Any, same: bool) -> None:
    assert same_content(stamp(digest_origin=known), draft(origin=new)) is same


def test_the_same_request_has_the_same_digest_whoever_sends_it_and_whenever() -> None:
    first = fingerprint(request(metadata={"a": 1, "b": 2}), digest(hash_time_us=1))
    assert first == fingerprint(request(metadata={"b": 2, "a": 1}, stamped_by="another"), digest(hash_time_us=9))
    assert len(first) == 32


def test_every_part_of_a_request_tells_it_from_another() -> None:
    digests = [
        fingerprint(request(), digest()),
        fingerprint(request(path="b.txt"), digest()),
        fingerprint(request(namespace="other"), digest()),
        fingerprint(request(content_type="text/html"), digest()),
        fingerprint(request(metadata={"a": 1}), digest()),
        fingerprint(request(enable_intelligence=True), digest()),
        fingerprint(request(), digest(b"b")),
        fingerprint(
            msgspec.structs.replace(request(), content=Claimed(digest().file_hash, 1)), digest(origin="claimed")
        ),
        fingerprint(
            msgspec.structs.replace(request(), content=Claimed(digest().file_hash, 2)), digest(origin="claimed")
        ),
        fingerprint(request(), None),
        # A path that ends as the metadata begins.
        fingerprint(request(path='a.txt{"a":1}'), digest()),
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(("milliseconds", "exact"), [(0.0, 0), (0.001, 1), (1.5, 1500), (1234.567, 1234567)])
def test_milliseconds_hold_microseconds_exactly(milliseconds: float, exact: int) -> None:
    assert microseconds(milliseconds) == exact


def test_a_stand_in_hash_looks_like_a_digest() -> None:
    assert len(hash_of(b"")) == 64
