"""The ONEX face of the bridge: contracts, the container, and both nodes. The only importer of omnibase_core."""
