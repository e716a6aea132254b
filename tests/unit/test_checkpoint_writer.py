"""Checkpoints in the background: what is written is what was there at the call, whole or not at all, and what fails is not kept quiet."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from jobs.services import checkpoint_writer
from jobs.services.checkpoint_writer import CheckpointFailed, CheckpointWriter
from models import checkpoint


def contents(step: int, value: float, size: int = 1000) -> dict:
    return {"step": step, "tensors": {"model": {"w": torch.full((size,), value)}, "optimizer": {"w.step": torch.tensor(float(step))}}, "state": {"step": step}}


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path, monkeypatch):
    gate = threading.Event()
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: gate.wait() and write(*a, **k))
    with CheckpointWriter(tmp_path, 2) as writer:
        given = contents(1, 1.0)
        writer.save(given)
        given["tensors"]["model"]["w"].fill_(9.0)
        gate.set()
        path = writer.wait()
    assert checkpoint.read(path)[0]["model"]["w"].unique().tolist() == [1.0]
    assert checkpoint.read(path)[0]["optimizer"]["w.step"].item() == 1.0


def test_only_one_is_in_flight_and_the_newest_are_kept(tmp_path, monkeypatch):
    running, most = [0], [0]
    write = checkpoint.write

    def counted(*args, **kwargs):
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            return write(*args, **kwargs)
        finally:
            running[0] -= 1

    monkeypatch.setattr(checkpoint, "write", counted)
    with CheckpointWriter(tmp_path, 2, named={"step-0000000001"}) as writer:
        for step in range(1, 6):
            writer.save(contents(step, float(step)))
        writer.wait()
        told = writer.finished()
    assert most == [1]
    assert written(tmp_path) == ["step-0000000001", "step-0000000004", "step-0000000005"]
    assert [one.step for one in told] == [1, 2, 3, 4, 5]
    assert all(0 < one.stalled < one.seconds and not one.error for one in told)
    for name in written(tmp_path):
        assert checkpoint.read(tmp_path / name)[0]["model"]["w"].unique().tolist() == [float(name[-1])]


def test_a_crash_in_the_thread_is_raised_by_the_next_call_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: {}["a bug"])
    writer = CheckpointWriter(tmp_path, 2)
    writer.save(contents(1, 1.0))
    writer._thread.join()
    with pytest.raises(KeyError, match="a bug"):
        writer.finished()
    assert writer.finished() == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; only root can make one."""
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("cannot mount a file system here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_a_checkpoint_and_leaves_the_older_one_and_nothing_else(small_disk):
    with CheckpointWriter(small_disk, 1) as writer:
        writer.save(contents(1, 1.0))
        writer.wait()
        writer.save(contents(2, 2.0, size=20_000))
        assert writer.wait().name == "step-0000000001"
        (_, failed) = writer.finished()
        assert (failed.step, failed.path) == (2, None) and "No space left" in failed.error
        assert writer.wanted
        assert written(small_disk) == ["step-0000000001"]
        writer.save(contents(3, 3.0))  # there is room again
        assert writer.wait().name == "step-0000000003" and not writer.wanted
    assert checkpoint.load_latest_valid(small_disk).name == "step-0000000003"


def test_a_disk_that_stays_full_ends_the_training_with_what_to_do(small_disk):
    with CheckpointWriter(small_disk, 1) as writer:
        writer.save(contents(1, 1.0))
        for step in (2, 3):
            writer.save(contents(step, 2.0, size=20_000))
            assert writer.wait().name == "step-0000000001"
        writer.save(contents(4, 2.0, size=20_000))
        with pytest.raises(CheckpointFailed, match=r"3 checkpoints in a row .*No space left.* the last whole one is step-0000000001\. Make room"):
            writer.wait()
    assert written(small_disk) == ["step-0000000001"]


def test_a_read_only_disk_is_said_so(small_disk):
    import subprocess

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with CheckpointWriter(small_disk, 1) as writer:
        writer.save(contents(1, 1.0))
        writer.wait()
        (failed,) = writer.finished()
    assert "Read-only file system" in failed.error
    assert os.listdir(small_disk) == []


def test_only_refusals_of_the_file_system_count_as_such():
    assert checkpoint_writer.is_disk_error(OSError(28, "No space left on device"))
    assert not checkpoint_writer.is_disk_error(ValueError("I/O error"))
