"""A checkpoint is whole and verified, or it is not used: cut, flipped, killed half-way, replaced, pruned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import checkpoint

REPO = Path(__file__).resolve().parents[2]
TENSORS = {"model": {"a": torch.arange(1000.0), "b": torch.ones(3, 4).bfloat16()}, "optimizer": {"a.step": torch.tensor(3.0)}}


def write(parent: Path, step: int) -> Path:
    return checkpoint.write(parent, step=step, tensors=TENSORS, state={"step": step, "loss": 0.1})[0]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    folder, digest = checkpoint.write(tmp_path / "new" / "runs", step=7, tensors=TENSORS, state={"step": 7, "loss": 0.1})
    assert checkpoint.verify(folder) == digest and len(digest) == 64
    tensors, state = checkpoint.read(folder)
    assert state == {"step": 7, "loss": 0.1}
    assert {stem: set(named) for stem, named in tensors.items()} == {"model": {"a", "b"}, "optimizer": {"a.step"}}
    assert all(torch.equal(tensors[stem][name], t) and tensors[stem][name].dtype == t.dtype for stem, named in TENSORS.items() for name, t in named.items())


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    assert checkpoint.verify(write(tmp_path / "one", 1)) == checkpoint.verify(write(tmp_path / "two", 1)) != checkpoint.verify(write(tmp_path / "one", 2))


def test_there_is_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    assert sorted(p.name for p in write(tmp_path, 1).iterdir()) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def flip(folder: Path) -> None:
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "optimizer.safetensors").write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def point_outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../state.json"] = manifest["files"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [truncate, flip, lose_a_file, lose_the_manifest, empty_the_manifest, point_outside]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(tmp_path: Path, damage) -> None:
    older, newer = write(tmp_path, 9), write(tmp_path, 10)
    assert checkpoint.load_latest_valid(tmp_path) == newer
    damage(newer)
    with pytest.raises(ValueError, match="Take an older one"):
        checkpoint.read(newer)
    assert checkpoint.load_latest_valid(tmp_path) == older


def test_without_any_valid_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest_valid(tmp_path / "missing") is None
    truncate(write(tmp_path, 1))
    (tmp_path / "step-notes").mkdir()
    assert checkpoint.load_latest_valid(tmp_path) is None


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 5)
    folder, _ = checkpoint.write(tmp_path, step=5, tensors={"model": {"a": torch.zeros(2)}}, state={"step": 5})
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert torch.equal(checkpoint.read(folder)[0]["model"]["a"], torch.zeros(2))


def test_newest_means_the_highest_step_not_the_latest_written(tmp_path: Path) -> None:
    newest = write(tmp_path, 10_000)
    write(tmp_path, 999)
    assert checkpoint.load_latest_valid(tmp_path) == newest


def test_prune_keeps_the_newest_valid_ones_and_clears_leftovers(tmp_path: Path) -> None:
    folders = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    flip(folders[3])
    (tmp_path / ".unfinished-0").mkdir()
    assert set(checkpoint.prune(tmp_path, 2)) == {folders[0], folders[3]}
    assert sorted(tmp_path.iterdir()) == folders[1:3]
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.prune(tmp_path, 0)


KILL_WRITERS = """
import os, signal, sys, time
from pathlib import Path
import torch
from models import checkpoint

torch.set_num_threads(1)  # a forked child must not wait for threads it does not have
parent = Path(sys.argv[1])
for delay in (0.0, 0.002, 0.005, 0.009, 0.014, 0.02):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        step = int(checkpoint.load_latest_valid(parent).name.removeprefix("step-")) if any(parent.iterdir()) else 0
        while True:
            step += 1
            checkpoint.write(parent, step=step, tensors={"model": {"a": torch.full((500_000,), float(step))}}, state={"step": step})
            os.write(writer, f"{step}\\n".encode())
            checkpoint.prune(parent, 2)
    os.close(writer)
    with os.fdopen(reader) as said:
        wrote = [int(said.readline()) for _ in range(2)][-1]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    tensors, state = checkpoint.read(checkpoint.load_latest_valid(parent))
    assert state["step"] >= wrote and (tensors["model"]["a"] == state["step"]).all()
    print(state["step"], flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_valid_newest_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILL_WRITERS, str(tmp_path)], capture_output=True, text=True, timeout=300, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    assert len(steps) == 6 and steps == sorted(set(steps))  # every writer continued from what the killed one left
