"""Each benchmark runs in smoke size, so that none rots. Nothing timed is asserted; that both sides agree is.

A benchmark itself refuses to report when its sides come to different results. Here, beside that: every row that is
promised is there, with a figure a turn, and what it computed is the same when it is computed again elsewhere.
"""

import asyncio
import json
import random
import subprocess
from pathlib import Path

import pytest
import uvloop
from benchmarks.__main__ import BENCHMARKS, ROWS, main
from benchmarks.floor import Insert, contents, read_back, write
from benchmarks.folding import by_polars, folded_from_bytes, make_events
from benchmarks.measure import Debt, ResultsDiffer, Row, Run, result_hash, take_turns
from benchmarks.place import SMOKE, Place
from benchmarks.report import BEGIN, DOCUMENT, END

from omninode_bridge.nodes.contracts import load_reducer

COMPARED = {"hash-large", "hash-small", "stamp-tree", "stamp-again", "fold", "fold-from-bytes", "fsm"}
