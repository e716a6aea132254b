"""make bench-train: tokens per second of our training step beside transformers' mixtures of experts and beside dense models of equal active size.

A step is forward, loss, backward, clipping and fused AdamW, on the same packed sequences of random tokens, ours through models.train_loop.Trainer as a
run takes it: documents masked, balance counted. The others attend over whole sequences. Contenders take turns, a step each, so that what else the
machine does falls on all of them; medians are compared and the middle half of the steps is shown. Asserts nothing.

Parts (BENCH_TRAIN_SECONDS=60 each at most, after one step to warm up): ``moe``, the small_cpu recipe's shapes (D 256, 4 layers, 16 experts top-4, F 256,
512 x 8 tokens, vocabulary 8192) against Mixtral with grouped_mm experts, both in fp32 and bf16 autocast; ``dbrx``, the same against transformers' DBRX,
whose experts are a loop; ``dense``, D 512 against its dense twin, as a model and as the layer alone. Under autocast transformers
multiplies experts in their weights' fp32, so Mixtral also runs with bf16 weights and bf16 moments, which is no training one would want.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs import recipes
from models.config import ModelConfig
from models.moe import MoE
from models.train_loop import LoopConfig, PackedSequences, Trainer, new_model

OUT = Path(__file__).resolve().parents[2] / "build" / "bench_train.json"
SECONDS = float(os.environ.get("BENCH_TRAIN_SECONDS", "60"))
SMALL = recipes.load("small_cpu").model
BATCH, RATE, STEPS = 8, 1e-3, 10_000
DOCUMENTS = 3  # in a sequence: cut at two random places

Step = Callable[[], None]


def data(config: ModelConfig) -> PackedSequences:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (8 * BATCH, config.max_seq_len))
    cuts = [sorted({0, *rng.integers(1, config.max_seq_len, DOCUMENTS - 1).tolist()}) for _ in tokens]
    return PackedSequences(tokens, cuts, np.full(len(tokens), config.max_seq_len))


def ours(config: ModelConfig, precision: str) -> Step:
    loop = LoopConfig(steps=STEPS, batch_sequences=BATCH, learning_rate=RATE, precision=precision)
    trainer = Trainer(new_model(config, seed=1), loop, data(config))
    return lambda: trainer.step() and None


def theirs(model: nn.Module, config: ModelConfig, precision: str) -> Step:
    """A step of a causal language model of transformers, with our optimizer and clipping."""
    packed, step = data(config), iter(range(STEPS))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def run() -> None:
        tokens = packed.batch((np.arange(BATCH) + BATCH * next(step)) % len(packed))[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def mixtral(config: ModelConfig, precision: str) -> Step:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(1)
    theirs_config = MixtralConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.ffn_hidden, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads, max_position_embeddings=config.max_seq_len,
        num_local_experts=config.n_experts, num_experts_per_tok=config.top_k, output_router_logits=True, router_aux_loss_coef=config.moe_loss_weight,
        attn_implementation="sdpa", experts_implementation="grouped_mm",
    )  # fmt: skip
    model = MixtralForCausalLM(theirs_config)
    assert model.get_experts_implementation()[""] == "grouped_mm"
    return theirs(model.bfloat16() if precision == "bf16 weights" else model, config, precision)


def dbrx(config: ModelConfig, precision: str) -> Step:
    from transformers import DbrxConfig, DbrxForCausalLM

    torch.manual_seed(1)
    theirs_config = DbrxConfig(
        d_model=config.d_model, n_heads=config.n_heads, n_layers=config.n_layers, max_seq_len=config.max_seq_len, vocab_size=config.vocab_size,
        rope_theta=config.rope_theta, attn_config={"clip_qkv": config.clip_qkv, "kv_n_heads": config.n_kv_heads, "rope_theta": config.rope_theta},
        ffn_config={"ffn_hidden_size": config.ffn_hidden, "moe_num_experts": config.n_experts, "moe_top_k": config.top_k, "moe_loss_weight": 0.05},
        output_router_logits=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = DbrxForCausalLM(theirs_config)
    return theirs(model.bfloat16() if precision == "bf16 weights" else model, config, precision)


def twin(config: ModelConfig) -> ModelConfig:
    return replace(config, n_experts=1, top_k=1, ffn_hidden=config.top_k * config.ffn_hidden, moe_loss_weight=0.0)


def layer(config: ModelConfig, precision: str) -> Step:
    """Forward and backward of one layer of experts (or of its dense twin) with its router, by itself."""
    torch.manual_seed(1)
    moe = MoE(config, "grouped_mm")
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=config.d_model**-0.5)
    x = torch.randn(BATCH, config.max_seq_len, config.d_model, requires_grad=True)
    way = torch.randn(x.shape)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out: Tensor = moe(x)[0]
        (out * way).sum().backward()
        x.grad = None
        moe.zero_grad(set_to_none=True)

    return run


def take_turns(contenders: dict[str, Step], seconds: float = SECONDS, at_most: int = 40) -> dict[str, list[float]]:
    """Seconds of every step of every contender, in rounds of one step each; the first round only warms up."""
    for step in contenders.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    while len(next(iter(taken.values()))) < at_most and (time.perf_counter() - began < seconds or len(next(iter(taken.values()))) < 2):
        for name, step in contenders.items():
            started = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - started)
    return taken


def report(part: str, taken: dict[str, list[float]], tokens: int) -> None:
    """Print tokens/s (median, and of the middle half of the steps) with ratios to every other contender, and keep them in OUT."""
    rows = {}
    for name, seconds in taken.items():
        low, median, high = np.percentile(seconds, (75, 50, 25))
        rows[name] = {"tokens_per_second": tokens / median, "low": tokens / low, "high": tokens / high, "steps": len(seconds)}
    print(f"\n{part}: {tokens} tokens a step, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':<28}{'tokens/s':>10}{'middle half':>16}{'steps':>7}   ratio to " + ", ".join(rows))
    for name, row in rows.items():
        ratios = " ".join(f"{row['tokens_per_second'] / other['tokens_per_second']:6.2f}" for other in rows.values())
        print(f"{name:<28}{row['tokens_per_second']:10.0f}{row['low']:9.0f}-{row['high']:<6.0f}{row['steps']:7}   {ratios}")
    OUT.parent.mkdir(exist_ok=True)
    found = json.loads(OUT.read_text()) if OUT.is_file() else {}
    about = {
        "processor": platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    OUT.write_text(json.dumps({**found, "machine": about, part: rows}, indent=1) + "\n")


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def test_moe():
    made = {f"{name} {p}": make(SMALL, p) for p in ("fp32", "bf16") for name, make in (("ours", ours), ("mixtral", mixtral))}
    made["mixtral bf16 weights"] = mixtral(SMALL, "bf16 weights")
    report("moe", take_turns(made), BATCH * SMALL.max_seq_len)


def test_dbrx():
    report(
        "dbrx", take_turns({"ours fp32": ours(SMALL, "fp32"), "ours bf16": ours(SMALL, "bf16"), "dbrx fp32": dbrx(SMALL, "fp32")}), BATCH * SMALL.max_seq_len
    )


def test_dense():
    config = replace(SMALL, d_model=512, n_heads=8, n_kv_heads=4, ffn_hidden=512)
    contenders = {f"{name} {p}": ours(c, p) for p in ("fp32", "bf16") for name, c in (("experts", config), ("dense", twin(config)))}
    report("dense models", take_turns(contenders), BATCH * config.max_seq_len)


def test_dense_layers():
    config = replace(SMALL, d_model=512, n_heads=8, n_kv_heads=4, ffn_hidden=512)
    contenders = {f"{name} {p}": layer(c, p) for p in ("fp32", "bf16") for name, c in (("experts", config), ("dense", twin(config)))}
    report("dense layers", take_turns(contenders, SECONDS / 2), BATCH * config.max_seq_len)
