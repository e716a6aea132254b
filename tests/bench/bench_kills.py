"""make kills: SIGKILL at random steps of a training, KILLS (10) times each: its worker, Ray's controller of it, the stage process, the whole Ray head.

After each kill the stage is started again if it ended, on a new head if the old one is gone, as Airflow and the platform's supervisor do. Passed means: no
more than one retry, the loss of every step in the file once, in order, and the same weights as the undisturbed run, bit for bit.
SEED (1) decides the steps; every kill is listed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import training_parts as parts
from ray_trainings import STEPS, Head, finish, folder_of, home_of, start, steps_of, wait_for_step, writer_of

from jobs.services import training

KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("SEED", "1"))


class Place:
    """A head that may be replaced, and the undisturbed run's row."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heads = folder, 0
        parts.sequences(folder / "table")
        self.table = folder / "table" / "sequences.parquet"
        self.new_head()
        home = home_of(folder / "undisturbed", self.head)
        self.expected = finish(start(home, self.table, folder / "log"), folder / "log")["row"]
        self.losses = losses(home)

    def new_head(self) -> None:
        self.heads += 1
        self.head = Head(self.folder / f"head-{self.heads}")


def losses(home: Path) -> list[float]:
    return [line["loss"] for line in training.read_metrics(folder_of(home) / training.METRICS) if line["event"] == "step"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("kills"))
    yield made
    made.head.stop()


def ended(place: Place) -> bool:
    """Whether the trainings' workers are gone, which Ray ends a moment after the training."""
    deadline = time.monotonic() + 30
    while any(command_of(member)[:1] == ["ray::RayTrainWorker"] for member in place.head.members()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # it ended just now
        return []


def victim_of(who: str, place: Place, home: Path, stage: int) -> int:
    if who == "controller":
        (found,) = [member.pid for member in place.head.members() if member.cmdline()[:1] and member.cmdline()[0].startswith("ray::TrainController")]
        return found
    return {"worker": lambda: writer_of(home), "stage": lambda: stage, "head": lambda: place.head.process.pid}[who]()


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("who", ["worker", "controller", "stage", "head"])
def test_the_same_model_after_a_kill(place: Place, tmp_path: Path, who: str, number: int) -> None:
    step = random.Random(f"{SEED} {who} {number}").randint(1, STEPS - 40)
    home, log = home_of(tmp_path / "home", place.head), tmp_path / "log"
    stage = start(home, place.table, log)
    wait_for_step(home, step, stage)
    began = time.monotonic()
    os.kill(victim_of(who, place, home, stage.pid), signal.SIGKILL)
    retries = 0
    if who == "head":
        stage.wait(timeout=300)  # it must notice by itself
        place.head.stop()
        place.new_head()
        home_of(home, place.head)
    if stage.wait(timeout=600) != 0:
        retries = 1
        stage = start(home, place.table, log)
    found = finish(stage, log)
    resumed = found["metrics"]["resumed_from_step"]
    print(f"\n{who:10} killed at step {step:3}: resumed from {resumed}, {retries} retries, done {time.monotonic() - began:.0f} s later", flush=True)
    assert {k: found["row"][k] for k in ("sha256", "loss", "held_out_loss")} == {k: place.expected[k] for k in ("sha256", "loss", "held_out_loss")}
    assert steps_of(home) == list(range(1, STEPS + 1)) and losses(home) == place.losses
    assert ended(place), "a worker was left running"
