"""One trial: the whole job on a new home, disturbed; then everything that must be true of it.

Change here: what is looked at, while it runs (Witness) and after. Not here: what is done to it (disturbances.py), which trials there are (test_chaos.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from disturbances import Disturbance, Hands
from running_platform import stage_tries, still_running, until
from stage_processes import table_rows

from expectations.tables import TABLES
from jobs import gc
from jobs.config import WRITERS
from jobs.environment import REPO, Environment
from jobs.services import delta, ledger, reconciling, report, results
from jobs.services import platform as local
from jobs.services.airflow import AirflowClient

DAYS, BYTES, RECIPE = int(os.environ.get("CHAOS_DAYS", "1")), 1_500_000, "smoke"
JOB_SECONDS = 1500
# Times, ids and addresses of one run, and what is reckoned from measured seconds or dollars.
VOLATILE = {"landed_at", "registered_at", "mlflow_run_id", "run_key", "uri", "content_hash", "lineage", "gates", "moved_by", "proxies"}
COMPARED = [name for name, table in TABLES.items() if table.partition and name != "forecasts"]


@dataclass
class Outcome:
    """``problems``: what was not as it must be. ``retries``: how often the command had to be given again."""

    seed: int
    planned: list[str]
    happened: list[str] = field(default_factory=list)
    retries: int = 0
    seconds: float = 0.0
    killed: int = 0
    problems: list[str] = field(default_factory=list)
    gone: dict[str, int] = field(default_factory=dict)


def rows_of(env: Environment) -> dict[str, list[dict[str, Any]]]:
    """Rows of all tables that a job writes, without what no two jobs share."""
    return table_rows(env, COMPARED, VOLATILE)


def environment(home: Path) -> Environment:
    """One day after the other: which of two copies is kept depends on which day is deduplicated first."""
    file = home.parent / "local.toml"
    if not file.exists():
        usual = (REPO / "infra" / "env" / "local.toml").read_text()
        file.write_text(usual.replace("backfill_max_active_runs = 3", "backfill_max_active_runs = 1"))
    os.environ["MOELINE_ENV"] = str(file)
    return Environment.load(str(file), home)


def template(home: Path) -> None:
    """A home whose platform has run once, with landed days and no work done."""
    from jobs import launch, sample_data

    env = environment(home)
    sample_data.write(env.landing, launch.sample_days(env, DAYS), target_bytes=BYTES)
    local.up(env, echo=lambda _: None)
    with AirflowClient(env) as client:
        client.wait_for_dag("build_model")
    local.down(env, echo=lambda _: None)


def fresh(home: Path, model: Path) -> Environment:
    """``home``, which always has the same path because databases hold it, as the template is."""
    for entry in home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    subprocess.run(["cp", "-a", f"{model}/.", str(home)], check=True)
    return environment(home)


class Witness(threading.Thread):
    """Looks at `moeline status` and the page all the time; what they said that was not so."""

    def __init__(self, env: Environment) -> None:
        super().__init__(daemon=True)
        self.env, self.problems, self.asked, self.answered = env, [], 0, 0
        self._end, self._spent, self._token = threading.Event(), 0.0, ""

    def run(self) -> None:
        while not self._end.wait(2.0):
            try:
                self._status()
                self._page()
            except Exception as error:  # a witness that dies would have nothing to say
                self.problems.append(f"witness: {type(error).__name__}: {error}"[:300])

    def end(self) -> None:
        self._end.set()
        self.join(timeout=60)

    def _status(self) -> None:
        found = local.status(self.env)
        for name, service in found["services"].items():
            if service["state"] == "healthy" and _is_stopped(service["pid"]):
                time.sleep(30)  # it may have been stopped a moment ago, and a server's answer may wait in a queue
                again = local.status(self.env)["services"][name]
                if again["state"] == "healthy" and again["pid"] == service["pid"] and _is_stopped(service["pid"]):
                    self.problems.append(f"status says that {name} is healthy; it has been stopped for half a minute")

    def _page(self) -> None:
        """Costs on the page only grow, and are never more than the ledger's a moment later."""
        addresses = self.env.platform
        if "airflow_url" not in addresses:
            return
        self.asked += 1
        with (
            contextlib.suppress(httpx.HTTPError, OSError, ValueError, KeyError),
            httpx.Client(base_url=addresses["airflow_url"], trust_env=False, timeout=20) as client,
        ):
            if not self._token:
                password = json.loads(Path(addresses["airflow_password_file"]).read_text())["admin"]
                self._token = client.post("/auth/token", json={"username": "admin", "password": password}).json()["access_token"]
            answer = client.get("/costs/api/runs", headers={"Authorization": f"Bearer {self._token}"})
            if answer.status_code == 401:
                self._token = ""
            if answer.status_code == 200:
                self.answered += 1
                spent, ledgers = answer.json()["total_usd"] or 0.0, report.summary(self.env)["total_usd"] or 0.0
                if not self._spent - 1e-9 <= spent <= ledgers + 1e-9:
                    self.problems.append(f"the page said ${spent:.6f} after ${self._spent:.6f}, and the ledger ${ledgers:.6f}")
                self._spent = spent


def _is_stopped(pid: int | None) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def command(env: Environment, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words, "--home", str(env.home)], cwd=REPO, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out,
        )  # fmt: skip


