"""Trainings on a Ray head of the tests, as the platform starts one: start it, start a stage on it, wait for a step, find who to kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import training_parts as parts

from jobs.environment import REPO, Environment
from jobs.services import training
from jobs.services.platform import engines

STEPS = 400
TIMEOUT = 600.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Head:
    """A Ray head as the platform starts it; ``stop`` ends it with everything it started."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._runtime = Path(tempfile.mkdtemp(prefix="r"))  # socket paths must be short
        service = engines.ray_head(Environment.load("local", folder), port=free_port(), runtime_folder=self._runtime, common={})
        log = folder / "log"
        self.process = subprocess.Popen(
            service.argv, env={**os.environ, **service.env, "PYTHONPATH": str(REPO)}, cwd=folder, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        deadline = time.time() + TIMEOUT
        while not Path(service.health["exists"]).exists():
            assert self.process.poll() is None and time.time() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        self.addresses, self.token = {"ray_address": f"127.0.0.1:{service.port}"}, folder / "ray" / "token"

    def members(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [*self.members(), self.process]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    member.kill()
        self.process.wait(timeout=30)
        shutil.rmtree(self._runtime, ignore_errors=True)


def home_of(folder: Path, head: Head) -> Path:
    """A home that knows the head and may call it."""
    (folder / "ray").mkdir(parents=True, exist_ok=True)
    shutil.copy(head.token, folder / "ray" / "token")
    (folder / "platform.json").write_text(json.dumps({"addresses": head.addresses}))
    return folder


def start(home: Path, table: Path, log: Path, steps: int = STEPS, **changes: Any) -> subprocess.Popen:
    paths = f"{REPO}:{REPO / 'tests'}"
    return subprocess.Popen(parts.train_stage_process(home, table, steps, **changes), cwd=REPO, env=os.environ | {"PYTHONPATH": paths}, stdout=log.open("w"))


def finish(process: subprocess.Popen, log: Path) -> dict[str, Any]:
    assert process.wait(timeout=TIMEOUT) == 0
    return parts.last_json(log.read_text())


def folder_of(home: Path) -> Path:
    return home / "artifacts" / "checkpoints" / ("c" * 32)


def steps_of(home: Path) -> list[int]:
    return [line["step"] for line in training.read_metrics(folder_of(home) / training.METRICS) if line["event"] == "step"]


def wait_for_step(home: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.time() + TIMEOUT
    while len(steps_of(home)) < step:
        assert process.poll() is None, "the stage ended before it was to be killed"
        assert time.time() < deadline
        time.sleep(0.01)


def writer_of(home: Path) -> int:
    """Process id of the training worker, which its lock names."""
    return int((folder_of(home) / training.LOCK).read_text().split()[1])
