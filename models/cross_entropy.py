"""Next-token cross entropy straight from hidden states, without ever holding all logits.

Change here: how the vocabulary loss is computed. Not here: which positions count (transformer.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22  # logits held at once on a CPU: enough rows for a fast product
CUDA_CHUNK_ELEMENTS = 2**27  # a GPU wants thousands of rows
BLOCK_ELEMENTS = 2**19  # of which so many are normalised at once: 2 MiB in float32, which stay in a core's cache


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of ``hidden @ weight.T``, chunk by chunk; the gradients are formed while the chunk is in cache."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        full = torch.promote_types(dtype, torch.float32)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if wants else None
        grad_weight = torch.zeros_like(weight_VD, dtype=full) if wants else None
        total = torch.zeros((), dtype=full, device=hidden.device)
        step = max(1, (CUDA_CHUNK_ELEMENTS if hidden.is_cuda else CHUNK_ELEMENTS) // len(weight))
        held = torch.empty(min(step, len(hidden)), len(weight), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits = held[: len(targets_N[rows])]
            torch.mm(hidden[rows], weight.T, out=logits)
            total += _normalise(logits, targets_N[rows], full, wants)
            if wants:
                torch.mm(logits, weight, out=grad_hidden[rows])
                if dtype == full:
                    grad_weight.addmm_(logits.T, hidden[rows])
                else:
                    grad_weight += logits.T @ hidden[rows]
        if wants:
            ctx.save_for_backward(grad_hidden.to(hidden_ND.dtype), grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None


def _normalise(logits_RV: Tensor, targets_R: Tensor, full: torch.dtype, wants: bool) -> Tensor:
    """Sum of the cross entropies of the rows; where it ``wants`` gradients, those of the logits replace them."""
    total = torch.zeros((), dtype=full, device=logits_RV.device)
    size = len(logits_RV) if logits_RV.is_cuda else max(1, BLOCK_ELEMENTS // logits_RV.shape[1])
    for rounded, target in zip(logits_RV.split(size), targets_R[:, None].split(size), strict=True):
        logits = rounded.to(full)
        probs = logits.softmax(-1)
        # The largest probability is at least 1/V, so its log is safe, and logsumexp costs no second pass of exp.
        log_sum = logits.amax(-1) - probs.amax(-1).log()
        total += log_sum.sum() - logits.gather(1, target).sum()
        if wants:
            rounded.copy_(probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=full)))
    return total


def summed_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over N of the cross entropy (nats) of logits ``hidden_ND @ weight_VD.T`` against ``targets_N`` (int64), float32.

    Products run in the autocast dtype when autocast is on; softmax and sums are always float32 at least.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype)
