"""What every reader of the ledger's tables finds: by hash, id, path, prefix, workflow and file facts."""

from contextlib import aclosing
from uuid import UUID

import msgspec
import pytest

from omninode_bridge.adapters.memory import reads as memory
from omninode_bridge.adapters.postgres import reads as postgres
from omninode_bridge.domain.names import canonical_json, path_hash
from omninode_bridge.domain.recording import Prior
from omninode_bridge.domain.stamp import Stamp
from omninode_bridge.domain.tenancy import Visible
from omninode_bridge.domain.workflow import Visit
from omninode_bridge.ports import PAGE_BYTES_MAX, StampFilter
from tests.conformance.storage import Storage
from tests.making import FACTS, NAMESPACE, draft, failure, hash_of, new_id, paths

NAMES = ["B", "a", "a b", "a-b/x", "a.txt", "a/b", "a/b/c", "a/z", "a_b/x", "axb/x", "b", "Ä", "ä/ö", "漢", "🙂/x"]


async def under(storage: Storage, prefix: str | None = None, namespace: str = NAMESPACE) -> list[Stamp]:
    return [stamp async for stamp in storage.reads.latest_under(namespace, prefix)]


async def workflows(storage: Storage, namespace: str | None = None) -> list[Prior]:
    return [prior async for prior in storage.reads.workflows(namespace)]


# By hash and id


async def test_stamps_are_found_by_hash_newest_first(storage: Storage) -> None:
    stamps = await storage.stamp(draft("a"), draft("b"), draft("c", b"other"), draft("d"))
    found = await storage.reads.by_hash(hash_of(b"a"))
    assert found == [stamps[3], stamps[1], stamps[0]]
    assert await storage.reads.by_hash(hash_of(b"a"), limit=2) == found[:2]
    assert await storage.reads.by_hash("0" * 64) == []


async def test_a_search_by_hash_keeps_to_its_namespaces(storage: Storage) -> None:
    one, two, _ = await storage.stamp(draft(namespace="a"), draft(namespace="b"), draft(namespace="c"))
    assert await storage.reads.by_hash(hash_of(b"a"), ["a", "b", "none"]) == [two, one]
    assert await storage.reads.by_hash(hash_of(b"a"), ["a"], 1) == [one]
    assert await storage.reads.by_hash(hash_of(b"a"), []) == []


async def test_a_stamp_is_found_by_its_id(storage: Storage) -> None:
    (stamp,) = await storage.stamp(draft(metadata={"a": [1, {"b": None}]}, intelligence={"x": 1}))
    assert await storage.reads.by_id(stamp.stamp_id) == stamp
    assert await storage.reads.by_id(new_id()) is None


async def test_reads_give_the_stamp_as_it_was_first_answered(storage: Storage) -> None:
    (first,) = await storage.stamp(draft())
    await storage.stamp(draft(op=new_id()))
    assert await storage.reads.by_id(first.stamp_id) == first
    assert await storage.reads.by_hash(first.file_hash) == [first]
    assert await storage.reads.history(NAMESPACE, "a.txt") == [first]


# Pages


async def test_a_page_ends_where_its_bytes_do_and_the_next_goes_on(storage: Storage) -> None:
    great, small = [f"{n:03}" for n in range(150)], ["x", "y", "z"]
    metadata = {"k": "x" * 60_000}
    await storage.ledger.record([*(draft(name, metadata=metadata) for name in great), *map(draft, small)])
    found: list[Stamp] = []
    lengths, before = [], None
    while True:
        page = await storage.reads.page(NAMESPACE, StampFilter(), before=before, limit=100)
        found += page.stamps
        lengths.append(len(page.stamps))
        before = page.before
        if before is None:
            break
    fitting = PAGE_BYTES_MAX // 60_100
    assert lengths == [fitting + 3, fitting, 150 - 2 * fitting]
    assert paths(found) == [*great, *small][::-1]


async def test_of_a_digest_there_are_as_many_stamps_as_their_bytes_allow(storage: Storage) -> None:
    stamps = await storage.stamp(*(draft(f"{n:03}", metadata={"k": "x" * 60_000}) for n in range(90)))
    newest, fitting = stamps[::-1], PAGE_BYTES_MAX // 60_100
    digest = hash_of(b"a")
    assert await storage.reads.by_hash(digest) == newest[:fitting]
    assert await storage.reads.by_hash(digest, [NAMESPACE]) == newest[:fitting]
    assert await storage.reads.by_hash(digest, limit=2) == newest[:2]
    seen = storage.reads.seen_by(Visible((NAMESPACE, "other.*")))
    assert await seen.by_hash(digest) == newest[:fitting]
    wanted = StampFilter(file_hash=digest)
    assert (await seen.page(NAMESPACE, wanted)).stamps == newest[:fitting]


