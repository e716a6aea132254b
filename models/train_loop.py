"""The training loop of one process: batches, schedule, optimiser step, checkpoints, held-out loss. No Ray, no files of ours.

Change here: optimiser, schedule, precision, what a checkpoint holds. Not here: the architecture (transformer.py), the order of
data (data_order.py), launching and reporting (jobs/stages/train.py).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import checkpoint, step_metrics
from models.config import ModelConfig
from models.data_order import DataOrder, ShuffledOrder
from models.step_metrics import Measured, StepMetrics
from models.transformer import LossOutput, Transformer

FINAL_SHARE = 0.1  # the learning rate decays to this share of its peak
MAX_SKIPPED_IN_A_ROW = 10
PADDING = -1  # document id of padding
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, per parameter


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train. Warmup-stable-decay: linear warmup, constant, linear decay to 10 % over the last ``decay_fraction`` of steps."""

    steps: int
    batch_sequences: int
    learning_rate: float
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.3
    weight_decay: float = 0.1  # on matrices only
    grad_clip: float = 1.0
    seed: int = 1
    precision: str = "bf16"  # bf16: autocast with float32 masters | fp32

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', not {self.precision!r}.")
        if self.steps < 1 or self.batch_sequences < 1:
            raise ValueError(f"steps {self.steps} and batch_sequences {self.batch_sequences} must be at least 1.")
        if min(self.warmup_fraction, self.decay_fraction) < 0 or self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(f"warmup_fraction {self.warmup_fraction} and decay_fraction {self.decay_fraction} must not be negative or overlap.")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of ``step`` (from 0); the last step has ``FINAL_SHARE`` of the peak (if it decays at all)."""
        warmup, decay = round(self.steps * self.warmup_fraction), round(self.steps * self.decay_fraction)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        fall = min(1.0, (self.steps - 1 - step) / decay) if decay else 1.0
        return self.learning_rate * rise * (FINAL_SHARE + (1 - FINAL_SHARE) * max(0.0, fall))


@dataclass(frozen=True)
class CheckpointInfo:
    """``path``: the checkpoint's own folder; ``sha256`` of its manifest, which holds the sha256 of every file."""

    path: Path
    sha256: str
    step: int
    tokens: int


