"""Small models whose weights and tokenizer are written down, not drawn: the same numbers with every version of torch and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("llama", "gpt_neox")
POSITIONS = 256
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_MERGES = ("Ġ t", "h e", "i n", "Ġ a", "Ġ Ġ", "Ġt he", "o n", "Ġ 1", "Ġ w", "o u", "Ġ i", "Ġ =", "Ġ T")


def config(family: str, vocab_size: int, positions: int) -> Any:
    import transformers as t

    sizes = {"vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, **_IDS}
    if family == "llama":
        return t.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=positions, tie_word_embeddings=False)
    return t.GPTNeoXConfig(**sizes, max_position_embeddings=positions, use_parallel_residual=True, rotary_pct=0.25, tie_word_embeddings=False)


def write(folder: Path, family: str, *, vocab_size: int = 320, positions: int = POSITIONS) -> Path:
    """Write the model with a byte-level tokenizer of few merges into ``folder``; returns it."""
    import torch
    import transformers as t

    model = t.AutoModelForCausalLM.from_config(config(family, vocab_size, positions))
    drawn = np.random.RandomState(11)  # the one generator numpy promises never to change
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            width = 0.4 if name in ("lm_head.weight", "embed_out.weight") else 0.15  # a sharp head: some answers are sure, some are not
            values = drawn.standard_normal(tuple(parameter.shape)) * width + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            parameter.copy_(torch.from_numpy(values))
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>", "pad_token": "<|pad|>"})
    )
    return folder


def tokenizer_json() -> bytes:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split(" ")) for merge in _MERGES]
    words = ["<|end|>", "<|pad|>", *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|pad|>", special=True)])
    return tokenizer.to_str().encode()
