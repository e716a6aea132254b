"""DBRX of the transformers that runs this file: its logits for a folder, and a folder of its own making.

tests/unit/test_huggingface.py starts it with transformers 4.57, the last before 5, before everything else on its path: `make test` lays it into
.oracles/transformers-4, as transformers4.lock pins it, and all it needs besides is this project's.
"""

from __future__ import annotations

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import DbrxConfig, DbrxForCausalLM


def logits(folder: str, tokens: str, out: str) -> None:
    """Logits of ``folder`` in float64 for ``tokens`` of one safetensors file, as ``logits`` of another."""
    model = DbrxForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(load_file(tokens)["tokens"], use_cache=False).logits
    save_file({"logits": found.contiguous()}, out)


def write(folder: str) -> None:
    """A random model with a width that is not its experts' and a rotary base that is not the default, in several files."""
    torch.manual_seed(5)
    config = DbrxConfig(
        d_model=48, n_heads=6, n_layers=2, max_seq_len=64, vocab_size=300, initializer_range=0.15,
        attn_config={"clip_qkv": 0.8, "kv_n_heads": 2, "rope_theta": 500_000.0}, ffn_config={"ffn_hidden_size": 40, "moe_num_experts": 8, "moe_top_k": 3},
    )  # fmt: skip
    DbrxForCausalLM(config).save_pretrained(folder, max_shard_size="200KB")


if __name__ == "__main__":
    print("transformers", transformers.__version__)
    {"logits": logits, "write": write}[sys.argv[1]](*sys.argv[2:])