class PackedSequences:
    """Fixed-length sequences of packed documents.

    ``tokens`` int32 (N, T); ``boundaries``: per sequence the start offsets of its documents, ascending from 0; ``n_tokens`` (N,):
    tokens that are not padding (padding is on the right). Raises ValueError when these do not fit together.
    """

    def __init__(self, tokens: np.ndarray, boundaries: Sequence[Sequence[int] | np.ndarray], n_tokens: np.ndarray) -> None:
        self.tokens, self.boundaries = np.asarray(tokens, dtype=np.int32), boundaries
        self.n_tokens = np.asarray(n_tokens, dtype=np.int64)
        if self.tokens.ndim != 2 or not len(self.tokens) == len(boundaries) == len(self.n_tokens):
            raise ValueError(f"tokens {self.tokens.shape}, {len(boundaries)} boundaries and {len(self.n_tokens)} n_tokens do not describe the same sequences.")
        if len(self.tokens) and not (self.n_tokens.min() >= 0 and self.n_tokens.max() <= self.tokens.shape[1]):
            raise ValueError(f"n_tokens must lie between 0 and the sequence length {self.tokens.shape[1]}.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return self.tokens.shape[1]

    def digest(self) -> str:
        """sha256 (first 16 hex digits) over the shape and up to 1024 evenly spaced sequences: tells two data sets apart cheaply."""
        rows = np.unique(np.linspace(0, max(0, len(self) - 1), num=min(1024, len(self)), dtype=np.int64))
        parts = (str(self.tokens.shape).encode(), self.n_tokens.tobytes(), np.ascontiguousarray(self.tokens[rows]).tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def batch(self, indices: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """(tokens_BT, document_ids_BT), both int64: ids count documents within a sequence from 0, padding is -1."""
        indices = np.asarray(indices, dtype=np.int64)
        starts = np.zeros((len(indices), self.seq_len), dtype=np.int64)
        for row, index in enumerate(indices):
            offsets = np.asarray(self.boundaries[index], dtype=np.int64)
            starts[row, offsets[(offsets > 0) & (offsets < self.seq_len)]] = 1
        ids = starts.cumsum(1)
        ids[np.arange(self.seq_len) >= self.n_tokens[indices, None]] = PADDING
        return torch.from_numpy(self.tokens[indices].astype(np.int64)), torch.from_numpy(ids)


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
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._device = next(model.parameters()).device
        self._data_digest = data.digest()
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": loop.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=loop.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    @property
    def finished(self) -> bool:
        return self.step_number >= self.loop.steps

    def step(self) -> StepMetrics:
        """Read one batch and move the weights, unless loss or gradients are not finite: then the batch is skipped and counted.

        Raises ValueError after the last step, FloatingPointError when ``MAX_SKIPPED_IN_A_ROW`` batches in a row were skipped.
        """
        if self.finished:
            raise ValueError(f"All {self.loop.steps} steps are done.")
        began = time.perf_counter()
        indices = self.order.batch(self.step_number)
        rate = self.loop.learning_rate_at(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        output = self._forward(*self.data.batch(indices), precision=self.loop.precision)
        output.loss.backward()
        measured = step_metrics.read(step_metrics.on_device(output), self._clip(), self.model.config.n_experts)
        if measured.finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(measured.finite)
        n_read = int(self.data.n_tokens[indices].sum())
        self.step_number += 1
        self.tokens += n_read
        return self._metrics(measured, n_read, rate, time.perf_counter() - began)

    def _metrics(self, measured: Measured, n_read: int, rate: float, seconds: float) -> StepMetrics:
        load, config = measured.load, self.model.config
        return StepMetrics(
            step=self.step_number, tokens=self.tokens, loss=measured.next_token_loss, grad_norm=measured.grad_norm, learning_rate=rate,
            load_balancing_loss=measured.load_balancing_loss, seconds=seconds, tokens_per_second=n_read / seconds, skipped=not measured.finite,
            expert_load_max_over_mean=max(load.largest), expert_load_min=load.smallest, expert_load_max=load.largest, expert_load_entropy=load.entropy,
            starved_experts=load.starved, router_confidence=measured.router_confidence, router_z=measured.router_z,
            tokens_per_expert=load.counts() if step_metrics.heat_map_step(self.step_number, self.loop.steps) else None,
            flops=config.flops_per_token * self.loop.batch_sequences * self.data.seq_len, peak_memory_bytes=step_metrics.peak_memory_bytes(self._device),
        )  # fmt: skip

    def _clip(self) -> Tensor:
        """Scale the gradients down to ``grad_clip`` if their global norm is larger; returns that norm, still on the device."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.loop.grad_clip)

    def _count(self, finite: bool) -> None:
        self.skipped_steps += not finite
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"Loss or gradients were not finite in {MAX_SKIPPED_IN_A_ROW} batches in a row (step {self.step_number}): training diverged. "
                "Lower learning_rate or train in fp32, and resume from an earlier checkpoint."
            )

    def _forward(self, tokens_BT: Tensor, document_ids_BT: Tensor, *, precision: str) -> LossOutput:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.model.forward_loss(tokens_BT.to(self._device), document_ids_BT.to(self._device))

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
        path, digest = checkpoint.write(Path(directory), step=self.step_number, tensors=self._tensors(), state=self._state())
        return CheckpointInfo(path=path, sha256=digest, step=self.step_number, tokens=self.tokens)

    def save_and_prune(self, directory: Path, keep: int) -> None:
        """``save``, and remove all but the newest ``keep`` checkpoints. Training may go on before it is done; the next ``save`` waits for it."""
        self.save(directory)
        checkpoint.prune(Path(directory), keep)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: ``model`` and ``optimizer``, the latter as ``<parameter>.<moment>``."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {f"{names[p]}.{key}": value for p, entry in self.optimizer.state.items() for key, value in entry.items()}
        return {"model": self.model.state_dict(), "optimizer": moments}

    def _state(self) -> dict:
        cuda = [t.numpy().tobytes().hex() for t in torch.cuda.get_rng_state_all()] if self._device.type == "cuda" else []
        return {
            "step": self.step_number, "tokens": self.tokens, "skipped_steps": self.skipped_steps, "skipped_in_a_row": self._skipped_in_a_row,
            "data_position": {"seed": self.loop.seed, "next_sequence": self.step_number * self.loop.batch_sequences, "digest": self._data_digest,
                              "order": self.order.digest()},
            "loop": asdict(self.loop), "model": asdict(self.model.config),
            "rng": {"torch": torch.get_rng_state().numpy().tobytes().hex(), "cuda": cuda},
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
        self._continue_at(state)

    def _require_same(self, state: dict, directory: Path) -> None:
        """Raise ValueError when a checkpoint's state is another training's."""
        for what, ours in (("model", asdict(self.model.config)), ("loop", asdict(self.loop))):
            if different := {k: (state[what].get(k), v) for k, v in ours.items() if state[what].get(k) != v}:
                raise ValueError(f"Checkpoint {directory} was written by another {what} config; (its value, ours): {different}. Start a new run instead.")
        if state["data_position"]["digest"] != self._data_digest:
            raise ValueError(f"Checkpoint {directory} was trained on other sequences; resume with the same table version of `sequences`.")
        ours = self.order.digest()
        if (theirs := state["data_position"].get("order", ours)) != ours:  # checkpoints from before orders had digests name none
            raise ValueError(f"Checkpoint {directory} read its sequences in order {theirs}, this training in {ours}. Start a new run instead.")

    def _continue_at(self, state: dict) -> None:
        self.step_number, self.tokens = state["step"], state["tokens"]
        self.skipped_steps, self._skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]["torch"]), dtype=torch.uint8))
        if self._device.type == "cuda" and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all([torch.frombuffer(bytearray.fromhex(h), dtype=torch.uint8) for h in state["rng"]["cuda"]])
