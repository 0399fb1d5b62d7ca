"""The reducer node: folds stamping events into totals. One folder a version."""
