"""The aggregate algebra: items are folded into totals, totals are merged.

The laws (property-tested):

1. `merge` is associative and commutative, and `EMPTY` is its unit.
2. `fold(a + b) == merge_states(fold(a), fold(b))` for any split and any order of the items.
3. Sums are integers (bytes, microseconds); first and last go by time, then event id: no float, no tie.

An item counts once in each grouping that has a key for it. A stamp without a metadata field is in no group
of that field; a failed workflow has no content, so it counts by namespace and time window only. What is left
of an erased event has no namespace, and counts nowhere.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from omninode_bridge.domain.errors import CorruptEvent, NotFound
from omninode_bridge.domain.events import Event, StampingCompleted, check_place, decode, record_of
from omninode_bridge.domain.log import Record
from omninode_bridge.domain.stamp import microseconds

GROUP_KEY_BYTES_MAX = 256
"""A longer group key is stored as its digest and prefix."""

METADATA_PREFIX = "metadata."

SLIGHT_FIELDS_MAX = 16
"""Of metadata that is kept while its event waits: nested or with more fields it may take twenty times its text."""

REASON_CHARS_MAX = 1000
"""Of what is told about a record that can't be read: it may quote the record."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ZERO = timedelta()

type Moment = tuple[datetime, str]
"""(event time, event id)."""
type GroupKey = tuple[str, str, str]
"""(namespace, aggregation type, group key)."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """What the fold takes of one event. `size` is bytes, `processing_us` microseconds; both 0 when failed."""

    event_id: str
    at: datetime
    namespace: str
    completed: bool
    content_type: str = ""
    size: int = 0
    processing_us: int = 0
    metadata: Mapping[str, Any] = {}


class ReadRecord(Record, frozen=True, gc=False):
    """A record whose body was read already, where it arrived."""

    item: Item


class Totals(msgspec.Struct, frozen=True, gc=False):
    """The aggregate of a group. Processing times and bytes are those of completed workflows."""

    total_stamps: int = 0
    failed: int = 0
    total_size_bytes: int = 0
    processing_time_us_sum: int = 0
    processing_time_us_min: int | None = None
    processing_time_us_max: int | None = None
    first: Moment | None = None
    last: Moment | None = None


EMPTY = Totals()

type State = dict[GroupKey, Totals]


class Groupings(msgspec.Struct, frozen=True):
    """What is aggregated by, as the reducer's contract has it. The namespace is always grouped by."""

    content_type: bool = True
    size_bucket: bool = True
    time_window: bool = True
    metadata_fields: tuple[str, ...] = ()
    size_bounds: tuple[int, ...] = (1024, 1024**2, 1024**3)
    window_ms: int = 60_000

    def names(self) -> tuple[str, ...]:
        """Return the stored aggregation types."""
        optional = ("content_type", "size_bucket", "time_window")
        return (
            "namespace",
            *(name for name in optional if getattr(self, name)),
            *(METADATA_PREFIX + name for name in self.metadata_fields),
        )

    def check(self, name: str) -> str:
        """Return `name` if it is aggregated by; NotFound names those that are."""
        if name not in self.names():
            raise NotFound(
                f"grouping {name!r} is not aggregated: the reducer's contract has {', '.join(self.names())}, "
                "and workflow is read from the workflows",
                field="by",
            )
        return name


def item_of(event: Event) -> Item:
    """Return what the fold takes of an event."""
    if isinstance(event, StampingCompleted):
        stamp = event.data
        return Item(
            event.id,
            event.time,
            event.namespace,
            True,
            stamp.content_type,
            stamp.file_size,
            microseconds(stamp.processing_time_ms),
            stamp.metadata,
        )
    return Item(event.id, event.time, event.namespace, False)


def read_item(record: Record) -> Item:
    """Return what the fold takes of a record; CorruptEvent where its body is no event, or that of another record.

    What the error says may be kept anywhere: it is short and has no NUL.
    """
    if isinstance(record, ReadRecord):
        return record.item
    try:
        event = decode(record.body)
        if (event.id, event.namespace, event.position) != (record.event_id, record.namespace, record.position):
            raise CorruptEvent(f"the body is that of event {event.id}, the record that of {record.event_id}")
    except CorruptEvent as error:
        raise CorruptEvent(error.message.replace("\0", "\ufffd")[:REASON_CHARS_MAX]) from error
    return item_of(event)


