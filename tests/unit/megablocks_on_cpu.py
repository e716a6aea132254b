"""Runs MegaBlocks' own Python code without a GPU beside ours and prints the differences as JSON.

A process of its own (test_megablocks.py), started with TRITON_INTERPRET=1 and the sources on PYTHONPATH. MegaBlocks' permute kernels run
in Triton's interpreter; its compiled parts (four integer functions, the grouped product) are stood in for by exact lines of torch.
"""

from __future__ import annotations

import json
import sys
import types

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor
from torch.utils.checkpoint import checkpoint

E, D, FFN, K = 8, 64, 96, 4


def megablocks_ops() -> types.ModuleType:
    """The four functions of the compiled extension that mlp_impl='grouped' calls."""

    def sort(x: Tensor, end_bit: int, values: Tensor, order: Tensor) -> None:
        ascending, permutation = x.sort(stable=True)
        values.copy_(ascending)
        order.copy_(permutation)

    def exclusive_cumsum(x: Tensor, dim: int, out: Tensor) -> None:
        out.copy_(x.cumsum(dim) - x)

    module = types.ModuleType("megablocks_ops")
    module.sort, module.exclusive_cumsum = sort, exclusive_cumsum
    module.histogram = lambda x, bins: torch.bincount(x.long(), minlength=int(bins)).int()
    module.inclusive_cumsum = lambda x, dim, out: out.copy_(x.cumsum(dim))
    return module


def product(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool = False, trans_b: bool = False, c: Tensor | None = None) -> Tensor:
    parts = a.split(sizes.tolist())
    if trans_a:
        out = torch.stack([x.T @ y for x, y in zip(parts, b.split(sizes.tolist()), strict=True)])
    else:
        out = torch.cat([x @ (b[e].T if trans_b else b[e]) for e, x in enumerate(parts)])
    return out if c is None else c.copy_(out)


class GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, sizes, trans_b=False):
        ctx.save_for_backward(a, b, sizes)
        ctx.trans_b = trans_b
        return product(a, b, sizes, trans_b=trans_b)

    @staticmethod
    def backward(ctx, grad):
        a, b, sizes = ctx.saved_tensors
        grad = grad.contiguous()
        left, right = (grad, a) if ctx.trans_b else (a, grad)
        return product(grad, b, sizes, trans_b=not ctx.trans_b), product(left, right, sizes, trans_a=True), None, None


def stand_in() -> None:
    sys.modules["megablocks_ops"] = megablocks_ops()
    grouped, backend, ops = (types.ModuleType(name) for name in ("grouped_gemm", "grouped_gemm.backend", "grouped_gemm.ops"))
    backend.gmm = product
    ops.gmm = lambda a, b, sizes, trans_b=False: GroupedProduct.apply(a, b, sizes, trans_b)
    grouped.backend, grouped.ops = backend, ops
    sys.modules.update({"grouped_gemm": grouped, "grouped_gemm.backend": backend, "grouped_gemm.ops": ops})
    from megablocks.backend import kernels

    for kernel in vars(kernels).values():  # the autotuner measures only where there is a choice, and measuring needs a GPU
        if hasattr(kernel, "configs"):
            kernel.configs = kernel.configs[:1]


def dmoe(**changed: object) -> tuple[torch.nn.Module, object]:
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    torch.manual_seed(5)
    arguments = Arguments(
        hidden_size=D, ffn_hidden_size=FFN, num_layers=1, moe_num_experts=E, moe_top_k=K, moe_normalize_expert_weights=1, moe_loss_weight=0.05,
        activation_fn=F.silu, mlp_type="glu", mlp_impl="grouped", bias=False, return_bias=False, fp16=False, bf16=False,
        device=torch.device("cpu"), moe_jitter_eps=None, **changed,
    )  # fmt: skip
    layer = dMoE(arguments)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return layer, arguments


def their_step(layer: torch.nn.Module, arguments: object, x: Tensor, up: Tensor) -> dict[str, Tensor]:
    from megablocks.layers.moe import batched_load_balancing_loss, clear_load_balancing_loss

    clear_load_balancing_loss()
    x = x.clone().requires_grad_()
    out = layer(x)
    balance = batched_load_balancing_loss(arguments)
    ((out * up).sum() + balance).backward()
    return {"out": out.detach(), "balance": balance.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def our_step(backend: str, weights: dict[str, Tensor], x: Tensor, up: Tensor) -> dict[str, Tensor]:
    from models.config import ModelConfig
    from models.moe import MoE, load_balancing_loss

    layer = MoE(ModelConfig(d_model=D, n_heads=2, n_kv_heads=1, n_layers=1, ffn_hidden=FFN, vocab_size=8, max_seq_len=8, n_experts=E, top_k=K), backend)
    layer.load_state_dict(weights)  # MegaBlocks' names and shapes are ours
    x = x.clone().requires_grad_()
    out, stats = layer(x)
    balance = load_balancing_loss(scores_per_layer=[stats.scores_NE], tokens_per_expert_per_layer=[stats.tokens_per_expert_E], top_k=K, weight=0.05)
    ((out * up).sum() + balance).backward()
    return {"out": out.detach(), "balance": balance.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def differences() -> dict[str, float]:
    """Largest absolute difference of output, balancing loss and every gradient, by backend and load."""
    found = {}
    for load, shape in (("even", (2, 20, D)), ("four experts", (2, 20, D)), ("one token", (1, 1, D))):
        layer, arguments = dmoe()
        if load == "four experts":  # equal scores: the first four win every time, the others get no token
            torch.nn.init.zeros_(layer.router.layer.weight)
        torch.manual_seed(1)
        x, up = torch.randn(shape), torch.randn(shape)
        theirs = their_step(layer, arguments, x, up)
        for backend in ("reference", "grouped_mm", "megablocks"):
            ours = our_step(backend, layer.state_dict(), x, up)
            assert ours.keys() == theirs.keys()
            found[f"{backend}, {load}"] = max(float((ours[key] - value).abs().max()) for key, value in theirs.items())
    return found


def traps() -> dict[str, object]:
    """What MegaBlocks' global list of losses does where ours, returned from forward, cannot."""
    from megablocks.layers.moe import batched_load_balancing_loss, clear_load_balancing_loss, get_load_balancing_loss

    layer, arguments = dmoe()
    x, found = torch.randn(2, 20, D, requires_grad=True), {}
    after = torch.nn.Linear(D, D)
    for name, reentrant in (("checkpointing", False), ("re-entrant checkpointing", True)):
        clear_load_balancing_loss()
        out = checkpoint(lambda t: after(t + layer(t)), x, use_reentrant=reentrant)
        found[f"{name}: losses kept, with gradient"] = [len(get_load_balancing_loss()), get_load_balancing_loss()[0][1].requires_grad]
        out.sum().backward()
        found[f"{name}: losses kept after backward"] = len(get_load_balancing_loss())
    clear_load_balancing_loss()
    try:
        layer.eval()(x)
        batched_load_balancing_loss(arguments)
    except ValueError:
        found["eval mode"] = "ValueError"
    return found


stand_in()
print(json.dumps({"differences": differences(), "traps": traps()}))
