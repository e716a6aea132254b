"""What is done to a running platform: processes killed or stopped, the disk full or read-only. All drawn from a seed.

Change here: what can happen, and how. Not here: when a trial is passed (trial.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.environment import Environment
from jobs.services import ledger, process_identity
from jobs.services.platform.processes import descendants
from jobs.services.platform.record import read_record

SERVICES = (
    "postgres",
    "airflow-api-server",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "mlflow",
    "spark-connect",
    "ray-head",
    "checks",
)
VICTIMS = ("stage", "stage", "stage", "airflow-task", "ray-worker", "raylet", "postgres-backend", "spark-python", "supervisor", "command", *SERVICES)
_WAIT_FOR_VICTIM_SECONDS = 30.0


@dataclass(frozen=True)
class Disturbance:
    """``moment``: share of the undisturbed job's duration. ``seconds``: how long it lasts (0: a kill)."""

    kind: str  # kill | stop | full | read-only
    moment: float
    victim: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind}{f' {self.victim}' if self.victim else ''}{lasting} at {100 * self.moment:.0f} %"


def draw(seed: int, *, can_mount: bool) -> list[Disturbance]:
    """One to three disturbances, in the order they happen; what this machine does not allow is not drawn."""
    luck = random.Random(seed)
    kinds = ["kill"] * 14 + ["stop"] * 3 + ["full", "read-only"] * can_mount
    found = []
    for _ in range(luck.choice((1, 2, 2, 3))):
        kind, moment = luck.choice(kinds), luck.uniform(0.02, 0.95)
        victim = luck.choice(VICTIMS if kind == "kill" else (*SERVICES, "stage", "raylet", "supervisor")) if kind in ("kill", "stop") else ""
        seconds = {"kill": 0.0, "stop": luck.choice((5.0, 30.0, 150.0))}.get(kind, luck.uniform(10, 40))
        found.append(Disturbance(kind, moment, victim, seconds))
    return sorted(found, key=lambda one: one.moment)


def pids(env: Environment, victim: str, command: int) -> list[int]:
    """The processes that a victim's name may mean now."""
    record = read_record(env.home)
    services = {name: entry["pid"] for name, entry in record.get("services", {}).items() if entry.get("pid")}
    if victim == "command":
        return [command]
    if victim == "supervisor":
        return [record["supervisor"]["pid"]] if record.get("supervisor") else []
    if victim in services:
        return [services[victim]]
    if victim in ("stage", "airflow-task"):
        running = [attempt.pid for attempt, _, alive in ledger.open_attempts(env) if alive]
        return running if victim == "stage" else [parent for pid in running if (parent := _parent(pid)) > 1]
    below = {"ray-worker": "ray-head", "raylet": "ray-head", "postgres-backend": "postgres", "spark-python": "spark-connect"}.get(victim)
    signs = {"ray-worker": "ray::", "raylet": "raylet", "postgres-backend": "postgres: ", "spark-python": "pyspark"}
    return [p.pid for p in descendants(services[below]) if signs[victim] in _words(p)] if below in services else []


def _parent(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return 0


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:400]
    return ""


class Hands:
    """Does it, and undoes what lasts. ``undo`` puts everything right whatever happened."""

    def __init__(self, env: Environment, luck: random.Random, command: int) -> None:
        self.env, self.luck, self.command = env, luck, command
        self.stopped: dict[int, str] = {}

    def do(self, what: Disturbance) -> str:
        """What happened, for the list."""
        return getattr(self, "_" + what.kind.replace("-", "_"))(what)

    def _victim(self, what: Disturbance) -> int | None:
        deadline = time.monotonic() + _WAIT_FOR_VICTIM_SECONDS
        while not (found := pids(self.env, what.victim, self.command)):
            if time.monotonic() > deadline or not psutil.pid_exists(self.command):
                return None
            time.sleep(0.1)
        return self.luck.choice(found)

    def _kill(self, what: Disturbance) -> str:
        pid = self._victim(what)
        if pid is None:
            return f"no {what.victim} to kill"
        name = _words(psutil.Process(pid))[:60] if psutil.pid_exists(pid) else "?"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"killed {what.victim} {pid} ({name})"

    def _stop(self, what: Disturbance) -> str:
        pid = self._victim(what)
        if pid is None:
            return f"no {what.victim} to stop"
        began = process_identity.started(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.stopped[pid] = began
            time.sleep(what.seconds)
        there = process_identity.started(pid) == began and bool(began)
        self._go_on(pid)
        return f"stopped {what.victim} {pid} for {what.seconds:.0f} s{'' if there else ', in which it was replaced'}"

    def _go_on(self, pid: int) -> None:
        if process_identity.started(pid) == self.stopped.pop(pid, None):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _full(self, what: Disturbance) -> str:
        with filled(self.env.home):
            time.sleep(what.seconds)
        return f"disk full for {what.seconds:.0f} s"

    def _read_only(self, what: Disturbance) -> str:
        with read_only(self.env.warehouse):
            time.sleep(what.seconds)
        return f"warehouse read-only for {what.seconds:.0f} s"

    def undo(self) -> None:
        for pid in list(self.stopped):
            self._go_on(pid)
        (self.env.home / BALLAST).unlink(missing_ok=True)
        subprocess.run(["umount", "-l", str(self.env.warehouse)], capture_output=True, check=False)


BALLAST = "ballast"


@contextlib.contextmanager
def filled(home: Path) -> Iterator[None]:
    """Not a byte is left on the disk of ``home`` (only for one that has a disk of its own)."""
    assert os.path.ismount(home), "this would fill somebody's disk"
    file = home / BALLAST
    try:
        with open(file, "wb") as handle, contextlib.suppress(OSError):
            block = b"\0" * (1 << 20)
            while True:
                handle.write(block)
                handle.flush()
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def own_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """``folder`` as a disk of its own, in memory; gives whether that is allowed here."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
