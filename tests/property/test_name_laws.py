"""Laws of names: checking never changes what is legal, and never lets through what would not come back."""

from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import (
    canonical_json,
    check_content_type,
    check_file_hash,
    check_file_path,
    check_metadata,
    check_namespace,
    check_op_id,
    normalise_path,
    uuid7,
)
from tests.property.strategies import METADATA, NAMESPACES

ANY_TEXT = st.text(max_size=60)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_every_uuid7_is_valid_by_rfc_9562_and_canonical(unix_ms: int, entropy: bytes) -> None:
    text = uuid7(unix_ms, entropy)
    parsed = UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
    assert parsed.int >> 80 == unix_ms


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_a_later_uuid7_sorts_after_an_earlier_one(unix_ms: int, one: bytes, other: bytes) -> None:
    assert uuid7(unix_ms, one) < uuid7(unix_ms + 1, other)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10), st.integers(0, 73))
def test_every_random_bit_of_a_uuid7_matters(unix_ms: int, entropy: bytes, bit: int) -> None:
    # 74 of the 80 bits are kept: the version takes bits 76-79 and the variant 62-63.
    place = bit if bit < 62 else bit + 2
    flipped = (int.from_bytes(entropy, "big") ^ (1 << place)).to_bytes(10, "big")
    assert uuid7(unix_ms, entropy) != uuid7(unix_ms, flipped)


@given(NAMESPACES)
def test_every_dotted_name_is_a_namespace(name: str) -> None:
    assert check_namespace(name) == name


@given(ANY_TEXT)
def test_any_text_is_either_legal_as_it_is_or_refused_as_invalid_input(text: str) -> None:
    for check in (check_namespace, check_file_path, check_content_type):
        try:
            assert check(text) == text
        except InvalidInput as refused:
            refused.message.encode()
    for canonical in (check_op_id, check_file_hash):
        try:
            assert canonical(canonical(text)) == canonical(text)
        except InvalidInput as refused:
            refused.message.encode()


@given(ANY_TEXT)
def test_a_legal_file_path_is_utf8(text: str) -> None:
    try:
        legal = check_file_path(text)
    except InvalidInput:
        return
    assert legal.encode().decode() == text


@given(st.from_regex(r"[./a-c]{1,20}", fullmatch=True))
def test_normalising_a_path_twice_changes_nothing_more(typed: str) -> None:
    normal = normalise_path(typed)
    assert normalise_path(normal) == normal
    assert not normal.startswith("//")


@given(METADATA)
def test_legal_metadata_comes_back_from_json_as_it_went_in(metadata: dict[str, Any]) -> None:
    assert msgspec.json.decode(canonical_json(check_metadata(metadata))) == metadata


@given(METADATA, st.randoms(use_true_random=False))
def test_canonical_json_is_the_same_for_any_order_of_keys(metadata: dict[str, Any], random: Any) -> None:
    keys = list(metadata)
    random.shuffle(keys)
    assert canonical_json({key: metadata[key] for key in keys}) == canonical_json(metadata)


@given(METADATA, METADATA)
def test_different_metadata_has_different_canonical_json(one: dict[str, Any], other: dict[str, Any]) -> None:
    if one != other:
        assert canonical_json(one) != canonical_json(other)
