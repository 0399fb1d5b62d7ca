"""The ModelONEXContainer with our ports in it, and how a node gets them out.

omnibase_core registers by the bare name of a class and checks nothing: a second registration under a name is
ignored, and an object that lacks the port's methods is taken. So containers are only filled here, with built
instances and by typed arguments, and `resolve` is the only way out. It is meant for a node's first
asynchronous use, once: a look-up costs microseconds, and `get_service` inside a running loop blocks it.
"""

# mypy: disable-error-code="type-abstract"
# Ports are Protocols, and as keys of the registry their classes are passed as values.

from __future__ import annotations

from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.container.model_onex_container import ModelONEXContainer
from omnibase_core.models.errors.model_onex_error import ModelOnexError

from omninode_bridge.ports import Clock, Hasher, IdSource, Intelligence, Ledger, StateStore

_REMEDIES = {
    "Clock": "a callable that returns the time in UTC",
    "Hasher": "what computes BLAKE3 digests",
    "IdSource": "a callable that returns fresh UUIDv7s",
    "Intelligence": "what analyses content",
    "Ledger": "what records stamps durably",
    "StateStore": "what keeps the running totals",
}


async def build_container(
    *,
    ledger: Ledger | None = None,
    hasher: Hasher | None = None,
    intelligence: Intelligence | None = None,
    state_store: StateStore | None = None,
    clock: Clock | None = None,
    ids: IdSource | None = None,
) -> ModelONEXContainer:
    """Return a container with the given ports registered. The caller opens and closes what they hold."""
    container = ModelONEXContainer()
    await _register(container, Ledger, ledger)
    await _register(container, Hasher, hasher)
    await _register(container, Intelligence, intelligence)
    await _register(container, StateStore, state_store)
    await _register(container, Clock, clock)
    await _register(container, IdSource, ids)
    return container


async def resolve[P](container: ModelONEXContainer, port: type[P]) -> P:
    """Return the registered port, or raise ModelOnexError DEPENDENCY_UNAVAILABLE naming it."""
    try:
        return await container.get_service_async(port)
    except ModelOnexError as error:
        name = port.__name__
        raise ModelOnexError(
            f"the container has no {name}: register {_REMEDIES.get(name, 'one')} with nodes.container.build_container",
            EnumCoreErrorCode.DEPENDENCY_UNAVAILABLE,
            port=name,
        ) from error


async def resolve_if_any[P](container: ModelONEXContainer, port: type[P]) -> P | None:
    """Return the registered port, or None where the container has none."""
    try:
        return await resolve(container, port)
    except ModelOnexError:
        return None


async def _register[P](container: ModelONEXContainer, port: type[P], instance: P | None) -> None:
    if instance is not None:
        await container.service_registry.register_instance(port, instance)
