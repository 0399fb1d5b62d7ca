"""Names: what is legal comes back in canonical form, what is not is refused with the field, the value and a remedy."""

from typing import Any
from uuid import UUID

import pytest

from omninode_bridge.domain.errors import InvalidInput, LimitExceeded
from omninode_bridge.domain.names import (
    METADATA_BYTES_MAX,
    METADATA_DEPTH_MAX,
    canonical_json,
    check_content_type,
    check_file_hash,
    check_file_path,
    check_metadata,
    check_namespace,
    check_op_id,
    check_workflow_id,
    normalise_path,
    path_hash,
    uuid7,
)


@pytest.mark.parametrize("name", ["a", "omninode.services.metadata", "legal-2.x_y", "0", "-", "_", "a" * 255])
def test_a_legal_namespace_comes_back_as_given(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "A", "a b", "a/b", "a\n", "ä", "a\0", "a,b", "a:b", "%", "ａ"]
)
def test_an_illegal_namespace_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_namespace(name)
    assert refused.value.field == "namespace"


def test_a_namespace_over_its_limit_is_refused_as_too_long() -> None:
    with pytest.raises(LimitExceeded, match="256 characters; 255"):
        check_namespace("a" * 256)


@pytest.mark.parametrize(
    "path", ["a", "a/b.txt", "with space", "new\nline", "back\\slash", "ä/漢/🙂", "a" * 4096, "🙂" * 4096]
)
def test_any_unicode_file_path_within_the_limit_comes_back_as_given(path: str) -> None:
    assert check_file_path(path) == path


@pytest.mark.parametrize("path", ["", "a\0b", "\udcff", "ok/\ud800"])
def test_empty_nul_and_undecodable_file_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_file_path(path)
    assert refused.value.field == "file_path"
    assert refused.value.message.isprintable()
    refused.value.message.encode()


def test_a_file_path_over_its_limit_is_refused_as_too_long() -> None:
    with pytest.raises(LimitExceeded, match="4097"):
        check_file_path("a" * 4097)


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("./docs//a.txt", "docs/a.txt"),
        ("docs/", "docs"),
        ("a/../b", "b"),
        ("//a", "/a"),
        ("///a", "/a"),
        ("/a/.", "/a"),
    ],
)
def test_a_typed_path_is_normalised(typed: str, normal: str) -> None:
    assert normalise_path(typed) == normal


def test_an_op_id_comes_back_canonical() -> None:
    assert check_op_id("{0190AF3C-0000-7000-8000-00000000000A}") == "0190af3c-0000-7000-8000-00000000000a"
    assert check_op_id("0190af3c00007000800000000000000a") == "0190af3c-0000-7000-8000-00000000000a"


@pytest.mark.parametrize("value", ["", "x", "0190af3c", "0190af3c-0000-7000-8000-00000000000g", 7, None])
def test_what_is_no_uuid_is_no_op_id(value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_op_id(value)
    assert refused.value.field == "op_id"


def test_a_digest_comes_back_in_lower_case() -> None:
    assert check_file_hash("AB" * 32) == "ab" * 32


@pytest.mark.parametrize("value", ["", "ab", "g" * 64, "ab" * 33, "ab" * 32 + "\n", "０" * 64])
def test_what_is_not_64_hexadecimal_digits_is_no_digest(value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_file_hash(value)
    assert refused.value.field == "file_hash"


@pytest.mark.parametrize("value", ["text/plain", "text/plain; charset=utf-8", "application/vnd.api+json", "x/y;"])
def test_a_media_type_comes_back_as_given(value: str) -> None:
    assert check_content_type(value) == value


@pytest.mark.parametrize(
    "value", ["", "text", "text/", "/plain", "a/b c", "text/plain\n", "text/plain; ü", "a/b;\r\nx: y"]
)
def test_what_is_no_media_type_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_content_type(value)
    assert refused.value.field == "content_type"


def test_a_media_type_over_its_limit_is_refused_as_too_long() -> None:
    with pytest.raises(LimitExceeded):
        check_content_type("text/" + "x" * 251)


@pytest.mark.parametrize(
    "value", [{}, {"a": None}, {"a": [1, 2.5, "x", {"b": True}]}, {"": ""}, {"🙂": "漢"}, {"n": 2**200}]
)
def test_a_json_object_is_legal_metadata(value: dict[str, Any]) -> None:
    assert check_metadata(value) is value


@pytest.mark.parametrize(
    "value",
    [
        [],
        None,
        "",
        "text",
        {1: "a"},
        {"a": {1: 2}},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": "\0"},
        {"\0": "a"},
        {"a": "\ud800"},
        {"a": b"bytes"},
        {"a": {1, 2}},
        {"a": object()},
        {"a": UUID(int=1)},
        {"a": 10**5000},
    ],
)
def test_what_is_not_plain_json_is_no_metadata(value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_metadata(value)
    assert refused.value.field == "metadata"


def test_metadata_is_limited_in_bytes_not_characters() -> None:
    room = METADATA_BYTES_MAX - len(b'{"a":""}')
    assert check_metadata({"a": "x" * room})
    with pytest.raises(LimitExceeded, match=str(METADATA_BYTES_MAX + 1)):
        check_metadata({"a": "x" * (room + 1)})
    with pytest.raises(LimitExceeded):
        check_metadata({"a": "ä" * (room // 2 + 1)})


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("levels", [METADATA_DEPTH_MAX + 1, 2_000, 20_000])
def test_metadata_is_limited_in_depth(levels: int) -> None:
    assert check_metadata(nested(METADATA_DEPTH_MAX))
    with pytest.raises(InvalidInput):
        check_metadata(nested(levels))


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": {"d": 1, "c": 2}, "a": 3}) == b'{"a":3,"b":{"c":2,"d":1}}'
    assert canonical_json({}) == b"{}"


def test_a_path_hash_has_32_bytes() -> None:
    assert len(path_hash("a.b", "ä/漢/🙂")) == 32
    assert len({path_hash(*key) for key in [("a", "b"), ("a", "c"), ("b", "b"), ("a.b", "c"), ("a", "b.c")]}) == 5


def test_uuid7_has_its_time_version_and_variant_in_place() -> None:
    lowest, highest = UUID(uuid7(0, bytes(10))), UUID(uuid7(2**48 - 1, b"\xff" * 10))
    assert [lowest.version, highest.version] == [7, 7]
    assert {lowest.variant, highest.variant} == {"specified in RFC 4122"}
    assert [lowest.int >> 80, highest.int >> 80] == [0, 2**48 - 1]


def test_an_op_id_may_be_given_as_a_uuid_and_its_error_names_what_was_given() -> None:
    given = UUID("01A204AF-088A-7D9E-B613-4F0237E66138")
    assert check_op_id(given) == check_op_id(str(given).upper()) == "01a204af-088a-7d9e-b613-4f0237e66138"
    with pytest.raises(InvalidInput, match="workflow_id 'xyz' is not a UUID"):
        check_workflow_id("xyz")
