"""Small random models of several architectures in real Hugging Face folders, all with the tokenizer of gauntlet_examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gauntlet_examples import tokenizer_json

# Heads of 16: a sine differs in its last bit with its place in a vector, and smaller heads would not fill one.
_SIZES = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


def config(name: str) -> Any:
    """transformers' config of a tiny ``name``."""
    import transformers as t

    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return {
        "gpt2": lambda: t.GPT2Config(vocab_size=1024, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, **ids),
        "llama": lambda: t.LlamaConfig(**_SIZES, tie_word_embeddings=False),
        "mixtral": lambda: t.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
        "mistral": lambda: t.MistralConfig(**_SIZES, sliding_window=20),
        "gpt_neo": lambda: t.GPTNeoConfig(
            vocab_size=1024, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=20,
            max_position_embeddings=256, initializer_range=0.2, **ids,
        ),  # attention of its own, with a window
        "gemma2": lambda: t.Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=3.0),
        "cohere": lambda: t.CohereConfig(**_SIZES, logit_scale=0.25),
        "granite": lambda: t.GraniteConfig(**_SIZES, logits_scaling=4.0),
        "opt": lambda: t.OPTConfig(
            vocab_size=1024, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256, word_embed_proj_dim=16,
            init_std=0.2, **ids,
        ),  # its trunk ends in another width than its embeddings
        "bloom": lambda: t.BloomConfig(vocab_size=1024, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **ids),  # ALiBi
    }[name]()  # fmt: skip


def write(folder: Path, name: str = "llama", seed: int = 3) -> Path:
    """Write a random model with its tokenizer into ``folder``."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    t.AutoModelForCausalLM.from_config(config(name)).save_pretrained(folder, safe_serialization=True)
    add_tokenizer(folder)
    return folder


def add_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "model_max_length": 256})
    )
