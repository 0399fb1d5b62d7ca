"""Keep omnibase_core from configuring logging behind the program's back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def root_logger_untouched() -> Iterator[None]:
    """Call omnibase_core's `process()` in here.

    It logs by `logging.info`, which installs a handler on stderr when the root logger has none; for the
    duration the root logger has one that does nothing.
    """
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    try:
        yield
    finally:
        logging.root.removeHandler(silent)
