"""The parts of a process whose health is told: what each is looked at for, and from when on it is not well."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from omninode_bridge.app.health import Finding, Part
from omninode_bridge.app.ingest import Ingest
from omninode_bridge.app.project import Projector
from omninode_bridge.app.telemetry import Reading, reading
from omninode_bridge.domain.breaker import State
from omninode_bridge.domain.errors import BridgeError, ServiceUnavailable
from omninode_bridge.domain.log import START, Head, ShardKey
from omninode_bridge.ports import Clock, EventSource, StateStore, WorkQueue

LATE_S = 30.0
"""How old an event may get that is not folded, or an accepted workflow that nobody runs, before it is told."""
_STATES: tuple[State, ...] = ("closed", "open", "half_open")


class Probe(Protocol):
    """The database, as it is looked at. What can't be done is raised as ServiceUnavailable."""

    async def require_writable(self) -> None: ...

    async def require_schema(self) -> None: ...

    async def dead_letters(self) -> int:
        """Return how many open ones the live state has, counted up to some limit."""
        ...


class Service(Protocol):
    """A remote stamping service, as whoever calls it sees it."""

    @property
    def state(self) -> State: ...
    @property
    def calls(self) -> int: ...
    @property
    def failures(self) -> int: ...


class Door(Protocol):
    """What knows whether tokens are asked for."""

    async def asks_for_tokens(self) -> bool: ...


def postgresql(probe: Probe) -> Part:
    """PostgreSQL can be reached, and written to."""

    async def check() -> Finding:
        await probe.require_writable()
        return Finding()

    return Part("postgresql", check, needed=True, asks=True)


def schema(probe: Probe) -> Part:
    """The database has this program's schema, no older and no newer one."""

    async def check() -> Finding:
        await probe.require_schema()
        return Finding()

    return Part("schema", check, needed=True, asks=True)


def ledger(ingest: Ingest, *, needed: bool) -> Part:
    """Stamps are taken: the queue of those that wait for a commit has room."""

    async def check() -> Finding:
        stamps_max, bytes_max = ingest.limits
        stamps, octets = ingest.queued, ingest.queued_bytes
        gauges = [
            reading("ledger_queue_stamps", "Stamps that wait for a commit.", stamps),
            reading("ledger_queue_stamps_limit", "How many may.", stamps_max),
            reading("ledger_queue_bytes", "What they hold.", octets),
            reading("ledger_queue_bytes_limit", "How much they may.", bytes_max),
        ]
        if ingest.closing:
            return Finding("down", "it takes no more stamps: the process ends", gauges)
        if stamps >= stamps_max or octets >= bytes_max:
            return Finding("down", f"{stamps} stamps of {octets} bytes wait to be committed: the queue is full", gauges)
        if 2 * stamps >= stamps_max or 2 * octets >= bytes_max:
            return Finding("degraded", f"{stamps} stamps of {octets} bytes wait to be committed", gauges)
        return Finding(gauges=gauges)

    return Part("ledger_queue", check, needed=needed)


def reducer(
    source: EventSource, state: StateStore, probe: Probe, clock: Clock, projector: Projector | None, *, needed: bool
) -> Part:
    """The state keeps up with the log, whichever process folds it. `projector`: the one that runs here, if one does."""

    async def check() -> Finding:
        live = await state.live()
        at = await state.positions(live) if live else {}
        heads = await source.heads()
        starts = {key: at.get(key, START).position for key in heads}
        lag = sum(max(0, head.position - starts[key]) for key, head in heads.items())
        ids = await source.event_ids({key: start + 1 for key, start in starts.items() if start < heads[key].position})
        now_s = clock().timestamp()
        age_s = max((now_s - _made_at_s(event_id) for event_id in ids.values()), default=0.0)
        dead = await probe.dead_letters()
        gauges = [
            reading("reducer_lag_events", "Events that are not folded yet.", lag),
            reading("reducer_oldest_event_age_seconds", "Age of the oldest of them.", max(0.0, age_s)),
            reading("dead_letters_open", "Events that could not be read, and wait for a decision.", dead),
        ]
        if projector is not None and (trouble := projector.trouble) is not None:
            why = trouble.message if isinstance(trouble, BridgeError) else "the log says why"
            known = isinstance(trouble, ServiceUnavailable)
            return Finding("degraded" if known else "down", f"it can't fold: {why}", gauges)
        if age_s > LATE_S:
            late = f"{lag} events are not folded, the oldest for {age_s:.0f} s: is a reducer running?"
            return Finding("degraded", late, gauges)
        if dead:
            return Finding("degraded", f"{dead} events could not be read and are dead letters", gauges)
        return Finding(gauges=gauges)

    return Part("reducer", check, needed=needed, asks=True)


class Forwarder(Protocol):
    """The relay of this process."""

    held: frozenset[int]
    burial: Exception | None

    @property
    def trouble(self) -> Exception | None: ...


class Passed(Protocol):
    """What knows how far the log was forwarded."""

    async def positions(self) -> Mapping[ShardKey, Head]: ...


class Arrivals(Protocol):
    """This process's reading of the topics."""

    @property
    def strays(self) -> int: ...

    @property
    def trouble(self) -> ServiceUnavailable | None: ...

    @property
    def owned(self) -> Collection[tuple[str, int]]: ...


