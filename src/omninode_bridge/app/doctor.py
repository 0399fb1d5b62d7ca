"""Each thing the bridge depends on, looked at, judged, and with a remedy where it is not well.

A check that could not be made because another failed is left out: the remedy for that one comes first. Nothing is
changed or made by looking; an embedded server that exists is started for as long as it is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from omninode_bridge.adapters.embedded.binaries import find_binaries
from omninode_bridge.adapters.embedded.folder import DataFolder
from omninode_bridge.adapters.hashing import Blake3Hasher
from omninode_bridge.adapters.postgres.connection import POSTGRES_MAJOR_MIN
from omninode_bridge.adapters.postgres.diagnosis import ServerFacts, examine, pending_migrations
from omninode_bridge.app.database import database
from omninode_bridge.app.settings import Settings
from omninode_bridge.domain.errors import BridgeError
from omninode_bridge.domain.stamp import Digest, Inline
from omninode_bridge.nodes.contracts import load_contracts

FREE_BYTES_MIN = 1 << 30
"""An embedded server's write-ahead log may take this much before it is recycled."""
CLOCK_SKEW_MAX_S = 2.0
"""Leases run on the server's clock, a stamp's times on ours: more than this shows in the records."""

_PYTHONS = ((3, 12), (3, 13))

# From BLAKE3's published test vectors: the input's byte i is i mod 251. The long one takes the vectorised tree path.
_KNOWN_DIGESTS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    102_400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. `detail` says what was found; `remedy` what to do when it is not well.

    The remedy is empty where the detail is an error of ours, which says it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


async def diagnose(settings: Settings) -> list[Check]:
    """Return a check of each dependency, those first that others stand on."""
    checks = [_python(), _contracts(settings), await _blake3()]
    if settings.database_url is not None:
        return checks + await _server(settings, _without_password(settings.database_url))
    own = [_data_folder(settings.data_dir), _binaries(settings.postgres_binaries)]
    if all(check.ok for check in own) and DataFolder(settings.data_dir).has_cluster():
        own += await _server(settings, f"embedded in {settings.data_dir}")
    return checks + own


def judge(facts: ServerFacts, pending: list[str], *, embedded: bool) -> list[Check]:
    """Return what to think of a server. An embedded one is migrated by the next command, so that may be pending."""
    replicated = facts.standbys > 0 or facts.synchronous_standby_names != ""
    flushed = {"on", "remote_apply"} if replicated else {"on", "remote_apply", "remote_write", "local"}
    durable = facts.fsync and facts.full_page_writes and facts.synchronous_commit in flushed
    awaited = facts.standbys == 0 or facts.synchronous_standby_names != ""
    return [
        Check(
            name="PostgreSQL version",
            ok=facts.major >= POSTGRES_MAJOR_MIN,
            detail=facts.version,
            remedy=f"upgrade it to {POSTGRES_MAJOR_MIN} or newer",
        ),
        Check(
            name="encoding",
            ok=facts.encoding == "UTF8",
            detail=facts.encoding,
            remedy="create the database anew with ENCODING 'UTF8': paths and metadata may have any character",
        ),
        Check(
            name="schema",
            ok=embedded or not pending,
            detail=f"{len(pending)} migrations to apply: {', '.join(pending)}" if pending else "current",
            remedy="run `omninode-bridge migrate`",
        ),
        Check(
            name="durability",
            ok=durable,
            detail=(
                f"fsync {_switch(facts.fsync)}, full_page_writes {_switch(facts.full_page_writes)}, "
                f"synchronous_commit {facts.synchronous_commit}"
            ),
            remedy="turn all three on: otherwise a crash may lose stamps that were acknowledged",
        ),
        Check(
            name="replication",
            ok=awaited and not facts.read_only,
            detail=_replication(facts),
            remedy=(
                "connect to the primary"
                if facts.read_only
                else "set synchronous_standby_names: without it a failover may lose stamps that were acknowledged"
            ),
        ),
        Check(
            name="sessions",
            ok=facts.session_is_ours,
            detail="one backend each" if facts.session_is_ours else "lent to others between transactions",
            remedy="connect to PostgreSQL itself, or to a pooler in session mode: writers hold session locks",
        ),
        Check(
            name="login",
            ok=not facts.inherits,
            detail=(
                "has the rights of the program's roles also in a session that took none"
                if facts.inherits
                else "sees nothing by the program's roles until it takes one"
            ),
            remedy=(
                "ALTER ROLE … NOINHERIT; on PostgreSQL 16 or newer also GRANT omninode_bridge_tenant, "
                "omninode_bridge_service TO … WITH INHERIT FALSE, SET TRUE"
            ),
        ),
        Check(
            name="clock",
            ok=abs(facts.clock_ahead_s) <= CLOCK_SKEW_MAX_S,
            detail=f"the server's less ours: {facts.clock_ahead_s:+.3f} s",
            remedy="set both clocks by NTP",
        ),
    ]


