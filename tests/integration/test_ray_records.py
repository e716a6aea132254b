"""What a real Ray head recorded of a driver that was killed is what the ledger is corrected by."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jobs.environment import PLATFORM_FILE, REPO
from jobs.services import ray_connection, reconciling
from jobs.services.platform import engines


@pytest.fixture
def with_head(env):
    """The environment of a Ray head of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray puts long socket names below it
    (env.home / "logs").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = engines.ray_head(env, port=port, runtime_folder=folder, common={**os.environ, "PYTHONPATH": str(REPO)})
    with open(head.log, "w") as log:
        process = subprocess.Popen(head.argv, env=dict(head.env), cwd=head.cwd, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not all(os.path.exists(head.health[name]) for name in ("unix", "exists")):
            assert process.poll() is None and time.monotonic() < deadline, Path(head.log).read_text()[-2000:]
            time.sleep(0.2)
        (env.home / PLATFORM_FILE).write_text(json.dumps({"addresses": {"ray_address": f"127.0.0.1:{port}"}}))
        yield env
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_ray_knows_when_a_killed_driver_ended(with_head):
    address = with_head.platform["ray_address"]
    program = f"import ray, time\nray.init(address={address!r}, log_to_driver=False)\nprint('up', flush=True)\ntime.sleep(60)"
    driver = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **engines.ray_environment(with_head)}, stdout=subprocess.PIPE, text=True)
    began = time.time()
    assert driver.stdout.readline() == "up\n"
    assert ray_connection.ended_drivers(with_head) == []
    driver.kill()
    at = time.time()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 20
    while not (found := ray_connection.ended_drivers(with_head)) and time.monotonic() < deadline:
        time.sleep(0.2)
    (one,) = (reconciling.Driver(**d) for d in found)
    assert one.pid == driver.pid and began - 1 < one.started_at < at
    assert one.ended_at == pytest.approx(at, abs=2)


def test_a_process_that_knew_another_ray_before_comes_with_this_ones_token(with_head):
    """Ray reads once in a process's life whether there is a token, and when it is imported."""
    program = (
        "import ray\nfrom pathlib import Path\nfrom jobs.environment import Environment\nfrom jobs.services import ray_connection\n"
        f"print(ray_connection.ended_drivers(Environment.load('local', Path({str(with_head.home)!r}))))"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
