"""Routing of a mixture-of-experts layer, its parameters under DBRX's names, and the balancing losses.

Change here: how tokens choose experts, how balance is enforced. Not here: the kernels that multiply (experts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.experts import BACKENDS, ExpertWeights, expert_forward


@dataclass(frozen=True)
class RouterStats:
    """What one layer's router did. ``scores_NE``: softmax over all experts (float32) of the N counted tokens (padding is not
    counted); ``tokens_per_expert_E``: how many of their N*top_k choices fell on each expert (int64); ``logits_NE``: before the softmax."""

    scores_NE: Tensor
    tokens_per_expert_E: Tensor
    logits_NE: Tensor


def load_balancing_loss(*, scores_per_layer: Sequence[Tensor], tokens_per_expert_per_layer: Sequence[Tensor], top_k: int, weight: float) -> Tensor:
    """MegaBlocks' load-balancing loss (batched_load_balancing_loss): ``weight`` when every expert gets the same, more when not.

    ``weight * E / (L*N*top_k) * sum over layers of counts_E . mean_N(scores_NE)``: a scalar with gradient through the scores.
    Hugging Face's aux_loss pools layers and sums over top_k, so it is about ``top_k`` times larger.
    """
    if len(scores_per_layer) != len(tokens_per_expert_per_layer) or not scores_per_layer:
        raise ValueError(f"{len(scores_per_layer)} layers of scores and {len(tokens_per_expert_per_layer)} of counts: give one of each per layer.")
    n_tokens, n_experts = scores_per_layer[0].shape
    # Not a matrix product: autocast would round it to bf16. Not .mean(): no tokens at all must give 0, not nan.
    products = [(counts_E * s_NE.sum(0)).sum() for s_NE, counts_E in zip(scores_per_layer, tokens_per_expert_per_layer, strict=True)]
    return torch.stack(products).sum() * (weight * n_experts / (len(products) * max(1, n_tokens) ** 2 * top_k))


def router_z(logits_per_layer: Sequence[Tensor]) -> Tensor:
    """ST-MoE's router z-loss before its weight (Zoph et al. 2022, eq. 5): the mean squared logsumexp of the router logits, over tokens and
    layers; 0 without tokens."""
    sums = [logits_NE.logsumexp(-1).square().sum() for logits_NE in logits_per_layer]
    return torch.stack(sums).sum() / (len(sums) * max(1, len(logits_per_layer[0])))


def mean_confidence(scores_per_layer: Sequence[Tensor]) -> Tensor:
    """Mean over tokens and layers of the probability of a token's best expert: 1/E when the router is undecided; 0 without tokens."""
    return torch.stack([scores_NE.amax(-1).sum() for scores_NE in scores_per_layer]).sum() / (len(scores_per_layer) * max(1, len(scores_per_layer[0])))


def route(logits_NE: Tensor, top_k: int, balance_bias_E: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_NE, gates_NK, indices_NK): softmax in float32 at least, the ``top_k`` best, weights divided by their sum (p=1).

    ``balance_bias_E`` is added to the scores when the best are chosen, and only then (models/balance_bias.py).
    """
    scores_NE = torch.softmax(logits_NE, dim=-1, dtype=torch.promote_types(logits_NE.dtype, torch.float32))
    if balance_bias_E is None:
        gates_NK, indices_NK = scores_NE.topk(top_k, dim=-1)
    else:
        indices_NK = (scores_NE.detach() + balance_bias_E).topk(top_k, dim=-1).indices
        gates_NK = scores_NE.gather(-1, indices_NK)
    return scores_NE, gates_NK / gates_NK.sum(-1, keepdim=True), indices_NK


def count_tokens(indices_NK: Tensor, n_experts: int) -> Tensor:
    """How often each expert was chosen, (E,) int64. Unlike bincount it does not make the host wait for a GPU."""
    chosen = indices_NK.flatten()
    return torch.zeros(n_experts, dtype=torch.int64, device=chosen.device).scatter_add_(0, chosen, torch.ones_like(chosen))


class Router(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(config.d_model, config.n_experts, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Logits (N, E) in float32 at least, also under autocast: rounding them to bf16 changes which experts are chosen."""
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return nn.functional.linear(x_ND.to(dtype), self.layer.weight.to(dtype))


class ExpertMLP(nn.Module):
    """Holds ``w1``, ``v1`` and ``w2`` of all experts, each (E*F, D), expert-major (DBRX's and MegaBlocks' layout)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.n_experts * config.ffn_hidden, config.d_model)
        self.w1, self.v1, self.w2 = (nn.Parameter(torch.empty(shape)) for _ in range(3))


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mlp = ExpertMLP(config)


class MoE(nn.Module):
    """Dropless mixture of experts. Raises ValueError for an unknown ``experts_backend``."""

    def __init__(self, config: ModelConfig, experts_backend: str) -> None:
        super().__init__()
        if experts_backend not in BACKENDS:
            raise ValueError(f"Unknown experts_backend {experts_backend!r}. Known: {', '.join(BACKENDS)}.")
        self.n_experts, self.top_k, self.experts_backend = config.n_experts, config.top_k, experts_backend
        self.router = Router(config)
        self.experts = Experts(config)
        self.balance_bias_E: Tensor | None
        self.register_buffer("balance_bias_E", None, persistent=False)

    def forward(self, x_BTD: Tensor, counted_N: Tensor | None = None) -> tuple[Tensor, RouterStats]:
        """(output (B, T, D), statistics). ``counted_N``: flat indices of the tokens the statistics count; None counts all."""
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        scores_NE, gates_NK, indices_NK = route(logits_NE, self.top_k, self.balance_bias_E if self.training else None)
        tokens_per_expert_E = count_tokens(indices_NK, self.n_experts)
        device = x_ND.device.type
        if torch.is_autocast_enabled(device):  # grouped_mm is not on autocast's list
            x_ND = x_ND.to(torch.get_autocast_dtype(device))
        mlp = self.experts.mlp
        out_ND = expert_forward(
            self.experts_backend, x_ND, ExpertWeights(mlp.w1, mlp.v1, mlp.w2, self.n_experts),
            indices_NK=indices_NK, gates_NK=gates_NK, tokens_per_expert_E=tokens_per_expert_E,
        )  # fmt: skip
        if counted_N is None:
            return out_ND.view(x_BTD.shape), RouterStats(scores_NE, tokens_per_expert_E, logits_NE)
        stats = RouterStats(scores_NE[counted_N], count_tokens(indices_NK[counted_N], self.n_experts), logits_NE[counted_N])
        return out_ND.view(x_BTD.shape), stats
