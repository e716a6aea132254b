"""A Hugging Face causal language model that continues a models.kv_cache.KVCache, so that its prompts share their beginnings.

For the decoders of transformers whose attention goes through its attention interface and whose layers take ``position_ids`` (Llama, GPT-2
and most of their kin). Where weights are float32 on CPU, log-probabilities are as independent of batches as our own model's, unless the
model has experts or heads of fewer than 16 (their sines change in the last bit with their place in a vector).
Change here: how transformers is called. Not here: where keys lie (kv_cache.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.kv_cache import KVCache, attend_by_position

NAME = "attend_by_position"
_UNDERSTOOD = {"position_ids", "sliding_window", "dropout", "use_cache", "is_causal"}  # what a layer may give its attention


class CachedCausalLM(nn.Module):
    """``model``: a transformers causal LM with ``lm_head``; its attention implementation is switched to this module's, for cached passes only.

    ``hidden(tokens_BT, cache=cache, lengths_B=lengths)`` as models.gauntlet.scoring.Scorer documents it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _attention)
        self.model, self.lm_head = model, model.get_output_embeddings()

    def hidden(self, tokens_BT: Tensor, *, cache: KVCache | None = None, lengths_B: Tensor | None = None) -> Tensor:
        """Final states (B, T, D) from which ``lm_head`` predicts."""
        body = self.model.base_model
        if cache is None:
            return body(input_ids=tokens_BT, use_cache=False).last_hidden_state
        positions_BT = cache.plan(tokens_BT)
        if lengths_B is not None:  # padding stays where learned positions have a row
            positions_BT = positions_BT.minimum(positions_BT[:, :1] + lengths_B[:, None] - 1)
        adapter, before = _adapter(cache), self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        try:
            hidden_BTD = body(input_ids=tokens_BT, position_ids=positions_BT, past_key_values=adapter, use_cache=True).last_hidden_state
        finally:
            self.model.set_attn_implementation(before)
        cache.advance(tokens_BT.shape[1], lengths_B)
        return hidden_BTD


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None, **kwargs: Any) -> Any:
    if unknown := [name for name, setting in kwargs.items() if name not in _UNDERSTOOD and setting is not None and setting is not False]:
        raise ValueError(f"{type(module).__name__} gives its attention {', '.join(unknown)}, which cached attention does not know.")
    attended = attend_by_position(query, key, value, kwargs["position_ids"], scaling, kwargs.get("sliding_window"))
    return attended.transpose(1, 2).contiguous(), None


def _adapter(cache: KVCache) -> Any:
    """``cache`` as transformers passes one around."""
    from transformers import DynamicCache

    class Adapter(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return cache.append(layer_idx, key_states, value_states)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0  # position_ids say where tokens stand

    return Adapter()
