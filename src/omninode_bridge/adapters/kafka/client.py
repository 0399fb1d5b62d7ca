"""What every client of the broker is told, and how the broker's errors become the bridge's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
from confluent_kafka import KafkaError, KafkaException

from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable

OWN = frozenset({
    "acks", "auto.offset.reset", "bootstrap.servers", "enable.auto.commit", "enable.auto.offset.store",
    "enable.idempotence", "enable.partition.eof", "error_cb", "group.id", "log_cb", "logger", "on_commit",
    "on_delivery", "partition.assignment.strategy", "stats_cb", "throttle_cb",
})  # fmt: skip
"""What exactly-once and this program's own work hang on: not for settings to change."""
METADATA_S_MAX = 10.0
"""How long to wait for the broker's answer to a question about topics."""

_log = logging.getLogger(__name__)


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker is reached. `client`: settings of librdkafka, such as SASL and TLS, passed through."""

    bootstrap_servers: str
    group: str
    client: Mapping[str, str | int | float | bool] = {}

    def __post_init__(self) -> None:
        for name in self.client:
            if name in OWN:
                raise InvalidInput(f"BRIDGE_KAFKA_CLIENT can't set {name!r}: the bridge does", field="kafka_client")

    def config(self, **own: object) -> dict[str, object]:
        """Return the configuration of a client, its own settings above those passed through."""
        told = {name.replace("_", "."): value for name, value in own.items()}
        base = {"bootstrap.servers": self.bootstrap_servers, "client.id": "omninode-bridge", "logger": _log}
        return {"topic.metadata.refresh.interval.ms": 10_000, **self.client, **base, **told}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise ServiceUnavailable for the client's errors; `doing` completes the sentence "… while …"."""
    try:
        yield
    except KafkaException as error:
        raise unavailable(error.args[0], doing) from error


def unavailable(error: KafkaError | str, doing: str) -> ServiceUnavailable:
    said = error.str() if isinstance(error, KafkaError) else str(error)
    return ServiceUnavailable(
        f"Kafka failed while {doing}: {said.rstrip('.')}; check that the broker runs, and its log"
    )


def created[Client](make: type[Client], config: dict[str, object]) -> Client:
    """Return a client; InvalidInput names a setting that librdkafka does not take."""
    try:
        return make(config)  # type: ignore[call-arg]
    except KafkaException as error:
        raise InvalidInput(
            f"the Kafka client can't be made: {error.args[0].str()}; see BRIDGE_KAFKA_CLIENT", field="kafka_client"
        ) from error
