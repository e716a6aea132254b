"""Sampled answers: which settings a task asks for, and the token a draw takes.

The defaults are those composer's InContextLearningCodeEvalDataset hands to transformers' generate: temperature .2 even for a single sample, and
transformers' own top_k of 50. The distribution is theirs, the random numbers are not: composer's depend on batch and order, here the number
of a token is a hash of seed, item, prompt, sample and step, so that an answer is the same alone, in any batch and after a restart.
Change here: which tokens may be drawn, where random numbers come from. Not here: how a text is continued (generation.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_SAMPLES = 1000  # of one item; HumanEval's paper draws 200
SETTINGS = ("generations_per_sample", "num_generations", "pass_at_k", "generation_kwargs")  # of a task YAML; the second is an alias of the first
_KWARGS = {"do_sample", "temperature", "top_k", "top_p"}

Draw = tuple[tuple[int, ...], str]  # (context, what tells this draw from others after the same context)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``samples`` of every item, scored as pass@k for every k in ``pass_at_k`` (the first is the task's accuracy).

    ``temperature`` 0: always the likeliest token. ``top_k`` 0 and ``top_p`` 1: every token may be drawn.
    """

    samples: int = 1
    pass_at_k: tuple[int, ...] = (1,)
    temperature: float = 0.2
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.samples) is not int or not 1 <= self.samples <= MOST_SAMPLES:
            raise ValueError(f"generations_per_sample is {str(self.samples)[:50]!r}; it must be a whole number from 1 to {MOST_SAMPLES}.")
        ks = self.pass_at_k
        if not ks or len(set(ks)) < len(ks) or any(type(k) is not int or not 1 <= k <= self.samples for k in ks):
            raise ValueError(f"pass_at_k is {str(list(ks))[:100]}; it must be different whole numbers from 1 to generations_per_sample ({self.samples}).")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {str(self.temperature)[:50]!r}; it must be a number, 0 or more.")
        if type(self.top_k) is not int or self.top_k < 0 or type(self.top_p) not in (int, float) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_k must be a whole number, 0 or more, and top_p above 0 and at most 1, found {self.top_k!r:.50} and {self.top_p!r:.50}.")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples without sampling would all be the same. Set a temperature above 0, or ask for one sample.")

    @property
    def is_greedy(self) -> bool:
        return not self.temperature


AS_COMPOSER = Sampling()


def from_yaml(raw: Mapping[str, Any], where: str, *, is_code: bool) -> Sampling:
    """What the entry of a task YAML asks. ValueError for a setting that is wrong, or that would change a task which is not sampled."""
    kwargs = raw.get("generation_kwargs")
    asked = {name: raw[name] for name in SETTINGS if name in raw}
    if not is_code:
        if kwargs or any(asked.get(name, 1) not in (1, [1]) for name in SETTINGS[:3]):
            raise ValueError(f"{where} asks for {asked}: only tasks of kind code_evaluation are sampled. Leave it out.")
        return Sampling()
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, dict) or (unknown := sorted(map(str, set(kwargs) - _KWARGS))):
        found = f"unknown settings {unknown}" if isinstance(kwargs, dict) else repr(kwargs)[:100]
        raise ValueError(f"{where}: generation_kwargs has {found}. Known: {', '.join(sorted(_KWARGS))}.")
    if {"generations_per_sample", "num_generations"} <= set(asked) and asked["generations_per_sample"] != asked["num_generations"]:
        raise ValueError(f"{where}: generations_per_sample and num_generations are two names of one setting, and say different numbers.")
    if type(kwargs.get("do_sample", True)) is not bool:
        raise ValueError(f"{where}: do_sample is {str(kwargs['do_sample'])[:50]!r}; it must be true or false.")
    ks = asked.get("pass_at_k", 1)
    settings = {name: value for name, value in kwargs.items() if name != "do_sample"} | ({} if kwargs.get("do_sample", True) else {"temperature": 0.0})
    samples = asked.get("generations_per_sample", asked.get("num_generations", 1))
    try:
        return Sampling(samples=samples, pass_at_k=tuple(ks) if isinstance(ks, list) else (ks,), **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def uniform(draw: Draw, step: int, seed: int) -> float:
    """The random number in [0, 1) of a draw's token ``step``: 53 bits of a sha256."""
    context, name = draw
    digest = hashlib.sha256(f"{seed}\0{name}\0{step}\0{','.join(map(str, context))}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def probabilities(logits_NV: Any, sampling: Sampling) -> Any:
    """float64 (N, V): the softmax at the temperature over the ``top_k`` likeliest tokens (and their equals), and of these the likeliest whose
    probabilities reach ``top_p``. As transformers' warpers in generate's order."""
    import torch

    scores_NV = logits_NV.double() / sampling.temperature
    if 0 < sampling.top_k < scores_NV.shape[-1]:
        least_N1 = scores_NV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores_NV = scores_NV.masked_fill(scores_NV < least_N1, float("-inf"))
    if sampling.top_p < 1:
        rising_NV, order_NV = scores_NV.sort(dim=-1)
        dropped_NV = rising_NV.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        dropped_NV[:, -1] = False
        scores_NV = scores_NV.masked_fill(torch.zeros_like(dropped_NV).scatter(1, order_NV, dropped_NV), float("-inf"))
    return scores_NV.softmax(-1)


def draw(logits_NV: Any, draws: Sequence[Draw], step: int, sampling: Sampling) -> list[int]:
    """The token of every draw: the first, by id, at which the summed probabilities pass its random number."""
    import torch

    sums_NV = probabilities(logits_NV, sampling).cumsum(-1)
    numbers_N = torch.tensor([uniform(one, step, sampling.seed) for one in draws], dtype=torch.float64, device=logits_NV.device)
    # below the last sum, which rounding may leave under 1: only tokens that can be drawn raise a sum
    targets_N1 = (numbers_N * sums_NV[:, -1])[:, None]
    return torch.searchsorted(sums_NV, targets_N1, right=True)[:, 0].clamp_max(sums_NV.shape[-1] - 1).tolist()
