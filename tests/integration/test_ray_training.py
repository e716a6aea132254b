"""Training on a running Ray head, as the platform starts one: killed drivers and workers, one writer, the same model in the end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import training_parts as parts
from ray_trainings import STEPS, Head, finish, folder_of, home_of, start, steps_of, wait_for_step, writer_of

from jobs.services import training

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    running = Head(tmp_path_factory.mktemp("ray"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    parts.sequences(folder)
    return folder / "sequences.parquet"


@pytest.fixture(scope="module")
def undisturbed(head, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    home = home_of(folder / "home", head)
    return finish(start(home, table, folder / "log"), folder / "log")


def test_launch_is_quick_on_a_running_head(undisturbed):
    assert undisturbed["row"]["step"] == STEPS
    assert undisturbed["metrics"]["launch_seconds"] <= 40.0 * max(1.0, os.getloadavg()[0] / 2)  # the limit holds for a machine that is not overcommitted


def test_a_killed_driver_leaves_no_worker_and_a_retry_ends_as_if_undisturbed(head, table, undisturbed, tmp_path):
    home = home_of(tmp_path / "home", head)
    driver = start(home, table, tmp_path / "log")
    wait_for_step(home, 30 + int.from_bytes(os.urandom(1)), driver)
    worker = writer_of(home)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert training.result_of(folder_of(home)) is None
    found = finish(start(home, table, tmp_path / "log"), tmp_path / "log")
    assert not psutil.pid_exists(worker), "Ray left the first attempt's worker running"
    assert found["metrics"]["resumed_from_step"] >= 20
    assert {k: found["row"][k] for k in ("sha256", "loss", "held_out_loss")} == {k: undisturbed["row"][k] for k in ("sha256", "loss", "held_out_loss")}


def test_a_killed_worker_is_restarted_within_the_attempt(head, table, undisturbed, tmp_path):
    home = home_of(tmp_path / "home", head)
    driver = start(home, table, tmp_path / "log")
    wait_for_step(home, 30 + int.from_bytes(os.urandom(1)), driver)
    os.kill(writer_of(home), signal.SIGKILL)
    found = finish(driver, tmp_path / "log")
    assert found["metrics"]["resumed_from_step"] >= 20
    assert found["row"]["sha256"] == undisturbed["row"]["sha256"]


def test_two_attempts_at_once_train_once(head, table, undisturbed, tmp_path):
    home = home_of(tmp_path / "home", head)
    first = start(home, table, tmp_path / "first")
    wait_for_step(home, 5, first)
    second = start(home, table, tmp_path / "second")
    found = [finish(first, tmp_path / "first"), finish(second, tmp_path / "second")]
    assert [f["row"]["sha256"] for f in found] == [undisturbed["row"]["sha256"]] * 2
    lines = training.read_metrics(folder_of(home) / training.METRICS)
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, STEPS + 1))
    assert sum(line["event"] == "started" for line in lines) == 1


TOGETHER = {"workers": 2, "expert_parallel": 2, "precision": "fp32"}


def workers_of(driver: subprocess.Popen, home: Path) -> list[int]:
    """Process ids of both workers: of the one that holds the run's lock, and of its siblings that do the same."""
    first = psutil.Process(writer_of(home))
    return [first.pid, *(p.pid for p in first.parent().children() if p.pid != first.pid and p.name() == first.name())]


def test_two_workers_share_one_training_and_a_killed_one_changes_nothing(head, table, tmp_path):
    alone, undisturbed, killed = (home_of(tmp_path / name, head) for name in ("alone", "undisturbed", "killed"))
    one = finish(start(alone, table, tmp_path / "one", 120, precision="fp32"), tmp_path / "one")
    two = finish(start(undisturbed, table, tmp_path / "two", 120, **TOGETHER), tmp_path / "two")
    assert two["row"]["loss"] == pytest.approx(one["row"]["loss"], rel=1e-4)
    assert two["row"]["held_out_loss"] == pytest.approx(one["row"]["held_out_loss"], rel=1e-4)
    driver = start(killed, table, tmp_path / "log", 120, **TOGETHER)
    wait_for_step(killed, 30 + int.from_bytes(os.urandom(1)) % 60, driver)
    victims = workers_of(driver, killed)
    assert len(victims) == 2
    os.kill(victims[os.urandom(1)[0] % 2], signal.SIGKILL)
    found = finish(driver, tmp_path / "log")
    assert found["metrics"]["resumed_from_step"] >= 20
    assert found["row"]["sha256"] == two["row"]["sha256"]
    assert steps_of(killed) == list(range(1, 121))
