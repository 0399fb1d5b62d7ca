"""The outside world, one file or folder a technology, each the only importer of its driver."""
