"""Real training processes that are killed, stopped, or given a bad disk: the curve is that of an undisturbed run, to the last bit."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import training_parts as parts

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import run_control, training, training_data
from jobs.services.training import TrainingRun
from models import checkpoint

STEPS, EVERY, STOPPED = 200, 5, 75
SAME = ("sha256", "loss", "held_out_loss", "steps", "tokens")
CODE = (
    "import pathlib, sys; from jobs.services import training; "
    "run = training.TrainingRun.from_json(pathlib.Path(sys.argv[1]).read_text()); "
    f"sys.exit(0 if training.train_all([run], threads=1) else {STOPPED})"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return training_data.write(parts.sequences(folder), folder / "files")


def run_in(folder: Path, data) -> TrainingRun:
    return TrainingRun(str(folder), data.folder, parts.small_train(tokens=STEPS * 8 * parts.SEQ_LEN, checkpoint_every_steps=EVERY))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> tuple[dict, list[float]]:
    """(result, loss of every step)"""
    run = run_in(tmp_path_factory.mktemp("undisturbed"), data)
    assert training.train_all([run], threads=1)
    return training.result_of(run.folder), losses(run)


def start(run: TrainingRun) -> subprocess.Popen:
    """A process that trains."""
    file = Path(run.folder).parent / f"{Path(run.folder).name}.json"
    file.write_text(run.to_json())
    variables = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CODE, str(file)], cwd=REPO, env=variables, stderr=subprocess.PIPE)


def lines(run: TrainingRun, event: str) -> list[dict]:
    return [line for line in training.read_metrics(Path(run.folder) / training.METRICS) if line["event"] == event]


def losses(run: TrainingRun) -> list[float]:
    return [line["loss"] for line in lines(run, "step")]


def wait_for(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, f"it ended before: {process.stderr.read().decode()[-1500:]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps_of_this_attempt(run: TrainingRun, began: float) -> int:
    if not any(line["at"] >= began for line in lines(run, "started")):
        return -1
    return sum(line["at"] >= began for line in lines(run, "step"))


def finish(run: TrainingRun, undisturbed) -> dict:
    """The rest in this process: the same bits come out of any."""
    assert training.train_all([run], threads=1)
    found = training.result_of(run.folder)
    assert {k: found[k] for k in SAME} == {k: undisturbed[0][k] for k in SAME}
    assert losses(run) == undisturbed[1]
    assert [p.name for p in sorted(Path(run.folder).iterdir()) if p.name.startswith((".", "step-"))] == [found["checkpoint"]]
    return found


def test_killed_ten_times_at_random_moments_it_ends_as_if_undisturbed(data, undisturbed, tmp_path):
    luck, run, resumed = random.Random(5), run_in(tmp_path / "run", data), []
    for _ in range(10):
        began, steps, moment = time.time(), luck.randint(1, 2 * EVERY), luck.uniform(0, 0.02)
        process = start(run)
        wait_for(process, lambda began=began, steps=steps: steps_of_this_attempt(run, began) >= steps)
        time.sleep(moment)  # within a step, or while a checkpoint is written
        process.kill()
        process.wait()
        assert training.result_of(run.folder) is None
        resumed.append(lines(run, "started")[-1]["step"])
    assert resumed == sorted(resumed), "a whole checkpoint was there every time"
    assert all(step % EVERY == 0 for step in resumed)
    assert finish(run, undisturbed)["resumed_from_step"] >= resumed[-1] > 0


@pytest.mark.parametrize("asked_by", ["signal", "request"])
def test_asked_to_stop_at_a_random_step_it_loses_none(data, undisturbed, tmp_path, asked_by):
    run, began = run_in(tmp_path / "run", data), time.time()
    at = random.Random(asked_by).randint(EVERY, 5 * EVERY)
    process = start(run)
    wait_for(process, lambda: steps_of_this_attempt(run, began) >= at)
    process.send_signal(signal.SIGTERM) if asked_by == "signal" else run_control.request_stop(tmp_path / "run", "a test")
    assert process.wait(timeout=60) == STOPPED
    done = len(losses(run))
    assert done >= at and training.result_of(run.folder) is None
    assert checkpoint.load_latest_valid(tmp_path / "run").name == f"step-{done:010d}"
    run_control.withdraw_request(tmp_path / "run")
    assert finish(run, undisturbed)["resumed_from_step"] == done


@pytest.fixture(scope="module")
def half_way(data, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after a few steps, with two checkpoints."""
    folder = tmp_path_factory.mktemp("half-way")
    run, began = run_in(folder / "run", data), time.time()
    process = start(run)
    wait_for(process, lambda: steps_of_this_attempt(run, began) >= 2 * EVERY + 3)
    process.terminate()
    assert process.wait(timeout=60) == STOPPED
    assert len(list((folder / "run").glob("step-*"))) == 2
    return folder / "run"


@pytest.fixture
def stopped(data, half_way, tmp_path) -> TrainingRun:
    """A copy of that run, to go on with."""
    shutil.copytree(half_way, tmp_path / "run")
    return run_in(tmp_path / "run", data)


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing", "manifest torn"])
def test_a_damaged_checkpoint_is_not_used_but_the_one_before(stopped, undisturbed, damage):
    older, newest = sorted(Path(stopped.folder).glob("step-*"))
    victim = newest / ("manifest.json" if damage == "manifest torn" else "optimizer.safetensors")
    content = bytearray(victim.read_bytes())
    if damage == "bit flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[: len(content) // 2])
    assert finish(stopped, undisturbed)["resumed_from_step"] == int(older.name.removeprefix("step-"))


def test_a_disk_that_takes_no_checkpoint_ends_the_run_with_what_to_do_and_later_it_goes_on(stopped, undisturbed):
    folder, done = Path(stopped.folder), len(losses(stopped))
    process = start(stopped)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (48 << 10, resource.RLIM_INFINITY))  # a few metrics fit, weights do not
    assert process.wait(timeout=60) == 0
    with pytest.raises(MoelineError, match=r"3 checkpoints in a row could not be written to .*File too large.* Make room"):
        training.result_of(folder)
    failed = [line for line in lines(stopped, "checkpoint") if "error" in line]
    assert failed[0]["step"] % EVERY == 0 and "File too large" in failed[0]["error"]
    assert not list(folder.glob(".unfinished-*"))
    assert checkpoint.load_latest_valid(folder).name == f"step-{done:010d}"
    (folder / training.ERROR).unlink()  # as a new attempt does
    assert finish(stopped, undisturbed)["resumed_from_step"] == done


def test_a_read_only_folder_is_said_so_and_left_as_it_is(stopped, undisturbed):
    before = {p.name for p in Path(stopped.folder).iterdir()}
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", "-o", "ro", stopped.folder, stopped.folder], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount the folder read-only here (needs root)")
    try:
        with pytest.raises(MoelineError, match=r"Training stopped: .*Read-only file system"):
            training.train_all([stopped], threads=1)
    finally:
        subprocess.run(["umount", stopped.folder], check=True)
    assert {p.name for p in Path(stopped.folder).iterdir()} == before
    finish(stopped, undisturbed)
