"""Stamping services are asked over HTTP, balanced; one that fails is left alone, and found again when it is back."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from blake3 import blake3

from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.stamping_http import ANSWER_BYTES_MAX, RemoteHasher
from omninode_bridge.domain.breaker import BreakerLimits, CallPolicy
from omninode_bridge.domain.errors import ContentUnavailable, InvalidInput, StampingUnavailable
from omninode_bridge.domain.stamp import Claimed, Content, Digest, FileFacts, Inline, LocalFile, Streamed
from tests.services import (
    Asked,
    Behaviour,
    Service,
    answer,
    die_in_the_answer,
    digest_of,
    drip,
    hang,
    hang_up,
    hold,
    honest,
    lie,
    never_end,
    talk_otherwise,
)

OPEN_S = 30.0
OVERLOADED = b'{"type": "urn:omninode-bridge:problem:overloaded", "code": "overloaded", "detail": "content: geheim"}'

type Answers = list[Digest | ContentUnavailable]


class Bench:
    """Services, and hashers that ask them, on a clock that only moves by hand."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.now_s = 0.0

    async def service(self, behaviour: Behaviour | None = None) -> Service:
        return await self._stack.enter_async_context(Service(behaviour))

    async def down(self) -> Service:
        """A service that is not there."""
        service = await self.service()
        await service.stop()
        self._stack.push_async_callback(service.start)
        return service

    async def hasher(
        self,
        *services: Service,
        failure_threshold: int = 2,
        in_flight_max: int = 8,
        request_timeout_ms: int = 30_000,
        mib_per_s_min: int = 10,
        token: str | None = None,
    ) -> RemoteHasher:
        policy = CallPolicy(request_timeout_ms, in_flight_max, mib_per_s_min, BreakerLimits(failure_threshold, OPEN_S))
        hasher = RemoteHasher(
            [service.url for service in services],
            policy,
            local=Blake3Hasher(),
            token=token,
            now_s=lambda: self.now_s,
        )
        return await self._stack.enter_async_context(hasher)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack)


def hash_of(data: bytes) -> str:
    return blake3(data).hexdigest()


async def hashed(hasher: RemoteHasher, data: bytes = b"bytes") -> str:
    (digest,) = await hasher.digest_many([Inline(data)])
    assert isinstance(digest, Digest)
    assert (digest.file_size, digest.origin) == (len(data), "computed")
    return digest.file_hash


def states(hasher: RemoteHasher) -> list[str]:
    return [health.state for health in hasher.breakers()]


def counts(hasher: RemoteHasher) -> list[tuple[int, int]]:
    return [(health.calls, health.failures) for health in hasher.breakers()]


async def broken(hasher: RemoteHasher, *services: Service, failure_threshold: int = 2) -> None:
    """Open the breaker of each of the services, which all fail."""
    for _ in range(failure_threshold):
        with pytest.raises(StampingUnavailable):
            await hashed(hasher)
    assert states(hasher) == ["open"] * len(services)


