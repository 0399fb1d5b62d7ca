"""Become somebody PostgreSQL may run as, tie its life to the parent's, and exec it.

Run by the launcher as a script, `python -I -S child.py ORDER`, so it imports nothing of the bridge. One rule: the
death signal is asked for after the credentials have changed (the kernel clears it when they do) and before the parent
is looked at (who may have died in between). A refusal goes to stderr as JSON; silence means that exec worked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NotRequired, TypedDict

__all__ = ["Order", "Refusal"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Order(TypedDict):
    """What to run, where and as whom. Paths may be undecodable: surrogates survive JSON."""

    parent: int
    folder: str
    log: str
    program: list[str]
    # (uid, gid) to appear as inside a user namespace of our own, mapped to the caller's
    namespace: NotRequired[tuple[int, int]]
    # (uid, gid) to really become
    user: NotRequired[tuple[int, int]]


class Refusal(TypedDict):
    """The step that could not be taken: `namespace`, `user`, `reach`, `log` or `exec`."""

    step: str
    error: str


def _enter_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    # An unprivileged process may map its group only after giving up setgroups: user_namespaces(7).
    for name, text in (
        ("setgroups", "deny"),
        ("gid_map", f"{gid} {outer_gid} 1"),
        ("uid_map", f"{uid} {outer_uid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def _become_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _death_signal() -> Callable[[], None]:
    """Return what asks for it, loaded now: the user to become may not be able to read this Python's library."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        # SIGINT is PostgreSQL's fast shutdown, and makes initdb remove what it began.
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return ask


def _die_with_parent(ask: Callable[[], None], parent: int) -> None:
    # A shell without job control starts its background programs with SIGINT ignored, and that is inherited; ignored,
    # the death signal would be lost until postgres installs its own handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ask()
    if os.getppid() != parent:
        os._exit(1)


def _main(order: Order) -> None:
    report = os.dup(2)  # closed by exec: the launcher reads until then
    ask_for_death_signal = _death_signal()
    step = "namespace"
    try:
        if "namespace" in order:
            _enter_namespace(*order["namespace"])
        step = "user"
        if "user" in order:
            _become_user(*order["user"])
        _die_with_parent(ask_for_death_signal, order["parent"])
        step = "reach"
        os.umask(0o077)
        os.chdir(order["folder"])
        step = "log"
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        step = "exec"
        os.execv(order["program"][0], order["program"])  # noqa: S606  # exec itself, no shell is wanted
    except (OSError, AttributeError) as error:  # AttributeError: a platform without os.unshare
        refusal: Refusal = {"step": step, "error": getattr(error, "strerror", None) or str(error)}
        os.write(report, json.dumps(refusal).encode())
        os._exit(1)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
