"""A bridge on another machine, over HTTP: what `stamp --server` uses in the orchestrator's place.

The rules it keeps:

1. Small files travel together (`POST /stamp/batch`), each large one by itself as a raw body, in constant memory.
2. Each file has its op id before it is sent, so that whatever was lost on the way is sent again without being
   recorded twice. What the server could not do yet is tried again for a while, at the pace that it asks for.
3. A file that changes while it is read is that file's failure; so is what the server refuses it for.
4. A redirect is not followed, and no proxy of the environment used: the token goes to the server that was named.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from omninode_bridge.domain import errors
from omninode_bridge.domain.errors import (
    BridgeError,
    ContentChanged,
    ContentUnavailable,
    Forbidden,
    InvalidInput,
    NotFound,
    ServiceUnavailable,
    TooManyRequests,
    Unauthenticated,
)
from omninode_bridge.domain.names import canonical_json
from omninode_bridge.domain.recording import Answer
from omninode_bridge.domain.stamp import FileFacts, LocalFile, Stamp, StampRequest

__all__ = ["RemoteBridge"]

TOGETHER_BYTES_MAX = 256 * 1024
"""A file up to this size travels with others."""
BATCH_BYTES_MAX = 6 * 1024**2
BATCH_FILES_MAX = 500
PIECE_BYTES = 1024**2
TRIES_S_MAX = 120.0
"""For how long what the server can't do yet is tried again."""
FIRST_TRIES_S_MAX = 5.0
"""The same, as long as nothing was ever answered: that is rather a wrong address."""
PAUSE_S_MAX = 10.0
REQUEST_TIMEOUT_S = 120.0
SENDING_AT_ONCE_MAX = 4

# A server's errors come back as what they are here; a code of a newer server as its status says.
_BY_CODE: dict[str, type[BridgeError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BridgeError)
}


class _Item(msgspec.Struct):
    """One line of a batch's answer."""

    problem: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Problem(msgspec.Struct):
    detail: str = ""
    status: int = 500
    code: str = ""
    field: str | None = None
    step: str | None = None
    error_code: str | None = None


