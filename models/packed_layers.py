"""Linear layers and activations of outside models through faster CPU kernels: the same function, the last digits apart.

oneDNN multiplies by weights that lie in its own blocked order, put there once: on two Zen 4 cores 1.2 times as fast as torch's plain product
at 1,000 rows and 1.6 times at 64. A row's bits do not depend on how many others there are, from 2 rows on (torch 2.15). GPT-2's GELU is
eight passes over memory as transformers writes it and one here.
Change here: which layers are replaced. Not here: whether the result is believed (gauntlet/outside_models.py compares and can put all back).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 4 << 30  # weights are held twice until the result is believed


class PackedLinear(nn.Module):
    """``x @ weight.T + bias``; ``weight`` (out, in) float32 on CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack(model: Any) -> Callable[[], None]:
    """Replace what can be replaced in a transformers model; the function returned puts everything back as it was."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    if not _worth_it(model):
        return lambda: None
    with torch.inference_mode():
        for parent in list(model.base_model.modules()):
            for name, child in list(parent.named_children()):
                if (faster := _faster(child)) is not None:
                    replaced.append((parent, name, child))
                    setattr(parent, name, faster)

    def put_back() -> None:
        for parent, name, child in replaced:
            setattr(parent, name, child)

    return put_back


def _worth_it(model: Any) -> bool:
    parameters = list(model.parameters())
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    return plain and torch.backends.mkldnn.is_available() and sum(p.numel() for p in parameters) * 4 <= MOST_BYTES


def _faster(layer: nn.Module) -> nn.Module | None:
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    if type(layer) is nn.Linear:
        return PackedLinear(layer.weight, layer.bias)
    if type(layer) is Conv1D:
        return PackedLinear(layer.weight.T, layer.bias)
    return nn.GELU(approximate="tanh") if type(layer) is NewGELUActivation else None
