"""make soak: SOAK_RUNS (500) pipeline runs, one after the other or SOAK_AT_ONCE (2) together: does the platform stay as it was?

Runs ask for SOAK_DAYS (5) days in turn, so all but the first rounds find their work recorded, as a schedule's runs over an unchanged landing zone do;
every fiftieth is a build. Prints, every tenth of the way: memory of each service, files and bytes of the home by what they are, size of Airflow's and MLflow's
database, seconds a task waits from being due to running, seconds a run takes; at the end growth per run over the second half, and what
`moeline gc --history` leaves. A line of JSON per sample goes to SOAK_OUT. Asserted: all runs succeed, and history goes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import statistics
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg2
from running_platform import family

from jobs import gc, launch, sample_data
from jobs.environment import Environment
from jobs.services.airflow import AirflowClient

RUNS, DAYS, AT_ONCE = (int(os.environ.get(name, default)) for name, default in (("SOAK_RUNS", "500"), ("SOAK_DAYS", "5"), ("SOAK_AT_ONCE", "2")))
RECIPE, SAMPLES, BUILD_EVERY = "smoke", 10, 50
KINDS = ("logs/airflow", "logs", "warehouse/costs", "warehouse/checks", "warehouse/_locks", "warehouse", "progress", "spark", "artifacts", "ray", "run")


def test_a_long_row_of_runs(platform: Environment) -> None:
    days = launch.sample_days(platform, DAYS)
    sample_data.write(platform.landing, days, target_bytes=200_000 * DAYS)
    began, samples, took = time.monotonic(), [], deque(maxlen=max(5, RUNS // SAMPLES))
    with AirflowClient(platform) as client:
        for dag in (launch.PREPARE, launch.BUILD):
            client.wait_for_dag(dag)
            client.unpause(dag)
        flying: list[tuple[str, str]] = []
        for number in range(RUNS):
            flying.append(ask(client, number, days))
            while len(flying) >= (1 if number + 1 == RUNS else AT_ONCE):
                flying = [run for run in flying if not over(client, run, took)]
                time.sleep(0.5)
            if took and (number + 1) % max(1, RUNS // SAMPLES) == 0:
                samples.append(sample(platform, number + 1, time.monotonic() - began, took))
                show(samples[-1])
    growth(samples)
    gc.collect(platform, older_than_seconds=0, history_seconds=0.0)
    after = sample(platform, RUNS, time.monotonic() - began, took)
    print("after `moeline gc --history`, as if all of it were old enough:")
    show(after)
    assert after["files"]["logs/airflow"] < samples[0]["files"]["logs/airflow"] and after["files"]["progress"] <= samples[0]["files"]["progress"]
    with AirflowClient(platform) as client:
        assert len(list(client.dag_runs(launch.PREPARE))) <= 1, "Airflow itself keeps the last scheduled run"


def ask(client: AirflowClient, number: int, days: list[str]) -> tuple[str, str]:
    if (number + 1) % BUILD_EVERY == 0:
        return launch.BUILD, client.trigger(launch.BUILD, {"recipe": RECIPE})["dag_run_id"]
    return launch.PREPARE, client.trigger(launch.PREPARE, {"recipe": RECIPE, "interval": days[number % len(days)]})["dag_run_id"]


def over(client: AirflowClient, run: tuple[str, str], took: deque[tuple[float, float]]) -> bool:
    found = client.dag_run(*run)
    if found["state"] not in ("success", "failed"):
        return False
    assert found["state"] == "success", run
    waits = [seconds(t["scheduled_when"], t["start_date"]) for t in client.task_instances(*run) if t["start_date"] and t["scheduled_when"]]
    took.append((seconds(found["start_date"], found["end_date"]), statistics.median(waits)))
    return True


def seconds(earlier: str, later: str) -> float:
    return (dt.datetime.fromisoformat(later) - dt.datetime.fromisoformat(earlier)).total_seconds()


def sample(env: Environment, number: int, at: float, took: deque[tuple[float, float]]) -> dict[str, Any]:
    files, sizes = contents(env.home)
    return {
        "runs": number, "at": at, "mb": memory(env), "files": files, "bytes": sizes, "databases": databases(env),
        "run_seconds": statistics.median(t for t, _ in took), "wait_seconds": statistics.median(w for _, w in took),
    }  # fmt: skip


def memory(env: Environment) -> dict[str, float]:
    """Proportional set size of every service and all below it, MB."""
    found = {}
    for name, entry in json.loads((env.home / "platform.json").read_text())["services"].items():
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in family(entry) if entry.get("pid") else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_full_info().pss
        if total:
            found[name] = round(total / 1e6, 1)
    return found


def contents(home: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Number and bytes of files by kind; a file counts for the first kind it is below."""
    files, sizes = Counter(dict.fromkeys(KINDS, 0)), Counter(dict.fromkeys(KINDS, 0))
    for file in home.rglob("*"):
        inside = file.relative_to(home).as_posix()
        kind = next((kind for kind in KINDS if inside.startswith(f"{kind}/")), None)
        with contextlib.suppress(OSError):
            if kind and file.is_file():
                files[kind] += 1
                sizes[kind] += file.stat().st_size
    return dict(files), dict(sizes)


def databases(env: Environment) -> dict[str, float]:
    """MB of each database of the platform's PostgreSQL."""
    with contextlib.closing(psycopg2.connect(env.platform["postgres_url"].replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT datname, pg_database_size(datname) FROM pg_database WHERE NOT datistemplate")
        return {name: round(size / 1e6, 2) for name, size in cursor.fetchall()}


def show(found: dict[str, Any]) -> None:
    print(f"{found['runs']:5} runs {found['at']:6.0f} s: a run {found['run_seconds']:.1f} s, a task waits {found['wait_seconds']:.2f} s", flush=True)
    print("      MB: " + ", ".join(f"{name} {mb:.0f}" for name, mb in found["mb"].items()) + f"; databases {found['databases']}")
    print("      files: " + ", ".join(f"{kind} {n} ({found['bytes'][kind] / 1e6:.1f} MB)" for kind, n in found["files"].items()), flush=True)
    if os.environ.get("SOAK_OUT"):
        with open(os.environ["SOAK_OUT"], "a") as out:
            out.write(json.dumps(found) + "\n")


def growth(samples: list[dict[str, Any]]) -> None:
    """Per run, over the second half: by then what is loaded once is loaded."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return
    runs = [s["runs"] for s in half]
    told = {f"{name} MB": [s["mb"].get(name, 0.0) for s in half] for name in half[-1]["mb"]}
    told |= {f"database {name} MB": [s["databases"][name] for s in half] for name in half[-1]["databases"]}
    told |= {f"files of {kind}": [float(s["files"][kind]) for s in half] for kind in KINDS}
    told |= {"a task's wait, s": [s["wait_seconds"] for s in half], "a run, s": [s["run_seconds"] for s in half]}
    print("growth per 100 runs: " + "; ".join(f"{name} {100 * np.polyfit(runs, values, 1)[0]:+.2f}" for name, values in told.items()), flush=True)
