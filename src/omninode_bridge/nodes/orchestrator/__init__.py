"""The orchestrator node: runs stamping workflows. One folder a version."""
