"""The experts of one mixture-of-experts layer: which kernel multiplies, never what is computed.

Change here: a kernel, a backend. Not here: routing and balancing (moe.py), parameter names (moe.py, transformer.py), grouped_mm's products where
a CPU trains (experts_cpu.py).

Shape suffixes: N tokens, K experts per token, E experts, R = N*K routed rows (sorted by expert), D model width, F expert width.
Per expert e: ``y = (silu(x @ w1[e].T) * (x @ v1[e].T)) @ w2[e]`` (databricks/dbrx modeling_dbrx.py, MegaBlocks GroupedGLU); the
results of a token's K experts are added with the router's weights. No token is dropped, whatever the load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from models.experts_cpu import train_experts

MEGABLOCKS_MISSING = (
    "experts_backend 'megablocks' was asked for, but it cannot be imported ({error}). It needs an NVIDIA GPU and wheels made for this torch: "
    "`python infra/gpu/build_megablocks.py --out wheels` makes them and says how to install them (or, with torch 2.7.0: "
    "`TORCH_CUDA_ARCH_LIST=9.0 pip install --no-build-isolation 'megablocks[gg]==0.10.0'`). Or choose 'grouped_mm'."
)


@dataclass(frozen=True)
class ExpertWeights:
    """Expert-major weights of one layer, each (E*F, D) as in the DBRX state dict."""

    w1: Tensor
    v1: Tensor
    w2: Tensor
    n_experts: int

    def cast(self, dtype: torch.dtype) -> ExpertWeights:
        return ExpertWeights(self.w1.to(dtype), self.v1.to(dtype), self.w2.to(dtype), self.n_experts)

    def by_expert(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three weights viewed as (E, F, D)."""
        shape = (self.n_experts, -1, self.w1.shape[-1])
        return self.w1.view(shape), self.v1.view(shape), self.w2.view(shape)


