"""Following the event log: a reader's walk through it, and the look-out that tells all readers of one process of news.

    id ─▶ Follower ─▶ step ─▶ events, each with the id to go on from ─▶ step ─▶ …   (Tail: when there is more)

The rules this file obeys:

1. An id says of each shard of each topic up to which position its holder has been given all that he may see. Going on
   from it gives exactly what comes after: nothing is lost, nothing comes twice, each shard is in order.
2. A step looks through a bounded number of positions, however little of them the reader may see: his place moves over
   the rest.
3. An id is believed only as far as the log bears it out: each place has a mark of the event there, so that an id of
   another log, or from before a backup was restored, is refused. It opens nothing: what may be seen is the source's
   business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from typing import NamedTuple

from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable
from omninode_bridge.domain.log import Record, ShardKey, shares
from omninode_bridge.domain.windows import Extent, Sight, Window, events_expired
from omninode_bridge.ports import EventSource

STEP_POSITIONS_MAX = 5000
"""Positions that one step looks through."""
STEP_RECORDS_MAX = 256
STEP_BYTES_MAX = 256 * 1024
"""Bytes of bodies that a reader holds: times the number of streams, that is what slow ones keep in memory."""
STEPS_AT_ONCE = 2
"""Steps of all readers of a process under way: they share a pool of connections with the calls."""
POLL_S = 0.5
"""How long to wait for a hint before looking anyway: what other processes commit comes without one."""
SPACING_S = 0.2
"""From one look at the log's end to the next, at least: so each reader reads five times a second at most."""
ID_CHARACTERS_MAX = 16 * 1024
"""An id has 13 characters or so for each shard of each topic that has records; there are at most 256 shards."""

type Extents = Mapping[ShardKey, Extent]

