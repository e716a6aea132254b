"""Next-token cross entropy straight from hidden states, without ever holding all logits.

Change here: how the vocabulary loss is computed. Not here: which positions count (transformer.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits held at once. On a CPU 8 MiB in float32, small enough to stay in cache and be reused by the allocator; on a GPU enough rows
# (2048 of a vocabulary of 32,768) to fill it with one matrix product.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}


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
        step = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"]) // len(weight))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits, target = (hidden[rows] @ weight.T).to(full), targets_N[rows, None]
            probs = logits.softmax(-1)
            # The largest probability is at least 1/V, so its log is safe, and logsumexp costs no second pass of exp.
            log_sum = logits.amax(-1) - probs.amax(-1).log()
            total += log_sum.sum() - logits.gather(1, target).sum()
            if wants:
                grad_logits = probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=full)).to(dtype)
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
                grad_weight += grad_logits.T @ hidden[rows]
        if wants:
            ctx.save_for_backward(grad_hidden.to(hidden_ND.dtype), grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None


def summed_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over N of the cross entropy (nats) of logits ``hidden_ND @ weight_VD.T`` against ``targets_N`` (int64), float32.

    Products run in the autocast dtype when autocast is on; softmax and sums are always float32 at least.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype)