def read_record(body: bytes) -> Record:
    """Return the record that an event names, read if it can be; CorruptEvent where it names no place in a log.

    The id of the one before it and its workflow's are looked at only where it can't be read: a record that was read
    is no dead letter, and follows one whose id was looked at. One whose metadata would take far more room than its
    body is left to be read when it is folded.
    """
    try:
        event = decode(body)
    except CorruptEvent:
        return record_of(body)
    if isinstance(event, StampingCompleted) and not _is_slight(event.data.metadata):
        return record_of(body)
    check_place(event)
    return ReadRecord(
        event.type,
        event.shard,
        event.position,
        event.id,
        event.previousid,
        event.namespace,
        event.subject,
        body,
        item_of(event),
    )


_NESTED = frozenset((list, dict))


def _is_slight(metadata: Mapping[str, Any]) -> bool:
    return len(metadata) <= SLIGHT_FIELDS_MAX and _NESTED.isdisjoint(map(type, metadata.values()))


def fold(items: Iterable[Item], groupings: Groupings) -> State:
    """Return the totals of the items by every grouping.

    Each item is added once, under the combination of all its keys; the combinations, of which there are
    few, are then rolled up into the groupings. That the roll-up may be done later is law 2.
    """
    bounds, window = groupings.size_bounds, timedelta(milliseconds=groupings.window_ms)
    fields = groupings.metadata_fields
    cells: dict[tuple[object, ...], _Cell] = {}
    start, index = _EPOCH, 0  # of the window of the item before: the next one is mostly in it too
    for item in items:
        at, metadata = item.at, item.metadata
        if not _ZERO <= at - start < window:
            index = (at - _EPOCH) // window
            start = _EPOCH + index * window
        key: tuple[object, ...] = (
            item.namespace,
            index,
            item.content_type,
            bisect_right(bounds, item.size),
            item.completed,
        )
        if fields and metadata:
            key += tuple([_metadata_key(metadata[name]) if name in metadata else None for name in fields])
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = _Cell((at, item.event_id))
        cell.add(item)
    return _roll_up(cells, groupings)


def merge(a: Totals, b: Totals) -> Totals:
    """Return the totals of both groups of items together."""
    return Totals(
        a.total_stamps + b.total_stamps,
        a.failed + b.failed,
        a.total_size_bytes + b.total_size_bytes,
        a.processing_time_us_sum + b.processing_time_us_sum,
        _least(a.processing_time_us_min, b.processing_time_us_min),
        _most(a.processing_time_us_max, b.processing_time_us_max),
        a.first if b.first is None or (a.first is not None and a.first <= b.first) else b.first,
        a.last if b.last is None or (a.last is not None and a.last >= b.last) else b.last,
    )


def merge_states(a: State, b: State) -> State:
    """Return the union of two states, groups that are in both merged."""
    merged = dict(a)
    for key, totals in b.items():
        merged[key] = merge(merged[key], totals) if key in merged else totals
    return merged


def bounded_key(key: str) -> str:
    """Return a group key that PostgreSQL can index: no NUL, at most 256 UTF-8 bytes.

    A longer one becomes its SHA-256 and a prefix.
    """
    key = key.replace("\0", "\ufffd")
    encoded = key.encode()
    if len(encoded) <= GROUP_KEY_BYTES_MAX:
        return key
    prefix = encoded[: GROUP_KEY_BYTES_MAX - 72].decode(errors="ignore")
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}:{prefix}"


