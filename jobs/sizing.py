"""What a recipe asks of a machine, from its sizes alone: bytes that training keeps, training FLOPs, hours of a data-centre GPU. Nothing runs.

Change here: what is counted. Not here: the FLOPs of a token (models/config.py), measured prices (jobs/services/prices.py), the forecast of a run
(jobs/stages/forecast.py), which times real steps.
"""

from __future__ import annotations

from typing import Any

from jobs.config import Recipe, TrainConfig

HOPPER_FLOPS = 989e12  # dense bf16 peak of one H100 or H200 (SXM), NVIDIA's data sheet
MFU = 0.4  # what Databricks reported for training MoEs on H100s (PyTorch blog, 23 June 2024); no measurement of ours
_FP32, _BF16 = 4, 2


def state_bytes(train: TrainConfig) -> int:
    """Bytes that a training keeps from step to step, and its gradients, over all workers together; activations are not in it.

    Per parameter: a float32 master, its gradient and Adam's two moments, 16 bytes; with bf16 autocast also the rounded copy that the backward
    pass needs, 18.
    """
    return train.model.params_total * (4 * _FP32 + (_BF16 if train.precision == "bf16" else 0))


def training_flops(train: TrainConfig) -> float:
    """FLOPs of all steps: ModelConfig.flops_per_token, which counts active experts, times the tokens trained on."""
    return train.model.flops_per_token * train.tokens_per_step * train.steps


def size(recipe: Recipe) -> dict[str, Any]:
    """``params_total``, ``params_active``, ``flops`` of the training and ``proxy_flops`` of the forecast's proxies, ``state_gib`` (state_bytes),
    ``gpu_hours``: of both on one Hopper GPU at ``MFU`` of its peak, an estimate before anything was measured."""
    flops, proxy_flops = training_flops(recipe.train), sum(map(training_flops, recipe.proxies))
    return {
        "params_total": recipe.model.params_total, "params_active": recipe.model.params_active, "flops": flops, "proxy_flops": proxy_flops,
        "state_gib": state_bytes(recipe.train) / 2**30, "gpu_hours": (flops + proxy_flops) / (HOPPER_FLOPS * MFU * 3600),
    }  # fmt: skip