class TestAnAnswer:
    async def test_each_content_has_its_own_in_order(self, bench: Bench) -> None:
        hasher = await bench.hasher(await bench.service(), await bench.service(), in_flight_max=3)
        contents = [os.urandom(size % 700) for size in range(300)]
        found = await hasher.digest_many([Inline(data) for data in contents])
        assert [digest.file_hash for digest in found if isinstance(digest, Digest)] == [*map(hash_of, contents)]
        assert await hasher.digest_many([]) == []

    async def test_the_body_is_the_content_and_nothing_else_is_told(self, bench: Bench) -> None:
        service = await bench.service()
        hasher = await bench.hasher(service)
        for data in (b"", b"{}", bytes(range(256)) * 100):
            assert await hashed(hasher, data) == hash_of(data)
            asked = service.asked[-1]
            assert (asked.line, asked.body) == ("POST /hash HTTP/1.1", data)
            assert asked.headers["content-type"] == "application/octet-stream"
            assert asked.headers["accept-encoding"] == "identity"
            assert "authorization" not in asked.headers

    async def test_the_token_is_sent_as_bearer(self, bench: Bench) -> None:
        service = await bench.service()
        await hashed(await bench.hasher(service, token="s3cret"))
        assert service.asked[0].headers["authorization"] == "Bearer s3cret"

    async def test_the_time_is_the_services_own(self, bench: Bench) -> None:
        service = await bench.service(lie(hash_generation_time_ms=12.345, later_field=True))
        (digest,) = await (await bench.hasher(service)).digest_many([Inline(b"x")])
        assert digest == Digest(hash_of(b"x"), 1, "computed", 12_345)

    async def test_what_is_not_in_memory_is_hashed_here(self, bench: Bench, tmp_path: Path) -> None:
        service = await bench.service()
        hasher = await bench.hasher(service)
        path = tmp_path / "a.txt"
        path.write_bytes(b"file")
        status = path.stat()
        facts = FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
        known = Digest(hash_of(b"streamed"), 8)
        contents: list[Content] = [
            LocalFile(str(path), facts),
            Inline(b"memory"),
            Claimed(hash_of(b"claimed"), 7),
            Streamed(known),
            LocalFile("/nonexistent/file", facts),
        ]
        file, memory, claimed, streamed, missing = await hasher.digest_many(contents)
        assert isinstance(file, Digest) and isinstance(memory, Digest)
        assert (file.file_hash, memory.file_hash) == (hash_of(b"file"), hash_of(b"memory"))
        assert (claimed, streamed) == (Digest(hash_of(b"claimed"), 7, "claimed"), known)
        assert isinstance(missing, ContentUnavailable)
        assert [asked.body for asked in service.asked] == [b"memory"]
        assert isinstance((await hasher.digest_many([LocalFile(str(path), facts)]))[0], Digest)

    async def test_a_proxy_of_the_environment_is_not_used(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        nobody = await bench.down()
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, nobody.url)
        assert await hashed(await bench.hasher(await bench.service())) == hash_of(b"bytes")

    async def test_a_large_content_has_as_much_more_time_as_its_bytes_take(self, bench: Bench) -> None:
        async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.3)
            await honest(asked, writer)

        hasher = await bench.hasher(await bench.service(slow), request_timeout_ms=100, mib_per_s_min=1)
        with pytest.raises(StampingUnavailable, match=r"no answer within 0\.1 s"):
            await hashed(hasher)
        data = bytes(30 * 1024**2)
        assert await hashed(hasher, data) == hash_of(data)


FAILURES: dict[str, tuple[Behaviour, str]] = {
    "an error inside": (answer("oops", 500), "HTTP 500"),
    "an overload": (answer(OVERLOADED, 503, retry_after="1"), "HTTP 503 overloaded"),
    "too many requests": (answer("", 429), "HTTP 429"),
    "no such call": (answer("<html>", 404), "HTTP 404"),
    "no token": (answer('{"code": "unauthenticated"}', 401), "HTTP 401 unauthenticated"),
    "a problem that tells too much": (answer('{"code": "Geheim!"}', 500), "HTTP 500"),
    "a redirect": (answer("", 307, location="http://127.0.0.1:1/hash"), "HTTP 307"),
    "no content": (answer("", 204), "HTTP 204"),
    "a connection that ends": (hang_up, "the connection broke: "),
    "an answer that ends": (die_in_the_answer, "the connection broke: "),
    "an answer without end": (never_end, f"its answer is longer than {ANSWER_BYTES_MAX} bytes"),
    "another protocol": (talk_otherwise, "the connection broke: "),
    "a page": (answer("<html>welcome</html>"), "its answer is no digest: "),
    "nothing": (answer(""), "its answer is no digest: "),
    "no UTF-8": (answer(b'{"file_hash": "\xff"}'), "its answer is no digest: "),
    "a deep nest": (answer("[" * 10_000), "its answer is no digest: "),
    "a packed answer": (answer(gzip.compress(digest_of(b"bytes")), content_encoding="gzip"), "its answer is no digest"),
    "another digest": (lie(file_hash="sha256:" + "0" * 57), "its answer is no digest: "),
    "a short digest": (lie(file_hash="0" * 63), "its answer is no digest: "),
    "a digest and a line break": (lie(file_hash="0" * 64 + "\n"), "its answer is no digest: "),
    "no digest": (lie(file_hash=None), "its answer is no digest: "),
    "another size": (lie(file_size=4), "its answer is of 4 bytes, not of the 5 that were sent"),
    "a size in text": (lie(file_size="5"), "its answer is no digest: "),
    "a time before time": (lie(hash_generation_time_ms=-1), "its answer is no digest: "),
    "a time that is none": (lie(hash_generation_time_ms=1e300), "its answer is no digest: "),
}


