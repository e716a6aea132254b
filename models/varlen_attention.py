"""Attention inside packed documents on a GPU: FlashAttention over the documents themselves instead of a mask over the sequence.

A mask costs T*T scores per sequence whatever is packed into it, and keeps scaled_dot_product_attention off its flash kernel.
Change here: what runs on CUDA in 16 bits. Not here: everything else that attends (transformer.attend).
"""

from __future__ import annotations

import torch
from torch import Tensor


def fits(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """FlashAttention's kernels exist for 16-bit numbers and heads up to 256 wide, on GPUs since Ampere."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim > 256 or head_dim % 8:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def document_ends(positions_BT: Tensor) -> Tensor:
    """(documents + 1,) int32: where each document begins in the flattened batch, and the end. A document begins at position 0."""
    starts = (positions_BT.flatten() == 0).nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([positions_BT.numel()])]).to(torch.int32)


def attend_documents(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
    """Causal attention of every document of ``ends`` to itself. ``q`` (B, T, H, head_dim), ``k`` and ``v`` with fewer heads; returns q's shape."""
    from torch.nn.attention.varlen import varlen_attn

    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2).flatten(0, 1) for t in (k, v))
    longest = q.shape[1]  # an upper bound: asking for the longest document would make the host wait
    return varlen_attn(q.flatten(0, 1), k, v, ends, ends, longest, longest, window_size=(-1, 0)).view(q.shape)
