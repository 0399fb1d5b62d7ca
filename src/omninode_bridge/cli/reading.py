"""`show`, `history`, `state` and `workflow`: what is recorded, for people or as NDJSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omninode_bridge.cli.output import (
    BOLD,
    GREEN,
    RED,
    YELLOW,
    count,
    moment,
    ndjson,
    painted,
    printable,
    say,
    say_json,
    size,
    table,
    write,
)
from omninode_bridge.cli.running import FINE, opened, run
from omninode_bridge.domain.names import (
    DEFAULT_NAMESPACE,
    canonical_json,
    check_namespace,
    check_workflow_id,
    normalise_path,
)

if TYPE_CHECKING:
    from omninode_bridge.app.bridge import Bridge
    from omninode_bridge.app.explaining import WorkflowReport
    from omninode_bridge.app.query import StateRow
    from omninode_bridge.domain.stamp import Stamp

PAGE_ROWS = 1000
"""Rows of a long answer that are aligned and written together."""


def show(wanted: str, namespace: str | None, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print the stamps of a digest, or the one of a stamp id, or a path's latest."""
    tenant = None if namespace is None else check_namespace(namespace)

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            # A digest and an id are their own normal form.
            stamps = await bridge.find(normalise_path(wanted), tenant)
        if json:
            say_json(*stamps)
        else:
            for at, stamp in enumerate(stamps):
                if at:
                    say("")
                _describe(stamp)
        return FINE

    return run(work())


def history(path: str, namespace: str | None, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print every version of a path, newest first."""
    tenant = check_namespace(DEFAULT_NAMESPACE if namespace is None else namespace)

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            stamps = await bridge.history(normalise_path(path), tenant)
        if json:
            say_json(*stamps)
        else:
            rows = [
                (
                    str(stamp.version),
                    moment(stamp.completed_at),
                    size(stamp.file_size),
                    stamp.file_hash,
                    stamp.stamped_by,
                    stamp.stamp_id,
                )
                for stamp in stamps
            ]
            table(("VERSION", "STAMPED", "SIZE", "DIGEST", "BY", "STAMP"), rows, numeric=(0, 2))
        return FINE

    return run(work())


def state(namespace: str | None, by: str, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print the rows of a grouping, of one namespace or of all."""
    tenant = None if namespace is None else check_namespace(namespace)

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            if by != "workflow":
                rows = await _rows(bridge, by, tenant)
                _print_rows(rows, json)
                return FINE
            # One row a workflow: as many as there are stamps, so they are printed as they come.
            await bridge.query.up_to_date()
            page: list[StateRow] = []
            async for row in bridge.query.workflow_rows(tenant):
                page.append(row)
                if len(page) == PAGE_ROWS:
                    _print_rows(page, json)
                    page = []
            if page:
                _print_rows(page, json)
        return FINE

    return run(work())


def workflow(
    workflow_id: str, namespace: str | None, json: bool, data_dir: Path | None, database_url: str | None
) -> int:
    """Print where a workflow is, how it came there, and why."""
    wanted = check_workflow_id(workflow_id)
    tenant = None if namespace is None else check_namespace(namespace)

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            report = bridge.report(await bridge.workflow(wanted, tenant))
        if json:
            say_json(report)
        else:
            _narrate(report)
        return FINE

    return run(work())


async def _rows(bridge: Bridge, by: str, namespace: str | None) -> list[StateRow]:
    rows = await bridge.states(by, namespace)
    if rows or by != "namespace" or namespace is None:
        return rows
    # Nothing was ever stamped in it: its one row has zeros.
    from omninode_bridge.app.query import StateRow

    totals = await bridge.state(namespace)
    return [StateRow(**{name: getattr(totals, name) for name in StateRow.__struct_fields__})]


def _print_rows(rows: Sequence[StateRow], json: bool) -> None:
    if json:
        write(ndjson(rows))
        return
    header = ("NAMESPACE", "GROUP", "STAMPS", "FAILED", "SIZE", "MEAN TIME", "FIRST", "LAST")
    cells = [
        (
            row.namespace,
            # Of the namespaces themselves there is one group each.
            "" if row.aggregation_type == "namespace" else row.group_key,
            count(row.total_stamps),
            count(row.failed),
            size(row.total_size_bytes),
            f"{row.processing_time_us_sum / row.total_stamps / 1000:.1f} ms" if row.total_stamps else "-",
            moment(row.first_at),
            moment(row.last_at),
        )
        for row in rows
    ]
    table(header, cells, numeric=(2, 3, 4, 5))


def _describe(stamp: Stamp) -> None:
    lines = {
        "stamp": stamp.stamp_id,
        "path": f"{stamp.file_path} (version {stamp.version})",
        "namespace": stamp.namespace,
        "digest": f"{stamp.file_hash} ({stamp.hash_algorithm}, {stamp.digest_origin})",
        "size": f"{stamp.file_size:,} bytes",
        "type": stamp.content_type,
        "metadata": canonical_json(stamp.metadata).decode(),
        "intelligence": "none" if stamp.intelligence is None else canonical_json(stamp.intelligence).decode(),
        "stamped": f"{moment(stamp.completed_at)} by {stamp.stamped_by}, in {stamp.processing_time_ms:.1f} ms",
        "workflow": f"{stamp.workflow_id} ({stamp.workflow_state})",
    }
    for name, value in lines.items():
        say(f"{painted(f'{name:12}', BOLD)}  {printable(value)}")


def _narrate(report: WorkflowReport) -> None:
    state = painted(report.state, RED if report.error else GREEN if report.stamp else YELLOW)
    say(f"{painted('workflow', BOLD)}   {report.workflow_id}")
    say(f"{painted('namespace', BOLD)}  {report.namespace}")
    say(f"{painted('path', BOLD)}       {printable(report.file_path)}")
    say(f"{painted('state', BOLD)}      {state}: {printable(report.why)}")
    say(painted("history", BOLD))
    for visit in report.history:
        trigger = f"  ({visit.trigger})" if visit.trigger is not None else ""
        say(f"  {visit.at:%Y-%m-%d %H:%M:%S.%f}Z  {visit.state}{trigger}")
