"""What one training step reports: losses, speed, memory, and what the routers did with the tokens.

Everything measured on the device is put into one tensor and read once per step, so that telemetry never makes a GPU wait twice.
Change here: what is reported. Not here: what is trained (train_loop.py), where reports go (jobs/services/training.py).
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.transformer import LossOutput

SCALARS = ("loss", "next_token_loss", "load_balancing_loss", "router_z", "router_confidence")


@dataclass(frozen=True)
class StepMetrics:
    """One step. ``step`` counts from 1; ``tokens``: real tokens read so far (padding and skipped batches included in neither
    loss nor weights still count as read); ``loss`` is next-token nats per token; ``expert_load_max_over_mean``: busiest expert of
    any layer over the mean (1 = balanced); ``skipped``: the weights did not move.

    Per layer: ``expert_load_min`` and ``expert_load_max``, the idlest and the busiest expert's tokens over the mean; ``expert_load_entropy``
    of their shares, 1 at balance, 0 when one expert gets all; ``starved_experts``, how many got no token. ``tokens_per_expert``: the counts
    themselves, layers by experts, in about ``HEAT_MAP_COLUMNS`` steps of a run and None in the others. ``router_confidence``: mean
    probability of a token's best expert, over layers; ``router_z``: mean squared logsumexp of the router logits, before any weight.
    ``flops``: training FLOPs of the step by ModelConfig.flops_per_token, padding included, recomputation not; over ``seconds`` and the
    device's peak it is the MFU. ``peak_memory_bytes``: most the process held so far, of GPU memory on CUDA, else resident.
    """

    step: int
    tokens: int
    loss: float
    load_balancing_loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    expert_load_max_over_mean: float
    skipped: bool
    expert_load_min: tuple[float, ...]
    expert_load_max: tuple[float, ...]
    expert_load_entropy: tuple[float, ...]
    starved_experts: tuple[int, ...]
    tokens_per_expert: tuple[tuple[int, ...], ...] | None
    router_confidence: float
    router_z: float
    flops: float
    peak_memory_bytes: int


HEAT_MAP_COLUMNS = 200


def heat_map_step(step: int, steps: int) -> bool:
    """Whether ``step`` (from 1) of ``steps`` reports all its counts: the first, the last, and evenly between."""
    return (step - 1) % max(1, steps // HEAT_MAP_COLUMNS) == 0 or step == steps


@dataclass(frozen=True)
class Measured:
    """What a step measured, on the host. ``loss`` is what was differentiated, with balancing."""

    loss: float
    next_token_loss: float
    load_balancing_loss: float
    router_z: float
    router_confidence: float
    grad_norm: float
    load: ExpertLoad

    @property
    def finite(self) -> bool:
        """The norm is finite only if every gradient is."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def on_device(output: LossOutput) -> Tensor:
    """All that is measured of one micro-batch as one vector (float64): SCALARS, then the counts. Vectors of a step's micro-batches add up."""
    scalars = torch.stack([getattr(output, name).detach() for name in SCALARS])
    return torch.cat((scalars.double(), output.tokens_per_expert_LE.flatten().double()))


def read(vector: Tensor, grad_norm: Tensor, n_experts: int) -> Measured:
    """Fetch what ``on_device`` collected: the only time a step waits for the device."""
    *numbers, norm = torch.cat((vector, grad_norm.detach().double().reshape(1))).tolist()
    scalars = dict(zip(SCALARS, numbers, strict=False))
    counts_LE = np.array(numbers[len(SCALARS) :]).reshape(-1, n_experts)
    return Measured(**scalars, grad_norm=norm, load=ExpertLoad.of(counts_LE))


@dataclass(frozen=True)
class ExpertLoad:
    """How a step's tokens fell on the experts, by layer; see StepMetrics. Without tokens all is 0 and every expert starved."""

    tokens_LE: np.ndarray  # int64
    smallest: tuple[float, ...]
    largest: tuple[float, ...]
    entropy: tuple[float, ...]
    starved: tuple[int, ...]

    @classmethod
    def of(cls, counts_LE: np.ndarray) -> ExpertLoad:
        total_L1 = np.maximum(1.0, counts_LE.sum(1, keepdims=True))
        share_LE = counts_LE / total_L1
        n_experts = counts_LE.shape[1]
        bits_LE = share_LE * np.log(np.where(share_LE > 0, share_LE, 1.0))
        entropy_L = -bits_LE.sum(1) / math.log(n_experts) if n_experts > 1 else share_LE.sum(1)
        over_mean_LE = share_LE * n_experts
        columns = over_mean_LE.min(1), over_mean_LE.max(1), entropy_L + 0.0, (counts_LE == 0).sum(1)  # + 0.0: no negative zero
        return cls(counts_LE.astype(np.int64), *(tuple(column.tolist()) for column in columns))

    def counts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(row) for row in self.tokens_LE.tolist())


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process held since it started: allocated on the GPU, or resident (Linux reports KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
