"""BLAKE3 digests of content in memory and in files: the port `Hasher`.

The rules it keeps:

1. A digest is of bytes that stood still. A file's facts are read after its bytes, and equal those before them, or
   the answer is ContentChanged. (Two writes within one tick of the file system's clock can look like one.)
2. One item's trouble is that item's answer; the rest of the batch is hashed.
3. Nothing in a file can end the process: a mapped file that shrinks or meets a bad sector would, by SIGBUS, so only
   what can do neither is mapped (`_hash_large`; docs/adr/0004-hashing-large-files.md has the figures).
4. Memory is bounded: a window for a file of any size, one large file at a time.

Finding files, and what to do with the digests, is left to others.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from threading import Event

from blake3 import blake3

from omninode_bridge.domain.errors import ContentChanged, ContentUnavailable
from omninode_bridge.domain.stamp import Claimed, Content, Digest, FileFacts, Inline, LocalFile

__all__ = ["Blake3Hasher"]

type Answer = Digest | ContentUnavailable

AT_ONCE_BYTES_MAX = 256 * 1024
"""Content in memory up to this much is hashed where it is asked for: 50 µs, about what changing threads would cost."""
SMALL_FILE_BYTES_MAX = 128 * 1024
"""Files up to this size are read in one piece."""
BLOCK_BYTES = 256 * 1024
"""What is read at a time of larger ones: stays in the processor's cache until it is hashed."""
LARGE_FILE_BYTES_MIN = 4 * 1024 * 1024
"""From here on several threads hash one file; below, starting them costs more than they bring."""
WINDOW_BYTES = 12 * 1024 * 1024
"""What of a large file is mapped at a time; two of these are in memory while one takes the place of the other."""
READ_AHEAD_BYTES = 4 * 1024 * 1024
"""What of a large file is read at a time, where it is not mapped; two of these are in memory at once."""
SETTLED_NS = 2_000_000_000
"""Facts vouch for a digest only if they were this old when it was made (as git's index does with racy entries)."""

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Not blocking: a FIFO that took a file's place must not hold the thread."""

_REMEDIES = {
    errno.EACCES: "let this user read it, or exclude it",
    errno.EPERM: "let this user read it, or exclude it",
    errno.ENOENT: "it was removed after it was found; stamp again",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
}


