"""As whom PostgreSQL runs: never as root, and always so that it owns its folder.

The folder's owner decides. An ordinary user runs it himself; root runs somebody else's folder as that somebody, and a
folder of root's own inside a user namespace, where an ordinary uid stands for root: folders closed to others work,
and no file changes hands. Where namespaces are refused (many containers), root gives a new folder to `nobody`.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from omninode_bridge.adapters.embedded.child import Order

__all__ = ["Identity", "identities", "nobody"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the child becomes: (uid, gid) shown inside a namespace, or really taken; neither means the caller."""

    namespace: tuple[int, int] | None = None
    user: tuple[int, int] | None = None

    def applied_to(self, order: Order) -> Order:
        """Return the order, to be carried out as this identity."""
        if self.namespace:
            return {**order, "namespace": self.namespace}
        return {**order, "user": self.user} if self.user else order


def identities(owner: int, group: int) -> list[Identity]:
    """Return who may run a folder of this owner, best first; the next is tried only where a namespace is refused."""
    if os.geteuid() != 0:
        # initdb looks its user up by name; a container's nameless uid gets a name inside a namespace.
        return [Identity()] if _is_named(os.geteuid()) else [Identity(namespace=_ordinary()), Identity()]
    if owner != 0:
        return [Identity(user=(owner, group))]
    return [Identity(namespace=_ordinary())]


def nobody() -> tuple[int, int]:
    """Return uid and gid of the system's `nobody`."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary() -> tuple[int, int]:
    # Any uid that has a name does. `nobody` comes last: inside a namespace it also stands for every uid not mapped.
    for name in ("daemon", "bin"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid and entry.pw_gid:
            return entry.pw_uid, entry.pw_gid
    return nobody()