async def _server(settings: Settings, where: str) -> list[Check]:
    try:
        async with database(settings) as url:
            facts = await examine(url)
            reached = Check(name="PostgreSQL", ok=True, detail=where)
            try:
                pending = await pending_migrations(url)
            except BridgeError as error:
                schema = Check(name="schema", ok=False, detail=error.message)
                others = judge(facts, [], embedded=settings.database_url is None)
                return [reached, *(schema if check.name == "schema" else check for check in others)]
            return [reached, *judge(facts, pending, embedded=settings.database_url is None)]
    except BridgeError as error:
        return [Check(name="PostgreSQL", ok=False, detail=error.message)]


def _python() -> Check:
    return Check(
        name="Python",
        ok=sys.version_info[:2] in _PYTHONS and sys.implementation.name == "cpython",
        detail=f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}",
        remedy="install under CPython 3.12 or 3.13",
    )


def _contracts(settings: Settings) -> Check:
    try:
        contracts = load_contracts(settings.orchestrator_contract, settings.reducer_contract)
    except BridgeError as error:
        return Check(name="contracts", ok=False, detail=error.message, remedy="mend the file, or use the shipped one")
    names = ", ".join(contracts.reducer.groupings.names())
    return Check(name="contracts", ok=True, detail=f"valid; state is grouped by {names}")


async def _blake3() -> Check:
    contents = [Inline(bytes(at % 251 for at in range(length))) for length in _KNOWN_DIGESTS]
    digests = await Blake3Hasher().digest_many(contents)
    found = [digest.file_hash if isinstance(digest, Digest) else digest.message for digest in digests]
    right = found == list(_KNOWN_DIGESTS.values())
    return Check(
        name="BLAKE3",
        ok=right,
        detail="the published digests come out" if right else f"wrong digests: {', '.join(found)}",
        remedy="reinstall the blake3 package for this processor: no digest it makes can be trusted",
    )


def _data_folder(path: Path) -> Check:
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    try:
        if path.exists():
            folder = DataFolder(path)
            with folder.translated():
                folder.recorded_major()
        free = shutil.disk_usage(existing).free
    except BridgeError as error:
        return Check(name="data directory", ok=False, detail=error.message)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name="data directory",
            ok=False,
            detail=f"{existing} can't be written by this user",
            remedy="change its owner, or choose another folder with --data-dir or BRIDGE_DATA_DIR",
        )
    made = "" if path.exists() else " (not there yet: the first command makes it)"
    return Check(
        name="data directory",
        ok=free >= FREE_BYTES_MIN,
        detail=f"{path}{made}, {free / 1e9:.1f} GB free",
        remedy=f"free some room: less than {FREE_BYTES_MIN / 1e9:.1f} GB may not last for the write-ahead log",
    )


def _binaries(folder: Path | None) -> Check:
    try:
        found = find_binaries(folder)
    except BridgeError as error:
        return Check(name="embedded PostgreSQL", ok=False, detail=error.message)
    return Check(name="embedded PostgreSQL", ok=True, detail=f"PostgreSQL {found.major} in {found.folder}")


def _replication(facts: ServerFacts) -> str:
    if facts.read_only:
        return "this server is a standby: it takes no stamps"
    if facts.standbys == 0:
        return "no standbys"
    awaited = facts.synchronous_standby_names
    return f"{facts.standbys} standbys, " + (f"commits wait for {awaited}" if awaited else "commits wait for none")


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _without_password(url: str) -> str:
    """Return a database URL that may be shown: host, port and database only."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "the configured URL"
