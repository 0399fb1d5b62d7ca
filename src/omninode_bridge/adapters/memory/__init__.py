"""Storage in memory: the counterpart of every storage port, for tests, simulations and trials without a database.

The rule it keeps: what the real storage does in one transaction happens here between two awaits, so nobody
ever sees half of it. A ledger reads, gives others their turn (as a round trip to a database would), and
writes only if nothing it relied on was written meanwhile; otherwise it starts again from reading.

The conformance suite holds these classes and the real ones to the same behaviour. What is left to the real
ones: durability, tenants kept apart, retention.
"""

from omninode_bridge.adapters.memory.ledger import MemoryLedger
from omninode_bridge.adapters.memory.queue import MemoryWorkQueue
from omninode_bridge.adapters.memory.reads import MemoryReads
from omninode_bridge.adapters.memory.source import MemoryEventSource
from omninode_bridge.adapters.memory.state import MemoryStateStore
from omninode_bridge.adapters.memory.store import MemoryStore
from omninode_bridge.adapters.memory.system import FixedClock, SeededIds
from omninode_bridge.adapters.memory.tokens import MemoryTokens

__all__ = [
    "FixedClock",
    "MemoryEventSource",
    "MemoryLedger",
    "MemoryReads",
    "MemoryStateStore",
    "MemoryStore",
    "MemoryTokens",
    "MemoryWorkQueue",
    "SeededIds",
]