class TestAFailure:
    @pytest.mark.parametrize(("behaviour", "reason"), FAILURES.values(), ids=FAILURES)
    async def test_another_service_is_asked_at_once(self, bench: Bench, behaviour: Behaviour, reason: str) -> None:
        bad, good = await bench.service(behaviour), await bench.service()
        hasher = await bench.hasher(bad, good)
        assert await hashed(hasher) == hash_of(b"bytes")
        assert (len(bad.asked), len(good.asked)) == (1, 1)
        assert counts(hasher) == [(1, 1), (1, 0)]
        failed, answered = hasher.breakers()
        assert failed.trouble.startswith(reason)
        assert "eheim" not in failed.trouble
        assert (answered.trouble, answered.in_flight, failed.in_flight) == ("", 0, 0)

    @pytest.mark.parametrize("behaviour", [hang, drip])
    async def test_no_answer_in_time_is_one(self, bench: Bench, behaviour: Behaviour) -> None:
        bad, good = await bench.service(behaviour), await bench.service()
        hasher = await bench.hasher(bad, good, request_timeout_ms=100)
        assert await hashed(hasher) == hash_of(b"bytes")
        assert hasher.breakers()[0].trouble == "no answer within 0.1 s"

    async def test_a_service_that_is_not_there_is_one(self, bench: Bench) -> None:
        hasher = await bench.hasher(await bench.down(), await bench.service())
        assert await hashed(hasher) == hash_of(b"bytes")
        assert hasher.breakers()[0].trouble.startswith("can't be reached: ")

    async def test_a_redirect_is_not_followed(self, bench: Bench) -> None:
        other = await bench.service()
        hasher = await bench.hasher(await bench.service(answer("", 307, location=f"{other.url}/hash")))
        with pytest.raises(StampingUnavailable):
            await hashed(hasher)
        assert other.asked == []

    async def test_when_all_fail_each_was_asked_once_and_is_named_with_its_reason(self, bench: Bench) -> None:
        services = [await bench.service(answer("", 500)), await bench.down(), await bench.service(answer("no"))]
        hasher = await bench.hasher(*services)
        with pytest.raises(StampingUnavailable) as raised:
            await hashed(hasher)
        message = raised.value.message
        for number, reason in enumerate(["HTTP 500", "can't be reached: ", "its answer is no"]):
            assert f"service {number}: {reason}" in message
        assert not any(service.url in message for service in services)
        assert raised.value.context["urls"] == [service.url for service in services]
        assert counts(hasher) == [(1, 1)] * 3

    @pytest.mark.parametrize("status", [413, 422])
    async def test_a_refused_content_is_answered_alone_and_held_against_nobody(self, bench: Bench, status: int) -> None:
        async def refuse_large(asked: Asked, writer: asyncio.StreamWriter) -> None:
            behaviour = answer('{"code": "limit_exceeded"}', status) if len(asked.body) > 5 else honest
            await behaviour(asked, writer)

        services = [await bench.service(refuse_large), await bench.service(refuse_large)]
        hasher = await bench.hasher(*services)
        large = Inline(b"too large")
        answers = await hasher.digest_many([Inline(b"a"), large, Inline(b"b"), large, large, large, large])
        assert [type(each) for each in answers] == [Digest, ContentUnavailable, Digest, *[ContentUnavailable] * 4]
        assert isinstance(answers[1], ContentUnavailable)
        assert f"9 bytes (HTTP {status} limit_exceeded)" in answers[1].message
        assert sum(asked.body == large.data for service in services for asked in service.asked) == 5
        assert states(hasher) == ["closed", "closed"]

    async def test_a_restarted_service_is_asked_by_new_connections(self, bench: Bench) -> None:
        service = await bench.service()
        hasher = await bench.hasher(service)
        await hasher.digest_many([Inline(b"%d" % number) for number in range(50)])
        await service.stop()
        await service.start()
        assert await hashed(hasher) == hash_of(b"bytes")
        assert counts(hasher) == [(51, 0)]