class Filled(Protocol):
    """What reads from the log what Kafka did not bring."""

    filled: int


def relay(source: EventSource, passed: Passed, clock: Clock, forwarder: Forwarder, *, needed: bool) -> Part:
    """The log is forwarded to Kafka, whichever process does it."""

    async def check() -> Finding:
        at, heads = await passed.positions(), await source.heads()
        starts = {key: at.get(key, START).position for key in heads}
        lag = sum(max(0, head.position - starts[key]) for key, head in heads.items())
        ids = await source.event_ids({key: start + 1 for key, start in starts.items() if start < heads[key].position})
        age_s = max((clock().timestamp() - _made_at_s(event_id) for event_id in ids.values()), default=0.0)
        gauges = [
            reading("relay_lag_events", "Events that are not forwarded yet.", lag),
            reading("relay_oldest_event_age_seconds", "Age of the oldest of them.", max(0.0, age_s)),
            reading("relay_shards", "Shards that this process forwards.", len(forwarder.held)),
        ]
        if (trouble := forwarder.trouble) is not None:
            why = trouble.message if isinstance(trouble, BridgeError) else "the log says why"
            known = isinstance(trouble, ServiceUnavailable)
            return Finding("degraded" if known else "down", f"it can't forward: {why}", gauges)
        if age_s > LATE_S:
            return Finding("degraded", f"{lag} events are not forwarded, the oldest for {age_s:.0f} s", gauges)
        if (burial := forwarder.burial) is not None:
            why = burial.message if isinstance(burial, BridgeError) else "the log says why"
            return Finding("degraded", f"dead letters don't reach Kafka, all else does: {why}", gauges)
        return Finding(gauges=gauges)

    return Part("relay", check, needed=needed, asks=True)


def kafka(arrivals: Arrivals, filled: Filled) -> Part:
    """Events are read from Kafka. Without it the reducer goes on, from the log: that is slower, and no fault."""

    async def check() -> Finding:
        gauges = [
            reading("kafka_partitions", "Partitions that this process reads.", len(arrivals.owned)),
            Reading("kafka_strays", "Messages on the topics that are no events.", [((), arrivals.strays)], counts=True),
            Reading("kafka_filled", "Events read from the log instead.", [((), filled.filled)], counts=True),
        ]
        if arrivals.trouble is not None:
            return Finding("degraded", arrivals.trouble.message, gauges)
        return Finding(gauges=gauges)

    return Part("kafka", check)


def workflows(queue: WorkQueue, in_flight: Callable[[], int] | None) -> Part:
    """Accepted workflows are run, whichever process does it. `in_flight`: how many this one runs, if it runs any."""

    async def check() -> Finding:
        waiting, oldest_s = await queue.depth()
        gauges = [
            reading("workflows_waiting", "Accepted workflows that have not ended.", waiting),
            reading("workflows_oldest_seconds", "For how long the oldest of them waits.", oldest_s if waiting else 0.0),
        ]
        if in_flight is not None:
            gauges.append(reading("workflows_in_flight", "Accepted workflows that this process runs.", in_flight()))
        if waiting and oldest_s > LATE_S:
            late = f"{waiting} accepted workflows have not ended, the oldest for {oldest_s:.0f} s: is a worker running?"
            return Finding("degraded", late, gauges)
        return Finding(gauges=gauges)

    return Part("workflows", check, asks=True)


def stamping(services: Callable[[], Sequence[Service]]) -> Part:
    """The remote stamping services answer. They are told by their place in the settings, not by their address."""

    async def check() -> Finding:
        found = services()
        gauges = _breakers(found)
        shut = [number for number, service in enumerate(found) if service.state != "closed"]
        if not shut:
            return Finding(gauges=gauges)
        said = f"{len(shut)} of {len(found)} are left alone after failures (number {', '.join(map(str, shut))})"
        return Finding("down" if len(shut) == len(found) else "degraded", said, gauges)

    return Part("stamping_services", check)


def tokens(door: Door) -> Part:
    """Whether callers need a token: told, and never a fault."""

    async def check() -> Finding:
        asked = await door.asks_for_tokens()
        gauges = [reading("tokens_asked_for", "1 when callers need a token.", float(asked))]
        return Finding("ok", "asked for" if asked else "not asked for: whoever reaches the port may do all", gauges)

    return Part("tokens", check, asks=True)


def _breakers(found: Sequence[Service]) -> list[Reading]:
    states = [
        ((str(number), state), float(service.state == state))
        for number, service in enumerate(found)
        for state in _STATES
    ]
    return [
        Reading("stamping_breaker_state", "1 for the state that it is in.", states, ("target", "state")),
        Reading(
            "stamping_calls",
            "Calls of a stamping service.",
            [((str(number),), service.calls) for number, service in enumerate(found)],
            ("target",),
            counts=True,
        ),
        Reading(
            "stamping_failures",
            "Those that failed.",
            [((str(number),), service.failures) for number, service in enumerate(found)],
            ("target",),
            counts=True,
        ),
    ]


def _made_at_s(event_id: str) -> float:
    """Return the time in a UUIDv7, in seconds of Unix time."""
    return int(event_id.replace("-", "")[:12], 16) / 1000