_VERSION = b"\x01"
_TAG_BYTES = _MARK_BYTES = 3
_UNMARKED = bytes(_MARK_BYTES)
_VARINT_BITS_MAX = 63
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A position, and the mark of the event there; unmarked where that event is not known."""

    position: int
    mark: bytes


class Told(NamedTuple):
    """An event as the log holds it, and the id to go on from after it."""

    id: str
    record: Record


class Follower:
    """One reader, whose source shows him what he may see."""

    def __init__(self, source: EventSource, places: Mapping[ShardKey, Place]) -> None:
        self._source = source
        self._places = dict(places)
        self._parts = {key: _part(key, place) for key, place in self._places.items()}

    @classmethod
    async def begin(cls, source: EventSource, last_id: str | None) -> tuple[Follower, Extents]:
        """Return a reader who goes on after an id, or begins at the oldest event, and the log as it stands.

        Raises InvalidInput for an id that is none of this log, EventsExpired for one that is too old.
        """
        extents = await source.extents()
        if last_id is None:
            floors = {key: extent.floor for key, extent in extents.items() if extent.floor}
            return cls(source, {key: Place(floor, _UNMARKED) for key, floor in floors.items()}), extents
        places = _decode(last_id, extents)
        ids = await source.event_ids({key: place.position for key, place in places.items()})
        for key, place in places.items():
            if place.position > extents[key].head.position:
                raise _refused("it lies beyond the end of this log")
            if key in ids and place.mark not in (_UNMARKED, _mark(ids[key])):
                raise _refused("this log has other events there")
        follower = cls(source, places)
        if any(extent.floor > follower._position(key) for key, extent in extents.items()):
            raise events_expired()
        return follower, extents

    @property
    def id(self) -> str:
        """The id to go on from."""
        packed = _VERSION + b"".join(self._parts.values())
        return base64.urlsafe_b64encode(packed + zlib.crc32(packed).to_bytes(4)).rstrip(b"=").decode()

    def is_behind(self, extents: Extents) -> bool:
        """Tell whether there are positions that the reader has not been through."""
        return any(extent.head.position > self._position(key) for key, extent in extents.items())

    async def step(self, extents: Extents, records_max: int | None = None) -> list[Told]:
        """Return the next events up to the given ends of the log, some of them or none, and move on.

        Raises EventsExpired when retention was faster than the reader. What is raised leaves him where he was.
        """
        starts = {key: self._position(key) for key in extents}
        waiting = [extent.head.position - starts[key] for key, extent in extents.items()]
        taken = shares([max(0, count) for count in waiting], STEP_POSITIONS_MAX)
        windows: dict[ShardKey, Window] = {
            key: (starts[key], starts[key] + count) for key, count in zip(extents, taken, strict=True) if count
        }
        records_max = min(records_max or STEP_RECORDS_MAX, STEP_RECORDS_MAX)
        sight = await self._source.look(windows, records_max=records_max, bytes_max=STEP_BYTES_MAX)
        ends = await self._ends(sight, extents)
        told = []
        for record in sight.records:
            self._move((record.topic, record.shard), Place(record.position, _mark(record.event_id)))
            if record.namespace:  # else it is what is left of an erased event
                told.append(Told(self.id, record))
        for key, place in ends.items():
            self._move(key, place)
        return told

    async def _ends(self, sight: Sight, extents: Extents) -> dict[ShardKey, Place]:
        """Return the places beyond the last records that were looked through, with their marks."""
        last = {(record.topic, record.shard): record.position for record in sight.records}
        beyond = {
            key: position for key, position in sight.reached.items() if position > last.get(key, self._position(key))
        }
        ids = {key: extents[key].head.event_id for key in beyond if beyond[key] == extents[key].head.position}
        unknown = {key: position for key, position in beyond.items() if key not in ids}
        if unknown:
            ids |= await self._source.event_ids(unknown)
        return {key: Place(at, _mark(ids[key]) if key in ids else _UNMARKED) for key, at in beyond.items()}

    def _position(self, key: ShardKey) -> int:
        place = self._places.get(key)
        return 0 if place is None else place.position

    def _move(self, key: ShardKey, place: Place) -> None:
        self._places[key] = place
        self._parts[key] = _part(key, place)


class Tail:
    """Where the log ends, looked at for all readers of a process together, as long as there are any."""

    def __init__(self, source: EventSource) -> None:
        self.extents: Extents = {}
        """Where the log's records lie, as of the last look."""
        self.turns = asyncio.Semaphore(STEPS_AT_ONCE)
        """Taken by a reader for a step."""
        self._source = source
        self._hinted = asyncio.Event()
        self._followers: set[asyncio.Event] = set()
        self._watching: asyncio.Task[None] | None = None

    def hint(self) -> None:
        """Say that something was committed."""
        self._hinted.set()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set whenever `extents` has changed."""
        news = asyncio.Event()
        self._followers.add(news)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="event-tail")
        try:
            yield news
        finally:
            self._followers.discard(news)
            if not self._followers:
                watching, self._watching = self._watching, None
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._hinted.clear()
            extents = self.extents
            try:
                extents = await self._source.extents()
            except ServiceUnavailable:
                pass  # the readers meet the same
            except Exception:
                _log.exception("the end of the event log can't be looked at")
            if extents != self.extents:
                self.extents = extents
                for news in self._followers:
                    news.set()
            await asyncio.sleep(SPACING_S)
            with suppress(TimeoutError):  # that is the poll
                async with asyncio.timeout(POLL_S - SPACING_S):
                    await self._hinted.wait()


def _part(key: ShardKey, place: Place) -> bytes:
    """Return a place as it stands in an id: topic, shard, position, mark."""
    topic, shard = key
    return _tag(topic) + bytes((shard,)) + _varint(place.position) + place.mark


def _decode(text: str, extents: Extents) -> dict[ShardKey, Place]:
    packed = BytesIO(_unpacked(text))
    topics = {_tag(topic): topic for topic, _ in extents}
    places: dict[ShardKey, Place] = {}
    while tag := packed.read(_TAG_BYTES):
        shard, position = packed.read(1), _unvarint(packed)
        place = Place(position, packed.read(_MARK_BYTES))
        if len(place.mark) < _MARK_BYTES:
            raise _refused("it is cut short")
        key = (topics.get(tag, ""), shard[0])
        if key not in extents or key in places:
            raise _refused("this log has no such shards")
        places[key] = place
    return places


def _unpacked(text: str) -> bytes:
    if len(text) > ID_CHARACTERS_MAX:
        raise _refused(f"it has more than {ID_CHARACTERS_MAX} characters")
    try:
        checked = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _refused("it is not base64url") from error
    packed, check = checked[:-4], checked[-4:]
    if packed[:1] != _VERSION or zlib.crc32(packed).to_bytes(4) != check:
        raise _refused("it was changed on its way, or cut short")
    return packed[1:]


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        f"this is no id of an event here ({why}): send the id of the last event as it came, or begin without one",
        field="Last-Event-ID",
    )


def _tag(topic: str) -> bytes:
    return hashlib.blake2s(topic.encode(), digest_size=_TAG_BYTES).digest()


def _mark(event_id: str) -> bytes:
    """Return the end of an event's id: random bits."""
    return bytes.fromhex(event_id[-2 * _MARK_BYTES :])


def _varint(number: int) -> bytes:
    """Return a number as LEB128: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _unvarint(packed: BytesIO) -> int:
    number = shift = 0
    while shift < _VARINT_BITS_MAX and (byte := packed.read(1)):
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
        shift += 7
    raise _refused("it is cut short")
