"""What the worker processes of tests/parallel do, and the same training in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.services import run_control, training
from jobs.services.training import TrainingRun
from models import checkpoint
from models.config import ModelConfig
from models.guards import RepeatedSpikes
from models.parallel import sharded
from models.parallel.layout import Layout
from models.parallel.sharding import whole
from models.parallel.trainer import ParallelTrainer, new_parallel_model
from models.train_loop import LoopConfig, PackedSequences, Trainer, new_model

MODEL = ModelConfig(
    d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=48, vocab_size=64, max_seq_len=32, n_experts=8, top_k=2, moe_loss_weight=0.1,
    router_z_loss_weight=1e-3,
)  # fmt: skip
LOOP = LoopConfig(steps=30, batch_sequences=5, learning_rate=3e-3, precision="fp32")

BIAS = {"balance_bias_rate": 0.01, "activation_checkpointing": True, "micro_batch_sequences": 2}


def sequences(n: int = 40, seed: int = 0) -> PackedSequences:
    """Two documents a sequence; every sequence has another amount of padding, so that the workers' shares of the tokens differ."""
    generator = np.random.default_rng(seed)
    starts, count = generator.integers(0, 64, size=(n, 2)), np.arange(16)
    tokens = np.concatenate([(starts[:, :1] + count) % 64, (starts[:, 1:] + 3 * count) % 64], axis=1)
    return PackedSequences(tokens, [[0, 16]] * n, generator.integers(4, 33, size=n))


def alone(**changes: Any) -> Trainer:
    return Trainer(new_model(MODEL, seed=1), replace(LOOP, **changes), sequences())


def parallel(expert_parallel: int = 1, **changes: Any) -> ParallelTrainer:
    model = new_parallel_model(MODEL, Layout.of_processes(expert_parallel=expert_parallel), seed=1)
    return ParallelTrainer(model, replace(LOOP, **changes), sequences())


def curve(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Loss, balancing loss, gradient norm and load of every step; the weights at the end; the held-out loss."""
    found = [trainer.step() for _ in range(steps)]
    names = ("loss", "load_balancing_loss", "router_z", "router_confidence", "grad_norm", "expert_load_max_over_mean", "tokens")
    weights = {name: whole(p.detach()).flatten()[:: max(1, whole(p).numel() // 50)].tolist() for name, p in trainer.model.named_parameters()}
    held_out = trainer.held_out_loss(sequences(7, seed=5), 7)
    return {"steps": {name: [getattr(step, name) for step in found] for name in names}, "weights": weights, "held_out": held_out}


def settle(trainer: Trainer) -> None:
    """Every token on the same experts: whoever holds the others receives no row at all."""
    with torch.no_grad():
        for block in trainer.model.transformer.blocks:
            block.ffn.router.layer.weight.zero_()


def few_rows(trainer: Trainer) -> dict[str, Any]:
    """One row a batch, all on the same experts: some workers have no row, some experts no token."""
    settle(trainer)
    return curve(trainer, 4)


def train(expert_parallel: int) -> dict[str, Any]:
    return {
        "fp32": curve(parallel(expert_parallel), 25),
        "bf16": curve(parallel(expert_parallel, precision="bf16"), 6),
        "few_rows": few_rows(parallel(expert_parallel, batch_sequences=1)),
        "bias": curve(parallel(expert_parallel, **BIAS), 8),
    }


def save_and_go_on(folder: str, saved: int, steps: int, expert_parallel: int) -> list[float]:
    """Losses of ``steps`` steps; a sharded checkpoint after ``saved``, written while training goes on, and a whole one in ``whole``."""
    trainer, writer = parallel(expert_parallel), sharded.BackgroundWriter(Path(folder), 2)
    losses = [trainer.step().loss for _ in range(saved)]
    trainer.save(Path(folder) / "whole")
    writer.start(**trainer.contents())
    losses += [trainer.step().loss for _ in range(steps - saved)]
    writer.wait()
    return losses


def resume(folder: str, steps: int, saved: int, expert_parallel: int) -> dict[str, Any]:
    """Continue from the newest valid checkpoint and save after ``saved`` more steps; the losses, and where it began."""
    trainer, writer = parallel(expert_parallel), sharded.BackgroundWriter(Path(folder), 3)
    trainer.load(sharded.latest_valid(Path(folder)))
    began_at, losses = trainer.step_number, [trainer.step().loss for _ in range(saved)]
    writer.start(**trainer.contents())
    losses += [trainer.step().loss for _ in range(steps - saved)]
    writer.wait()
    return {"began_at": began_at, "losses": losses}


def fail_to_save(folder: str) -> list[str]:
    """What every worker says when a worker's part, or the publishing, fails; the next checkpoint is written."""
    trainer, writer, said = parallel(), sharded.BackgroundWriter(Path(folder), 2), []
    flushed, publish = checkpoint.flushed, checkpoint.publish

    def refused(*args: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    for name, rank in (("flushed", 1), ("publish", 0)):
        if dist.get_rank() == rank:
            setattr(checkpoint, name, refused)
        writer.start(**trainer.contents())
        try:
            writer.wait()
        except OSError as error:
            said.append(str(error))
        checkpoint.flushed, checkpoint.publish = flushed, publish
    writer.start(**trainer.contents())
    return [*said, writer.wait().name]


def whole_run(run: str, stop_at: int = -1, spikes: tuple[int, ...] = ()) -> dict[str, Any]:
    """A run of jobs/services/training.py, asked to stop after step ``stop_at`` and done again, or rolled back for the batches ``spikes``."""
    todo, read, finished = TrainingRun.from_json(run), [], []
    step = ParallelTrainer.step
    run_control._POLL_SECONDS = 0.0

    def disturbed(trainer: ParallelTrainer) -> Any:
        if spikes and trainer.step_number == 33 and not trainer.guard.excluded:  # a checkpoint after the first of them is there: step 30
            raise RepeatedSpikes(list(spikes), list(spikes), 1)
        read.append(trainer.step_number)
        found = step(trainer)
        if found.step == stop_at and dist.get_rank() == 0:
            run_control.request_stop(Path(todo.folder), "test")
        return found

    ParallelTrainer.step = disturbed
    finished.append(training.train_all([todo], threads=1))
    dist.barrier()
    if stop_at >= 0:
        if dist.get_rank() == 0:
            run_control.withdraw_request(Path(todo.folder))
        dist.barrier()
        finished.append(training.train_all([todo], threads=1))
    ParallelTrainer.step = step
    return {"finished": finished, "read": read, "result": training.result_of(todo.folder)}
