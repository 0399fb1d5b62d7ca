"""What an operator does with dead letters: look at them, replay them after a fix, or discard them.

A reducer's letter is replayed into the totals, a relay's is sent to Kafka once more. Kafka and the contracts, which
name its topics, are looked at when a relay's letter is met.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from omninode_bridge.adapters.postgres import connection
from omninode_bridge.adapters.postgres.letters import PostgresLetters
from omninode_bridge.adapters.postgres.migrations import migrate, require_current
from omninode_bridge.adapters.postgres.relay import transport_key
from omninode_bridge.app.carrying import kafka_settings
from omninode_bridge.app.database import database
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import InvalidInput, LimitExceeded, ServiceUnavailable
from omninode_bridge.domain.names import check_namespace
from omninode_bridge.domain.reduction import read_item
from omninode_bridge.ports import Letter, Letters
from omninode_bridge.ports.transport import Publisher

__all__ = ["DeadLetters", "checked_reason", "dead_letters"]

PAGE_MAX = 500
"""Letters in one read of the list."""
REASON_CHARS_MAX = 1000


class DeadLetters:
    """The acts. `actor` is who does them, by the log; `publisher` opens the transport, once it is needed."""

    def __init__(self, letters: Letters, publisher: Callable[[], Awaitable[Publisher]], *, actor: str) -> None:
        self._letters = letters
        self._publisher = publisher
        self._actor = actor

    async def every(self, namespace: str | None = None, *, settled: bool = False) -> AsyncIterator[Letter]:
        """Yield the open letters by number, without their bodies; with `settled` the others too."""
        tenant = None if namespace is None else check_namespace(namespace)
        after = 0
        while page := await self._letters.page(tenant, settled=settled, after=after, limit=PAGE_MAX):
            for letter in page:
                yield letter
            after = page[-1].number

    async def get(self, number: int) -> Letter:
        """Return a letter; NotFound where there is none."""
        return await self._letters.get(number)

    async def replay(self, number: int) -> tuple[Letter, bool]:
        """Process a letter's event after all; return the letter as it is then, and whether it was closed by this.

        One that is still not closed has the reason in its history. NotFound where there is none; InvalidInput where
        it needs a Kafka and the settings name none; ServiceUnavailable where nothing is known to be done.
        """
        letter = await self._letters.get(number)
        if letter.status == "replayed":
            return letter, False
        if letter.source == "reducer":
            return await self._letters.fold(number, read_item, actor=self._actor)
        publisher = await self._publisher()
        (refusal,) = await publisher.publish([await self._letters.record(number)])
        assert not isinstance(refusal, ServiceUnavailable)  # of the only one it would have been raised
        return await self._letters.forwarded(number, refusal, actor=self._actor)

    async def discard(self, number: int, reason: str) -> tuple[Letter, bool]:
        """Settle a letter without its event, which no total will have; a replay can undo it.

        Return the letter, and whether it was open before. NotFound where there is none, Conflict where it was replayed.
        """
        return await self._letters.discard(number, checked_reason(reason), actor=self._actor)


@asynccontextmanager
async def dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Open the dead letters of the settings' database; an embedded one is brought up to date first."""
    async with database(settings) as url:
        session = await connection.connect(url)
        try:
            await (migrate(session) if settings.database_url is None else require_current(session))
        finally:
            await session.close()
        async with connection.pool(url) as pool, AsyncExitStack() as stack:
            opened: list[Publisher] = []

            async def publisher() -> Publisher:
                if not opened:
                    opened.append(await _opened_publisher(settings, pool, stack))
                return opened[0]

            yield DeadLetters(PostgresLetters(pool), publisher, actor=settings.stamped_by)


def checked_reason(text: str) -> str:
    """Return why something is done, as an operator words it; InvalidInput where that says nothing or too much."""
    reason = text.strip()
    if not reason or not reason.isprintable():
        raise InvalidInput(f"{ascii(text)[:80]} is no reason: say in one line why", field="reason")
    if len(reason) > REASON_CHARS_MAX:
        raise LimitExceeded(
            f"the reason has {len(reason)} characters; {REASON_CHARS_MAX} is the limit: make it shorter", field="reason"
        )
    return reason


async def _opened_publisher(settings: Settings, pool: connection.Pool, stack: AsyncExitStack) -> Publisher:
    if settings.kafka_bootstrap_servers is None:
        raise InvalidInput(
            "the relay could not forward this event, and there is no Kafka to send it to: set "
            "BRIDGE_KAFKA_BOOTSTRAP_SERVERS, or discard the letter",
            field="kafka_bootstrap_servers",
        )
    kafka = kafka_settings(settings, await transport_key(pool))
    from omninode_bridge.adapters.kafka import KafkaPublisher
    from omninode_bridge.nodes.contracts import load_contracts

    topics = load_contracts(settings.orchestrator_contract, settings.reducer_contract).orchestrator.topics
    return await stack.enter_async_context(KafkaPublisher(kafka, topics))
