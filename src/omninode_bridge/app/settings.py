"""Every limit and address of the program, read once from `BRIDGE_*` into one frozen object.

Command line flags of the same names come before the environment. `docs/` and `--help` take the
descriptions from here.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from omninode_bridge.domain.errors import InvalidInput


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's nameless uid
        return "local"


class Settings(BaseSettings):
    """Settings; each is also the environment variable `BRIDGE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_", frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("omninode-bridge", appauthor=False)),
        description="Folder of the embedded PostgreSQL.",
    )
    database_url: str | None = Field(
        None,
        repr=False,
        examples=["postgresql://user:password@host:5432/database"],
        description="Your own PostgreSQL (15 or newer), instead of the embedded one.",
    )
    postgres_binaries: Path | None = Field(
        None, description="Folder with `postgres` and `initdb` for the embedded server, instead of the wheel's."
    )
    host: str = Field("127.0.0.1", description="Address that `up` listens on.")
    port: int = Field(8054, ge=0, le=65535, description="Port that `up` listens on; 0 takes a free one.")
    stamped_by: str = Field(
        default_factory=_user, min_length=1, max_length=255, description="Recorded as `stamped_by`."
    )
    orchestrator_contract: Path | None = Field(
        None, description="Orchestrator contract.yaml, instead of the shipped one."
    )
    reducer_contract: Path | None = Field(None, description="Reducer contract.yaml, instead of the shipped one.")
    writers: int = Field(2, ge=1, le=64, description="Ledger writers of this process; each owns a shard.")
    group_max: int = Field(1000, ge=1, le=10_000, description="Stamps that share a commit, at most.")
    queue_max: int = Field(20_000, ge=1, description="Stamps that wait for a commit, at most; beyond it: 503.")
    workflows_waiting_max: int = Field(
        10_000, ge=1, description="Accepted workflows that wait to be run, at most; beyond it: 503."
    )
    workflows_waiting_bytes_max: int = Field(
        4 * 1024**3, ge=1, description="Bytes of their contents, at most; beyond it: 503."
    )
    tree_batch_files: int = Field(1000, ge=1, le=10_000, description="Files that are hashed and recorded together.")
    tree_batches_in_flight: int = Field(4, ge=1, le=64, description="Batches of a tree under way at once, at most.")
    body_bytes_max: int = Field(16 * 1024**3, ge=1, description="Largest raw body, in bytes; beyond it: 413.")
    json_bytes_max: int = Field(16 * 1024**2, ge=1, description="Largest JSON body, in bytes; beyond it: 413.")
    batch_items_max: int = Field(
        10_000, ge=1, le=100_000, description="Items of one batch over HTTP, at most; beyond it: 422."
    )
    server: str | None = Field(
        None, description="A running bridge that `stamp` sends files to, such as http://host:8054."
    )
    token: str | None = Field(None, repr=False, description="API token for that server.")
    stamping_urls: Annotated[list[str], NoDecode] = Field(
        [], description="Stamping services that hash contents, separated by commas; without any, this process hashes."
    )
    stamping_token: str | None = Field(None, repr=False, description="Token for the stamping services.")
    kafka_bootstrap_servers: str | None = Field(
        None, min_length=1, description="Kafka or Redpanda, such as host:9092; without it the reducer reads PostgreSQL."
    )
    kafka_group: str = Field(
        "omninode-bridge", min_length=1, max_length=255, description="Consumer group of the reducers."
    )
    kafka_client: Annotated[dict[str, str | int | float | bool], NoDecode] = Field(
        {},
        repr=False,
        examples=['{"security.protocol": "SASL_SSL", "sasl.username": "bridge"}'],
        description="More settings of the Kafka client (librdkafka), as JSON: SASL, TLS, …",
    )
    event_streams_max: int = Field(100, ge=1, description="Streams of events at once, at most; beyond it: 503.")
    start_timeout_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="How long `serve` waits at its start for what it needs, in seconds; 0: it looks once.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    log_format: Literal["json", "console"] | None = Field(
        None, description="How log lines look; left out: as text on a terminal, else as JSON."
    )
    access_log: bool = Field(False, description="Log a line for each request.")
    state_timeout_s: float = Field(30.0, gt=0, description="How long a read waits for the reducer, in seconds.")

    @field_validator("stamping_urls", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("kafka_client", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return msgspec.json.decode(value)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None

    @classmethod
    def read(cls, **flags: object) -> Self:
        """Return the settings; flags that are None are left to the environment. InvalidInput names a bad one."""
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            first: Mapping[str, Any] = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "setting"
            field = cls.model_fields.get(name)
            if field is None or field.repr:
                said = f" = {first.get('input')!r} is not usable: {first['msg']}"
            elif field.examples:  # a secret, or with one in it: neither it nor what was found wrong in it is shown
                said = f" is not usable (its value is not shown): it has to be like {field.examples[0]}"
            else:
                said = " is not usable (its value is not shown): it has to be a text"
            raise InvalidInput(f"BRIDGE_{name.upper()}{said}", field=name) from error
