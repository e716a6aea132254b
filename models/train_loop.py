"""The training loop of one process: micro-batches, optimiser step, checkpoints, held-out loss. No Ray, no files of ours.

Change here: what a step does, what a checkpoint holds. Not here: its settings and schedules (loop_config.py), the architecture (transformer.py),
the order of data (data_order.py), launching and reporting (jobs/stages/train.py).
"""

from __future__ import annotations

import math
import time
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoint, step_metrics
from models.balance_bias import BalanceBias
from models.config import ModelConfig
from models.data_order import DataOrder, ShuffledOrder
from models.guards import Guard, RepeatedSpikes
from models.loop_config import EXECUTION, LoopConfig
from models.packed_sequences import PackedSequences
from models.parameter_groups import parameter_groups
from models.step_metrics import Measured, StepMetrics
from models.transformer import LossOutput, Transformer, is_target

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, per parameter


@dataclass(frozen=True)
class CheckpointInfo:
    """``path``: the checkpoint's own folder; ``sha256`` of its manifest, which holds the sha256 of every file."""

    path: Path
    sha256: str
    step: int
    tokens: int


def new_model(config: ModelConfig, *, seed: int, experts_backend: str = "grouped_mm") -> Transformer:
    """A freshly initialised model whose weights depend on ``seed`` only; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(config, experts_backend)


class Trainer:
    """Trains ``model`` in place on ``data``, one ``step()`` at a time. The same arguments give the same weights, bit for bit on
    one CPU with one thread count, also when the run is cut by ``save`` and ``load``. ``order``: which sequences a step reads (default:
    shuffled anew every epoch)."""

    def __init__(self, model: Transformer, loop: LoopConfig, data: PackedSequences, order: DataOrder | None = None) -> None:
        if not len(data):
            raise ValueError("There is no sequence to train on: pack more documents.")
        if (largest := int(data.tokens.max())) >= model.config.vocab_size or int(data.tokens.min()) < 0:
            raise ValueError(f"Token id {largest} does not fit vocab_size {model.config.vocab_size}: the tokenizer and the model do not belong together.")
        self.order = order or ShuffledOrder(seed=loop.seed, batch_sequences=loop.batch_sequences, n_sequences=len(data))
        ours, theirs = (loop.seed, loop.batch_sequences, len(data)), (self.order.seed, self.order.batch_sequences, self.order.n_sequences)
        if ours != theirs:
            raise ValueError(f"The order is for (seed, batch_sequences, sequences) {theirs}, the training has {ours}.")
        self.model, self.loop, self.data = model.train(), loop, data
        self.step_number = 0  # steps done
        self.tokens = 0
        self.skipped_steps = 0  # of these, how many moved no weights
        self.guard = Guard(sigmas=loop.spike_sigmas)
        self._device = next(model.parameters()).device
        self._data_digest = data.digest()
        model.run_blocks(activation_checkpointing=loop.activation_checkpointing, compiled=loop.compile)
        self.balance_bias = BalanceBias(model, loop.balance_bias_rate) if loop.balance_bias_rate else None
        groups = parameter_groups(model, loop.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=loop.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    @property
    def finished(self) -> bool:
        return self.step_number >= self.loop.steps

    def step(self) -> StepMetrics:
        """Read one batch and move the weights, unless the guard says no (models/guards.py): then the batch is skipped and counted.

        Raises ValueError after the last step, RepeatedSpikes when skipping does not help and ``roll_back`` may, FloatingPointError (which
        that is one of) when training diverged.
        """
        if self.finished:
            raise ValueError(f"All {self.loop.steps} steps are done.")
        began = time.perf_counter()
        indices = self.order.batch(self.step_number)
        rate = self.loop.learning_rate_at(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["learning_rate_scale"]
        if self.balance_bias is not None:
            self.balance_bias.use(self.loop.share_at(self.step_number))
        vector = self._gradients(indices)
        measured = step_metrics.read(vector, self._clip(), self.model.config.n_experts)
        loss, norm = measured.next_token_loss, measured.grad_norm
        reason = self.guard.why_skip(finite=measured.finite, loss=loss, grad_norm=norm)
        if not reason:
            self.optimizer.step()
            if self.balance_bias is not None:
                self.balance_bias.update(measured.load.tokens_LE)
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += bool(reason)
        self.guard.record(self.step_number, reason, loss=loss, grad_norm=norm)
        n_read = self._read_past(indices)
        metrics = self._metrics(measured, reason, n_read, rate, time.perf_counter() - began)
        self._pass_excluded()
        return metrics

    def _read_past(self, indices: np.ndarray) -> int:
        """Go on to the next position of the data order; the real tokens of the batch ``indices`` that lies behind."""
        n_read = int(self.data.n_tokens[indices].sum())
        self.step_number += 1
        self.tokens += n_read
        return n_read

    def _pass_excluded(self) -> None:
        """Go past batches that a roll-back left out: each still is a step of the schedule, none is trained or reported."""
        while not self.finished and self.step_number in self.guard.excluded:
            self._read_past(self.order.batch(self.step_number))
            self.skipped_steps += 1

    def roll_back(self, directory: Path | None, spikes: RepeatedSpikes) -> None:
        """Continue from the checkpoint ``directory`` without the batches in ``spikes.excluded``, which become part of the state.

        Whoever runs the training calls this when ``step`` raises RepeatedSpikes, on this trainer or on a new one made with the same arguments;
        ``directory`` is the newest checkpoint of step ``spikes.before`` or earlier, None on a new trainer when there is none. Then: remove
        the checkpoints of later steps (or a restart would resume from one) and ``save`` at once, so that a restart leaves the same batches out.
        Raises ValueError when the checkpoint is too late, or as ``load`` does.
        """
        if directory is not None:
            self.optimizer.state.clear()  # a checkpoint of step 0 has none to put in its place
            self.load(directory)
        if self.step_number > spikes.before:
            raise ValueError(f"Step {self.step_number} comes after batch {spikes.before}, which is to be left out: roll back to an earlier checkpoint.")
        self.guard.excluded, self.guard.roll_backs = list(spikes.excluded), spikes.roll_backs
        self._pass_excluded()

    def _gradients(self, indices: np.ndarray) -> Tensor:
        """Add up the gradients of the sequences ``indices``, micro-batch by micro-batch; what step_metrics.on_device measured, added up.

        Every micro-batch counts with its share of the batch's targets (next-token loss) and tokens (router losses), so the next-token and z
        losses and their gradients are those of the whole batch up to rounding. The load-balancing loss is a product of two means and is
        taken within each micro-batch, as MegaBlocks takes it within each worker's: its mean is at least the whole batch's.
        """
        tokens_BT, ids_BT = self.data.batch(indices)
        n_targets, n_tokens = int(is_target(ids_BT).sum()), int((ids_BT >= 0).sum())
        size = self.loop.micro_batch_sequences or len(indices)
        vector = torch.zeros(())
        for start in range(0, len(indices), size):
            ids = ids_BT[start : start + size]
            part = {"n_targets": max(1, n_targets), "share": int((ids >= 0).sum()) / max(1, n_tokens)}
            output = self._forward(tokens_BT[start : start + size], ids, precision=self.loop.precision, **part)
            output.loss.backward()
            measured = step_metrics.on_device(output)
            vector = measured if start == 0 else vector + measured
        return vector

    def _metrics(self, measured: Measured, reason: str, n_read: int, rate: float, seconds: float) -> StepMetrics:
        load, config = measured.load, self.model.config
        return StepMetrics(
            step=self.step_number, tokens=self.tokens, loss=measured.next_token_loss, grad_norm=measured.grad_norm, learning_rate=rate,
            load_balancing_loss=measured.load_balancing_loss, seconds=seconds, tokens_per_second=n_read / seconds, skipped=bool(reason),
            expert_load_max_over_mean=max(load.largest), expert_load_min=load.smallest, expert_load_max=load.largest, expert_load_entropy=load.entropy,
            starved_experts=load.starved, skipped_because=reason, router_confidence=measured.router_confidence, router_z=measured.router_z,
            tokens_per_expert=load.counts() if step_metrics.heat_map_step(self.step_number, self.loop.steps) else None,
            flops=config.flops_per_token * self.loop.batch_sequences * self.data.seq_len, peak_memory_bytes=step_metrics.peak_memory_bytes(self._device),
        )  # fmt: skip

    def _clip(self) -> Tensor:
        """Scale the gradients down to ``grad_clip`` if their global norm is larger; returns that norm, still on the device."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.loop.grad_clip)

    def _forward(self, tokens_BT: Tensor, document_ids_BT: Tensor, *, precision: str, **part: Any) -> LossOutput:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.model.forward_loss(tokens_BT.to(self._device), document_ids_BT.to(self._device), **part)

    @torch.no_grad()
    def held_out_loss(self, data: PackedSequences, max_sequences: int) -> tuple[float, int]:
        """(nats per token, tokens predicted) over the first ``max_sequences`` of ``data``, in float32; (nan, 0) without tokens."""
        self.model.eval()
        total, n_tokens, size = 0.0, 0, self.loop.batch_sequences
        for start in range(0, stop := min(max_sequences, len(data)), size):
            output = self._forward(*data.batch(np.arange(start, min(start + size, stop))), precision="fp32")
            total += float(output.next_token_loss) * output.n_tokens
            n_tokens += output.n_tokens
        self.model.train()
        return (total / n_tokens if n_tokens else math.nan), n_tokens

    def save(self, directory: Path) -> CheckpointInfo:
        """Write a checkpoint folder ``step-<n>`` into ``directory``; see models/checkpoint.py."""
        path, digest = checkpoint.write(Path(directory), **self.contents())
        return CheckpointInfo(path=path, sha256=digest, step=self.step_number, tokens=self.tokens)

    def contents(self) -> dict[str, Any]:
        """What a checkpoint of now holds, as checkpoint.write takes it. The tensors are the live ones: the next step changes them."""
        return {"step": self.step_number, "tensors": self._tensors(), "state": self._state()}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: ``model`` and ``optimizer``, the latter as ``<parameter>.<moment>``."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {f"{names[p]}.{key}": value for p, entry in self.optimizer.state.items() for key, value in entry.items()}
        return {"model": self.model.state_dict(), "optimizer": moments}

    def _state(self) -> dict:
        cuda = [t.numpy().tobytes().hex() for t in torch.cuda.get_rng_state_all()] if self._device.type == "cuda" else []
        return {
            "step": self.step_number, "tokens": self.tokens, "skipped_steps": self.skipped_steps, "guard": self.guard.state(),
            "data_position": {"seed": self.loop.seed, "next_sequence": self.step_number * self.loop.batch_sequences, "digest": self._data_digest,
                              "order": self.order.digest()},
            "loop": asdict(self.loop), "model": asdict(self.model.config),
            "rng": {"torch": torch.get_rng_state().numpy().tobytes().hex(), "cuda": cuda},
            **({"balance_bias": self.balance_bias.bias_LE.tolist()} if self.balance_bias is not None else {}),
        }  # fmt: skip

    def load(self, directory: Path) -> None:
        """Continue from one checkpoint folder (``CheckpointInfo.path``, or what ``checkpoint.load_latest_valid`` returned).

        Raises ValueError when it is damaged or belongs to another model, schedule or data set.
        """
        tensors, state = checkpoint.read(Path(directory))
        self._require_same(state, directory)
        self.model.load_state_dict(tensors["model"])
        for name, parameter in self.model.named_parameters():
            moments = {key: tensors["optimizer"][f"{name}.{key}"] for key in MOMENTS if f"{name}.{key}" in tensors["optimizer"]}
            if moments:
                self.optimizer.state[parameter] = {key: value.to(self._device) for key, value in moments.items()}
        self._restore(state)

    def _require_same(self, state: dict[str, Any], directory: Path) -> None:
        """Raise ValueError when a checkpoint's state is another training's."""
        for what, ours in (("model", self.model.config), ("loop", self.loop)):
            if different := _different(state[what], ours):
                raise ValueError(f"Checkpoint {directory} was written by another {what} config; (its value, ours): {different}. Start a new run instead.")
        if state["data_position"]["digest"] != self._data_digest:
            raise ValueError(f"Checkpoint {directory} was trained on other sequences; resume with the same table version of `sequences`.")
        ours = self.order.digest()
        if (theirs := state["data_position"].get("order", ours)) != ours:  # checkpoints from before orders had digests name none
            raise ValueError(f"Checkpoint {directory} read its sequences in order {theirs}, this training in {ours}. Start a new run instead.")

    def _restore(self, state: dict[str, Any]) -> None:
        """Everything of ``_state`` that is not a tensor."""
        self.step_number, self.tokens = state["step"], state["tokens"]
        self.skipped_steps = state["skipped_steps"]
        if "guard" in state:
            self.guard.restore(state["guard"])
        else:  # from before there was one
            self.guard.in_a_row = state["skipped_in_a_row"]
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]["torch"]), dtype=torch.uint8))
        if self._device.type == "cuda" and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all([torch.frombuffer(bytearray.fromhex(h), dtype=torch.uint8) for h in state["rng"]["cuda"]])
        if self.balance_bias is not None:
            self.balance_bias.bias_LE = np.array(state["balance_bias"])


