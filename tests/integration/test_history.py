"""moeline gc --history: what only tells of work that ended long ago goes, in Airflow's real tables too, and nothing younger or needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli, gc, history
from jobs.environment import REPO, Environment
from jobs.services import compaction, delta, table_files
from jobs.services.platform.services import runtime_folder

pytestmark = pytest.mark.integration
DAY = 86_400.0
RUNS = {"old": (40, "success"), "failed": (39, "failed"), "waiting": (35, "running"), "after": (34, "success"), "young": (1, "success")}

FILL = """
import datetime as dt, json, sys, uuid
from airflow.models import DagRun
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
from airflow.utils.types import DagRunType, DagRunTriggeredByType
with create_session() as session:
    session.add(DagBundleModel(name="dags-folder"))
    session.flush()
    session.add(DagModel(dag_id="build_model", bundle_name="dags-folder", fileloc="x"))
    session.flush()
    for name, (days, state) in json.loads(sys.argv[1]).items():
        at = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
        session.add(DagRun(dag_id="build_model", run_id=name, run_type=DagRunType.MANUAL, state=state, start_date=at, queued_at=at,
                           run_after=at, triggered_by=DagRunTriggeredByType.TEST))
"""
LIST = """
from airflow.models import DagRun
from airflow.utils.session import create_session
with create_session() as session:
    print("RUNS", *sorted(run_id for (run_id,) in session.query(DagRun.run_id)))
"""


def airflow(env: Environment, *command: str) -> str:
    variables = {**os.environ, "AIRFLOW_HOME": str(env.home / "airflow"), "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, *command], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A home with Airflow's own tables (in SQLite) and five runs in them."""
    env = Environment.load("local", tmp_path_factory.mktemp("home"))
    folder = env.home / "airflow"
    folder.mkdir(parents=True)
    settings = f"[core]\nload_examples = False\nunit_test_mode = False\n[database]\nsql_alchemy_conn = sqlite:///{folder}/airflow.db\n"
    (folder / "airflow.cfg").write_text(settings)
    airflow(env, "-m", "airflow", "db", "migrate")
    airflow(env, "-c", FILL, json.dumps(RUNS))
    return env


def runs(env: Environment) -> list[str]:
    return next(line for line in airflow(env, "-c", LIST).splitlines() if line.startswith("RUNS")).split()[1:]


def test_runs_leave_airflow_but_none_from_the_first_on_that_still_waits(home: Environment) -> None:
    assert runs(home) == sorted(RUNS)
    dry = gc.collect(home, history_seconds=30 * DAY, dry_run=True)
    assert dry["counts"]["runs in Airflow"] == 2 and runs(home) == sorted(RUNS)
    assert gc.collect(home, history_seconds=30 * DAY)["counts"]["runs in Airflow"] == 2
    assert runs(home) == ["after", "waiting", "young"]
    assert "runs in Airflow" not in gc.collect(home, history_seconds=30 * DAY)["counts"]


def test_a_database_that_does_not_answer_is_a_reason_and_no_error(env: Environment) -> None:
    (env.home / "airflow").mkdir(parents=True)
    (env.home / "airflow" / "airflow.cfg").write_text("[database]\nsql_alchemy_conn = postgresql+psycopg2://nobody@127.0.0.1:1/none\n")
    (reason,) = gc.collect(env, history_seconds=DAY)["kept"]
    assert reason.startswith("Airflow's runs: ") and "moeline up" in reason


def write(file: Path, days: float, text: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - days * DAY,) * 2)
    return file


def test_old_logs_go_and_large_ones_are_cut(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_LOG_BYTES", 1000)
    monkeypatch.setattr(history, "TAIL_BYTES", 100)
    old = write(env.home / "logs" / "airflow" / "dag_id=d" / "run_id=1" / "attempt=1.log", 40)
    young = write(env.home / "logs" / "airflow" / "dag_id=d" / "run_id=2" / "attempt=1.log", 3)
    (env.home / "ray").mkdir(parents=True)
    worker = write(runtime_folder(env.home) / "ray" / "session_1" / "logs" / "worker.out", 40)
    progress = write(env.home / "progress" / "run--ingest.json", 40)
    small = write(env.home / "logs" / "spark-connect.log", 40)
    large = write(env.home / "logs" / "mlflow.log", 0, "".join(f"line {k}\n" for k in range(500)))
    with large.open("ab") as service:  # as the supervisor opens it
        found = gc.collect(env, history_seconds=30 * DAY)
        service.write(b"and on\n")
    assert not old.parent.exists() and young.is_file() and not progress.exists() and not worker.exists() and small.is_file()
    assert large.read_text() == "and on\n" and large.with_name("mlflow.log.1").read_text().endswith("line 498\nline 499\n")
    assert large.with_name("mlflow.log.1").read_text().startswith("line ") and large.with_name("mlflow.log.1").stat().st_size <= 100
    assert found["counts"] == {"task logs": 1, "progress of tasks": 1, "logs of Ray's workers": 1, "logs of services": 1}


def test_joined_files_go_and_no_row_does(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FILES", 8)
    for number in range(20):
        delta.append(env, "checks", [{"run_key": f"k{number}", "rule": "r", "passed": True}])
    root = env.warehouse / "checks"
    replaced = table_files.newest(root).removed_at
    rows, number = delta.rows(env, "checks"), len(list(root.glob("*.parquet")))
    assert number == 22 and len(replaced) > 10 and min(replaced.values()) > time.time() - 60
    assert "files of checks that were joined" not in gc.collect(env, history_seconds=DAY)["counts"]
    later = time.time() + 2 * DAY
    monkeypatch.setattr(time, "time", lambda: later)
    assert gc.collect(env, history_seconds=DAY)["counts"]["files of checks that were joined"] == len(replaced)
    assert delta.rows(env, "checks") == rows and len(list(root.glob("*.parquet"))) == number - len(replaced)
    delta.append(env, "checks", [{"run_key": "new", "rule": "r", "passed": True}])
    assert len(delta.rows(env, "checks")) == 21
    told = table_files.rows_by_version(root)
    assert told[max(told)] == 21 and None in told.values()


@pytest.mark.parametrize("days", ["0", "0.5", "-1", "nan", "inf"])
def test_a_number_of_days_that_is_none_is_refused(env: Environment, capsys: pytest.CaptureFixture[str], days: str) -> None:
    assert cli.main(["gc", "--history", days, "--home", str(env.home)]) == 1
    assert "is no number of days" in capsys.readouterr().err
