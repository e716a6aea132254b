"""Proxies of a training: the same recipe narrower and on fewer tokens. Which there are to choose from, what they cost, which a budget buys.

How a proxy follows from its target: depth, heads' size, batch, schedule and learning rate stay; the width goes in whole heads and experts follow it;
weights are drawn by width (ModelConfig.init), and with ``base_width`` learning rates follow the width too (models/parameter_groups.py, muP).
Change here: that rule, the grid of a plan. Not here: how a set is judged and searched (models/scaling_plan.py), dollars (jobs/proxy_plan.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.config import TrainConfig
from jobs.contract import MoelineError
from jobs.sizing import training_flops

if TYPE_CHECKING:
    from models.scaling_plan import Candidate, Plan

MAX_SHARE = 1.0  # of the target's training FLOPs
LEAST_STEPS = 25  # of a proxy: fewer are mostly warm-up
_HALVINGS = range(2, 13)  # of the root of 2: a half down to a 64th of the target's tokens
_WIDTH_HALVINGS = range(7)  # likewise: the target's own width down to an eighth
FORWARD = 1 / 3  # of a trained token's FLOPs


def scaled(train: TrainConfig, *, width: float, tokens: float) -> TrainConfig:
    """A proxy of ``train``: ``width`` times its model width (rounded to whole heads), ``tokens`` times its tokens."""
    model = train.model
    d_model = max(1, round(model.n_heads * width)) * model.head_dim
    n_heads = d_model // model.head_dim
    proxy = replace(
        model, d_model=d_model, n_heads=n_heads, n_kv_heads=max(1, n_heads * model.n_kv_heads // model.n_heads),
        ffn_hidden=max(16, round(model.ffn_hidden * width / 8) * 8),
    )  # fmt: skip
    # Batch and learning rate stay: with weights drawn by width, the law that fits across sizes then holds to the target's tokens.
    return replace(train, model=proxy, tokens=int(train.tokens * tokens))


def narrowed(train: TrainConfig, heads: int, tokens: int) -> TrainConfig:
    """The proxy with ``heads`` heads on ``tokens`` tokens; raises ValueError where heads and their key-value heads do not divide."""
    return replace(scaled(train, width=heads / train.model.n_heads, tokens=1.0), tokens=tokens)


def flops(proxy: TrainConfig) -> float:
    """What a proxy takes: its training and the forward passes of its held-out loss. Questions that it answers come on top."""
    held_out = proxy.held_out_sequences * proxy.model.max_seq_len
    return training_flops(proxy) + FORWARD * proxy.model.flops_per_token * held_out


def scaling_params(config: TrainConfig) -> float:
    """The size a law sees: training FLOPs per token / 6, which counts active experts and attention, and no embedding lookup."""
    return config.model.flops_per_token / 6.0


def possible(train: TrainConfig) -> list[TrainConfig]:
    """Every proxy a plan may take, narrow and short ones first."""
    heads = sorted({max(1, round(train.model.n_heads * 2 ** (-k / 2))) for k in _WIDTH_HALVINGS})
    steps = sorted({int(train.steps * 2 ** (-k / 2)) for k in _HALVINGS})
    found = []
    for h in heads:
        for s in (s for s in steps if s >= LEAST_STEPS):
            try:
                found.append(narrowed(train, h, s * train.tokens_per_step))
            except ValueError:  # so many heads do not share key-value heads evenly
                break
    return found


def candidate(proxy: TrainConfig, cost: float) -> Candidate:
    from models.scaling_plan import Candidate

    return Candidate(scaling_params(proxy), proxy.steps * proxy.tokens_per_step, cost)


def is_proxy_of(proxy: TrainConfig, train: TrainConfig) -> bool:
    """Whether the rule of this file makes ``proxy`` of ``train``."""
    try:
        return proxy.model.n_heads <= train.model.n_heads and proxy.steps < train.steps and narrowed(train, proxy.model.n_heads, proxy.tokens) == proxy
    except ValueError:
        return False


def planned(train: TrainConfig, share: float, *, finished: Iterable[TrainConfig] = (), laws: Any = None) -> tuple[Plan, list[TrainConfig]]:
    """The plan for ``share`` of the training FLOPs of ``train``, and its proxies; ``finished`` ones cost nothing. ``laws`` believed (None: published).

    Raises MoelineError when that does not buy enough proxies, saying what would.
    """
    from models import scaling_plan

    if not 0 < share <= MAX_SHARE:
        raise MoelineError(f"The share of the run's cost that its proxies may take lies above 0 and at most at {MAX_SHARE:g}, not at {share!r}.")
    whole, free = training_flops(train), list(dict.fromkeys(finished))
    configs = [*free, *(p for p in possible(train) if p not in free)]
    costs = [0.0 if i < len(free) else flops(p) / whole for i, p in enumerate(configs)]
    needed = sum(sorted(costs)[: scaling_plan.LEAST])
    if len(configs) < scaling_plan.LEAST or needed > share:
        why = f"its {train.steps} steps leave {len(configs)} proxies of at least {LEAST_STEPS} steps" if len(configs) < scaling_plan.LEAST else (
            f"the {scaling_plan.LEAST} cheapest that are still to be trained take {needed:.1%} of it. Give that much, or plan for more tokens"
        )  # fmt: skip
        raise MoelineError(f"{share:.1%} of the run's cost does not buy the {scaling_plan.LEAST} proxies a forecast needs: {why}.")
    target = (scaling_params(train), train.steps * train.tokens_per_step)
    plan = scaling_plan.choose([candidate(p, c) for p, c in zip(configs, costs, strict=True)], target, share, laws=laws or scaling_plan.PUBLISHED)
    return plan, [configs[i] for i in plan.chosen]
