"""Recipes: an experiment is a function returning a Recipe. Add a function here and it is in the command line and the DAG form.

Every recipe that can be trained has a dense twin, NAME_dense: what its experts are worth shows beside a model without experts.
Change here: experiments, how one is found by its name. Not here: recipes made by `moeline propose`, which are files (jobs/own_recipes.py);
what a recipe asks of a machine (jobs/sizing.py, shown by `moeline recipes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jobs.config import PackConfig, Recipe, SuiteConfig, TrainConfig
from jobs.contract import MoelineError
from jobs.proxies import scaled
from models.config import ModelConfig


def _proxies(train: TrainConfig) -> tuple[TrainConfig, ...]:
    # Half the width reaches further in tokens for the money. Where training costs dollars the forecast may take half of them, elsewhere a sixteenth.
    grid = ((0.5, 0.2), (0.5, 0.45), (1.0, 0.1), (1.0, 0.2)) if train.tokens < 10**9 else ((0.25, 0.1), (0.25, 0.2), (0.5, 0.05), (0.5, 0.1))
    return tuple(scaled(train, width=w, tokens=t) for w, t in grid)


def with_tokens(recipe: Recipe, tokens: int) -> Recipe:
    """``recipe`` trained on ``tokens`` tokens, its proxies made from that by the rule of every recipe here."""
    train = replace(recipe.train, tokens=tokens)
    return replace(recipe, tokens=tokens, train=train, proxies=_proxies(train))


def _recipe(name: str, train: TrainConfig, *, tokenizer: str, budget_usd: float, **kwargs: object) -> Recipe:
    return Recipe(
        name=name, model=train.model, tokens=train.tokens, train=train, budget_usd=budget_usd, proxies=_proxies(train),
        pack=PackConfig(tokenizer=tokenizer, vocab_size=train.model.vocab_size, seq_len=train.model.max_seq_len), **kwargs,
    )  # fmt: skip


def tiny() -> Recipe:
    """Minutes on two CPU cores: 16 experts, top-4, 600,000 tokens. In fp32: a CPU without bf16 instructions is 8 times slower in bf16."""
    model = ModelConfig(d_model=128, n_heads=4, n_kv_heads=2, n_layers=3, ffn_hidden=128, vocab_size=4096, max_seq_len=256, init="by_width")
    train = TrainConfig(model=model, tokens=600_000, batch_sequences=4, precision="fp32", checkpoint_every_steps=200)
    return _recipe("tiny", train, tokenizer="bpe-4096-v1", budget_usd=0.25)


def smoke() -> Recipe:
    """Seconds: the whole path on a megabyte, for tests. It learns almost nothing; a megabyte holds out too few documents for own-data tasks."""
    model = ModelConfig(d_model=64, n_heads=2, n_kv_heads=1, n_layers=2, ffn_hidden=64, vocab_size=1024, max_seq_len=128, init="by_width")
    train = TrainConfig(model=model, tokens=60_000, batch_sequences=4, precision="fp32", checkpoint_every_steps=20, held_out_sequences=32)
    return replace(
        _recipe("smoke", train, tokenizer="bpe-1024-v1", budget_usd=0.25), min_new_tokens=10_000, suite=SuiteConfig(items_per_task=40, own_data_tasks=())
    )


def small_cpu() -> Recipe:
    """Hours on two CPU cores: 17.6M parameters, 8.1M active, 16 experts top-4, 30M tokens. The shapes of `make bench-train`."""
    model = ModelConfig(d_model=256, n_heads=8, n_kv_heads=4, n_layers=4, ffn_hidden=256, vocab_size=8192, max_seq_len=512, init="by_width")
    train = TrainConfig(model=model, tokens=30_000_000, batch_sequences=8, precision="fp32", checkpoint_every_steps=200)
    return _recipe("small_cpu", train, tokenizer="bpe-8192-v1", budget_usd=1.0)


def small_gpu() -> Recipe:
    """One data-centre GPU: 1.5B parameters, 0.46B active, DBRX's shape in small."""
    model = ModelConfig(d_model=1024, n_heads=16, n_kv_heads=4, n_layers=16, ffn_hidden=1792, vocab_size=32_768, max_seq_len=2048, init="by_width")
    train = TrainConfig(model=model, tokens=4_000_000_000, batch_sequences=64, learning_rate=6e-4, checkpoint_every_steps=500, compile=True)
    return _recipe("small_gpu", train, tokenizer="bpe-32768-v1", budget_usd=500.0, on_over_budget="ask", min_new_tokens=500_000_000)


