"""Settings: a mistake in one is a sentence that names it, and never shows a secret."""

from __future__ import annotations

import pytest

from omninode_bridge.app.settings import Settings
from omninode_bridge.cli.running import USAGE, explain
from omninode_bridge.domain.errors import InvalidInput

SECRET = "hunter2"


@pytest.mark.parametrize(
    "told",
    [
        '{"sasl.password": ["hunter2"]}',
        '{"sasl.password": {"hunter2": "hunter2"}}',
        '["sasl.password", "hunter2"]',
        '"hunter2"',
        "hunter2",
        '{"sasl.password": "hunter2"',
        '{"sasl.password": hunter2}',
        "",
        "[" * 100_000,
    ],
    ids=lambda told: told[:40],
)
def test_a_mistake_in_the_settings_of_the_kafka_client_is_a_sentence_without_its_secrets(
    told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_KAFKA_CLIENT", told)
    with pytest.raises(InvalidInput) as refused:
        Settings.read()
    assert refused.value.message.startswith("BRIDGE_KAFKA_CLIENT is not usable")
    assert explain(refused.value) == USAGE
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert SECRET not in said
    # What a log of the error and its cause would show.
    assert SECRET not in f"{refused.value!r} {refused.value.__cause__!r} {refused.value.__cause__}"


@pytest.mark.parametrize("name", ["database_url", "token", "stamping_token"])
def test_no_secret_is_shown_that_is_no_text(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"BRIDGE_{name.upper()} is not usable") as refused:
        Settings.read(**{name: [f"postgresql://bridge:{SECRET}@db/bridge"]})
    assert SECRET not in f"{refused.value.message} {refused.value.__cause__}"
    assert "it has to be" in refused.value.message


def test_settings_that_are_printed_show_no_secret() -> None:
    settings = Settings.read(
        database_url=f"postgresql://bridge:{SECRET}@db/bridge",
        kafka_client={"sasl.password": SECRET},
        token=SECRET,
        stamping_token=SECRET,
    )
    assert SECRET not in f"{settings!r} {settings}"


def test_what_is_no_secret_is_shown_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_WRITERS", "many")
    with pytest.raises(InvalidInput, match=r"^BRIDGE_WRITERS = 'many' is not usable: .*integer"):
        Settings.read()


def test_the_settings_of_the_kafka_client_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_KAFKA_CLIENT", '{"sasl.password": "a", "linger.ms": 5, "enable.x": true, "y": 0.5}')
    assert Settings.read().kafka_client == {"sasl.password": "a", "linger.ms": 5, "enable.x": True, "y": 0.5}
