"""Hashing by stamping services over HTTP: the port `Hasher`, by `POST {url}/hash` with the content as the body.

The rules it keeps:

1. Each URL has a circuit breaker (`domain.breaker`) and so many places. A call goes to the least loaded URL whose
   breaker admits it; when it fails, to the next one at once. No URL gets a content twice.
2. Where no URL is left, StampingUnavailable says so at once: nobody waits for an open breaker. Places are waited for.
3. A failure is whatever is no digest of the bytes that were sent: no connection, no answer in time, another status,
   another size, an answer that is too long or makes no sense. Only 413 and 422 are about the content: the service
   did its work, and the item is answered alone, by ContentUnavailable.
4. A call that is cancelled taught nothing, and leaves its place and its breaker as if it had not been made.
5. Only bytes in memory travel. A file is hashed where it lies, by the local hasher given, which reads it faster than a
   network would take it and sees whether it stood still; digests that are known already are passed on.

A digest is the word of the service that computed it: its form and size are checked here, its bits are not.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Annotated, Self

import httpx
import msgspec

from omninode_bridge.domain.breaker import Breaker, CallPolicy, Result, State
from omninode_bridge.domain.errors import ContentUnavailable, InvalidInput, StampingUnavailable
from omninode_bridge.domain.stamp import Content, Digest, Inline, Milliseconds, microseconds
from omninode_bridge.ports import Hasher

__all__ = ["RemoteHasher", "ServiceHealth"]

type Answer = Digest | ContentUnavailable

ANSWER_BYTES_MAX = 16 * 1024
"""A digest takes a hundred; a problem document, some hundreds."""
KEEP_ALIVE_S = 30.0
"""Less than the bridge's own server keeps an idle connection, so that a call does not meet one that is just closing."""
_ABOUT_THE_CONTENT = frozenset({413, 422})
_ABOUT_THE_TOKEN = frozenset({401, 403})
_URL_SETTING = "BRIDGE_STAMPING_URLS"


class ServiceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one URL does. `trouble` is its last failure in words, empty when it had none."""

    url: str
    state: State
    in_flight: int
    calls: int
    failures: int
    trouble: str


class RemoteHasher:
    """Hashes contents in memory at the stamping services, balanced; used as `async with`."""

    def __init__(
        self,
        urls: Sequence[str],
        policy: CallPolicy,
        *,
        local: Hasher,
        token: str | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`local` hashes what is not in memory; `token` is sent as bearer. InvalidInput names a URL of no use."""
        self._policy = policy
        self._local = local
        self._now_s = now_s
        self._services = [_Service(url, policy) for url in _checked(urls)]
        self._in_flight_max = policy.in_flight_max * len(self._services)
        self._turn = 0
        self._headers = httpx.Headers(_headers(token))
        # The machine's own certificates: services inside a house are often signed there.
        self._tls = ssl.create_default_context()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in self._services:
            while service.idle:
                await service.idle.pop().aclose()

    def breakers(self) -> list[ServiceHealth]:
        """Return how each URL does, in the order in which they were given."""
        return [service.health() for service in self._services]

    async def digest_many(self, contents: Sequence[Content]) -> list[Digest | ContentUnavailable]:
        """Return each content's digest, in order, or why there is none for it.

        Raises StampingUnavailable when no service could be had for one of them.
        """
        if len(contents) == 1 and isinstance(contents[0], Inline):
            return [await self._digest(contents[0].data)]
        sent = {at: content.data for at, content in enumerate(contents) if isinstance(content, Inline)}
        kept = [at for at in range(len(contents)) if at not in sent]
        answers: dict[int, Answer] = {}
        troubles: list[StampingUnavailable] = []
        waiting = iter(sent.items())
        async with asyncio.TaskGroup() as group:
            if kept:
                group.create_task(self._digest_here(contents, kept, answers))
            for _ in range(min(len(sent), self._in_flight_max)):
                group.create_task(self._digest_next(waiting, answers, troubles))
        if troubles:
            raise troubles[0]
        return [answers[at] for at in range(len(contents))]

    async def _digest_here(self, contents: Sequence[Content], kept: list[int], answers: dict[int, Answer]) -> None:
        found = await self._local.digest_many([contents[at] for at in kept])
        answers.update(zip(kept, found, strict=True))

    async def _digest_next(
        self, waiting: Iterator[tuple[int, bytes]], answers: dict[int, Answer], troubles: list[StampingUnavailable]
    ) -> None:
        """Take one content after the other, until there are none or one can't be hashed.

        The calls under way then are not cancelled: one of them may be the probe by which a service comes back.
        """
        for at, data in waiting:
            try:
                answers[at] = await self._digest(data)
            except StampingUnavailable as error:
                troubles.append(error)
            if troubles:
                return

    async def _digest(self, data: bytes) -> Answer:
        failed: list[_Service] = []
        while (service := self._least_loaded(failed)) is not None:
            service.load += 1
            service.turn = self._turn = self._turn + 1
            try:
                async with service.places:
                    admitted = service.breaker.admit(self._now_s())
                    if admitted is None:
                        continue  # given up while this call waited for its place
                    service.breaker = admitted
                    answer = await self._call(service, data)
            finally:
                service.load -= 1
            if answer is not None:
                return answer
            failed.append(service)
        raise self._unavailable()

    def _least_loaded(self, failed: Container[_Service]) -> _Service | None:
        now_s = self._now_s()
        ready = [service for service in self._services if service not in failed and service.breaker.admits(now_s)]
        # Among equals whoever had the last turn longest ago: callers that come one by one are spread too.
        return min(ready, key=lambda service: (service.load, service.turn), default=None)

    async def _call(self, service: _Service, data: bytes) -> Answer | None:
        """Return what a service that admitted a call answers; None, after settling that, when it failed."""
        epoch = service.breaker.epoch
        result: Result = "abandoned"
        service.calls += 1
        service.in_flight += 1
        try:
            answer = await self._ask(service, data)
            result = "success"
        except _Failed as failure:
            result = "failure"
            service.failures += 1
            service.trouble = str(failure)
            return None
        else:
            return answer
        finally:
            service.in_flight -= 1
            service.breaker = service.breaker.settle(epoch, result, self._now_s())

    async def _ask(self, service: _Service, data: bytes) -> Answer:
        limit_s = self._policy.timeout_s(len(data))
        request = httpx.Request("POST", service.target, headers=self._headers, content=data)
        line = service.idle.pop() if service.idle else self._line()
        try:
            async with asyncio.timeout(limit_s), aclosing(await line.handle_async_request(request)) as response:
                body = await _body(response)
        except TimeoutError as error:
            raise _Failed(f"no answer within {limit_s:.3g} s") from error
        except httpx.ConnectError as error:
            raise _Failed(f"can't be reached: {error}") from error
        except (httpx.HTTPError, OSError) as error:
            raise _Failed(f"the connection broke: {str(error) or type(error).__name__}") from error
        finally:
            service.idle.append(line)
        status = response.status_code
        if status == httpx.codes.OK:
            return _digest_in(body, len(data))
        told = f"HTTP {status}{_problem_code(body)}"
        if status in _ABOUT_THE_TOKEN:
            told += ", set BRIDGE_STAMPING_TOKEN to a token that is good there"
        if status in _ABOUT_THE_CONTENT:
            return ContentUnavailable(
                f"the stamping service refuses a content of {len(data)} bytes ({told}): send less, or raise its limits"
            )
        raise _Failed(told)

    def _line(self) -> httpx.AsyncHTTPTransport:
        """Return a connection to be, which is made, kept alive and made again as calls need it."""
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE_S)
        return httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits)

    def _unavailable(self) -> StampingUnavailable:
        # Callers and events are told of each by its number: where it is, is nobody's business but the operator's.
        now_s = self._now_s()
        reasons = [service.reason(now_s) for service in self._services]
        each = "; ".join(f"service {number}: {reason}" for number, reason in enumerate(reasons))
        return StampingUnavailable(
            f"no stamping service can be had ({each}): see that one runs and is reached; "
            "a service that is back is found by itself",
            urls=[service.url for service in self._services],
        )


