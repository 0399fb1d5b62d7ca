"""Version 1.0.0 of the reducer: `node.py`, its `contract.yaml` and its models."""