async def test_a_page_has_its_first_stamp_whatever_its_size(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, postgres):
        monkeypatch.setattr(module, "PAGE_BYTES_MAX", 1)
    stamps = await storage.stamp(draft("a"), draft("b"), draft("c"))
    found, before = [], None
    for _ in stamps:
        page = await storage.reads.page(NAMESPACE, StampFilter(), before=before)
        assert (len(page.stamps), page.before is None) == (1, page.stamps == stamps[:1])
        found += page.stamps
        before = page.before
    assert found == stamps[::-1]
    assert await storage.reads.by_hash(hash_of(b"a")) == stamps[2:]


# By path


async def test_a_history_is_all_versions_newest_first(storage: Storage) -> None:
    stamps = await storage.stamp(*(draft(content=b"%d" % n) for n in range(12)), draft("other"))
    assert await storage.reads.history(NAMESPACE, "a.txt") == stamps[11::-1]
    assert await storage.reads.history(NAMESPACE, "none") == []
    assert await storage.reads.history("other", "a.txt") == []


async def test_the_latest_of_many_paths_are_found_at_once(storage: Storage) -> None:
    await storage.stamp(draft("a", b"1"), draft("b"), draft("a", namespace="other"))
    (newest,) = await storage.stamp(draft("a", b"2"))
    (other,) = await storage.reads.history(NAMESPACE, "b")
    assert await storage.reads.latest_many(NAMESPACE, ["a", "none", "b"]) == {"a": newest, "b": other}
    assert await storage.reads.latest_many(NAMESPACE, ["a", "a"]) == {"a": newest}
    assert await storage.reads.latest_many(NAMESPACE, []) == {}


async def test_a_listing_has_the_latest_of_each_path_in_the_order_of_code_points(storage: Storage) -> None:
    await storage.stamp(*(draft(name) for name in reversed(NAMES)), draft("a", namespace="other"))
    (newest,) = await storage.stamp(draft("a", b"2"))
    found = await under(storage)
    assert paths(found) == sorted(NAMES)
    assert newest in found
    assert await under(storage, namespace="none") == []


async def test_a_listing_below_a_prefix_has_only_what_lies_in_that_folder(storage: Storage) -> None:
    await storage.stamp(*map(draft, NAMES), draft("/srv/x"), draft("a/b", namespace="other"))
    assert paths(await under(storage, "a")) == ["a/b", "a/b/c", "a/z"]
    assert paths(await under(storage, "a/")) == ["a/b", "a/b/c", "a/z"]
    assert paths(await under(storage, "a/b")) == ["a/b/c"]
    assert paths(await under(storage, "a_b")) == ["a_b/x"]
    assert paths(await under(storage, "ä")) == ["ä/ö"]
    assert paths(await under(storage, "🙂")) == ["🙂/x"]
    assert paths(await under(storage, "/srv")) == ["/srv/x"]
    assert await under(storage, "%") == []
    assert await under(storage, "none") == []


async def test_a_long_listing_is_whole(storage: Storage) -> None:
    names = [f"{n:05d}" for n in range(2_500)]
    await storage.ledger.record([draft(name) for name in names])
    assert paths(await under(storage)) == names


async def test_a_listing_may_be_left_early(storage: Storage) -> None:
    await storage.ledger.record([draft(f"{n}") for n in range(5)])
    async with aclosing(storage.reads.latest_under(NAMESPACE)) as listing:  # type: ignore[type-var]
        async for stamp in listing:
            assert stamp.file_path == "0"
            break
    assert len(await under(storage)) == 5


# Workflows


async def test_a_completed_workflow_is_found_with_its_history_and_its_stamp(storage: Storage) -> None:
    (stamp,) = await storage.stamp(draft())
    (prior,) = await storage.reads.workflow(stamp.workflow_id)
    assert prior.stamp == stamp
    workflow = prior.workflow
    assert (workflow.state, workflow.stamp_id, workflow.deduplicated) == ("completed", stamp.stamp_id, False)
    assert workflow.visits == (
        Visit("pending", stamp.created_at),
        Visit("processing", stamp.created_at, "start"),
        Visit("completed", stamp.completed_at, "complete"),
    )


async def test_a_failed_workflow_is_found_with_its_error(storage: Storage) -> None:
    op = new_id()
    await storage.ledger.record([failure("gone", op=op, message="no 🙂")])
    (prior,) = await storage.reads.workflow(op)
    workflow = prior.workflow
    assert prior.stamp is None
    assert (workflow.state, workflow.file_path, workflow.step) == ("failed", "gone", "hash")
    assert (workflow.error_code, workflow.error_message) == ("content_unavailable", "no 🙂")
    assert [visit.trigger for visit in workflow.visits] == [None, "start", "fail"]


async def test_a_deduplicated_workflow_is_found_with_the_stamp_it_was_answered_with(storage: Storage) -> None:
    (first,) = await storage.stamp(draft())
    op = new_id()
    await storage.stamp(draft(op=op))
    (prior,) = await storage.reads.workflow(op)
    assert prior.stamp == first
    assert prior.workflow.deduplicated