def replay(trainer: Trainer, directory: Path, step: int) -> StepMetrics:
    """What ``step`` (from 1) of a training measured, computed again from a checkpoint before it: on the same machine and thread count bit for bit.

    ``trainer`` is a new one, made with the training's arguments; it is left after that step. Raises ValueError when the checkpoint is not before
    the step, or when the step trained nothing (its batch was left out).
    """
    trainer.load(directory)
    if not trainer.step_number < step <= trainer.loop.steps:
        raise ValueError(f"Step {step} of {trainer.loop.steps} cannot be computed from a checkpoint after step {trainer.step_number}: take an earlier one.")
    while (metrics := trainer.step()).step < step:
        pass
    if metrics.step > step:
        raise ValueError(f"Step {step} trained nothing: its batch was left out after spikes. Left out are {[p + 1 for p in trainer.guard.excluded]}.")
    return metrics


def _different(theirs: dict[str, Any], ours: Any) -> dict[str, tuple[Any, Any]]:
    """(a checkpoint's value, ours) of the settings that make another training. One that the checkpoint's version did not know had its default."""
    known = {f.name: f.default if f.default is not MISSING else None for f in fields(ours)} | theirs
    return {name: (known[name], value) for name, value in asdict(ours).items() if name not in EXECUTION and known[name] != value}