class RemoteBridge:
    """Stamps files at a server; used as `async with`."""

    def __init__(self, url: str, *, token: str | None = None, tries_s_max: float = TRIES_S_MAX) -> None:
        self._url = _checked(url)
        self._tries_s_max = tries_s_max
        self._answered = False
        self._sending = asyncio.Semaphore(SENDING_AT_ONCE_MAX)
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def run_many(self, requests: Sequence[StampRequest]) -> list[Answer]:
        """Return the answer to each request for a file of this machine, in order.

        Raises ServiceUnavailable when the server can't be reached, Unauthenticated or Forbidden when it does not
        take the token: then nothing can be stamped, not only one file.
        """
        answers: dict[int, Answer] = {}
        small: list[tuple[int, StampRequest]] = []
        large: list[tuple[int, StampRequest]] = []
        for index, request in enumerate(requests):
            assert isinstance(request.content, LocalFile)
            (small if request.content.facts.size <= TOGETHER_BYTES_MAX else large).append((index, request))
        try:
            async with asyncio.TaskGroup() as group:
                for some in _batches(small):
                    group.create_task(self._send_together(some, answers))
                for index, request in large:
                    group.create_task(self._send_alone(index, request, answers))
        except BaseExceptionGroup as errors_:
            raise errors_.exceptions[0] from errors_
        return [answers[index] for index in range(len(requests))]

    async def _send_together(self, some: list[tuple[int, StampRequest]], answers: dict[int, Answer]) -> None:
        async with self._sending:
            lines: dict[int, bytes] = {}
            for (index, _), line in zip(some, await asyncio.to_thread(_lines, some), strict=True):
                if isinstance(line, BridgeError):
                    answers[index] = line
                else:
                    lines[index] = line
            await self._send_lines(lines, answers)

    async def _send_lines(self, lines: dict[int, bytes], answers: dict[int, Answer]) -> None:
        """Send a batch; one that is too much for the server is halved, until the offender stands alone."""

        async def send() -> BridgeError | None:
            answer = await self._posted(
                "/stamp/batch", {"content-type": "application/x-ndjson"}, b"".join(lines.values()), {}
            )
            again: BridgeError | None = None
            for index, told in zip(list(lines), _all_told(answer.content, len(lines)), strict=True):
                if isinstance(told, Forbidden):
                    raise told  # so it would be for every file
                if isinstance(told, ServiceUnavailable | TooManyRequests):
                    again = told
                    continue
                answers[index] = told
                del lines[index]
            return again

        if not lines:
            return
        try:
            await self._until_done(send)
        except InvalidInput as error:
            left = list(lines.items())
            if len(left) == 1:
                answers[left[0][0]] = error
                return
            for part in (left[: len(left) // 2], left[len(left) // 2 :]):
                await self._send_lines(dict(part), answers)

    async def _send_alone(self, index: int, request: StampRequest, answers: dict[int, Answer]) -> None:
        assert isinstance(request.content, LocalFile)
        file = request.content
        asked = {
            "file_path": request.file_path,
            "namespace": request.namespace,
            "content_type": request.content_type,
            "metadata": msgspec.json.encode(request.metadata).decode(),
            "op_id": request.workflow_id,
            "enable_intelligence": "true" if request.enable_intelligence else "false",
        }
        headers = {"content-length": str(file.facts.size), "content-type": "application/octet-stream"}

        async def send() -> BridgeError | None:
            answer = await self._posted("/stamp", headers, _pieces(file), asked)
            (answers[index],) = _all_told(answer.content, 1)
            return None

        async with self._sending:
            try:
                await self._until_done(send)
            except (ContentUnavailable, InvalidInput, errors.WorkflowFailed, errors.Conflict) as error:
                answers[index] = error

    async def _until_done(self, send: Callable[[], Awaitable[BridgeError | None]]) -> None:
        """Call `send` until it leaves nothing to be sent again, for as long as it is worth while."""
        loop = asyncio.get_running_loop()
        began, attempt = loop.time(), 0
        while True:
            try:
                trouble = await send()
            except (ServiceUnavailable, TooManyRequests) as error:
                trouble = error
            if trouble is None:
                return
            asked = trouble.context.get("retry_after_s")
            pause = min(float(asked) if isinstance(asked, int) else 0.2 * 2**attempt, PAUSE_S_MAX)
            pause *= random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            tries_s_max = self._tries_s_max if self._answered else min(self._tries_s_max, FIRST_TRIES_S_MAX)
            if loop.time() + pause > began + tries_s_max or isinstance(trouble, errors.QuotaExceeded):
                raise trouble
            attempt += 1
            await asyncio.sleep(pause)

    async def _posted(
        self, path: str, headers: dict[str, str], body: bytes | AsyncIterator[bytes], query: dict[str, str]
    ) -> httpx.Response:
        """Return the answer to a call, or raise what it failed with."""
        try:
            answer = await self._client.post(path, headers=headers, content=body, params=query)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServiceUnavailable(f"{self._url} is not reachable ({reason}): check that the bridge runs") from error
        self._answered = True
        if answer.is_success:
            return answer
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise Unauthenticated(f"{self._url} takes no such token: set BRIDGE_TOKEN to one that is good there")
        if answer.is_redirect:
            raise InvalidInput(
                f"{self._url} sends on to another address: name the bridge's own with --server", field="server"
            )
        raise _error(answer.content, answer.status_code, answer.headers.get("retry-after", ""))


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInput(f"--server {url!r} is no URL ({error}): use http://host:port", field="server") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        shown = parsed.copy_with(username="", password="")
        raise InvalidInput(
            f"--server {shown!s:.80} is no URL of a bridge: use http://host:port (the token goes in BRIDGE_TOKEN)",
            field="server",
        )
    return str(parsed).rstrip("/")


def _batches(small: list[tuple[int, StampRequest]]) -> Iterator[list[tuple[int, StampRequest]]]:
    batch: list[tuple[int, StampRequest]] = []
    size = 0
    for entry in small:
        content = entry[1].content
        assert isinstance(content, LocalFile)
        more = content.facts.size + len(canonical_json(entry[1].metadata)) + len(entry[1].file_path)
        if batch and (size + more > BATCH_BYTES_MAX or len(batch) == BATCH_FILES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += more
    if batch:
        yield batch


def _lines(some: list[tuple[int, StampRequest]]) -> list[bytes | BridgeError]:
    """Read small files and return a batch's lines. Blocking."""
    lines: list[bytes | BridgeError] = []
    for _, request in some:
        assert isinstance(request.content, LocalFile)
        try:
            data = _read(request.content)
        except BridgeError as error:
            lines.append(error)
            continue
        item: dict[str, Any] = {
            "file_path": request.file_path,
            "namespace": request.namespace,
            "content_base64": base64.b64encode(data).decode(),
            "content_type": request.content_type,
            "metadata": request.metadata,
            "op_id": request.workflow_id,
            "enable_intelligence": request.enable_intelligence,
        }
        lines.append(msgspec.json.encode(item) + b"\n")
    return lines


def _read(file: LocalFile) -> bytes:
    try:
        with open(file.path, "rb") as opened:
            data = opened.read(file.facts.size + 1)
            _require_unchanged(file, os.fstat(opened.fileno()))
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(data) != file.facts.size:
        raise ContentChanged(f"{file.path} changed while it was read: stamp it again when it is at rest")
    return data


async def _pieces(file: LocalFile) -> AsyncIterator[bytes]:
    try:
        opened = await asyncio.to_thread(open, file.path, "rb")
        with opened:
            left = file.facts.size
            while left:
                piece = await asyncio.to_thread(opened.read, min(PIECE_BYTES, left))
                if not piece:
                    break
                left -= len(piece)
                if not left:
                    # Before the last piece is sent: a file that changed must not become a stamp.
                    _require_unchanged(file, os.fstat(opened.fileno()))
                yield piece
    except OSError as error:
        raise _unreadable(file, error) from error
    if left:
        raise ContentChanged(f"{file.path} changed while it was read: stamp it again when it is at rest")


def _require_unchanged(file: LocalFile, now: os.stat_result) -> None:
    facts = FileFacts(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev)
    if facts != file.facts:
        raise ContentChanged(f"{file.path} changed while it was read: stamp it again when it is at rest")


def _unreadable(file: LocalFile, error: OSError) -> ContentUnavailable:
    return ContentUnavailable(f"{file.path} can't be read: {error.strerror}")


def _all_told(body: bytes, count: int) -> list[Answer]:
    """Return what each line of an answer says."""
    try:
        told = [_told(line) for line in body.splitlines()]
    except msgspec.DecodeError as error:
        raise ServiceUnavailable(f"what answers there is no bridge ({error}): check the server's address") from error
    if len(told) != count:
        raise ServiceUnavailable(f"the server answered {len(told)} of {count} stamps: check what stands between")
    return told


def _told(line: bytes) -> Answer:
    """Return what a line of a batch's answer says: the stamp, or the error of its item."""
    item = msgspec.json.decode(line, type=_Item)
    if isinstance(item.problem, msgspec.UnsetType):
        return msgspec.json.decode(line, type=Stamp)
    return _error(bytes(item.problem))


def _error(body: bytes, status: int = 500, retry_after: str = "") -> BridgeError:
    """Return the error that a problem (RFC 9457) tells of."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(detail=f"the server answered {status}, and no reason that is a bridge's", status=status)
    context: dict[str, object] = {"retry_after_s": int(retry_after)} if retry_after.isdigit() else {}
    if problem.error_code is not None:
        context |= {"step": problem.step, "error_code": problem.error_code}
    kind = _BY_CODE.get(problem.code) or _kind_of(problem.status)
    return kind(problem.detail, field=problem.field, **context)


def _kind_of(status: int) -> type[BridgeError]:
    if status == 429:
        return TooManyRequests
    if status == 404:
        return NotFound
    return InvalidInput if 400 <= status < 500 else ServiceUnavailable
