"""Making a reduction last, or saying what would: the part of the ONEX door that touches stored state.

`bridge_state` equals the fold of the log up to the recorded positions. So only records of the log, which
know their place in it, are added to it, in one transaction with that place: handed in twice they count once.
Items without a place can't be told from their own repetition; they are reduced, and what they add up to is
returned as an intent for whoever knows better. See docs/adr/0003-what-the-onex-door-of-the-reducer-persists.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.errors.model_onex_error import ModelOnexError
from omnibase_core.models.reducer.model_intent import ModelIntent
from omnibase_core.models.reducer.payloads import ModelPayloadPersistState

from omninode_bridge.domain.events import decode
from omninode_bridge.domain.log import START, Head, Record, ShardKey, follow
from omninode_bridge.domain.reduction import Groupings, State, fold, item_of
from omninode_bridge.nodes.reducer.v1_0_0.aggregation import rows
from omninode_bridge.ports import Generation, StateStore, fingerprint

PERSIST_TARGET = "bridge_state"
# Each lost race means that another reducer moved on; so many in a row mean that it does our work.
ATTEMPTS_MAX = 8


def in_order(given: object) -> list[Record]:
    """Return the records of an input by shard and position, each once; ModelOnexError for anything else."""
    if not isinstance(given, list | tuple) or not all(isinstance(record, Record) for record in given):
        raise ModelOnexError(
            "input_state['records'] must be a list of omninode_bridge.domain.log.Record",
            EnumCoreErrorCode.VALIDATION_ERROR,
            field="input_state.records",
        )
    by_place = {(record.topic, record.shard, record.position): record for record in given}
    return [by_place[place] for place in sorted(by_place)]


async def persist(store: StateStore, groupings: Groupings, records: Sequence[Record]) -> None:
    """Fold the records that the live state has not folded yet into it, and move its positions.

    Raises ModelOnexError INVALID_STATE, changing nothing, when a record does not directly follow what is folded,
    or the state is grouped by another contract; SERVICE_UNAVAILABLE when others keep moving the positions.
    """
    for _ in range(ATTEMPTS_MAX):
        generation = await _live(store, groupings)
        moves, accepted = _successors(await store.positions(generation), records)
        if not moves:
            return
        delta = fold((item_of(decode(record.body)) for record in accepted), groupings)
        if await store.apply(generation, delta, moves):
            return
    raise ModelOnexError(
        f"the positions moved {ATTEMPTS_MAX} times while this batch was folded: another reducer is at work, try again",
        EnumCoreErrorCode.SERVICE_UNAVAILABLE,
    )


def intents(state: State, groupings: Groupings, records: Iterable[Record] = ()) -> list[ModelIntent]:
    """Return the write that is left to make, if any: the rows to merge, and the place in the log they go up to."""
    if not state:
        return []
    heads: dict[ShardKey, Record] = {(record.topic, record.shard): record for record in records}
    data: dict[str, Any] = {
        "grouped_by": fingerprint(groupings),
        "rows": rows(state),
        "heads": [
            {"topic": topic, "shard": shard, "position": last.position, "event_id": last.event_id}
            for (topic, shard), last in heads.items()
        ],
    }
    payload = ModelPayloadPersistState(state_key=PERSIST_TARGET, state_data=data)
    return [ModelIntent(intent_type="persist_state", target=PERSIST_TARGET, payload=payload)]


async def _live(store: StateStore, groupings: Groupings) -> Generation:
    wanted = fingerprint(groupings)
    live = await store.live()
    if live is None:
        begun = await store.begin(wanted)
        live = await store.live() or begun
        if live.number != begun.number:
            await store.discard(begun)  # somebody else was first
    if live.fingerprint != wanted:
        raise ModelOnexError(
            "the stored state is grouped by another contract: run omninode-bridge rebuild, or reduce by the node's own",
            EnumCoreErrorCode.INVALID_STATE,
            stored=live.fingerprint,
            wanted=wanted,
        )
    return live


def _successors(
    positions: Mapping[ShardKey, Head], records: Sequence[Record]
) -> tuple[dict[ShardKey, tuple[Head, Head]], list[Record]]:
    moves: dict[ShardKey, tuple[Head, Head]] = {}
    accepted: list[Record] = []
    for key, shard in groupby(records, key=lambda record: (record.topic, record.shard)):
        head = positions.get(key, START)
        following, misfit = follow(head, shard)
        if misfit is not None:
            last = following[-1].position if following else head.position
            raise ModelOnexError(
                f"record {misfit.position} of {misfit.topic}/{misfit.shard} does not follow {last}: "
                "read what lies between from the log",
                EnumCoreErrorCode.INVALID_STATE,
                topic=misfit.topic,
                shard=misfit.shard,
                position=misfit.position,
            )
        if following:
            moves[key] = (head, following[-1].head)
            accepted += following
    return moves, accepted
