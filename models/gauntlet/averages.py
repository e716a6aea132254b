"""From responses to scores: baselines, standard errors, category means, the average. A missing or non-finite number is an error.

A task of mode ``fixed`` has the higher of chance and the best constant answer subtracted (on commonsense_qa always answering C is worth
40 %), one of mode ``exact`` Mosaic's random_baseline, as llm-foundry's gauntlets do. Scores of different modes are never averaged.
Pure: no torch, no tables. Change here: baselines, means. Not here: what a gauntlet YAML says (gauntlet.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.gauntlet.answers import answer_key, normalise_answer
from models.gauntlet.scoring import Response
from models.gauntlet.tasks import CODE, EXACT, FIXED, GENERATION, LANGUAGE_MODELING, MULTIPLE_CHOICE, SCHEMA, Item, Mode, Task


@dataclass(frozen=True)
class Score:
    """Accuracy on a benchmark, a category (``benchmark`` "*") or all (``"**"``), with its standard error and baselines, all in 0..1.

    ``score`` = (accuracy - baseline) / (1 - baseline); means average the scores. ``accuracy_clean`` is None when no item is clean.
    """

    benchmark: str
    category: str
    shots: int
    n: int
    metric: str
    accuracy: float
    stderr: float
    chance: float
    best_constant: float
    score: float
    accuracy_clean: float | None
    n_contaminated: int
    mode: Mode = FIXED


def chance(task: Task, items: Iterable[Item]) -> float:
    """Expected accuracy of guessing: the mean of 1/options; 0 where the answer is free text."""
    if task.kind not in (MULTIPLE_CHOICE, SCHEMA):
        return 0.0
    options = [len(item.row["choices" if task.kind == MULTIPLE_CHOICE else "context_options"]) for item in items]
    return sum(1.0 / k for k in options) / len(options)


def best_constant(task: Task, items: Iterable[Item]) -> float:
    """Accuracy of the best answer *text* given to every item (always "C", always "yes"): what needs no model at all.

    Positions do not count: the options are scored by their texts, so "always the first" is not something a model can do.
    """
    rows = [item.row for item in items]
    if task.kind == CODE:
        return 0.0
    if task.kind == GENERATION:
        return _best_generated_constant(task, rows)
    if task.kind == LANGUAGE_MODELING:
        texts = [row["continuation"].strip() for row in rows]
    else:
        texts = [row["choices" if task.kind == MULTIPLE_CHOICE else "context_options"][row["gold"]].strip() for row in rows]
    return Counter(texts).most_common(1)[0][1] / len(texts)


def _best_generated_constant(task: Task, rows: Sequence[Mapping[str, Any]]) -> float:
    """In mode exact a constant earns every item that has a prefix of it as alias, because a generation need only *start with* one."""
    fixed = task.mode == FIXED
    clean: Callable[[str], str] = partial(answer_key, task) if fixed else normalise_answer if task.do_normalization else str.strip
    items_of: dict[str, set[int]] = defaultdict(set)
    for index, row in enumerate(rows):
        for alias in {row["answer"], *(row.get("aliases") or ())}:
            items_of[clean(alias)].add(index)
    if fixed:
        return max((len(found) for key, found in items_of.items() if key), default=0) / len(rows)
    return max(len(set().union(*(items_of[text[:k]] for k in range(len(text) + 1) if text[:k] in items_of))) for text in list(items_of)) / len(rows)


def rescaled(accuracy: float, baseline: float, what: str) -> float:
    """(accuracy - baseline) / (1 - baseline); ValueError when the baseline leaves nothing to gain."""
    if not 0.0 <= baseline < 1.0:
        raise ValueError(f"{what}: a baseline of {baseline} leaves nothing to measure. The benchmark has one answer for every item; leave it out.")
    return (accuracy - baseline) / (1.0 - baseline)


def _macro(responses: Sequence[Response]) -> tuple[float, float]:
    """(accuracy, standard error): the unweighted mean over the task's own categories (one, where it has none), errors of the items' values."""
    groups: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        groups[response.subset].append(response.value)
    rates = [(sum(values) / len(values), values) for values in groups.values()]
    # E[v^2] - E[v]^2, written so that it is exactly the binomial p(1 - p) where every value is 0 or 1
    variance = sum((rate * (1.0 - rate) - sum(v * (1.0 - v) for v in values) / len(values)) / len(values) for rate, values in rates)
    return sum(rate for rate, _ in rates) / len(rates), math.sqrt(max(0.0, variance)) / len(rates)


def score_benchmark(task: Task, items: Sequence[Item], responses: Sequence[Response], *, contaminated: Collection[str] = ()) -> Score:
    """Score one benchmark from the responses to ``items``. Raises ValueError when a response is missing or not asked for."""
    answered, asked = {r.item_id for r in responses}, {i.item_id for i in items}
    if not items or answered != asked or len(responses) != len(items):
        example = next(iter(sorted(asked ^ answered)), "none at all")
        raise ValueError(f"Benchmark {task.label}: {len(asked)} items, {len(responses)} responses; without a partner: {example}.")
    accuracy, stderr = _macro(responses)
    guess, constant = chance(task, items), best_constant(task, items)
    clean = [r for r in responses if r.item_id not in contaminated]
    return Score(
        benchmark=task.label, category=task.category, shots=task.num_fewshot, n=len(items), metric=task.metric, accuracy=accuracy, stderr=stderr,
        chance=guess, best_constant=constant, score=rescaled(accuracy, task.random_baseline if task.mode == EXACT else max(guess, constant), task.label),
        accuracy_clean=_macro(clean)[0] if clean else None, n_contaminated=len(responses) - len(clean),
        mode=task.mode,
    )  # fmt: skip


def mean(scores: Sequence[Score], *, benchmark: str, category: str) -> Score:
    """Unweighted mean of scores (EQUAL weighting), errors added in quadrature. Raises ValueError naming what is not a number."""
    if not scores:
        raise ValueError(f"Nothing to average for {category}.")
    for one in scores:
        if not all(math.isfinite(value) for value in (one.accuracy, one.stderr, one.score)):
            raise ValueError(f"{one.benchmark} ({one.category}) has a score that is not a number; the mean {category} cannot be taken.")
    if len({one.mode for one in scores}) > 1:
        raise ValueError(f"The mean {category} would mix scores of modes {EXACT} and {FIXED}. Average each mode on its own.")
    k = len(scores)
    clean = [s.accuracy_clean for s in scores]
    return Score(
        benchmark=benchmark, category=category, shots=0, n=sum(s.n for s in scores), metric="mean",
        accuracy=sum(s.accuracy for s in scores) / k, stderr=math.sqrt(sum(s.stderr**2 for s in scores)) / k,
        chance=sum(s.chance for s in scores) / k, best_constant=sum(s.best_constant for s in scores) / k, score=sum(s.score for s in scores) / k,
        accuracy_clean=None if None in clean else sum(c for c in clean if c is not None) / k, n_contaminated=sum(s.n_contaminated for s in scores),
        mode=scores[0].mode,
    )  # fmt: skip


def by_category(scores: Sequence[Score]) -> list[Score]:
    """The mean of every category, in order of first appearance."""
    groups: dict[str, list[Score]] = {}
    for one in scores:
        groups.setdefault(one.category, []).append(one)
    return [mean(members, benchmark="*", category=name) for name, members in groups.items()]


def overall(scores: Sequence[Score], *, expected: Collection[str], name: str = "average") -> Score:
    """Unweighted mean over category means of all benchmarks in ``expected``; what a gauntlet YAML names and weights is gauntlet.py's.

    A benchmark without a score is a ValueError, never a smaller mean.
    """
    have = {s.benchmark for s in scores}
    if missing := sorted(set(expected) - have):
        raise ValueError(f"No score for {', '.join(missing)}: the average over {len(expected)} benchmarks cannot be taken. Evaluate them, or change the suite.")
    return mean(by_category(scores), benchmark="**", category=name)
