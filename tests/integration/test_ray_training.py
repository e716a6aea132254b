"""Training on a running Ray head, as the platform starts one: killed drivers and workers, one writer, the same model in the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import training_parts as parts

from jobs.environment import REPO
from jobs.services import training

pytestmark = pytest.mark.integration
STEPS = 400
TIMEOUT = 600.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(address, token file) of a Ray head of our own, with a token, ended with everything it started."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    port = free_port()
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": f"/tmp/r{os.getpid()}"}  # noqa: S108 - socket paths must be short
    Path(settings["RAY_TMPDIR"]).mkdir()
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
        "--node-ip-address=127.0.0.1", f"--ray-client-server-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
        f"--temp-dir={settings['RAY_TMPDIR']}", "--object-store-memory=100000000",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | settings, stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT)
    deadline = time.time() + 120
    while True:
        assert process.poll() is None and time.time() < deadline, (folder / "log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        time.sleep(0.5)
    yield f"127.0.0.1:{port}", token
    family = [process, *(psutil.Process(process.pid).children(recursive=True) if process.poll() is None else [])]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            member.kill()
    process.wait(timeout=30)
    subprocess.run(["rm", "-rf", settings["RAY_TMPDIR"]], check=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    parts.sequences(folder)
    return folder / "sequences.parquet"


def home_of(folder: Path, head) -> Path:
    folder.mkdir(parents=True)
    (folder / "platform.json").write_text(json.dumps({"addresses": {"ray_address": head[0], "ray_token_file": str(head[1])}}))
    return folder


def start(home: Path, table: Path, log: Path) -> subprocess.Popen:
    paths = f"{REPO}:{REPO / 'tests'}"
    return subprocess.Popen(parts.train_stage_process(home, table, STEPS), cwd=REPO, env=os.environ | {"PYTHONPATH": paths}, stdout=log.open("w"))


def finish(process: subprocess.Popen, log: Path) -> dict:
    assert process.wait(timeout=TIMEOUT) == 0
    return parts.last_json(log.read_text())


def folder_of(home: Path) -> Path:
    return home / "artifacts" / "checkpoints" / ("c" * 32)


def wait_for_step(home: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.time() + TIMEOUT
    while sum(line["event"] == "step" for line in training.read_metrics(folder_of(home) / training.METRICS)) < step:
        assert process.poll() is None, "the stage ended before it was to be killed"
        assert time.time() < deadline
        time.sleep(0.01)


def writer_of(home: Path) -> int:
    """Process id of the training worker, which its lock names."""
    return int((folder_of(home) / training.LOCK).read_text().split()[1])


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