class TestABreaker:
    async def test_an_open_one_fails_at_once_and_says_for_how_long(self, bench: Bench) -> None:
        services = [await bench.service(answer("", 503)), await bench.down()]
        hasher = await bench.hasher(*services)
        await broken(hasher, *services)
        bench.now_s += 10
        with pytest.raises(StampingUnavailable, match=r"HTTP 503, and not asked again yet; .*and not asked again yet"):
            await hashed(hasher)
        assert counts(hasher) == [(2, 2), (2, 2)]

    async def test_the_others_do_the_work_of_a_service_that_is_left_alone(self, bench: Bench) -> None:
        bad, good = await bench.service(hang_up), await bench.service()
        hasher = await bench.hasher(bad, good)
        for _ in range(20):
            await hashed(hasher)
        assert states(hasher) == ["open", "closed"]
        assert (len(bad.asked), len(good.asked)) == (2, 20)

    async def test_a_service_that_is_back_is_found_by_one_call_alone(self, bench: Bench) -> None:
        service = await bench.service(hang_up)
        hasher = await bench.hasher(service)
        await broken(hasher, service)
        gate = asyncio.Event()
        service.behaviour = hold(gate)
        bench.now_s += OPEN_S
        probe = asyncio.create_task(hashed(hasher, b"probe"))
        await service.until_asked(3)
        assert states(hasher) == ["half_open"]
        crowd = await asyncio.gather(*(hashed(hasher) for _ in range(50)), return_exceptions=True)
        assert {type(each) for each in crowd} == {StampingUnavailable}
        assert "being tried again after the connection broke" in str(crowd[0])
        assert len(service.asked) == 3
        gate.set()
        assert await probe == hash_of(b"probe")
        assert states(hasher) == ["closed"]
        assert set(await asyncio.gather(*(hashed(hasher) for _ in range(50)))) == {hash_of(b"bytes")}

    async def test_of_many_calls_at_once_one_is_the_probe(self, bench: Bench) -> None:
        service = await bench.service(hang_up)
        hasher = await bench.hasher(service)
        await broken(hasher, service)
        bench.now_s += OPEN_S
        crowd = await asyncio.gather(*(hashed(hasher) for _ in range(50)), return_exceptions=True)
        assert {type(each) for each in crowd} == {StampingUnavailable}
        assert len(service.asked) == 3
        assert states(hasher) == ["open"]

    async def test_while_one_is_probed_the_others_answer(self, bench: Bench) -> None:
        bad, good = await bench.service(hang_up), await bench.service()
        hasher = await bench.hasher(bad, good)
        for _ in range(4):
            await hashed(hasher)
        bad.behaviour = hold(asyncio.Event())
        bench.now_s += OPEN_S
        probe = asyncio.create_task(hashed(hasher))
        await bad.until_asked(3)
        for _ in range(10):
            await hashed(hasher)
        assert len(bad.asked) == 3
        await bad.stop()  # cut off, the probe's content goes to the other one too
        assert await probe == hash_of(b"bytes")
        assert states(hasher) == ["open", "closed"]
        await bad.start()

    async def test_a_batch_that_fails_does_not_give_up_the_probe_it_made(self, bench: Bench) -> None:
        service = await bench.service(hang_up)
        hasher = await bench.hasher(service)
        await broken(hasher, service)
        gate = asyncio.Event()
        service.behaviour = hold(gate)
        bench.now_s += OPEN_S
        batch = asyncio.create_task(hasher.digest_many([Inline(b"%d" % number) for number in range(20)]))
        await service.until_asked(3)
        gate.set()
        with pytest.raises(StampingUnavailable):
            await batch
        assert states(hasher) == ["closed"]

    async def test_a_probe_that_is_cancelled_leaves_it_to_the_next_call(self, bench: Bench) -> None:
        service = await bench.service(hang_up)
        hasher = await bench.hasher(service)
        await broken(hasher, service)
        service.behaviour = hang
        bench.now_s += OPEN_S
        probe = asyncio.create_task(hashed(hasher))
        await service.until_asked(3)
        probe.cancel()
        await asyncio.wait({probe})
        assert probe.cancelled()
        assert states(hasher) == ["open"]
        service.behaviour = honest
        assert await hashed(hasher) == hash_of(b"bytes")
        assert states(hasher) == ["closed"]

    async def test_what_was_asked_before_it_opened_changes_nothing(self, bench: Bench) -> None:
        gate = asyncio.Event()
        service = await bench.service(hold(gate))
        hasher = await bench.hasher(service)
        early = asyncio.create_task(hashed(hasher, b"early"))
        await service.until_asked(1)
        service.behaviour = hang_up
        await broken(hasher, service)
        gate.set()
        assert await early == hash_of(b"early")
        assert states(hasher) == ["open"]