class _Failed(Exception):
    """A service did not do its work; says why."""


class _Service:
    """One URL. `load` counts the calls under way and those that wait for a place."""

    def __init__(self, url: str, policy: CallPolicy) -> None:
        self.url = url
        self.target = httpx.URL(f"{url}/hash")
        self.breaker = Breaker(policy.breaker)
        self.places = asyncio.Semaphore(policy.in_flight_max)
        self.idle: list[httpx.AsyncHTTPTransport] = []
        """One connection each, the one that was in use last at the end."""
        self.load = 0
        self.turn = 0
        self.in_flight = 0
        self.calls = 0
        self.failures = 0
        self.trouble = ""

    def reason(self, now_s: float) -> str:
        """Return why a call was not made, or what came of it."""
        if self.breaker.state == "half_open":
            return f"being tried again after {self.trouble}"
        if self.breaker.state == "open" and self.breaker.probe_at_s > now_s:
            return f"{self.trouble}, and not asked again yet"
        return self.trouble

    def health(self) -> ServiceHealth:
        return ServiceHealth(
            url=self.url,
            state=self.breaker.state,
            in_flight=self.in_flight,
            calls=self.calls,
            failures=self.failures,
            trouble=self.trouble,
        )


class _Hashed(msgspec.Struct):
    file_hash: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    file_size: int
    hash_generation_time_ms: Milliseconds


class _Problem(msgspec.Struct):
    code: Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]{1,64}\Z")]


_hashed = msgspec.json.Decoder(_Hashed)
_problem = msgspec.json.Decoder(_Problem)


def _digest_in(body: bytes, size: int) -> Digest:
    try:
        answer = _hashed.decode(body)
    except (ValueError, RecursionError) as error:
        raise _Failed(f"its answer is no digest: {error}") from error
    if answer.file_size != size:
        raise _Failed(f"its answer is of {answer.file_size} bytes, not of the {size} that were sent")
    return Digest(answer.file_hash, size, "computed", microseconds(answer.hash_generation_time_ms))


def _problem_code(body: bytes) -> str:
    """Return the code of a problem document, which is ours to repeat; its words may be anybody's."""
    try:
        return f" {_problem.decode(body).code}"
    except (ValueError, RecursionError):
        return ""


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise _Failed(f"its answer is longer than {ANSWER_BYTES_MAX} bytes")
    return body


def _headers(token: str | None) -> dict[str, str]:
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/octet-stream",
        "user-agent": "omninode-bridge",
    }
    if token is not None:
        if not re.fullmatch(r"[!-~]+", token):
            raise InvalidInput(
                "the stamping services' token is empty or has characters that no header can hold: give it as it was "
                "shown when it was made",
                field="stamping_token",
            )
        headers["authorization"] = f"Bearer {token}"
    return headers


def _checked(urls: Sequence[str]) -> list[str]:
    found: list[str] = []
    for text in urls:
        try:
            url = httpx.URL(text.strip())
        except httpx.InvalidURL as error:
            raise _refused(text, str(error)) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise _refused(text, "it needs a scheme, http or https, and a host")
        if url.userinfo:
            raise _refused(
                f"{url.scheme}://…@{url.netloc.decode()}",
                "a URL is shown to many; a token belongs into its own setting",
            )
        if url.query or url.fragment or "?" in text or "#" in text:
            raise _refused(text, "it must end with its path, without query or fragment")
        found.append(str(url).rstrip("/"))
    if not found:
        raise InvalidInput(f"{_URL_SETTING} names no URL: name one, or leave it out", field="stamping_urls")
    twice = next((url for at, url in enumerate(found) if url in found[:at]), None)
    if twice is not None:
        raise _refused(twice, "it is there twice")
    return found


def _refused(text: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{_URL_SETTING}: {text[:200]!r} is not usable ({why}): give URLs such as http://stamping:8054",
        field="stamping_urls",
    )
