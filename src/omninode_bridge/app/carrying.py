"""What a process does with Kafka, where the settings name one: forward the log to it, fold what arrives over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from omninode_bridge.adapters.postgres.connection import Pool
from omninode_bridge.adapters.postgres.relay import PostgresForwarding, transport_key
from omninode_bridge.app import parts
from omninode_bridge.app.health import Part
from omninode_bridge.app.project import Projector
from omninode_bridge.app.relay import Relay, RelayMeter
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.workflow import Topics
from omninode_bridge.ports import Clock, EventSource

if TYPE_CHECKING:
    from omninode_bridge.adapters.kafka import KafkaSettings


class Carried(NamedTuple):
    """What of it runs here: nothing, where there is no Kafka."""

    projector: Projector | None = None
    """Folds what arrives over Kafka."""
    hint: Callable[[], None] = lambda: None
    """To be called when something was committed here."""
    parts: tuple[Part, ...] = ()


class _Running(Protocol):
    async def run(self) -> None: ...


@asynccontextmanager
async def carried(
    url: str,
    pool: Pool,
    settings: Settings,
    topics: Topics,
    source: EventSource,
    projector_of: Callable[[EventSource], Projector],
    meter: RelayMeter,
    clock: Clock,
    *,
    relays: bool,
    listens: bool,
) -> AsyncIterator[Carried]:
    """Run the relay and read the topics, as far as the process is there for that and Kafka is configured."""
    if settings.kafka_bootstrap_servers is None or not (relays or listens):
        yield Carried()
        return
    kafka = kafka_settings(settings, await transport_key(pool))
    async with AsyncExitStack() as stack:
        looked_at: list[Part] = []
        projector, hint = None, Carried().hint
        if relays:
            from omninode_bridge.adapters.kafka import KafkaPublisher

            publisher = await stack.enter_async_context(KafkaPublisher(kafka, topics))
            forwarding = await stack.enter_async_context(PostgresForwarding(url, pool))
            relay = Relay(source, forwarding, publisher, meter=meter)
            await stack.enter_async_context(running(relay, "relay"))
            hint = relay.wake.set
            looked_at.append(parts.relay(source, forwarding, clock, relay, needed=not listens))
        if listens:
            from omninode_bridge.adapters.kafka import KafkaSubscription
            from omninode_bridge.app.feed import Feed

            subscription = KafkaSubscription(kafka, topics.names)
            feed = Feed(source, subscription)
            projector = projector_of(feed)
            subscription.hints(projector.wake.set)
            await stack.enter_async_context(subscription)
            looked_at.append(parts.kafka(subscription, feed))
        yield Carried(projector, hint, tuple(looked_at))


@asynccontextmanager
async def running(what: _Running, name: str) -> AsyncIterator[None]:
    """Run a loop that has no end beside the block."""
    task = asyncio.create_task(what.run(), name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def kafka_settings(settings: Settings, key: bytes) -> KafkaSettings:
    """Return how the settings' Kafka is reached; InvalidInput where its client is not installed."""
    try:
        from omninode_bridge.adapters.kafka import KafkaSettings
    except ImportError as error:
        raise InvalidInput(
            "BRIDGE_KAFKA_BOOTSTRAP_SERVERS is set, and the Kafka client is not installed: "
            "pip install 'omninode-bridge[kafka]'",
            field="kafka_bootstrap_servers",
        ) from error
    assert settings.kafka_bootstrap_servers is not None
    return KafkaSettings(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        group=settings.kafka_group,
        key=key,
        client=settings.kafka_client,
    )