class _Cell:
    """The running totals of one combination of keys, or of one group."""

    __slots__ = ("failed", "first", "largest", "last", "size", "smallest", "stamps", "sum")

    def __init__(self, moment: Moment) -> None:
        self.stamps = self.failed = self.size = self.sum = self.largest = 0
        self.smallest: int | None = None
        self.first = self.last = moment

    def add(self, item: Item) -> None:
        if item.completed:
            self.stamps += 1
            self.size += item.size
            took = item.processing_us
            self.sum += took
            if took > self.largest:
                self.largest = took
            if self.smallest is None or took < self.smallest:
                self.smallest = took
        else:
            self.failed += 1
        at = item.at
        if at <= self.first[0]:
            self.first = min(self.first, (at, item.event_id))
        if at >= self.last[0]:
            self.last = max(self.last, (at, item.event_id))

    def absorb(self, other: _Cell) -> None:
        self.stamps += other.stamps
        self.failed += other.failed
        self.size += other.size
        self.sum += other.sum
        if other.largest > self.largest:
            self.largest = other.largest
        if other.smallest is not None and (self.smallest is None or other.smallest < self.smallest):
            self.smallest = other.smallest
        if other.first < self.first:
            self.first = other.first
        if other.last > self.last:
            self.last = other.last

    def totals(self) -> Totals:
        largest = None if self.smallest is None else self.largest
        return Totals(self.stamps, self.failed, self.size, self.sum, self.smallest, largest, self.first, self.last)


def _roll_up(cells: Mapping[tuple[object, ...], _Cell], groupings: Groupings) -> State:
    groups: dict[GroupKey, _Cell] = {}
    named = _Names(groupings)
    for (namespace, window, content_type, bucket, completed, *values), cell in cells.items():
        assert isinstance(namespace, str) and isinstance(content_type, str)
        assert isinstance(window, int) and isinstance(bucket, int)
        if not namespace:
            continue
        for aggregation_type, group_key in named.keys(namespace, window, content_type, bucket, bool(completed), values):
            group = (namespace, aggregation_type, group_key)
            total = groups.get(group)
            if total is None:
                total = groups[group] = _Cell(cell.first)
            total.absorb(cell)
    return {group: cell.totals() for group, cell in groups.items()}


class _Names:
    """The group keys of a combination; those that cost something are made once a batch."""

    def __init__(self, groupings: Groupings) -> None:
        self._groupings = groupings
        bounds = groupings.size_bounds
        self._buckets = [("size_bucket", bucket_key(n, bounds)) for n in range(len(bounds) + 1)]
        self._windows: dict[int, tuple[str, str]] = {}
        self._types: dict[str, tuple[str, str]] = {}
        self._fields = [METADATA_PREFIX + name for name in groupings.metadata_fields]

    def keys(
        self, namespace: str, window: int, content_type: str, bucket: int, completed: bool, values: Sequence[object]
    ) -> list[tuple[str, str]]:
        """Return (aggregation type, group key) of each grouping that has a key for the combination."""
        wanted = self._groupings
        keys = [("namespace", namespace)]
        if wanted.time_window:
            if window not in self._windows:
                self._windows[window] = ("time_window", window_key(window, wanted.window_ms))
            keys.append(self._windows[window])
        if completed:
            if wanted.content_type:
                if content_type not in self._types:
                    self._types[content_type] = ("content_type", bounded_key(content_type))
                keys.append(self._types[content_type])
            if wanted.size_bucket:
                keys.append(self._buckets[bucket])
            keys += [(n, bounded_key(v)) for n, v in zip(self._fields, values, strict=False) if isinstance(v, str)]
        return keys


def window_key(index: int, window_ms: int) -> str:
    """Return the start of a tumbling window, RFC 3339 in UTC."""
    start = _EPOCH + index * window_ms * _MILLISECOND
    return start.isoformat(timespec="milliseconds" if start.microsecond else "seconds").replace("+00:00", "Z")


def bucket_key(index: int, bounds: tuple[int, ...]) -> str:
    """Return the name of a size bucket, in bytes, both ends included: `1024..1048575`, the last `1048576..`."""
    low = bounds[index - 1] if index else 0
    return f"{low}..{bounds[index] - 1}" if index < len(bounds) else f"{low}.."


def _metadata_key(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None or a <= b else b


def _most(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None or a >= b else b