def expert_forward(backend: str, x_ND: Tensor, weights: ExpertWeights, *, indices_NK: Tensor, gates_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """Weighted sum of each token's experts, (N, D) in the dtype of ``x_ND``.

    ``indices_NK`` are the chosen experts (int64), ``gates_NK`` their weights, ``tokens_per_expert_E`` (int64) the counts of
    ``indices_NK``. Raises ValueError for an unknown backend or when MegaBlocks is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Unknown experts_backend {backend!r}. Known: {', '.join(BACKENDS)}.")
    if weights.n_experts == 1:
        return _dense(x_ND, weights.cast(x_ND.dtype))
    if backend == "grouped_mm" and _trains_on_cpu(x_ND):
        return train_experts(x_ND, gates_NK.to(x_ND.dtype), weights.w1, weights.v1, weights.w2, indices_NK, tokens_per_expert_E)
    return BACKENDS[backend](x_ND, weights.cast(x_ND.dtype), indices_NK, gates_NK.to(x_ND.dtype), tokens_per_expert_E)


def _trains_on_cpu(x_ND: Tensor) -> bool:
    return x_ND.device.type == "cpu" and x_ND.dtype in (torch.float32, torch.bfloat16) and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _dense(x_ND: Tensor, weights: ExpertWeights) -> Tensor:
    """One expert takes every token with a gate of 1: a dense model, which is to pay for nothing but its three products, whatever the backend."""
    return (F.silu(F.linear(x_ND, weights.w1)) * F.linear(x_ND, weights.v1)) @ weights.w2


def _reference(x_ND: Tensor, weights: ExpertWeights, indices_NK: Tensor, gates_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """A loop over experts, as readable as the formula: what the other backends are tested against."""
    w1_EFD, v1_EFD, w2_EFD = weights.by_expert()
    out_ND = torch.zeros_like(x_ND)
    for expert in range(weights.n_experts):
        token, slot = torch.where(indices_NK == expert)
        x = x_ND[token]
        y = (F.silu(x @ w1_EFD[expert].T) * (x @ v1_EFD[expert].T)) @ w2_EFD[expert]
        out_ND = out_ND.index_add(0, token, y * gates_NK[token, slot, None])
    return out_ND


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@functools.cache
def _compiled_swiglu() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(_swiglu, dynamic=True)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``; on a GPU one kernel each way instead of six, and the product is not kept for the backward pass."""
    return _compiled_swiglu()(gate, up) if gate.is_cuda and not torch.compiler.is_compiling() else _swiglu(gate, up)


class _Dispatch(torch.autograd.Function):
    """Copy each token to its K rows. The gradient is a gather and a sum: unlike index_add it is fast and deterministic everywhere."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_R: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return x_ND.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (row_NK,) = ctx.saved_tensors
        return grad_RD.index_select(0, row_NK.flatten()).view(*row_NK.shape, -1).sum(1), None, None


class _Combine(torch.autograd.Function):
    """Add a token's K rows, weighted by its gates."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, gates_NK: Tensor, token_R: Tensor, row_NK: Tensor) -> Tensor:
        y_NKD = y_RD.index_select(0, row_NK.flatten()).view(*row_NK.shape, -1)
        ctx.save_for_backward(y_NKD, gates_NK, token_R, row_NK)
        return torch.bmm(gates_NK.unsqueeze(1), y_NKD).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        y_NKD, gates_NK, token_R, row_NK = ctx.saved_tensors
        gate_R = torch.empty_like(gates_NK).flatten()
        gate_R[row_NK.flatten()] = gates_NK.flatten()
        grad_RD = grad_ND.index_select(0, token_R) * gate_R.unsqueeze(1)
        return grad_RD, torch.bmm(y_NKD, grad_ND.unsqueeze(2)).squeeze(2), None, None


def _grouped_mm(x_ND: Tensor, weights: ExpertWeights, indices_NK: Tensor, gates_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """Sort rows by expert, three grouped matrix products (torch.nn.functional.grouped_mm), put them back. CPU and CUDA.

    An expert without tokens is an empty group: it multiplies nothing and gets a zero gradient.
    """
    if x_ND.dtype == torch.float64:
        raise ValueError("grouped_mm has no float64 kernel: build the model with experts_backend='reference' for that.")
    order_R = indices_NK.flatten().argsort(stable=True)  # row r holds slot order_R[r]
    row_NK = torch.empty_like(order_R)
    row_NK[order_R] = torch.arange(len(order_R), device=order_R.device)
    token_R = order_R // indices_NK.shape[1]
    if torch.is_inference_mode_enabled() and not x_ND.is_cuda:
        row_NK, token_R, tokens_per_expert_E = _whole_blocks(row_NK, indices_NK.flatten(), token_R, tokens_per_expert_E)
    row_NK, ends_E = row_NK.view(indices_NK.shape), tokens_per_expert_E.cumsum(0).to(torch.int32)
    w1_EFD, v1_EFD, w2_EFD = weights.by_expert()
    x_RD = _Dispatch.apply(x_ND, token_R, row_NK)
    gate_RF = F.grouped_mm(x_RD, w1_EFD.transpose(-2, -1), offs=ends_E)
    up_RF = F.grouped_mm(x_RD, v1_EFD.transpose(-2, -1), offs=ends_E)
    y_RD = F.grouped_mm(swiglu(gate_RF, up_RF), w2_EFD, offs=ends_E)
    return _Combine.apply(y_RD, gates_NK, token_R, row_NK)


def _whole_blocks(row_R: Tensor, expert_R: Tensor, token_R: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same rows with every expert's share filled up to whole blocks (by copies of token 0 that nobody reads).

    A row of a matrix product on CPU changes in its last bits when there are fewer than 4 rows per thread (torch 2.15 with MKL), so a
    token's output would depend on how many of its neighbours chose the same expert. Answers must not (models/gauntlet).
    """
    block = 16 * torch.get_num_threads()
    filled_E = (counts_E + block - 1) // block * block
    moved_E = filled_E.cumsum(0) - filled_E - (counts_E.cumsum(0) - counts_E)
    moved_R = row_R + moved_E[expert_R]
    filled_tokens = torch.zeros(int(filled_E.sum()), dtype=token_R.dtype)
    filled_tokens[moved_R] = token_R[row_R]
    return moved_R, filled_tokens, filled_E


def _megablocks(x_ND: Tensor, weights: ExpertWeights, indices_NK: Tensor, gates_NK: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """MegaBlocks' own kernels in the order of its dMoE with mlp_type='glu', mlp_impl='grouped' (0.10.0, dmoe.py and glu.py).

    grouped_gemm multiplies bf16 only, so on CUDA everything inside is bf16.
    """
    try:
        from megablocks import grouped_gemm_util, ops  # optional, and importing it needs CUDA
    except (ImportError, RuntimeError) as error:
        raise ValueError(MEGABLOCKS_MISSING.format(error=error)) from error
    if grouped_gemm_util.ops is None:
        raise ValueError(MEGABLOCKS_MISSING.format(error="grouped_gemm is missing"))
    gmm, dtype, top_k = grouped_gemm_util.ops.gmm, x_ND.dtype, indices_NK.shape[1]
    if x_ND.is_cuda:
        x_ND, weights, gates_NK = x_ND.bfloat16(), weights.cast(torch.bfloat16), gates_NK.bfloat16()
    end_bit = max(1, (weights.n_experts - 1).bit_length())
    experts_R, order_R = ops.sort(indices_NK.flatten().int(), end_bit)
    bins_E = ops.inclusive_cumsum(tokens_per_expert_E.int(), 0)
    w1_EFD, v1_EFD, w2_EFD = weights.by_expert()
    sizes_E = tokens_per_expert_E.cpu().to(torch.long)  # grouped_gemm 0.3.0 reads the counts on the host
    x_RD = ops.gather(x_ND, order_R, experts_R, bins_E, top_k)
    hidden_RF = swiglu(gmm(x_RD, w1_EFD, sizes_E, trans_b=True), gmm(x_RD, v1_EFD, sizes_E, trans_b=True))
    y_RD = gmm(hidden_RF, w2_EFD, sizes_E)
    return ops.scatter(y_RD, order_R, experts_R, gates_NK.flatten(), bins_E, top_k).to(dtype)


BACKENDS: dict[str, Callable[[Tensor, ExpertWeights, Tensor, Tensor, Tensor], Tensor]] = {
    "reference": _reference,
    "grouped_mm": _grouped_mm,
    "megablocks": _megablocks,
}
