"""Keys and values of tokens already seen, so that a shared prefix is computed once and continued many times."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Starts empty; every forward pass with it appends. Rows may have different lengths (right padding is never attended to).

    Score several continuations of one prefix::

        cache = KVCache()
        model.hidden(prefix_BT, cache=cache, lengths_B=lengths)
        logits = model.forward(choices_CT, cache=cache.expand(choices_per_row)).logits_BTV

    ``expand`` leaves this cache as it was, so it can be expanded again.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # per layer (B, kv_heads, S, head_dim), rotated
        self.values: list[Tensor] = []
        self.real_BS: Tensor | None = None  # which cached positions are real tokens

    def expand(self, repeats: int | Tensor) -> KVCache:
        """A new cache in which row b appears ``repeats`` (or ``repeats[b]``) times in a row."""
        grown = KVCache()
        grown.keys = [k.repeat_interleave(repeats, dim=0) for k in self.keys]
        grown.values = [v.repeat_interleave(repeats, dim=0) for v in self.values]
        grown.real_BS = self.real_BS.repeat_interleave(repeats, dim=0) if self.real_BS is not None else None
        return grown

    @property
    def lengths_B(self) -> Tensor | None:
        """Real tokens per row; None before the first pass."""
        return self.real_BS.sum(1) if self.real_BS is not None else None

    def plan(self, shape: torch.Size, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """(allowed (B, T, S+T) bool, positions (B, T)) for ``shape`` = (B, T) new tokens. Raises ValueError for another batch size."""
        rows, new = shape
        device = self.real_BS.device if self.real_BS is not None else (lengths_B.device if lengths_B is not None else None)
        old_BS = self.real_BS if self.real_BS is not None else torch.zeros(rows, 0, dtype=torch.bool, device=device)
        if old_BS.shape[0] != rows:
            raise ValueError(f"The cache holds {old_BS.shape[0]} rows, the new tokens have {rows}. Use cache.expand() to repeat rows.")
        causal_TT = torch.ones(new, new, dtype=torch.bool, device=device).tril()
        allowed = torch.cat((old_BS[:, None, :].expand(rows, new, -1), causal_TT[None].expand(rows, new, new)), dim=2)
        return allowed, old_BS.sum(1, keepdim=True) + torch.arange(new, device=device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one layer's new keys and values; returns all of them."""
        if layer == len(self.keys):
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = torch.cat((self.keys[layer], keys), dim=2)
            self.values[layer] = torch.cat((self.values[layer], values), dim=2)
        return self.keys[layer], self.values[layer]

    def advance(self, new: int, lengths_B: Tensor | None) -> None:
        """Record which of the ``new`` positions just appended are real (all, or the first ``lengths_B`` of each row)."""
        rows, device = self.keys[0].shape[0], self.keys[0].device
        index_T = torch.arange(new, device=device)
        real_BT = index_T < lengths_B[:, None].to(device) if lengths_B is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        self.real_BS = real_BT if self.real_BS is None else torch.cat((self.real_BS, real_BT), dim=1)