def run_job(env: Environment, log: Path, planned: list[Disturbance], usual_seconds: float, outcome: Outcome) -> None:
    """`moeline up`, `moeline run`, the disturbances at their moments; where the command failed, both once more."""
    luck = random.Random(f"{outcome.seed} hands")
    began = time.monotonic()
    for attempt in range(3):
        if command(env, log, "up").wait(timeout=600) != 0:
            outcome.happened.append("`moeline up` failed")
        job = command(env, log, "run", "--recipe", RECIPE, "--days", str(DAYS))
        hands = Hands(env, luck, job.pid)
        try:
            while planned and job.poll() is None:
                if time.monotonic() - began >= planned[0].moment * usual_seconds:
                    outcome.happened.append(f"{time.monotonic() - began:.0f} s: {hands.do(planned.pop(0))}")
                time.sleep(0.2)
            code = job.wait(timeout=JOB_SECONDS)
        finally:
            hands.undo()
            if job.poll() is None:
                job.kill()
        outcome.retries = attempt
        if code == 0:
            break
        outcome.happened.append(f"{time.monotonic() - began:.0f} s: the command ended with {code}")
    else:
        outcome.problems.append("the job did not end well, three times")
    outcome.seconds = time.monotonic() - began


def judge(env: Environment, outcome: Outcome, expected: dict[str, list[dict[str, Any]]] | None, witness: Witness) -> None:
    """Everything that must be true after a trial."""
    say = outcome.problems.append
    # A dead command cannot go on, and with the supervisor everything ends: each must be given again.
    if outcome.retries > max(1, sum(f"killed {who}" in what for who in ("command", "supervisor") for what in outcome.happened)):
        say(f"{outcome.retries} retries of the command")
    if not local.status(env)["running"]:
        local.up(env, echo=lambda _: None)
    until(lambda: local.status(env)["healthy"], seconds=300, what="every service is healthy again")
    reconciling.reconcile(env)
    if expected is not None:
        found = rows_of(env)
        if not _in_order(env):  # the first day failed as often as Airflow tries, and was done again after the second
            outcome.happened.append("the second day was deduplicated before the first")
            expected = {name: rows for name, rows in expected.items() if WRITERS[name] in ("ingest", "clean")}
        outcome.problems += [
            f"table {name} differs: {len(found[name])} rows, undisturbed {len(rows)}" for name, rows in expected.items() if found[name] != rows
        ]
    _every_try_is_charged(env, outcome)
    outcome.killed = sum(a["x_Outcome"] == "killed" for a in report.attempts(env))
    witness.end()
    outcome.problems += witness.problems
    if witness.asked > 20 and witness.answered == 0:
        say("the page never answered")
    local.down(env, echo=lambda _: None)
    if left := still_running(env.home):
        say(f"still running after down: {left}")
    outcome.gone = gc.collect(env, older_than_seconds=0)["counts"]
    again = gc.collect(env, older_than_seconds=0)
    if again["counts"] or again["kept"]:
        say(f"left after gc: {again}")
    strays = [os.path.relpath(p, env.home) for p in (*env.warehouse.glob("_staging/*"), *env.artifacts.rglob(".unfinished-*"), *env.home.rglob("*.tmp"))]
    strays += [str(a.attempt_id) for a, _, _ in ledger.open_attempts(env)]
    if strays:
        say(f"left after gc: {strays}")


def _in_order(env: Environment) -> bool:
    """Whether the first data day was deduplicated before the second, as in the undisturbed job."""
    done = sorted((r.finished_at, r.interval) for r in results.of_stage(env, "deduplicate"))
    return [interval for _, interval in done] == sorted(interval for _, interval in done)


def _every_try_is_charged(env: Environment, outcome: Outcome) -> None:
    """Every try that Airflow saw run has a row, or found its work recorded; no attempt has two rows of one phase."""
    charges = [c for c in delta.rows(env, "costs") if c["ChargeCategory"] == "Usage" and c["x_Phase"] not in ("idle", "storage")]
    charged = {(c["x_DagId"], c["x_DagRunId"], c["x_TaskId"], c["x_TaskTry"]) for c in charges}
    phases = [(c["x_AttemptId"], c["x_Phase"]) for c in charges if not c["x_CorrectsId"]]
    if doubled := {p for p in phases if phases.count(p) > 1}:
        outcome.problems.append(f"charged twice: {doubled}")
    for key, one in stage_tries(env):
        if one["state"] in ("failed", "up_for_retry") and one["start_date"] and key not in charged:
            outcome.problems.append(f"no cost row of {key}, which ended as {one['state']}")


def trial(
    seed: int, home: Path, model: Path, work: Path, planned: list[Disturbance], usual_seconds: float, expected: dict[str, list[dict[str, Any]]] | None
) -> Outcome:
    """All of it; ``work`` keeps the log. The home is left as it is at the end, stopped."""
    env = fresh(home, model)
    outcome = Outcome(seed, [str(one) for one in planned])
    witness = Witness(env)
    witness.start()
    try:
        run_job(env, work / f"seed-{seed}.log", list(planned), usual_seconds, outcome)
        judge(env, outcome, expected, witness)
    except AssertionError as problem:
        outcome.problems.append(str(problem)[:500])
    finally:
        witness.end()
        local.down(env, echo=lambda _: None)
    return outcome
