"""A load trial: a fleet, Locust's users against it, and the reckoning.

    python -m tests.load.trial      LOAD_USERS (1000), LOAD_SECONDS (60) and LOAD_SEED in the environment

What it proves is not how fast the service is, but that nothing is lost, doubled or miscounted while a thousand callers
want something at once; the figures are printed beside that.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.load.fleet import Fleet, Role
from tests.load.reckoning import Told, reckon

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
ROLES: tuple[Role, ...] = ("api", "api", "orchestrator", "reducer")
TENANTS = 20
SPAWN_S = 4
"""How long the users take to come, at the least; they are counted in `seconds`."""
STOP_S_MAX = 20
"""How long users may take to end what they are at when the time is over."""
START_S_MAX = 60


class Outcome(NamedTuple):
    """What a trial came to. `figures` is what Locust measured, `counted` what the reckoning found."""

    seed: str
    figures: dict[str, Any]
    counted: dict[str, Any]

    @property
    def calls_without_answer(self) -> int:
        failures: int = self.figures["calls"]["Aggregated"]["failures"]
        return failures

    def lines(self) -> list[str]:
        """Return the outcome as a person reads it."""
        calls = self.figures["calls"]
        width = max(map(len, calls))
        told = [f"{'call':{width}}  requests  no answer   p50 ms   p95 ms   p99 ms   max ms"]
        for name, call in calls.items():
            counts = f"{call['requests']:>8,}  {call['failures']:>9,}"
            times = "  ".join(f"{call[part] or 0:>7,.0f}" for part in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
            told.append(f"{name:{width}}  {counts}  {times}")
        users, seconds = self.figures["users"], self.figures["seconds"]
        rate = calls["Aggregated"]["requests"] / seconds
        told += ["", f"{users:,} users at once, {seconds:.0f} s, {rate:,.0f} requests/s"]
        told += [f"come back later: {count:,} × {what}" for what, count in sorted(self.figures["counts"].items())]
        told += [", ".join(f"{count:,} {what}" for what, count in self.counted.items())]
        return [*told, "every acknowledged stamp is there once, all totals are right, and the audit is clean"]


async def trial(folder: Path, *, users: int, seconds: int, seed: str) -> Outcome:
    """Run a trial in a folder; AssertionError tells what is lost, double, wrong or not answered as it should be."""
    async with Fleet.sailing(folder, ROLES) as fleet:
        names = [f"tenant-{number:02}" for number in range(TENANTS)]
        tokens = await fleet.tokens([f"{name}.*" for name in names])
        place = {
            "urls": [process.url for process in fleet.of("api")],
            "tenants": [
                {"token": token, "namespaces": [f"{name}.docs", f"{name}.media"]}
                for name, token in zip(names, tokens, strict=True)
            ],
        }
        (folder / "place.json").write_text(json.dumps(place))
        await _locust(folder, users, seconds, seed)
        figures = json.loads((folder / "figures.json").read_text())
        counted = await reckon(fleet, Told.written(folder.glob("told-*.jsonl")))
        codes = [await process.stop() for process in fleet.processes]
        assert codes == [0] * len(codes), f"the processes ended with {codes}"
        assert not (said := fleet.complaints()), "\n".join(said[:20])
    return Outcome(seed, figures, counted)


async def _locust(folder: Path, users: int, seconds: int, seed: str) -> None:
    arguments = ["-f", LOCUSTFILE, "--headless", "--only-summary", "--loglevel", "WARNING"]
    arguments += ["--users", users, "--spawn-rate", max(1, users // SPAWN_S)]
    arguments += ["--run-time", seconds, "--stop-timeout", STOP_S_MAX]
    log = folder / "locust.log"
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", *map(str, arguments)),
            env=os.environ | {"LOAD_FOLDER": str(folder), "LOAD_SEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            async with asyncio.timeout(START_S_MAX + seconds + STOP_S_MAX):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (folder / "figures.json").exists(), f"locust ended with {process.returncode}: {log.read_text()[-3000:]}"


def _main() -> None:
    users, seconds = int(os.environ.get("LOAD_USERS", "1000")), int(os.environ.get("LOAD_SECONDS", "60"))
    seed = os.environ.get("LOAD_SEED", "20260304")
    print(f"==> {users:,} users for {seconds} s, {' + '.join(ROLES)} and PostgreSQL, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="load-", dir="/tmp") as folder:
        try:
            outcome = asyncio.run(trial(Path(folder), users=users, seconds=seconds, seed=seed))
        except AssertionError as fault:
            sys.exit(f"the trial failed: {fault}")
    print("\n".join(outcome.lines()))


if __name__ == "__main__":
    _main()
