"""What others hold on to is where they look for it: modules import, `__all__` is true, ONEX names are in place."""

import importlib
import pkgutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import omninode_bridge

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(omninode_bridge.__path__, "omninode_bridge.")
    if not name.endswith("__main__")
)
ORCHESTRATOR = "omninode_bridge.nodes.orchestrator.v1_0_0"
REDUCER = "omninode_bridge.nodes.reducer.v1_0_0"
# (node package, module named after it, name); each is importable from the module and from the package `models`.
MODELS = [
    (ORCHESTRATOR, "enum_workflow_state", "EnumWorkflowState"),
    (ORCHESTRATOR, "model_stamp_request_input", "ModelStampRequestInput"),
    (ORCHESTRATOR, "model_stamp_response_output", "ModelStampResponseOutput"),
    (REDUCER, "enum_aggregation_type", "EnumAggregationType"),
    (REDUCER, "model_reducer_output_state", "ModelReducerOutputState"),
    (REDUCER, "model_stamp_metadata_input", "ModelStampMetadataInput"),
]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_exports_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    missing = [export for export in getattr(module, "__all__", ()) if not hasattr(module, export)]
    assert missing == []


def test_the_package_offers_the_bridge() -> None:
    from omninode_bridge import Bridge  # here, so that a missing one fails this test and no other

    assert Bridge.__name__ == "Bridge"


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        (f"{ORCHESTRATOR}.node", "NodeBridgeOrchestrator", "NodeOrchestrator"),
        (f"{REDUCER}.node", "NodeBridgeReducer", "NodeReducer"),
    ],
)
def test_nodes_are_at_their_addresses_and_stand_on_omnibase_core(module: str, name: str, base: str) -> None:
    node = getattr(importlib.import_module(module), name)
    bases = {cls.__name__ for cls in node.__mro__ if cls.__module__.startswith("omnibase_core.")}
    assert base in bases


@pytest.mark.parametrize(("package", "module", "name"), MODELS, ids=[name for _, _, name in MODELS])
def test_models_are_importable_from_both_addresses(package: str, module: str, name: str) -> None:
    models = importlib.import_module(f"{package}.models")
    own = importlib.import_module(f"{package}.models.{module}")
    assert getattr(models, name) is getattr(own, name)


@pytest.mark.parametrize("package", [ORCHESTRATOR, REDUCER], ids=["orchestrator", "reducer"])
def test_a_contract_lies_beside_each_node(package: str) -> None:
    node_file = importlib.import_module(f"{package}.node").__file__
    assert node_file is not None
    assert (Path(node_file).parent / "contract.yaml").is_file()


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version("omninode-bridge") == project["version"]
    assert (Path(sys.executable).parent / "omninode-bridge").is_file()
