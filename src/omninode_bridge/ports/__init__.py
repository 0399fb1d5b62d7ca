"""What the core asks of the outside world. All data-plane calls are batch-shaped: one await a batch.

Implementations are in `adapters`; `adapters/memory` has an in-memory one of each, held to the same
conformance suite as the real ones.
"""

from omninode_bridge.ports.evidence import AuditedEvent, Evidence, HistoryShape
from omninode_bridge.ports.letters import HISTORY_MAX, ActName, Letter, LetterAct, Letters, LetterStatus, ReadItem
from omninode_bridge.ports.log import READ_BYTES_MAX, EventSource
from omninode_bridge.ports.reads import PAGE_BYTES_MAX, KnownFile, Reads, StampFilter, StampPage
from omninode_bridge.ports.state import DeadLetter, Finish, Generation, StateStore, fingerprint, foreign_state
from omninode_bridge.ports.tokens import Tokens, TokenUse, UseKey
from omninode_bridge.ports.work import (
    Clock,
    Hasher,
    IdSource,
    Intelligence,
    Ledger,
    LedgerSession,
    RunningDigest,
    WorkQueue,
)

__all__ = [
    "HISTORY_MAX",
    "PAGE_BYTES_MAX",
    "READ_BYTES_MAX",
    "ActName",
    "AuditedEvent",
    "Clock",
    "DeadLetter",
    "EventSource",
    "Evidence",
    "Finish",
    "Generation",
    "Hasher",
    "HistoryShape",
    "IdSource",
    "Intelligence",
    "KnownFile",
    "Ledger",
    "LedgerSession",
    "Letter",
    "LetterAct",
    "LetterStatus",
    "Letters",
    "ReadItem",
    "Reads",
    "RunningDigest",
    "StampFilter",
    "StampPage",
    "StateStore",
    "TokenUse",
    "Tokens",
    "UseKey",
    "WorkQueue",
    "fingerprint",
    "foreign_state",
]