class Blake3Hasher:
    """Hashes batches off the event loop: small items in one thread, large files in another, with all cores."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        """`now_ns` is the clock that files' times are compared with, in nanoseconds since 1970."""
        self._now_ns = now_ns
        # One thread each: small files get slower with more (the interpreter's lock), large ones would multiply windows.
        self._small = ThreadPoolExecutor(1, "hash-small")
        self._large = ThreadPoolExecutor(1, "hash-large")
        self._helpers = ThreadPoolExecutor(1, "hash-helper")

    async def digest_many(self, contents: Sequence[Content]) -> list[Digest | ContentUnavailable]:
        """Return each content's digest, in order, or why its bytes could not be read.

        The digest of a claimed or streamed content is passed on as it is. Never raises for what a content is.
        """
        if sum(map(_bytes_in_memory, contents)) <= AT_ONCE_BYTES_MAX:
            return self._digest_all(contents, Event())
        large = [at for at, content in enumerate(contents) if _is_large(content)]
        if not large:
            return await self._in_thread(self._small, contents)
        small = [at for at, content in enumerate(contents) if not _is_large(content)]
        async with asyncio.TaskGroup() as group:
            in_small = group.create_task(self._in_thread(self._small, [contents[at] for at in small]))
            in_large = group.create_task(self._in_thread(self._large, [contents[at] for at in large]))
        answers = dict(zip(small, in_small.result(), strict=True)) | dict(zip(large, in_large.result(), strict=True))
        return [answers[at] for at in range(len(contents))]

    async def _in_thread(self, lane: Executor, contents: Sequence[Content]) -> list[Answer]:
        stop = Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(lane, self._digest_all, contents, stop)
        except asyncio.CancelledError:
            # The thread can't be cancelled, but it need not finish ten gibibytes for nobody.
            stop.set()
            raise

    def _digest_all(self, contents: Sequence[Content], stop: Event) -> list[Answer]:
        settled_before_ns = self._now_ns() - SETTLED_NS
        answers: list[Answer] = []
        for content in contents:
            if stop.is_set():
                break
            started = time.perf_counter_ns()
            if isinstance(content, LocalFile):
                answers.append(self._digest_file(content, settled_before_ns, stop))
            elif isinstance(content, Inline):
                file_hash = blake3(content.data, max_threads=blake3.AUTO if _is_large(content) else 1).hexdigest()
                answers.append(Digest(file_hash, len(content.data), "computed", _microseconds_since(started)))
            elif isinstance(content, Claimed):
                answers.append(Digest(content.file_hash, content.file_size, "claimed"))
            else:
                answers.append(content.digest)
        return answers

    def _digest_file(self, file: LocalFile, settled_before_ns: int, stop: Event) -> Answer:
        started = time.perf_counter_ns()
        facts = file.facts
        try:
            file_hash = _hash_small(file.path, facts) if facts.size <= SMALL_FILE_BYTES_MAX else None
            if file_hash is None:
                file_hash, facts = self._read(file.path, stop)
        except ContentUnavailable as error:
            return error
        except OSError as error:
            reason, remedy = error.strerror or str(error), _REMEDIES.get(error.errno or 0, "exclude it")
            return ContentUnavailable(f"cannot read {file.path!r}: {reason}: {remedy}", field="file_path")
        settled = facts.mtime_ns <= settled_before_ns and facts.ctime_ns <= settled_before_ns
        return Digest(file_hash, facts.size, "computed", _microseconds_since(started), facts if settled else None)

    def _read(self, path: str, stop: Event) -> tuple[str, FileFacts]:
        """Return a file's digest and the facts that held before and after its bytes were read.

        They may differ from those it was found with: a change in between does no harm.
        """
        descriptor = os.open(path, _OPEN)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ContentUnavailable(f"{path!r} is no regular file any more: exclude it", field="file_path")
            facts = _facts(status)
            if facts.size < LARGE_FILE_BYTES_MIN:
                file_hash, length = _hash_blocks(descriptor, facts.size)
            else:
                file_hash, length = _hash_large(descriptor, facts, self._helpers, stop)
            if length != facts.size or _facts(os.fstat(descriptor)) != facts:
                raise ContentChanged(
                    f"{path!r} changed while it was being read: stamp it again when nothing writes to it",
                    field="file_path",
                )
        finally:
            os.close(descriptor)
        return file_hash, facts


def _hash_small(path: str, facts: FileFacts) -> str | None:
    """Return the digest of a file that is as it was found, None of one that has changed. Four system calls."""
    descriptor = os.open(path, _OPEN)
    try:
        # One byte more than there should be tells a grown file.
        data = os.read(descriptor, facts.size + 1)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != facts.size or _facts(status) != facts:
        return None
    return blake3(data).digest().hex()  # a tenth faster than hexdigest()


def _hash_blocks(descriptor: int, size: int) -> tuple[str, int]:
    """Return the digest and the number of bytes read, which is more than `size` only by one."""
    hasher = blake3()
    length = 0
    buffer = memoryview(bytearray(min(BLOCK_BYTES, size + 1)))
    while length <= size and (count := os.readv(descriptor, [buffer])):
        hasher.update(buffer[:count])
        length += count
    return hasher.hexdigest(), length


