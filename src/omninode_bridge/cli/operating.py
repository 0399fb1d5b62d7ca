"""`up`, `serve`, `migrate`, `doctor`, `audit`, `rebuild`, `contract validate`, `bench`: what keeps a bridge running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omninode_bridge.cli.output import GREEN, RED, count, painted, printable, say, say_json
from omninode_bridge.cli.running import FINE, NO, opened, read_settings, run
from omninode_bridge.domain.errors import InvalidInput, NotFound
from omninode_bridge.domain.names import check_namespace

if TYPE_CHECKING:
    from omninode_bridge.app.bootstrap import Role


def up(data_dir: Path | None, database_url: str | None, host: str | None, port: int | None) -> int:
    """Serve until told to stop."""
    settings = read_settings(data_dir, database_url, host=host, port=port)

    async def work() -> int:
        from omninode_bridge.http.server import serve

        await serve(settings, announce=_announce, notice=_notice)
        return FINE

    return run(work())


def serve(role: Role, database_url: str | None, host: str | None, port: int | None) -> int:
    """Serve in one role, on a shared PostgreSQL, until told to stop."""
    settings = read_settings(None, database_url, host=host, port=port)
    if settings.database_url is None:
        raise InvalidInput(
            "serve needs a PostgreSQL that its processes share: name it with --database-url or BRIDGE_DATABASE_URL, "
            "or use `omninode-bridge up`, which brings its own",
            field="database_url",
        )
    if role == "relay" and settings.kafka_bootstrap_servers is None:
        raise InvalidInput(
            "a relay forwards events to Kafka: say where that is with BRIDGE_KAFKA_BOOTSTRAP_SERVERS, such as "
            "kafka:9092",
            field="kafka_bootstrap_servers",
        )

    async def work() -> int:
        from omninode_bridge.app.waiting import wait_for_dependencies
        from omninode_bridge.http.server import serve as serving

        await wait_for_dependencies(settings, role, _notice)
        await serving(settings, role=role, announce=lambda url: _announce(url, role), notice=_notice)
        return FINE

    return run(work())


def _announce(url: str, role: str = "") -> None:
    what = f"omninode-bridge {role}".strip()
    say(f"{what} serves on {url} (Ctrl-C ends it)")
    sys.stdout.flush()


def _notice(sentence: str) -> None:
    say(printable(sentence))
    sys.stdout.flush()


def migrate(dry_run: bool, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Apply what is pending, and name it."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.schema import migrate as bring_up_to_date

        names = await bring_up_to_date(settings, dry_run=dry_run)
        if json:
            say_json(*({"migration": name, "applied": not dry_run} for name in names))
        else:
            for name in names:
                say(f"{'would apply' if dry_run else 'applied'} {name}")
            if not names:
                say("the schema is current")
        return FINE

    return run(work())


def doctor(json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print a line a check, and the remedy of each that is not well; NO when there is one."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.doctor import diagnose

        checks = await diagnose(settings)
        for check in checks:
            if json:
                remedy = {"remedy": check.remedy} if check.remedy and not check.ok else {}
                say_json({"name": check.name, "ok": check.ok, "detail": check.detail, **remedy})
                continue
            verdict = painted("ok ", GREEN) if check.ok else painted("NOT", RED)
            say(f"{verdict}  {check.name:20}  {printable(check.detail)}")
            if not check.ok and check.remedy:
                say(f"     {'':20}  remedy: {printable(check.remedy)}")
        return FINE if all(check.ok for check in checks) else NO

    return run(work())


def audit(json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print a line a law, and its faults; NO when one is broken."""

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            # What is acknowledged is folded first, so that the finding is about all of it.
            await bridge.query.up_to_date()
            findings = await bridge.audit()
        for finding in findings:
            if json:
                say_json({
                    "law": finding.law,
                    "title": finding.title,
                    "holds": finding.holds,
                    "checked": finding.checked,
                    "unit": finding.unit,
                    "faults": finding.faults,
                    "examples": finding.examples,
                })  # fmt: skip
                continue
            verdict = (
                painted("holds", GREEN)
                if finding.holds
                else painted(f"BROKEN by {count(finding.faults, 'fault')}", RED)
            )
            say(f"law {finding.law}, {finding.title}: {verdict} ({count(finding.checked)} {finding.unit} checked)")
            for fault in finding.examples:
                say(f"    {printable(fault)}")
            if finding.faults > len(finding.examples):
                say(f"    … and {count(finding.faults - len(finding.examples))} more")
        return FINE if all(finding.holds for finding in findings) else NO

    return run(work())


def rebuild(namespace: str | None, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Recompute the state and say so."""
    tenant = None if namespace is None else check_namespace(namespace)

    async def work() -> int:
        async with opened(data_dir, database_url) as bridge:
            await bridge.rebuild(tenant)
        if json:
            say_json({"rebuilt": tenant or "all"})
        else:
            say(f"the state of {tenant or 'all namespaces'} was folded anew from the event log and swapped in")
        return FINE

    return run(work())


def validate(path: str, json: bool) -> int:
    """Print what is wrong with each contract; NO when something is."""
    from omninode_bridge.nodes.contracts import validate_path

    reports = validate_path(path)
    for report in reports:
        if json:
            problems = [{"field": problem.field, "message": problem.message} for problem in report.problems]
            say_json({"path": report.path, "kind": report.kind, "valid": not problems, "problems": problems})
        elif report.problems:
            for problem in report.problems:
                say(f"{printable(report.path)}: {painted(printable(str(problem)), RED)}")
        else:
            say(f"{printable(report.path)}: {painted(f'valid {report.kind} contract', GREEN)}")
    return NO if any(report.problems for report in reports) else FINE


def bench(names: list[str], smoke: bool, json: bool) -> int:
    """Run the benchmarks of the checkout that this package is installed from."""
    checkout = next((folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file()), None)
    if checkout is None or not (checkout / "benchmarks" / "__main__.py").is_file():
        raise NotFound("the benchmarks come with the source, not with the package: clone it, then run `make bench`")
    flags = [*(["--smoke"] if smoke else []), *(["--json"] if json else [])]
    command = [sys.executable, "-m", "benchmarks", *flags, "--", *names]
    return subprocess.run(command, cwd=checkout, check=False).returncode
