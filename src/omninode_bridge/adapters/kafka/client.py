"""What every client of the broker is told, and how the broker's errors become the bridge's."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from confluent_kafka import KafkaError, KafkaException

from omninode_bridge.domain.errors import InvalidInput, ServiceUnavailable

OWN = frozenset({
    "acks", "auto.commit.enable", "auto.offset.reset", "bootstrap.servers", "client.id", "delivery.report.only.error",
    "enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "enable.partition.eof", "error_cb",
    "group.id", "group.instance.id", "log_cb", "logger", "message.timeout.ms", "metadata.broker.list", "on_commit",
    "on_delivery", "partition.assignment.strategy", "request.required.acks", "stats_cb", "throttle_cb",
    "transactional.id",
})  # fmt: skip
"""What exactly-once and this program's own work hang on: not for settings to change."""
DELIVERY_TIMEOUT = "delivery.timeout.ms"
"""May be set: `message.timeout.ms`, its other name, may not, for of two values one would be passed over in silence."""
DELIVERY_MS_LIMIT = 300_000
"""The largest that it may be. The publisher waits as long for a record, so 0, which means for ever, is none."""
METADATA_S_MAX = 5.0
"""How long to wait for the broker's answer to a question about topics; a process that ends may have to wait as long."""
REPEAT_S = 60.0
"""What is said again and again is logged once in this time."""


class Seldom(logging.Filter):
    """Lets a kind of line pass once in REPEAT_S, and no louder than a warning.

    While no broker answers, librdkafka says so some forty times a second, each time as an error.
    """

    def __init__(self, kind: Callable[[logging.LogRecord], str], *, never: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._kind = kind
        self._never = never
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now_s = self._kind(record), time.monotonic()
        if kind in self._never or now_s < self._last_s.get(kind, -REPEAT_S) + REPEAT_S:
            return False
        self._last_s[kind] = now_s
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


_REFUSES = re.compile("certificate|handshake failed|[Aa]uthentication")
"""In what the client says when it is not let in."""


def _facility(record: logging.LogRecord) -> str:
    """Return what librdkafka files a line under, such as FAIL, without which of the clients says it.

    That one is not let in is a kind of its own: any other failure of the minute would hide it.
    """
    said = record.getMessage()
    return said.partition(" ")[0] + (" refused" if _REFUSES.search(said) else "")


_client_log = logging.getLogger(f"{__name__}.librdkafka")
# One set of settings serves producers and consumers: that each passes over the other's is no news.
_client_log.addFilter(Seldom(_facility, never=frozenset({"CONFWARN"})))


class Refusals:
    """Why a client is not let in: a wrong password, a certificate that is not trusted. It is the client's `error_cb`.

    What is asked of the client fails with "transport failure" then. The client calls this from `poll`.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        """What was said last, without whom it was said of; None since the broker has answered."""

    def __call__(self, error: KafkaError) -> None:
        said = _ABOUT.sub("", error.str())
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError._SSL} or _REFUSES.search(said):  # some as _TRANSPORT
            self.why = said


_ABOUT = re.compile(r"^\S+/\w+: | \(after \d+ms in state \w+\)|\s+$")
"""Which broker, and when: no two lines would be alike."""


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker is reached. `client`: settings of librdkafka, such as SASL and TLS, passed through."""

    bootstrap_servers: str
    group: str
    key: bytes
    """What records are sealed with."""
    client: Mapping[str, str | int | float | bool] = {}

    def __post_init__(self) -> None:
        for name in self.client:
            if name in OWN:
                raise InvalidInput(f"BRIDGE_KAFKA_CLIENT can't set {name!r}: the bridge does", field="kafka_client")
        told = str(self.client.get(DELIVERY_TIMEOUT, DELIVERY_MS_LIMIT))
        if not (told.isascii() and told.isdigit() and 1 <= int(told) <= DELIVERY_MS_LIMIT):
            raise InvalidInput(
                f"BRIDGE_KAFKA_CLIENT: {DELIVERY_TIMEOUT!r} goes from 1 to {DELIVERY_MS_LIMIT}, in milliseconds",
                field="kafka_client",
            )

    def config(
        self, defaults: Mapping[str, object] | None = None, refusals: Refusals | None = None, **own: object
    ) -> dict[str, object]:
        """Return the configuration of a client: its own settings above those passed through, the defaults below."""
        told = {name.replace("_", "."): value for name, value in own.items()}
        if refusals is not None:
            told["error_cb"] = refusals
        base = {"bootstrap.servers": self.bootstrap_servers, "client.id": "omninode-bridge", "logger": _client_log}
        return {"topic.metadata.refresh.interval.ms": 10_000, **(defaults or {}), **self.client, **base, **told}


@contextmanager
def translated(doing: str, refusals: Refusals | None = None) -> Iterator[None]:
    """Raise ServiceUnavailable for the client's errors; `doing` completes the sentence "… while …"."""
    try:
        yield
    except KafkaException as error:
        raise unavailable(error.args[0], doing, refusals) from error
    if refusals is not None:
        refusals.why = None


def unavailable(error: KafkaError | str, doing: str, refusals: Refusals | None = None) -> ServiceUnavailable:
    """Return what to raise; where the client is not let in, that is the reason."""
    if refusals is not None and refusals.why is not None:
        return ServiceUnavailable(f"Kafka failed while {doing}: {refusals.why.rstrip('.')}; check BRIDGE_KAFKA_CLIENT")
    said = error.str() if isinstance(error, KafkaError) else str(error)
    return ServiceUnavailable(
        f"Kafka failed while {doing}: {said.rstrip('.')}; check that the broker runs, and its log"
    )


def created[Client](make: type[Client], config: dict[str, object]) -> Client:
    """Return a client; InvalidInput names a setting that librdkafka does not take."""
    try:
        return make(config)  # type: ignore[call-arg]
    except (KafkaException, ValueError, TypeError) as error:
        first = error.args[0] if error.args else error
        said = first.str() if isinstance(first, KafkaError) else str(first)
        raise InvalidInput(
            f"the Kafka client can't be made: {said}; see BRIDGE_KAFKA_CLIENT", field="kafka_client"
        ) from error
