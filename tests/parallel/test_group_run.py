"""A run of jobs/services/training.py by a group of workers: one folder, one result, stopped and rolled back together."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_parts as parts
from workers import together

from jobs.services import training, training_data
from jobs.services.training import TrainingRun
from models import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return training_data.write(parts.sequences(folder), folder / "files")


def run_of(data, folder: Path, **changes) -> TrainingRun:
    return TrainingRun(folder=str(folder), data=data.folder, config=parts.small_train(precision="fp32", **changes))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> dict:
    run = run_of(data, tmp_path_factory.mktemp("alone"))
    training.train_all([run], threads=1)
    return training.result_of(run.folder)


def steps_of(run: TrainingRun) -> list[int]:
    return [line["step"] for line in training.read_metrics(Path(run.folder) / training.METRICS) if line["event"] == "step"]


def test_a_group_asked_to_stop_goes_on_later_and_ends_where_one_worker_does(data, alone: dict, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", workers=2, expert_parallel=2)
    first, second = together(tmp_path / "logs", 2, "whole_run", run=run.to_json(), stop_at=15)
    assert first["finished"] == second["finished"] == [False, True]
    assert first["read"] == second["read"] == list(range(40))  # stopped after step 15, nothing twice
    result = first["result"]
    assert result["resumed_from_step"] == 15 and steps_of(run) == list(range(1, 41))
    for name in ("loss", "held_out_loss"):
        assert result[name] == pytest.approx(alone[name], rel=1e-4)
    assert [p.name for p in Path(run.folder).glob("step-*")] == [result["checkpoint"]]
    tensors, state = checkpoint.read(Path(run.folder) / result["checkpoint"])
    assert set(tensors) == {"model", "optimizer"} and state["step"] == 40
    assert (Path(run.folder) / result["checkpoint"] / "model.safetensors").is_file()  # whole: what evaluation reads


def test_a_group_rolls_back_together(data, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", workers=2)
    found = together(tmp_path / "logs", 2, "whole_run", run=run.to_json(), spikes=(21, 22))
    assert found[0]["read"] == found[1]["read"] == [*range(33), 20, *range(23, 40)]  # from the checkpoint before the first of them
    assert steps_of(run) == [n for n in range(1, 41) if n - 1 not in (21, 22)]
    result = found[0]["result"]
    assert result["steps"] == 40 and result["skipped_steps"] == 2
    assert checkpoint.read(Path(run.folder) / result["checkpoint"])[1]["guard"]["excluded"] == [21, 22]
