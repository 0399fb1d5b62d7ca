"""The files in deploy/ keep the schemas of Compose and Kubernetes, and the rules for a Dockerfile.

Each judge is shown broken copies as well: one that says yes to everything would be found out. None of them asks the
network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError, ValidationError, latest_version, validate

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
MANIFESTS = (DEPLOY / "kubernetes" / "bridge.yaml").read_text(encoding="utf-8")
VERSIONS = [*re.findall(r"Kubernetes (\d+\.\d+) or newer", MANIFESTS), latest_version()]
"""The oldest that the file says it is for, and the newest that can be judged."""


def broken(text: str, what: str, by: str) -> str:
    """Return a copy with the first place changed that a pattern matches; there has to be one."""
    changed, places = re.subn(what, by, text, count=1, flags=re.MULTILINE)
    assert places == 1
    return changed


def judged(*command: str, text: str, folder: Path) -> tuple[bool, str]:
    """Have a program judge a file, where nobody's settings lie about; return whether it is good, and what was said."""
    file = folder / "judged"
    file.write_text(text, encoding="utf-8")
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    told = subprocess.run(
        [*command, str(file)], cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=60
    )
    assert told.returncode in {0, 1}, told
    return told.returncode == 0, told.stdout + told.stderr


def compose(text: str, folder: Path) -> tuple[bool, str]:
    program = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    return judged(*program, "--default-filetype", "yaml", text=text, folder=folder)


def dockerfile(text: str, folder: Path) -> tuple[bool, str]:
    return judged(str(Path(sys.executable).with_name("hadolint")), "--no-color", text=text, folder=folder)


def test_compose_reads_its_file(tmp_path: Path) -> None:
    good, said = compose(COMPOSE, tmp_path)
    assert good, said


@pytest.mark.parametrize(
    ("what", "by", "named"),
    [
        pytest.param(r"^  read_only:", "  readonly:", "readonly", id="misspelt-key"),
        pytest.param(r"^    deploy: \{replicas: 2\}", "    deploy: {replica: 2}", "replica", id="misspelt-key-below"),
        pytest.param(r"service_healthy", "service_healty", "service_healty", id="unknown-condition"),
        pytest.param(r"^  cap_drop: \[ALL\]", "  cap_drop: ALL", "cap_drop", id="wrong-type"),
        pytest.param(r"^volumes:", "volume:", "volume", id="misspelt-section"),
    ],
)
def test_compose_refuses_a_broken_one(what: str, by: str, named: str, tmp_path: Path) -> None:
    good, said = compose(broken(COMPOSE, what, by), tmp_path)
    assert not good
    assert named in said


def test_what_compose_names_is_in_its_file() -> None:
    read = yaml.safe_load(COMPOSE)
    services = read["services"]
    waited_for = {name for service in services.values() for name in service.get("depends_on", {})}
    mounted = {mount.partition(":")[0] for service in services.values() for mount in service.get("volumes", [])}
    assert waited_for
    assert waited_for <= services.keys()
    assert mounted == read["volumes"].keys()


def manifests(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


def judge(found: list[Any], version: str) -> None:
    for manifest in found:
        validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_reads_its_manifests(version: str) -> None:
    found = manifests(MANIFESTS)
    assert len(VERSIONS) == 2
    assert len(found) > 1
    judge(found, version)


@pytest.mark.parametrize(
    ("what", "by", "error"),
    [
        pytest.param(r"enableServiceLinks: false", "enableServiceLink: false", ValidationError, id="misspelt-key"),
        pytest.param(r"readinessProbe: \{httpGet", "readinessProbe: {httpget", ValidationError, id="misspelt-below"),
        pytest.param(r"replicas: 2", "replicas: two", ValidationError, id="wrong-type"),
        pytest.param(r'(BRIDGE_START_TIMEOUT_S): "120"', r"\1: 120", ValidationError, id="number-for-a-string"),
        pytest.param(r"^  selector: \{matchLabels: .*\}\n", "", ValidationError, id="missing-key"),
        pytest.param(r"autoscaling/v2", "autoscaling/v2beta2", SchemaNotFoundError, id="version-that-is-gone"),
        pytest.param(r"kind: Deployment", "kind: Deploymnet", SchemaNotFoundError, id="misspelt-kind"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_refuses_a_broken_one(what: str, by: str, error: type[Exception], version: str) -> None:
    found = manifests(broken(MANIFESTS, what, by))
    with pytest.raises(error):
        judge(found, version)


def test_the_image_is_built_by_a_proper_file(tmp_path: Path) -> None:
    good, said = dockerfile(DOCKERFILE, tmp_path)
    assert good, said


@pytest.mark.parametrize(
    ("what", "by", "named"),
    [
        pytest.param(r"^COPY src", "COPPY src", "unexpected", id="misspelt-instruction"),
        pytest.param(r"^WORKDIR /src", "WORKDIR src", "DL3000", id="folder-that-depends"),
        pytest.param(r"^COPY --from=build", "COPY --from=built", "DL3022", id="stage-that-is-not-there"),
        pytest.param(r"python:3.12-slim-bookworm$", "python", "DL3006", id="any-base-image"),
        pytest.param(r"^ENTRYPOINT .*", "ENTRYPOINT omninode-bridge", "DL3025", id="shell-that-hears-no-signal"),
        pytest.param(r"^EXPOSE 8054", "EXPOSE 80540", "DL3011", id="port-beyond-all"),
    ],
)
def test_an_improper_file_is_told_of(what: str, by: str, named: str, tmp_path: Path) -> None:
    good, said = dockerfile(broken(DOCKERFILE, what, by), tmp_path)
    assert not good
    assert named in said
