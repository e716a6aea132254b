"""Checkpoints of several workers: written beside training, whole or not there, continued by any number of workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tasks
import torch
from workers import together

from models import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_worker() -> list[float]:
    trainer = tasks.alone()
    return [trainer.step().loss for _ in range(25)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[float]]:
    """A folder with the sharded checkpoint of step 8, written while two workers went on to step 12; the losses of the first."""
    folder = tmp_path_factory.mktemp("sharded")
    losses = together(folder / "logs", 2, "save_and_go_on", folder=folder / "run", saved=8, steps=12, expert_parallel=2)
    return folder / "run", losses[0]


def test_a_sharded_checkpoint_holds_exactly_what_a_whole_one_does(saved) -> None:
    folder, _ = saved
    path = checkpoint.load_latest_valid(folder)
    names = sorted(p.name for p in path.iterdir())
    assert names == ["manifest.json", *(f"shard-0000{w}-model-0000{n}-of-00002.safetensors" for w in (1, 2) for n in (1, 2)), "state.json"]
    (found, state), (expected, same_state) = checkpoint.read(path), checkpoint.read(checkpoint.load_latest_valid(folder / "whole"))
    assert state == same_state and state["step"] == 8
    for stem in ("model", "optimizer"):
        assert set(found[stem]) == set(expected[stem])
        for name, tensor in expected[stem].items():
            assert torch.equal(found[stem][name], tensor), name
    assert set(found["model"]) == set(tasks.alone().model.state_dict())


def test_two_workers_one_worker_two_workers_follow_one_curve(saved, one_worker: list[float], tmp_path: Path) -> None:
    folder, losses = saved
    assert losses == pytest.approx(one_worker[:12], rel=1e-5)
    alone = tasks.alone(steps=30)
    alone.load(checkpoint.load_latest_valid(folder))
    assert [alone.step().loss for _ in range(8)] == pytest.approx(one_worker[8:16], rel=1e-5)
    alone.save(folder)
    found = together(tmp_path, 2, "resume", folder=folder, steps=9, saved=4, expert_parallel=1)
    assert all(f["began_at"] == 16 and f["losses"] == pytest.approx(one_worker[16:], rel=1e-5) for f in found)
    _a_damaged_part_means_the_checkpoint_before(folder, one_worker, tmp_path / "four")


def _a_damaged_part_means_the_checkpoint_before(folder: Path, one_worker: list[float], logs: Path) -> None:
    newest, older = folder / "step-0000000020", folder / "step-0000000016"
    part = newest / "shard-00002-model-00001-of-00002.safetensors"
    whole = part.read_bytes()
    assert checkpoint.load_latest_valid(folder) == newest
    os.truncate(part, 100)
    assert checkpoint.load_latest_valid(folder) == older
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256 differs"):
        checkpoint.read(newest)
    found = together(logs, 4, "resume", folder=folder, steps=3, saved=1, expert_parallel=2)
    assert all(f["began_at"] == 16 and f["losses"] == pytest.approx(one_worker[16:19], rel=1e-5) for f in found)
    assert not newest.exists()  # pruned: it can never be resumed from


def test_a_worker_that_cannot_write_its_part_fails_the_checkpoint_on_all(tmp_path: Path) -> None:
    found = together(tmp_path / "logs", 2, "fail_to_save", folder=tmp_path / "run")
    part, published, name = found[0]
    assert found[1] == found[0]
    assert "worker 1: OSError" in part and "worker 0: OSError" in published and "No space left on device" in published
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [name] == ["step-0000000000"]
