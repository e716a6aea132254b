"""Experts on several workers: every routed row travels to the worker that holds its expert and back. No row is dropped.

The same layout and numbers as one worker: ``w1``, ``v1``, ``w2`` stay (E*F, D) tensors under DBRX's names, sharded by rows, that is by
expert. Change here: how rows travel. Not here: what an expert computes (models/experts.py), who holds what (sharding.py).

Shape suffixes: N tokens, K experts per token, E experts, W workers, R rows sent, S rows received, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.experts import BACKENDS, ExpertWeights

PREFIX = "expert_parallel:"


class _Exchange(torch.autograd.Function):
    """all_to_all of rows with uneven splits; the gradient travels the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = (sent, received, group)
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        sent, received, group = ctx.way
        return _exchanged(grad, received, sent, group), None, None, None


def _exchanged(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), list(received), list(sent), group=group)
    return out


class _Permute(torch.autograd.Function):
    """Rows in another order; the gradient is the inverse gather, fast and deterministic where index_add is not."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


def expert_parallel(backend: str) -> str:
    """The name of ``backend`` run expert-parallel, known to models/experts.py from now on. Its weights must be sharded by expert."""
    inner, name = BACKENDS[backend], PREFIX + backend

    def forward(x_ND: Tensor, weights: ExpertWeights, indices_NK: Tensor, gates_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
        group = weights.w1.device_mesh.get_group()
        local = ExpertWeights(*(w.to_local() for w in (weights.w1, weights.v1, weights.w2)), weights.n_experts // dist.get_world_size(group))
        order_R = indices_NK.flatten().argsort(stable=True)
        row_R = torch.empty_like(order_R)
        row_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        x_RD = _Permute.apply(x_ND.unsqueeze(1).expand(*indices_NK.shape, -1).flatten(0, 1), order_R, row_R)
        counts_WE, sent, received = _splits(tokens_per_expert_E, local.n_experts, group)
        x_SD = _Exchange.apply(x_RD, sent, received, group)
        expert_S = torch.arange(local.n_experts, device=x_SD.device).repeat(len(counts_WE)).repeat_interleave(counts_WE.flatten(), output_size=len(x_SD))
        y_RD = _Exchange.apply(_own_experts(inner, x_SD, local, expert_S, counts_WE.sum(0)), received, sent, group)
        y_NKD = _Permute.apply(y_RD, row_R, order_R).unflatten(0, indices_NK.shape)
        return torch.bmm(gates_NK.unsqueeze(1), y_NKD).squeeze(1)

    BACKENDS[name] = forward
    return name


def _own_experts(inner: Callable[..., Tensor], x_SD: Tensor, local: ExpertWeights, expert_S: Tensor, counts_E: Tensor) -> Tensor:
    """Each received row through its expert. Without any row a row of zeros goes through, whose result nobody reads: the backward pass must
    reach the exchange on every worker, and kernels refuse to multiply nothing."""
    n = len(x_SD)
    if not n:
        x_SD, expert_S, counts_E = torch.cat((x_SD, x_SD.new_zeros(1, x_SD.shape[1]))), expert_S.new_zeros(1), torch.eye(1, len(counts_E)).to(counts_E)[0]
    return inner(x_SD, local, expert_S[:, None], x_SD.new_ones(len(x_SD), 1), counts_E)[:n]


def _splits(tokens_per_expert_E: Tensor, n_local: int, group: dist.ProcessGroup) -> tuple[Tensor, list[int], list[int]]:
    """(rows received per worker and own expert (W, E / W), rows sent per worker, rows received per worker); the host waits for them."""
    sent_WE = tokens_per_expert_E.view(-1, n_local)
    counts_WE = torch.empty_like(sent_WE)
    dist.all_to_all_single(counts_WE, sent_WE.contiguous(), group=group)
    sent, received = torch.stack((sent_WE.sum(1), counts_WE.sum(1))).tolist()
    return counts_WE, sent, received