async def test_an_id_used_in_two_namespaces_is_two_workflows(storage: Storage) -> None:
    op = new_id()
    await storage.stamp(draft(op=op, namespace="a"), draft(op=op, namespace="b", content=b"b"))
    assert [prior.workflow.namespace for prior in await storage.reads.workflow(op)] == ["a", "b"]
    (prior,) = await storage.reads.workflow(op, "b")
    assert prior.workflow.namespace == "b"
    assert await storage.reads.workflow(op, "c") == []
    assert await storage.reads.workflow(new_id()) == []


async def test_all_workflows_come_by_namespace_and_id(storage: Storage) -> None:
    names = ["b", "a.b", "a-b", "a_b", "a", "ab"]
    stamps = await storage.stamp(*(draft(f"{n}", namespace=name) for name in names for n in range(3)))
    await storage.ledger.record([failure(namespace="a")])
    found = await workflows(storage)
    keys = [(prior.workflow.namespace, prior.workflow.workflow_id) for prior in found]
    assert keys == sorted(keys)
    assert len(keys) == len(stamps) + 1
    by_id = {stamp.workflow_id: stamp for stamp in stamps}
    assert all(prior.stamp == by_id.get(prior.workflow.workflow_id) for prior in found)
    assert [prior.workflow.namespace for prior in await workflows(storage, "a")] == ["a"] * 4
    assert await workflows(storage, "none") == []


async def test_workflows_that_were_answered_with_an_earlier_stamp_are_left_out(storage: Storage) -> None:
    (stamp, _) = await storage.stamp(draft(), draft(op=new_id()))
    op = new_id()
    await storage.ledger.record([failure("gone", op=op)])
    assert {prior.workflow.workflow_id for prior in await workflows(storage)} == {stamp.workflow_id, op}
    assert len(await workflows(storage, NAMESPACE)) == 2


async def test_a_long_reading_of_workflows_is_whole_whatever_their_ids(storage: Storage) -> None:
    ends = [f"{0:032x}", "f" * 32]
    ids = [str(UUID(text)) for text in ends] + [new_id() for _ in range(2_300)]
    for namespace in ("a", "b"):
        await storage.ledger.record([draft(op, op=op, namespace=namespace) for op in ids])
    for wanted in (None, "a", "b"):
        found = [(prior.workflow.namespace, prior.workflow.workflow_id) for prior in await workflows(storage, wanted)]
        assert found == [
            (namespace, op) for namespace in ("a", "b") if wanted in (None, namespace) for op in sorted(ids)
        ]


async def test_workflows_are_read_on_from_one_of_them(storage: Storage) -> None:
    ids = sorted([str(UUID(int=0)), *(new_id() for _ in range(1_004))])
    for namespace in ("a", "b"):
        await storage.ledger.record([draft(op, op=op, namespace=namespace) for op in ids])
    for after, following in (
        (ids[0], ids[1:]),
        (ids[2], ids[3:]),
        (ids[-2], ids[-1:]),
        (ids[-1], []),
        (str(UUID(int=1)), ids[1:]),
    ):
        found = [prior.workflow async for prior in storage.reads.workflows("a", after=after)]
        assert [(workflow.namespace, workflow.workflow_id) for workflow in found] == [("a", op) for op in following]


# File facts


async def test_facts_vouch_for_the_latest_version(storage: Storage) -> None:
    (stamp,) = await storage.stamp(draft(facts=FACTS, metadata={"b": 1, "a": 2}))
    key = path_hash(NAMESPACE, "a.txt")
    (known,) = (await storage.reads.known_files([key, path_hash(NAMESPACE, "none")])).items()
    assert known[0] == key
    assert (known[1].facts, known[1].stamp_id, known[1].content_type) == (FACTS, stamp.stamp_id, "text/plain")
    assert known[1].metadata == canonical_json({"a": 2, "b": 1})


async def test_facts_of_an_older_version_say_nothing(storage: Storage) -> None:
    key = path_hash(NAMESPACE, "a.txt")
    await storage.stamp(draft(facts=FACTS), draft(content=b"from elsewhere"))
    assert await storage.reads.known_files([key]) == {}
    newer = msgspec.structs.replace(FACTS, mtime_ns=9)
    await storage.stamp(draft(content=b"from elsewhere", facts=newer))
    assert (await storage.reads.known_files([key]))[key].facts == newer


async def test_facts_are_renewed_when_the_same_content_is_found_with_others(storage: Storage) -> None:
    key = path_hash(NAMESPACE, "a.txt")
    touched = msgspec.structs.replace(FACTS, mtime_ns=9, ctime_ns=10)
    stamps = await storage.stamp(draft(facts=FACTS), draft(facts=touched))
    assert stamps[1].deduplicated
    assert (await storage.reads.known_files([key]))[key].facts == touched


async def test_facts_belong_to_a_namespace(storage: Storage) -> None:
    await storage.stamp(draft(facts=FACTS))
    assert await storage.reads.known_files([path_hash("other", "a.txt")]) == {}
    assert await storage.reads.known_files([]) == {}
