"""The one real platform all tests with services share; tests/conftest.py offers it as the fixture ``platform``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.environment import Environment


@pytest.fixture(scope="session")
def platform() -> Iterator[Environment]:
    """The environment of a running platform with the repository's DAGs; about a minute on first use, stopped at the end.

    Nothing of it may be taken for granted between tests but that it runs: tables and runs of other tests are in it too.
    """
    from jobs.services import platform as local

    # Short, because of Unix sockets; not pytest's folder, because PostgreSQL as root steps down to another user.
    home = Path(tempfile.mkdtemp(prefix="moeline-")).resolve()
    env = Environment.load("local", home)
    echo: list[str] = []
    try:
        with _usual_port_taken(int(env.services["mlflow_port"])):
            local.up(env, echo=echo.append)
        yield env
    finally:
        local.down(env, echo=echo.append)
        left = still_running(home)
        # MOELINE_TEST_KEEP: look at the logs of a failed run.
        if not os.environ.get("MOELINE_TEST_KEEP"):
            shutil.rmtree(home, ignore_errors=True)
    assert not left, f"`down` left processes running: {left}"


def mlflow_sign_in(env: Environment) -> tuple[str, str]:
    """User and password of the platform's MLflow server."""
    return env.platform["mlflow_user"], Path(env.platform["mlflow_password_file"]).read_text().strip()


@contextlib.contextmanager
def _usual_port_taken(port: int) -> Iterator[None]:
    """Somebody else's server on a usual port: every test run proves that the platform moves aside."""
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # taken already: as good
            other.bind(("127.0.0.1", port))
            other.listen()
        yield


def still_running(home: Path) -> list[str]:
    """Command lines of processes that work in ``home`` or name it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                command = " ".join(process.cmdline())
                if str(home) in command or str(home) == process.cwd() or process.cwd().startswith(f"{home}/"):
                    found.append(command)
    return found


def stage_tries(env: Environment, runs: Iterable[tuple[str, str]] | None = None) -> list[tuple[tuple[str, str, str, int], dict[str, Any]]]:
    """Every try Airflow made of a stage: ((dag, run, task, try), what it says of it). ``runs``: only of these (dag, run)."""
    from jobs.config import STAGES
    from jobs.services.airflow import AirflowClient
    from jobs.services.reconciling import DAGS

    found = []
    with AirflowClient(env) as client:
        if runs is None:
            runs = [(dag, run["dag_run_id"]) for dag in DAGS for run in client.dag_runs(dag)]
        for dag, run in runs:
            stages = [task["task_id"] for task in client.task_instances(dag, run) if task["task_id"] in STAGES]
            found += [((dag, run, stage, one["try_number"]), one) for stage in stages for one in client.task_tries(dag, run, stage)]
    return found


def family(entry: dict[str, Any]) -> list[psutil.Process]:
    """The process of a service's record and all below it."""
    process = psutil.Process(entry["pid"])
    return [one for one in (process, *process.children(recursive=True)) if one.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """What ``condition`` gives once it is true; fails after ``seconds``, naming ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return found
