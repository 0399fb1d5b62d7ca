"""Version 1.0.0 of the orchestrator: `node.py`, its `contract.yaml` and its models."""
