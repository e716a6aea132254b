"""Training the experts of one layer on a CPU: one expert after the other, so that what lies between its products stays in the cache.

The same products as experts.py's grouped_mm, which on a CPU is a loop over experts, too, but of one product at a time over all rows. Here a
token's gate meets its expert's hidden values (D/F times as cheap as its outputs), inputs and hidden values are made again in the backward pass
rather than kept, weights are rounded and their gradients widened an expert at a time, and rows are gathered and added in one pass (embedding_bag).
Change here: training on a CPU. Not here: other devices, inference, which expert a token takes (experts.py, moe.py).

Shape suffixes as in experts.py: N tokens, K experts per token, E experts, R = N*K rows sorted by expert, D model width, F expert width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """``row_NK``: where each choice of a token lies among the rows; ``token_R`` and ``slot_R`` (into flattened (N, K)) of each row;
    ``ends``: of every expert's rows."""

    row_NK: Tensor
    token_R: Tensor
    slot_R: Tensor
    ends: tuple[int, ...]

    def by_expert(self) -> Iterator[tuple[int, slice]]:
        """Experts that have rows, with them."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end


def sort_rows(indices_NK: Tensor, tokens_per_expert_E: Tensor) -> Rows:
    """The choices of all tokens in the order of experts, of tokens within one."""
    slot_R = indices_NK.flatten().argsort(stable=True)
    row_NK = torch.empty_like(slot_R)
    row_NK[slot_R] = torch.arange(len(slot_R))
    return Rows(row_NK.view(indices_NK.shape), slot_R // indices_NK.shape[1], slot_R, tuple(tokens_per_expert_E.cumsum(0).tolist()))


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gates_NK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, rows: Rows) -> Tensor:
        shape = (len(rows.ends), -1, x_ND.shape[1])
        w1_EFD, v1_EFD, w2_EFD = (w.view(shape) for w in (w1, v1, w2))
        n_rows, width = len(rows.token_R), w1_EFD.shape[1]
        gate_RF, up_RF = (x_ND.new_empty(n_rows, width) for _ in range(2))
        y_RD = x_ND.new_empty(n_rows, x_ND.shape[1])
        for expert, own in rows.by_expert():
            x = x_ND.index_select(0, rows.token_R[own])
            gate = torch.mm(x, w1_EFD[expert].to(x.dtype).T, out=gate_RF[own])
            up = torch.mm(x, v1_EFD[expert].to(x.dtype).T, out=up_RF[own])
            torch.mm(F.silu(gate).mul_(up), w2_EFD[expert].to(x.dtype), out=y_RD[own])
        ctx.save_for_backward(x_ND, gates_NK, w1, v1, w2, gate_RF, up_RF)
        ctx.rows = rows
        return F.embedding_bag(rows.row_NK, y_RD, mode="sum", per_sample_weights=gates_NK)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_ND, gates_NK, w1, v1, w2, gate_RF, up_RF = ctx.saved_tensors
        rows: Rows = ctx.rows
        weights_EFD = [w.view(len(rows.ends), -1, x_ND.shape[1]) for w in (w1, v1, w2)]
        grads_EFD = [torch.zeros_like(w) if len(set((0, *rows.ends))) <= len(rows.ends) else torch.empty_like(w) for w in weights_EFD]  # some have no rows
        gates_R = gates_NK.flatten()[rows.slot_R, None]
        grad_gates_R, grad_x_RD = torch.empty_like(gates_R), x_ND.new_empty(len(rows.token_R), x_ND.shape[1])
        for expert, own in rows.by_expert():
            w1_FD, v1_FD, w2_FD = (w[expert].to(x_ND.dtype) for w in weights_EFD)
            x, grad_y = x_ND.index_select(0, rows.token_R[own]), grad_ND.index_select(0, rows.token_R[own])
            gate, up = gate_RF[own], up_RF[own]
            active = F.silu(gate)
            grad_hidden, hidden = grad_y @ w2_FD.T, active * up
            torch.bmm(hidden[:, None], grad_hidden[:, :, None], out=grad_gates_R[own, :, None])
            grad_hidden.mul_(gates_R[own])
            grads_EFD[2][expert].copy_(hidden.mul_(gates_R[own]).T @ grad_y)
            grad_up = active.mul_(grad_hidden)
            grad_gate = torch.ops.aten.silu_backward(grad_hidden.mul_(up), gate)
            grads_EFD[0][expert].copy_(grad_gate.T @ x)
            grads_EFD[1][expert].copy_(grad_up.T @ x)
            torch.mm(grad_gate, w1_FD, out=grad_x_RD[own]).addmm_(grad_up, v1_FD)
        grad_gates_NK = torch.empty_like(gates_NK).flatten()
        grad_gates_NK[rows.slot_R] = grad_gates_R[:, 0]
        grad_x_ND = F.embedding_bag(rows.row_NK, grad_x_RD, mode="sum")
        return grad_x_ND, grad_gates_NK.view_as(gates_NK), *(g.view_as(w1) for g in grads_EFD), None


def train_experts(x_ND: Tensor, gates_NK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, indices_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """Weighted sum of each token's experts, (N, D) in the dtype of ``x_ND``, with gradients for ``x_ND``, ``gates_NK`` (of the same dtype) and the
    weights (E*F, D; of any dtype, used in that of ``x_ND``)."""
    with torch.autocast("cpu", enabled=False):
        return _Experts.apply(x_ND, gates_NK, w1, v1, w2, sort_rows(indices_NK, tokens_per_expert_E))