class TestTheLoad:
    async def test_callers_that_come_one_by_one_are_spread(self, bench: Bench) -> None:
        services = [await bench.service() for _ in range(3)]
        hasher = await bench.hasher(*services)
        for _ in range(30):
            await hashed(hasher)
        assert [len(service.asked) for service in services] == [10, 10, 10]

    async def test_the_least_loaded_is_asked(self, bench: Bench) -> None:
        gate = asyncio.Event()
        slow, quick = await bench.service(hold(gate)), await bench.service()
        hasher = await bench.hasher(slow, quick)
        waiting = asyncio.create_task(hashed(hasher))
        await slow.until_asked(1)
        for _ in range(20):
            await hashed(hasher)
        assert (len(slow.asked), len(quick.asked)) == (1, 20)
        assert [health.in_flight for health in hasher.breakers()] == [1, 0]
        gate.set()
        await waiting

    async def test_no_service_has_more_at_a_time_than_it_may(self, bench: Bench) -> None:
        services = [await bench.service(), await bench.service()]
        hasher = await bench.hasher(*services, in_flight_max=3)
        batch = hasher.digest_many([Inline(b"%d" % number) for number in range(100)])
        await asyncio.gather(batch, *(hashed(hasher, b"%d" % number) for number in range(200)))
        assert all(service.under_way_most <= 3 for service in services)
        assert sum(len(service.asked) for service in services) == 300

    async def test_those_who_wait_for_a_place_at_a_service_that_fails_go_elsewhere(self, bench: Bench) -> None:
        gate = asyncio.Event()
        bad, good = await bench.service(hold(gate, hang_up)), await bench.service(hold(gate))
        hasher = await bench.hasher(bad, good, in_flight_max=2)
        crowd = [asyncio.create_task(hashed(hasher)) for _ in range(40)]
        await bad.until_asked(2)
        await good.until_asked(2)
        gate.set()
        assert set(await asyncio.gather(*crowd)) == {hash_of(b"bytes")}
        assert states(hasher) == ["open", "closed"]
        assert len(bad.asked) <= 4

    async def test_those_who_wait_where_no_service_is_left_learn_it(self, bench: Bench) -> None:
        gate = asyncio.Event()
        service = await bench.service(hold(gate, hang_up))
        hasher = await bench.hasher(service, in_flight_max=2)
        crowd = [asyncio.create_task(hashed(hasher)) for _ in range(40)]
        await service.until_asked(2)
        gate.set()
        raised = await asyncio.gather(*crowd, return_exceptions=True)
        assert {type(each) for each in raised} == {StampingUnavailable}
        assert len(service.asked) <= 4
        assert [health.in_flight for health in hasher.breakers()] == [0]

    async def test_cancelled_calls_give_their_places_back(self, bench: Bench) -> None:
        service = await bench.service(hang)
        hasher = await bench.hasher(service, in_flight_max=4)
        for round_ in range(1, 6):
            crowd = [asyncio.create_task(hashed(hasher)) for _ in range(12)]
            await service.until_asked(4 * round_)
            for task in crowd:
                task.cancel()
            await asyncio.wait(crowd)
        service.behaviour = honest
        assert set(await asyncio.gather(*(hashed(hasher) for _ in range(12)))) == {hash_of(b"bytes")}
        (health,) = hasher.breakers()
        assert (health.state, health.in_flight, health.calls, health.failures) == ("closed", 0, 32, 0)


class TestSettings:
    @pytest.mark.parametrize(
        "urls",
        [
            [],
            [""],
            ["stamping:8054"],
            ["ftp://stamping"],
            ["http://"],
            ["http://stamping:port"],
            ["http://stamping/?a=b"],
            ["http://stamping/#there"],
            ["http://bridge:geheim@stamping"],
            ["http://stamping", "http://STAMPING:80/"],
        ],
    )
    def test_a_url_of_no_use_is_refused(self, urls: list[str]) -> None:
        with pytest.raises(InvalidInput, match="BRIDGE_STAMPING_URLS") as refused:
            RemoteHasher(urls, CallPolicy(100, 1, 1, BreakerLimits(1, 1)), local=Blake3Hasher())
        assert refused.value.field == "stamping_urls"
        assert "geheim" not in refused.value.message

    @pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "geheimnisvöll"])
    def test_a_token_that_no_header_holds_is_refused_and_not_repeated(self, token: str) -> None:
        policy = CallPolicy(100, 1, 1, BreakerLimits(1, 1))
        with pytest.raises(InvalidInput) as refused:
            RemoteHasher(["http://stamping"], policy, local=Blake3Hasher(), token=token)
        assert refused.value.field == "stamping_token"
        assert not token or token not in refused.value.message

    async def test_a_path_before_the_call_and_a_slash_after_it_are_understood(self, bench: Bench) -> None:
        service = await bench.service()
        policy = CallPolicy(30_000, 1, 1, BreakerLimits(1, 1))
        async with RemoteHasher([f" {service.url}/team/stamping/ "], policy, local=Blake3Hasher()) as hasher:
            await hashed(hasher)
            assert [health.url for health in hasher.breakers()] == [f"{service.url}/team/stamping"]
        assert service.asked[0].line == "POST /team/stamping/hash HTTP/1.1"