def h200() -> Recipe:
    """One GPU with 141 GB: 4.5B parameters, 1.3B active, 25B tokens; DBRX's heads of 128 and experts 1.75 times the model's width.

    Memory: 4.49e9 parameters x (4 master + 4 gradient + 4 + 4 Adam + 2 rounded for bf16) = 81 GB. A token keeps some 2.5 MB of activations
    for the backward pass (12 layers x [4 experts x (2 x 2048 + 4 x 3584) + 20 x 2048] numbers of 2 bytes), so the 60 GB that are left hold
    16,384 tokens at once. Measured on one H200: 107 GiB at most, 57,000 tokens/s, 47 % MFU, so five days (infra/decisions/0021).
    """
    model = ModelConfig(d_model=2048, n_heads=16, n_kv_heads=4, n_layers=12, ffn_hidden=3584, vocab_size=32_768, max_seq_len=4096, init="by_width")
    train = TrainConfig(
        model=model, tokens=25_000_000_000, batch_sequences=32, micro_batch_sequences=4, learning_rate=4e-4, checkpoint_every_steps=500, compile=True
    )
    return _recipe("h200", train, tokenizer="bpe-32768-v1", budget_usd=1500.0, on_over_budget="ask", min_new_tokens=2_000_000_000)


def moe_b() -> Recipe:
    """MoE-B of the ladder that led to DBRX: 23.5B parameters, 6.6B active (DBRX blog, 27 March 2024).

    Only the two sizes were published. This is the one shape of 16 experts top-4, GPT-4's vocabulary, heads of 128 and sizes that divide by 128
    that gives both to a decimal. Tokens: LLaMA2-13B's 2T took 1.7 times its FLOPs. Memory: 424 GB of state by jobs/sizing.py, 6.6 GB a GPU on 64.
    """
    model = ModelConfig(d_model=2560, n_heads=20, n_kv_heads=4, n_layers=24, ffn_hidden=7680, vocab_size=100_352, max_seq_len=4096, init="by_width")
    train = TrainConfig(model=model, tokens=2_300_000_000_000, batch_sequences=512, learning_rate=3e-4, checkpoint_every_steps=500, workers=64)
    return _recipe("moe_b", train, tokenizer="bpe-100352-v1", budget_usd=400_000.0, on_over_budget="ask", min_new_tokens=10**11)


def dbrx() -> Recipe:
    """DBRX itself: 131.6B parameters, 36.5B active (databricks/dbrx-base). Learning rate and batch were never published."""
    model = ModelConfig(d_model=6144, n_heads=48, n_kv_heads=8, n_layers=40, ffn_hidden=10_752, vocab_size=100_352, max_seq_len=32_768)
    train = TrainConfig(
        model=model, tokens=12_000_000_000_000, batch_sequences=1024, learning_rate=1.5e-4, experts_backend="megablocks",
        checkpoint_every_steps=500, workers=3072,
    )  # fmt: skip
    return _recipe("dbrx", train, tokenizer="bpe-100352-v1", budget_usd=12_000_000.0, on_over_budget="ask", min_new_tokens=10**12)


def dense_twin(recipe: Recipe) -> Recipe:
    """``recipe`` without experts, at equal active size: one GLU as wide as the ``top_k`` experts a token passes through, the same data and tokens.

    One expert is DBRX's own way to say "dense": the folder still loads in transformers. Its router is the constant 1, so balance costs nothing.
    """
    model = recipe.model
    dense = replace(model, n_experts=1, top_k=1, ffn_hidden=model.top_k * model.ffn_hidden, moe_loss_weight=0.0)
    train = replace(recipe.train, model=dense)
    return replace(recipe, name=f"{recipe.name}_dense", model=dense, train=train, proxies=_proxies(train))


def _with_twin(make: Callable[[], Recipe]) -> dict[str, Callable[[], Recipe]]:
    return {make.__name__: make, f"{make.__name__}_dense": lambda: dense_twin(make())}


RECIPES: dict[str, Callable[[], Recipe]] = {
    **_with_twin(tiny), smoke.__name__: smoke, **_with_twin(small_cpu), **_with_twin(small_gpu), **_with_twin(h200), **_with_twin(moe_b), dbrx.__name__: dbrx,
}  # fmt: skip


def load(name: str, *, gauntlet_data: str | None = None, home: Path | None = None) -> Recipe:
    """The recipe called ``name``, a function of this file or a file in the folder ``recipes`` of ``home``; raises MoelineError listing the known ones.

    ``gauntlet_data``: folder with Foundry's task files to evaluate on as well. Its content hash becomes part of the suite, so other
    data is other work.
    """
    from jobs import own_recipes

    if name in RECIPES:
        recipe = RECIPES[name]()
    elif home is not None and own_recipes.exists(home, name):
        recipe = own_recipes.load(home, name)
    else:
        known = sorted({*RECIPES, *(own_recipes.names(home) if home is not None else ())})
        raise MoelineError(
            f"Unknown recipe {name!r}. Known recipes: {', '.join(known)}. Add one as a function in jobs/recipes.py, or make one with `moeline propose`."
        )
    if gauntlet_data:
        from models.gauntlet.tasks import digest

        if not Path(gauntlet_data).is_dir():
            raise MoelineError(f"GAUNTLET_DATA is {gauntlet_data!r}, which is not a folder. Point it at Foundry's scripts/eval folder, or unset it.")
        recipe = replace(recipe, suite=replace(recipe.suite, gauntlet_digest=digest(Path(gauntlet_data))))
    return recipe