def _hash_large(descriptor: int, facts: FileFacts, helpers: Executor, stop: Event) -> tuple[str, int]:
    """Return the digest by all cores, and the number of bytes it is of, at most the file's size.

    Bytes are hashed where they lie in memory, which spares copying them, only while (a) their file system is on a
    block device, so that no other machine writes to it, (b) we hold a lease, so that whoever wants to write or
    truncate waits until we let go, and (c) all of them are in memory, so that no bad sector can be met. Else, and
    from where a writer shows up, they are read.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    length = 0
    if os.major(facts.device) != 0 and _lease(descriptor):
        length = _hash_mapped(hasher, descriptor, facts.size, helpers, stop)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    if length < facts.size:
        length = _hash_ahead(hasher, descriptor, length, facts.size, helpers, stop)
    return hasher.hexdigest(), length


def _hash_mapped(hasher: blake3, descriptor: int, size: int, helpers: Executor, stop: Event) -> int:
    """Hash a leased file in place, window by window; return how far: to a waiting writer, or a page not in memory."""
    offset = 0
    done: mmap.mmap | None = None
    present = helpers.submit(_present, descriptor, 0, min(WINDOW_BYTES, size))
    while offset < size and present.result() and not stop.is_set():
        length = min(WINDOW_BYTES, size - offset)
        # Asking for the next window, and unmapping the last, cost a fifth of hashing: done while this one is hashed.
        ahead = offset + length
        present = helpers.submit(_present, descriptor, ahead, min(WINDOW_BYTES, size - ahead), done)
        done = None
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                break
            done = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)
        except (OSError, ValueError):
            break
        hasher.update(done)
        offset = ahead
    wait([present])
    return offset


def _hash_ahead(hasher: blake3, descriptor: int, offset: int, size: int, helpers: Executor, stop: Event) -> int:
    """Hash a file from an offset on, one block read while another is hashed; return how far."""
    spare, block = bytearray(READ_AHEAD_BYTES), bytearray(READ_AHEAD_BYTES)

    def read(buffer: bytearray, start: int) -> int:
        return os.preadv(descriptor, [memoryview(buffer)[: size - start]], start) if start < size else 0

    count = read(block, offset)
    while count and not stop.is_set():
        offset += count
        upcoming = helpers.submit(read, spare, offset)
        hasher.update(memoryview(block)[:count])
        count = upcoming.result()
        block, spare = spare, block
    return offset


def _lease(descriptor: int) -> bool:
    """Take a read lease on a file, if it is ours to take and nobody has it open for writing; closing ends it."""
    try:
        # A waiting writer is announced by a signal, but looked for here: make it one that is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def _present(descriptor: int, offset: int, length: int, done: mmap.mmap | None = None) -> bool:
    """Ask mincore(2) whether a part of a file is in memory, read without fault."""
    if done is not None:
        done.close()
    if length == 0:
        return True
    pages = -(-length // mmap.PAGESIZE)
    answer = ctypes.create_string_buffer(pages)
    try:
        # Private and writable, though nothing is written: only of such a mapping does ctypes tell the address.
        part = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset)
    except (OSError, ValueError):
        return False
    start = ctypes.c_char.from_buffer(part)
    failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(length), answer)
    del start  # a mapping that is looked into can't be closed
    part.close()
    return not failed and answer.raw.count(b"\1") == pages


_libc = ctypes.CDLL(None)


def _facts(status: os.stat_result) -> FileFacts:
    return FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def _microseconds_since(started_ns: int) -> int:
    return (time.perf_counter_ns() - started_ns) // 1000


def _bytes_in_memory(content: Content) -> int:
    """Return how many bytes are to be hashed without reading; a file counts as more than any."""
    if isinstance(content, LocalFile):
        return AT_ONCE_BYTES_MAX + 1
    return len(content.data) if isinstance(content, Inline) else 0


def _is_large(content: Content) -> bool:
    if isinstance(content, LocalFile):
        return content.facts.size >= LARGE_FILE_BYTES_MIN
    return isinstance(content, Inline) and len(content.data) >= LARGE_FILE_BYTES_MIN
