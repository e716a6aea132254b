"""python tests/bench/bench_checkpoint.py [recipe ...]: the share of its time a training waits for checkpoints, and how long resuming takes.

Real steps and real checkpoints of recipes' own models (default: tiny and small_cpu). ``stalled``: the copy to host memory, which
training waits for. ``slowed``: how much longer the steps took while the thread wrote, against steps without; noisy on a shared machine. ``in line``: what
the same checkpoint takes when training waits for all of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jobs import recipes
from jobs.config import TrainConfig
from jobs.services.checkpoint_writer import CheckpointWriter
from models import checkpoint
from models.train_loop import PackedSequences, Trainer, new_model


def measure(name: str, config: TrainConfig, steps: int, saves: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.model.vocab_size, (64, config.model.max_seq_len))
    data = PackedSequences(tokens, [[0]] * 64, np.full(64, config.model.max_seq_len))
    loop = replace(config.loop_config(), steps=10_000)
    trainer = Trainer(new_model(config.model, seed=1), loop, data)
    plain = [trainer.step().seconds for _ in range(steps)][1:]
    folder = Path(tempfile.mkdtemp())
    beside, stalled, written = [], [], []
    with CheckpointWriter(folder, 2) as writer:
        for _ in range(saves):
            began = time.perf_counter()
            writer.save(trainer.contents())
            stalled.append(time.perf_counter() - began)
            beside.append(trainer.step().seconds)  # the thread writes during this step
            writer.wait()
            written.append(writer.seconds)
    size = sum(file.stat().st_size for file in next(folder.glob("step-*")).iterdir())
    began = time.perf_counter()
    trainer.save(folder)
    in_line = time.perf_counter() - began
    began = time.perf_counter()
    fresh = Trainer(new_model(config.model, seed=1), loop, data)
    newest = checkpoint.load_latest_valid(folder)
    assert newest is not None
    fresh.load(newest)
    resuming = time.perf_counter() - began
    shutil.rmtree(folder)
    step, stall = statistics.median(plain), statistics.median(stalled[1:])  # the first one also allocates the copy
    slowed = max(0.0, statistics.median(beside) - step)
    interval = config.checkpoint_every_steps * step
    return {
        "name": name, "parameters": config.model.params_total, "checkpoint_mb": round(size / 1e6, 1), "step_seconds": round(step, 4),
        "every_steps": config.checkpoint_every_steps, "first_stall_seconds": round(stalled[0], 4), "stall_seconds": round(stall, 4),
        "written_seconds": round(statistics.median(written), 3), "stalled_share": round(stall / interval, 6), "slowed_share": round(slowed / interval, 6),
        "in_line_share": round(in_line / interval, 6), "resume_seconds": round(resuming, 2), "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["tiny", "small_cpu"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--saves", type=int, default=4)
    asked = parser.parse_args()
    for name in asked.recipes:
        config = recipes.load(name).train
        print(json.dumps(measure(name, config, asked.steps, asked.saves)), flush=True)


if __name__ == "__main__":
    main()
