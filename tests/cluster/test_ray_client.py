"""A training as a cluster's stage pod launches it: by Ray Client (``ray://``) with the token from the environment, on a Ray that has no address of ours."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import training_parts as parts
from ray_trainings import free_port

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import ray, training_data
from jobs.services.training import TrainingRun

pytestmark = pytest.mark.integration
START_SECONDS = 180.0


@pytest.fixture(scope="module")
def cluster():
    """(variables, address) of a head that speaks Ray Client, as KubeRay starts one but on loopback."""
    runtime = Path(tempfile.mkdtemp(prefix="r"))  # socket paths must be short
    client = free_port()
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
    variables["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # as in the chart; see ray_connection
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "false"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(free_port()), "--ray-client-server-port", str(client), "--num-cpus", "2"]
    command += ["--object-store-memory", "200000000", "--temp-dir", str(runtime)]
    log = runtime / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **variables, "PYTHONPATH": str(REPO)}, cwd=runtime, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", client), 1).close()
                break
            time.sleep(0.5)
        yield variables, f"ray://127.0.0.1:{client}"
    finally:
        members = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait(timeout=30)
        shutil.rmtree(runtime, ignore_errors=True)


def environment(folder: Path, address: str) -> Environment:
    """One machine's environment with the cluster's lines about Ray."""
    file = folder / "there.toml"
    file.write_text((REPO / "infra" / "env" / "local.toml").read_text() + f'\nray_address = "{address}"\nray_autoscales = true\n')
    return Environment.load(str(file), folder / "home")


def train(env: Environment, folder: Path) -> dict:
    data = training_data.write(parts.sequences(folder / "table"), folder / "scratch" / "sequences")
    run = TrainingRun(str(folder / "run"), data.folder, parts.small_train())
    Path(run.folder).mkdir(parents=True)
    (result,) = ray.train(env, [run], name="t", resources=env.stage_resources("train"), processes=1, scratch=str(folder / "scratch")).results
    return result


def test_a_training_by_ray_client_is_the_same_as_one_here(cluster, tmp_path, monkeypatch):
    variables, address = cluster
    with monkeypatch.context() as pod:
        for name, value in variables.items():
            pod.setenv(name, value)
        there = train(environment(tmp_path, address), tmp_path / "there")
    here = train(Environment.load("local", tmp_path / "local"), tmp_path / "here")
    assert there["steps"] == here["steps"] == 40
    assert (there["sha256"], there["loss"], there["held_out_loss"]) == (here["sha256"], here["loss"], here["held_out_loss"])


def test_without_the_token_nobody_trains(cluster, tmp_path, monkeypatch):
    _, address = cluster
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with pytest.raises(MoelineError, match="could not be reached"):
        train(environment(tmp_path, address), tmp_path / "stranger")
    assert not list((tmp_path / "stranger" / "run").glob("step-*"))
