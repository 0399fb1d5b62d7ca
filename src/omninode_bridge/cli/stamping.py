"""`stamp` and `verify`: trees of files, a batch at a time.

Per file nothing is done here but what C loops do over a batch; only what is not well is looked at by itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omninode_bridge.cli.output import (
    RED,
    YELLOW,
    Progress,
    count,
    ndjson,
    painted,
    printable,
    say,
    say_json,
    size,
    write,
)
from omninode_bridge.cli.running import FINE, NO, opened, read_settings, run
from omninode_bridge.domain.errors import InvalidInput
from omninode_bridge.domain.names import DEFAULT_NAMESPACE, check_metadata, check_namespace

if TYPE_CHECKING:
    from omninode_bridge.app.settings import Settings
    from omninode_bridge.app.tree import TreeResult, VerifyResult

_COLOURS = {"changed": RED, "missing": RED, "failed": RED, "unstamped": YELLOW}


def stamp(
    paths: list[str],
    *,
    namespace: str | None,
    meta: list[str],
    exclude: list[str],
    rehash: bool,
    intelligence: bool,
    json: bool,
    data_dir: Path | None,
    database_url: str | None,
    server: str | None,
) -> int:
    """Stamp trees and sum up, also when it ends early; NO when a file failed."""
    # Before anything is opened: what is wrong with the input is told at once.
    tenant = check_namespace(DEFAULT_NAMESPACE if namespace is None else namespace)
    metadata = check_metadata(_metadata(meta))
    settings = read_settings(data_dir, database_url, server=server)
    if server is not None and (data_dir is not None or database_url is not None):
        raise InvalidInput(
            "--server names another machine's bridge: leave --data-dir and --database-url out", field="server"
        )
    # What is typed comes before the environment.
    remote = None if data_dir is not None or database_url is not None else settings.server

    async def work() -> int:
        counts: Counter[str] = Counter()
        async with _stamper(settings, remote) as (stamp_batches, finish):
            batches = stamp_batches(
                *paths,
                namespace=tenant,
                metadata=metadata,
                exclude=exclude,
                rehash=rehash,
                enable_intelligence=intelligence,
            )
            with Progress("stamped", bar=not _fills_screen(json)) as progress:
                try:
                    async with aclosing(batches) as results:  # type: ignore[type-var]
                        async for batch in results:
                            _take(batch, counts, progress)
                            if json:
                                write(ndjson(batch))
                    # What was acknowledged here is in the state, whoever asks for it next.
                    await finish()
                except BaseException:
                    progress.stop()
                    if progress.files:
                        _sum_up_stamps(tenant, counts, progress, json)
                    raise
            _sum_up_stamps(tenant, counts, progress, json)
        return NO if counts["failed"] else FINE

    return run(work())


@asynccontextmanager
async def _stamper(
    settings: Settings, remote: str | None
) -> AsyncIterator[tuple[Callable[..., AsyncIterator[list[TreeResult]]], Callable[[], Awaitable[None]]]]:
    """Give what stamps trees in batches, here or at a server, and what to wait for when all is stamped."""
    from omninode_bridge.app.bootstrap import open_bridge, remote_stamper

    if remote is None:
        async with open_bridge(settings) as bridge:
            yield bridge.stamp_tree_batches, bridge.query.up_to_date
    else:
        async with remote_stamper(remote, settings) as stamp_batches:
            yield stamp_batches, _nothing


async def _nothing() -> None:
    """A server's reads wait for its reducer by themselves."""


def verify(
    paths: list[str],
    *,
    namespace: str | None,
    exclude: list[str],
    ignore_unstamped: bool,
    json: bool,
    data_dir: Path | None,
    database_url: str | None,
) -> int:
    """Compare trees with their stamps and list what differs; NO on drift, or when a file could not be read."""
    tenant = check_namespace(DEFAULT_NAMESPACE if namespace is None else namespace)

    async def work() -> int:
        counts: Counter[str] = Counter()
        async with opened(data_dir, database_url) as bridge:
            with Progress("verified", bar=not _fills_screen(json)) as progress:
                async with aclosing(bridge.verify_tree(*paths, namespace=tenant, exclude=exclude)) as results:  # type: ignore[type-var]
                    async for batch in results:
                        differing = _take(batch, counts, progress)
                        if json:
                            write(ndjson(batch))
                        else:
                            for result in differing:
                                progress.say(
                                    f"{painted(f'{result.status:9}', _COLOURS[result.status])}  {_named(result)}"
                                )
        _sum_up_verification(tenant, counts, progress, json)
        drift = counts["changed"] + counts["missing"] + counts["failed"]
        return NO if drift or (counts["unstamped"] and not ignore_unstamped) else FINE

    return run(work())


def _take[Result: TreeResult | VerifyResult](
    batch: Sequence[Result], counts: Counter[str], progress: Progress
) -> list[Result]:
    """Count a batch, complain of its failures, and return what is neither fine nor failed."""
    statuses = [result.status for result in batch]
    counts.update(statuses)
    progress.advance(len(batch), sum([result.file_size for result in batch]))
    if set(statuses) <= {"new", "unchanged", "ok"}:
        return []
    for result in batch:
        if result.error is not None:
            progress.complain(result.error.message)
    return [result for result in batch if result.status in {"changed", "missing", "unstamped"}]


def _metadata(pairs: list[str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidInput(f"--meta {pair!r} is not KEY=VALUE: write it as team=legal", field="metadata")
        if key in metadata:
            raise InvalidInput(f"--meta names {key!r} twice: give it once", field="metadata")
        metadata[key] = value
    return metadata


def _named(result: VerifyResult) -> str:
    path = printable(result.file_path)
    if result.status != "changed" or result.stamp is None:
        return path
    return f"{path}  (now {result.file_hash}, version {result.stamp.version} is {result.stamp.file_hash})"


def _sum_up_stamps(namespace: str, counts: Counter[str], progress: Progress, json: bool) -> None:
    took = progress.elapsed_s
    if json:
        say_json({
            "summary": {
                "namespace": namespace,
                "files": progress.files,
                "size_bytes": progress.octets,
                "new": counts["new"],
                "unchanged": counts["unchanged"],
                "failed": counts["failed"],
                "elapsed_s": round(took, 3),
                "files_per_s": round(progress.files / took, 1),
                "bytes_per_s": round(progress.octets / took),
            }
        })  # fmt: skip
        return
    say(f"{count(progress.files, 'file')}, {size(progress.octets)} in {took:.2f} s ({progress.rates()})")
    failed = f"{count(counts['failed'])} failed"
    say(
        f"{namespace}: {count(counts['new'])} new, {count(counts['unchanged'])} unchanged, "
        f"{painted(failed, RED) if counts['failed'] else failed}"
    )


def _sum_up_verification(namespace: str, counts: Counter[str], progress: Progress, json: bool) -> None:
    kinds = ("ok", "changed", "missing", "unstamped", "failed")
    if json:
        took = {"size_bytes": progress.octets, "elapsed_s": round(progress.elapsed_s, 3)}
        say_json({"summary": {"namespace": namespace, **{kind: counts[kind] for kind in kinds}, **took}})
        return
    told = [f"{count(counts[kind])} {kind}" for kind in kinds if counts[kind] or kind != "failed"]
    say(f"{count(progress.files, 'path')}, {size(progress.octets)} in {progress.elapsed_s:.2f} s ({progress.rates()})")
    say(f"{namespace}: {', '.join(told)}")


def _fills_screen(json: bool) -> bool:
    return json and sys.stdout.isatty()
