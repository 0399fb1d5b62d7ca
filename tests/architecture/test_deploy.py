"""The files in deploy/ name what there is: commands and roles, settings, calls, files. (No container is run here.)"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.main import get_command

from omninode_bridge.app.bootstrap import Role
from omninode_bridge.app.settings import Settings
from omninode_bridge.cli.main import app
from omninode_bridge.http.monitoring import Monitoring

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "bridge.yaml").read_text(encoding="utf-8")))
ROLES = set(get_args(Role.__value__))
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "omninode-bridge"}
DEPLOYMENTS = {found["metadata"]["name"]: found for found in MANIFESTS if found["kind"] == "Deployment"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours, by where it stands."""
    for name, service in OURS.items():
        words = service["command"]
        yield f"compose {name}", [*service.get("entrypoint", ["omninode-bridge"])[1:], *words]
    for found in MANIFESTS:
        if found["kind"] in {"Deployment", "Job"}:
            (container,) = found["spec"]["template"]["spec"]["containers"]
            yield f"kubernetes {found['metadata']['name']}", container["args"]


def settings() -> Iterator[str]:
    for service in OURS.values():
        yield from service["environment"]
    for found in MANIFESTS:
        if found["kind"] == "ConfigMap":
            yield from found["data"]
        if found["kind"] in {"Deployment", "Job"}:
            yield from (entry["name"] for entry in found["spec"]["template"]["spec"]["containers"][0]["env"])


def told_by_kubernetes(service: dict[str, Any]) -> Iterator[str]:
    """The variables that a pod gets of a Service, where it asks for them (enableServiceLinks, the default)."""
    prefix = service["metadata"]["name"].upper().replace("-", "_")
    yield from (f"{prefix}_{last}" for last in ("SERVICE_HOST", "SERVICE_PORT", "PORT"))
    for port in service["spec"]["ports"]:
        if "name" in port:
            yield f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"
        one = f"{prefix}_PORT_{port['port']}_{port.get('protocol', 'TCP')}"
        yield from (one, f"{one}_PROTO", f"{one}_PORT", f"{one}_ADDR")


def probes() -> Iterator[str]:
    """The text of everything that is asked whether it is well."""
    for service in OURS.values():
        if not service["healthcheck"].get("disable"):
            yield str(service["healthcheck"]["test"])
    for found in DEPLOYMENTS.values():
        (container,) = found["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            yield str(container[probe])


@pytest.mark.parametrize(("where", "words"), list(commands()), ids=[where for where, _ in commands()])
def test_every_command_line_is_one_of_ours(where: str, words: list[str]) -> None:
    command: Any = get_command(app)
    name, *rest = [str(word) for word in words]
    while name in getattr(command, "commands", {}):
        command = command.commands[name]
        if not getattr(command, "commands", None):
            break
        name, *rest = rest
    context = command.make_context(name, rest, resilient_parsing=False)
    if name == "serve":
        assert context.params["role"] in ROLES


def test_every_setting_is_one_of_ours() -> None:
    known = {f"BRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(settings()) - known == set()


def test_kubernetes_sets_no_setting_of_ours_by_the_name_of_a_service() -> None:
    services = [found for found in MANIFESTS if found["kind"] == "Service"]
    assert services
    known = {f"BRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert "BRIDGE_PORT" in known & set(told_by_kubernetes({"metadata": {"name": "bridge"}, "spec": {"ports": []}}))
    assert known & {name for service in services for name in told_by_kubernetes(service)} == set()
    # One of somebody else's may have such a name: the pods are told of none.
    pods = [found["spec"]["template"]["spec"] for found in MANIFESTS if found["kind"] in {"Deployment", "Job"}]
    assert len(pods) == len(DEPLOYMENTS) + 1
    assert [pod.get("enableServiceLinks") for pod in pods] == [False] * len(pods)


def test_redpanda_is_started_with_one_word_an_item_and_leaves_the_processor_to_others() -> None:
    program, verb, *options = COMPOSE["services"]["redpanda"]["command"]
    assert (program, verb) == ("redpanda", "start")
    assert "--mode=dev-container" in options
    assert [word for word in options if re.search(r"\s", word)] == []


def test_the_documents_give_each_role_the_same_port_and_no_two_roles_one() -> None:
    given: dict[str, set[str]] = {}
    for name in ("README.md", "docs/distributed.md", "docs/runbook.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for role, port in re.findall(r"^omninode-bridge serve --role (\w+) .*?--port (\d+)", text, re.MULTILINE):
            given.setdefault(role, set()).add(port)
    assert given == {
        "api": {"8054"}, "orchestrator": {"8055"}, "reducer": {"8056"}, "relay": {"8057"}, "stamping": {"8058"},
    }  # fmt: skip


def test_every_probe_asks_a_call_that_is_there() -> None:
    asked = {path for text in probes() for path in re.findall(r"/health/\w+", text)}
    assert asked == {"/health/live", "/health/ready"}
    assert all(hasattr(Monitoring, path.rpartition("/")[2]) for path in asked)


def test_each_role_of_the_distributed_bridge_is_deployed_and_reducers_are_several() -> None:
    distributed = ROLES - {"all", "stamping"}
    assert {service["command"][2] for service in OURS.values() if service["command"][0] == "serve"} == distributed
    assert OURS["reducer"]["deploy"]["replicas"] == 2
    assert {name.removeprefix("bridge-") for name in DEPLOYMENTS} == distributed


def test_nothing_of_ours_runs_as_root_or_may_become_it() -> None:
    assert re.search(r"^USER [1-9]\d*$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for service in OURS.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
    for found in DEPLOYMENTS.values():
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_what_scales_is_a_deployment_and_what_is_served_has_pods() -> None:
    for found in MANIFESTS:
        if found["kind"] == "HorizontalPodAutoscaler":
            assert found["spec"]["scaleTargetRef"]["name"] in DEPLOYMENTS
        if found["kind"] in {"Service", "PodDisruptionBudget"}:
            chosen = found["spec"]["selector"].get("matchLabels", found["spec"]["selector"])
            labels = [deployed["spec"]["template"]["metadata"]["labels"] for deployed in DEPLOYMENTS.values()]
            assert any(chosen.items() <= label.items() for label in labels)


def test_the_image_is_built_of_files_that_are_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    named = [*(path for paths in copied for path in paths), *re.findall(r"requirements/\w+\.txt", "\n".join(lines))]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
