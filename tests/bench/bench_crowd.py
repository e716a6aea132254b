"""make crowd: CROWD_DAYS (30) data days, each asked for twice in random order (SEED=1), several at once, while two models are built and the platform is
stopped and started in the middle.

Passed means: all runs end well; every piece of work was computed once; every failed or killed try has its cost row; the tables are those that one
process after the other makes of the same days in the same order; two models that register at the same moment are both recorded and one is champion;
`moeline gc` leaves nothing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from running_platform import stage_tries
from stage_processes import Places, run, start, table_rows, written_by

from jobs import gc, launch, sample_data
from jobs.environment import Environment
from jobs.services import delta, ledger, reconciling, report, results
from jobs.services import mlflow as registry
from jobs.services import platform as local
from jobs.services.airflow import AirflowClient

DAYS, SEED, RECIPE = int(os.environ.get("CROWD_DAYS", "30")), int(os.environ.get("SEED", "1")), "smoke"
BUDGETS = (0.25, 0.3)
ACTIVE = ("queued", "running")


def test_a_crowd(platform: Environment, tmp_path_factory: pytest.TempPathFactory) -> None:
    days = launch.sample_days(platform, DAYS)
    sample_data.write(platform.landing, days, target_bytes=200_000 * DAYS)
    began, luck = time.monotonic(), random.Random(SEED)
    asked = [day for day in days for _ in range(2)]
    luck.shuffle(asked)
    with AirflowClient(platform) as client:
        for dag in (launch.PREPARE, launch.BUILD):
            client.wait_for_dag(dag)
        for day in asked:
            client.trigger(launch.PREPARE, {"recipe": RECIPE, "interval": day})
        client.unpause(launch.PREPARE)
    wait(platform, began, until=lambda left: len(results.of_stage(platform, "summarise")) >= 3)
    with AirflowClient(platform) as client:
        for budget in BUDGETS:
            client.trigger(launch.BUILD, {"recipe": RECIPE, "budget_usd": budget})
        client.unpause(launch.BUILD)
    wait(platform, began, until=lambda left: left <= len(asked) // 2)
    say(began, "down and up again, in the middle of everything")
    local.down(platform, echo=lambda _: None)
    local.up(platform, echo=lambda _: None)
    wait(platform, began, until=lambda left: left == 0)
    reconciling.reconcile(platform)
    judge_runs(platform, len(asked))
    judge_tables(platform, days, tmp_path_factory)
    judge_registry(platform)
    gc.collect(platform, older_than_seconds=0)
    again = gc.collect(platform, older_than_seconds=0)
    assert again["counts"] == {}, again
    say(began, f"{len(asked)} runs of {DAYS} days and {len(BUDGETS)} builds: as it must be")


def say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)


def wait(env: Environment, began: float, *, until) -> None:
    """Until ``until`` (of the number of runs that are not over), with a line now and then."""
    told = 0.0
    while True:
        with AirflowClient(env) as client:
            left = [r for dag in (launch.PREPARE, launch.BUILD) for state in ACTIVE for r in client.dag_runs(dag, state=state)]
        if until(len(left)):
            return
        if time.monotonic() - told > 30:
            told = time.monotonic()
            say(began, f"{len(left)} runs to go")
        time.sleep(2)


def judge_runs(env: Environment, asked: int) -> None:
    charges = report.attempts(env)
    charged = {(c["x_DagId"], c["x_DagRunId"], c["x_TaskId"], c["x_TaskTry"]) for c in charges}
    with AirflowClient(env) as client:
        states = Counter((run["run_type"], run["state"]) for dag in (launch.PREPARE, launch.BUILD) for run in client.dag_runs(dag))
    assert states["manual", "success"] == asked + len(BUDGETS) and {state for _, state in states} == {"success"}, states  # others: the schedule's own
    failed = [key for key, one in stage_tries(env) if one["state"] in ("failed", "up_for_retry") and one["start_date"]]
    assert set(failed) <= charged, set(failed) - charged
    done = Counter((c["x_Stage"], c["x_RunKey"]) for c in charges if c["x_Outcome"] == "succeeded")
    assert set(done.values()) == {1}, "the same work was paid twice"
    print(f"{len(charges)} attempts, {dict(Counter(c['x_Outcome'] for c in charges))}; failed tries: {len(failed)}", flush=True)
    assert not [a for a, _, alive in ledger.open_attempts(env) if not alive]


def judge_tables(env: Environment, days: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The days once more, one after the other, in the order in which they were deduplicated."""
    order = [r.interval for r in sorted(results.of_stage(env, "deduplicate"), key=lambda r: delta_version(r.outputs["unique_documents"]))]
    assert sorted(order) == sorted(days)
    alone = Places(env, env.landing, tmp_path_factory.mktemp("alone"))("alone")
    stages = ("ingest", "clean", "deduplicate")
    for day in order:
        for stage in stages:
            run(alone, stage, day)
    assert table_rows(alone, written_by(stages)) == table_rows(env, written_by(stages))


def delta_version(output: str) -> int:
    return int(output.rpartition("@")[2])


def judge_registry(env: Environment) -> None:
    """Two registrations at one moment, of gates that nobody asked for before."""
    before = {r["run_key"] for r in delta.rows(env, "registrations")}
    both = [start(env, "register", None, "--budget-usd", str(budget)) for budget in (0.41, 0.42)]
    assert [process.wait(timeout=600) for process in both] == [0, 0], [process.stderr.read()[-2000:] for process in both]
    new = [r for r in delta.rows(env, "registrations") if r["run_key"] not in before]
    assert len({r["run_key"] for r in new}) == len({r["model_version"] for r in new}) == 2
    rows = sorted(delta.rows(env, "registrations"), key=lambda r: r["registered_at"])
    refused = Counter(gate["name"] for r in rows for gate in json.loads(r["gates"]) if not gate["passed"])
    print(f"{len(rows)} registrations; gates that refused: {dict(refused)}", flush=True)
    api = registry.client(env)
    for alias, last in (("champion", [r for r in rows if r["promoted"]][-1:]), ("challenger", [r for r in rows if not r["promoted"]][-1:])):
        held = [v.version for v in api.search_model_versions("name='moeline'") if alias in api.get_model_version("moeline", v.version).aliases]
        assert held == [r["model_version"] for r in last], (alias, held, last)


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", __file__, "-s", "-q"]))
