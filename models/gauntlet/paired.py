"""Paired comparison of two models on the same items: effects, intervals, tests and the smallest difference a suite can see. Pure numpy.

A difference is always B minus A, in shares of items right (0.02: two points). A task's difference is the unweighted mean over its subsets,
a category's the mean over its tasks, an average's the mean over its categories, as in averages.py; all are weighted sums over strata
(task, subset), so errors, bootstrap and tests are one computation. Tasks and categories are fixed (they are what the score is defined
over), items are the sample: they are resampled within their stratum, items made from one document together (``cluster``).

interval     percentile bootstrap (Efron & Tibshirani 1993) of items within strata. Where no item is answered differently: the exact bound.
task p       McNemar's test, exact binomial at every size; ``p_mid`` is the mid-p variant (Fagerland et al. 2013), less conservative, for reading.
             Where items share documents: the sign flip of whole documents. Adjusted over tasks by Holm (1979).
category p   sign flip: were the models interchangeable, each item's difference would be as likely with the other sign. McNemar's test is
             this test for one stratum. Adjusted over categories and averages by step-down maxT (Westfall & Young 1993), which keeps the
             family-wise error exactly under exchangeability and knows that averages and categories move together.
detectable   the true difference found with 80 % power by the adjusted test (normal approximation). One item more is taken to be answered
             differently than was, so that two models that agree everywhere do not promise that any difference would be seen.

What that guards against is items: were others asked, would the answer be another? A recipe trained twice differs by more than its items
say (the same seed noise in every item of a skill); a significant loss is one of these weights, not of the recipe.

Change here: how two models are compared. Not here: where responses come from (jobs/services/responses.py), thresholds (expectations/gates.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 9_999


@dataclass(frozen=True)
class Answers:
    """What one model answered, as columns of equal length. ``cluster``: items with the same non-empty one depend on each other (one document).

    ``contaminated`` is None where nobody looked.
    """

    benchmark: Sequence[str]
    category: Sequence[str]
    subset: Sequence[str]
    item_id: Sequence[str]
    prompt_hash: Sequence[str]
    correct: Sequence[bool]
    cluster: Sequence[str] = ()
    contaminated: Sequence[bool | None] = ()


@dataclass(frozen=True)
class Pairs:
    """Items both models answered: columns of length N. ``a`` and ``b`` say who was right."""

    benchmark: NDArray[np.str_]
    category: NDArray[np.str_]
    subset: NDArray[np.str_]
    cluster: NDArray[np.str_]
    contaminated: NDArray[np.int8]  # 1 yes, 0 no, -1 nobody looked
    a: NDArray[np.bool_]
    b: NDArray[np.bool_]

    def where(self, mask: NDArray[np.bool_]) -> Pairs:
        return Pairs(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Unmatched:
    """Items of one task that were not compared: answered by one model only, or by both after different prompts."""

    benchmark: str
    only_a: int
    only_b: int
    other_prompt: int


@dataclass(frozen=True)
class Stratum:
    """A task's subset. Clusters of items by kind: ``counts`` clusters have ``sizes`` items and a sum ``sums`` of B right minus A right."""

    benchmark: str
    category: str
    subset: str
    sums: Floats
    sizes: Floats
    counts: NDArray[np.int64]
    gained: int  # items B has right and A wrong
    lost: int

    @classmethod
    def of_items(cls, benchmark: str, category: str, *, n: int, gained: int, lost: int, subset: str = "") -> Stratum:
        """Independent items: ``gained`` right for B only, ``lost`` right for A only, of ``n``."""
        counts = np.array([lost, n - gained - lost, gained])
        kept = counts > 0
        return cls(benchmark, category, subset, np.array([-1.0, 0.0, 1.0])[kept], np.ones(int(kept.sum())), counts[kept], gained, lost)

    @property
    def n(self) -> int:
        return int(self.sizes @ self.counts)

    @property
    def difference(self) -> float:
        return float(self.sums @ self.counts) / self.n

    @property
    def independent(self) -> bool:
        return bool((self.sizes == 1).all())

    @property
    def flip_variance(self) -> float:
        """Variance of ``difference`` when every cluster's sign is a coin toss."""
        return float(self.sums**2 @ self.counts) / self.n**2

    @property
    def variance(self) -> float:
        """Of ``difference`` (ratio estimator over clusters; for independent items the sample variance over n). 0 for a single cluster."""
        clusters = int(self.counts.sum())
        residuals = self.sums - self.difference * self.sizes
        return clusters / (clusters - 1) * float(residuals**2 @ self.counts) / self.n**2 if clusters > 1 else 0.0


@dataclass(frozen=True)
class Effect:
    """One compared number. ``accuracy_a/b``, ``difference`` (B minus A), ``low``/``high`` and ``detectable`` in shares of items.

    ``p`` is two-sided, ``p_adjusted`` over its family (tasks: Holm; categories and averages: maxT). ``p_mid`` only where McNemar's test is.
    """

    name: str
    level: str  # task | category | average
    n: int
    n_tasks: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    stderr: float
    low: float
    high: float
    gained: int
    lost: int
    test: str
    p: float
    p_mid: float | None
    p_adjusted: float
    detectable: float


@dataclass(frozen=True)
class _Target:
    """A number to compare: the weighted sum over strata with ``weights`` (S)."""

    name: str
    level: str
    weights: Floats
    n_tasks: int = field(default=1)


def _columns(answers: Answers) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row, key in enumerate(zip(answers.benchmark, answers.item_id, strict=True)):
        if key in found:
            raise ValueError(f"Item {key[1]} of {key[0]} was answered twice in one set of responses; which answer counts is not known. Keep one.")
        found[key] = row
    return found


def pair(a: Answers, b: Answers) -> tuple[Pairs, list[Unmatched]]:
    """The items both answered after the same prompt (same benchmark, item id and prompt hash), in a fixed order, and what was left out."""
    rows_a, rows_b = _columns(a), _columns(b)
    common = sorted(rows_a.keys() & rows_b.keys())
    same = [key for key in common if a.prompt_hash[rows_a[key]] == b.prompt_hash[rows_b[key]]]
    other = Counter(key[0] for key in common) - Counter(key[0] for key in same)
    only_a, only_b = (Counter(key[0] for key in x.keys() - y.keys()) for x, y in ((rows_a, rows_b), (rows_b, rows_a)))
    left_out = [Unmatched(name, only_a[name], only_b[name], other[name]) for name in sorted({*only_a, *only_b, *other})]
    at_a, at_b = [rows_a[key] for key in same], [rows_b[key] for key in same]

    def column(values: Sequence[str], fill: Callable[[int], str]) -> NDArray[np.str_]:
        return np.array([values[row] or fill(row) if values else fill(row) for row in at_a], dtype=np.str_)

    dirty = [(a.contaminated[i] if a.contaminated else None, b.contaminated[j] if b.contaminated else None) for i, j in zip(at_a, at_b, strict=True)]
    return Pairs(
        benchmark=np.array([key[0] for key in same], dtype=np.str_), category=np.array([a.category[i] for i in at_a], dtype=np.str_),
        subset=column(a.subset, lambda row: ""), cluster=column(a.cluster, lambda row: f"\0{row}"),
        contaminated=np.array([-1 if None in pair else int(any(pair)) for pair in dirty], dtype=np.int8),
        a=np.array([a.correct[i] for i in at_a], dtype=bool), b=np.array([b.correct[j] for j in at_b], dtype=bool),
    ), left_out  # fmt: skip


def strata(pairs: Pairs) -> list[Stratum]:
    """The pairs by task and subset, ordered by category, task, subset."""
    found = []
    delta = pairs.b.astype(np.int64) - pairs.a.astype(np.int64)
    names, group = np.unique(np.stack([pairs.category, pairs.benchmark, pairs.subset]), axis=1, return_inverse=True)
    for index, (category, benchmark, subset) in enumerate(names.T):
        rows = np.flatnonzero(group.ravel() == index)
        _, cluster = np.unique(pairs.cluster[rows], return_inverse=True)
        per_cluster = np.stack([np.bincount(cluster, delta[rows]), np.bincount(cluster)])
        kinds, counts = np.unique(per_cluster, axis=1, return_counts=True)
        gained, lost = int((delta[rows] > 0).sum()), int((delta[rows] < 0).sum())
        found.append(Stratum(str(benchmark), str(category), str(subset), kinds[0].astype(float), kinds[1].astype(float), counts, gained, lost))
    return found


def _family(category: str) -> str:
    """Categories of different suites (``gauntlet/...``) are never averaged together."""
    prefix = category.rpartition("/")[0]
    return f"{prefix}/average" if prefix else "average"


def _targets(cells: Sequence[Stratum]) -> list[_Target]:
    """Tasks, categories and averages as weights over the strata. A task in two categories is an error."""
    place = {}
    for cell in cells:
        if place.setdefault(cell.benchmark, cell.category) != cell.category:
            raise ValueError(f"Task {cell.benchmark} stands in the categories {place[cell.benchmark]} and {cell.category}. A task has one category.")
    tasks = {}
    for name in place:
        mask = np.array([cell.benchmark == name for cell in cells])
        tasks[name] = mask / mask.sum()
    categories = {c: [tasks[name] for name in place if place[name] == c] for c in dict.fromkeys(place.values())}
    means = {c: np.mean(members, axis=0) for c, members in categories.items()}
    families: dict[str, list[str]] = {}
    for category in means:
        families.setdefault(_family(category), []).append(category)
    found = [_Target(name, "task", weights) for name, weights in tasks.items()]
    found += [_Target(c, "category", means[c], len(categories[c])) for c in means]
    for family, members in families.items():
        found.append(_Target(family, "average", np.mean([means[c] for c in members], axis=0), sum(len(categories[c]) for c in members)))
    return found


def mcnemar(gained: int, lost: int) -> tuple[float, float]:
    """(exact p, mid-p), two-sided, that ``gained`` and ``lost`` discordant items are as likely. (1, 1) without any."""
    n, least = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0, 1.0
    exact = min(1.0, 2.0 * float(stats.binom.cdf(least, n, 0.5)))
    return exact, min(1.0, 2.0 * float(stats.binom.cdf(least, n, 0.5)) - float(stats.binom.pmf(least, n, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in adjusted[np.argsort(order, kind="stable")]]


def bootstrap(cells: Sequence[Stratum], rng: np.random.Generator, n: int = RESAMPLES) -> Floats:
    """(n, S) resampled differences. Clusters of one kind are interchangeable, so their number is drawn, not they themselves."""
    drawn = []
    for cell in cells:
        times = rng.multinomial(cell.counts.sum(), cell.counts / cell.counts.sum(), size=n)
        drawn.append((times @ cell.sums) / (times @ cell.sizes))
    return np.stack(drawn, axis=1)


def sign_flips(cells: Sequence[Stratum], rng: np.random.Generator, n: int = RESAMPLES) -> Floats:
    """(n, S) differences with the sign of every cluster tossed: what chance does to two interchangeable models."""
    drawn = []
    for cell in cells:
        size = np.abs(cell.sums)
        total = np.zeros(n)
        for value in np.unique(size[size > 0]):
            m = int(cell.counts[size == value].sum())
            total += value * (2.0 * rng.binomial(m, 0.5, size=n) - m)
        drawn.append(total / cell.n)
    return np.stack(drawn, axis=1)


def step_down(observed: Floats, null: Floats) -> Floats:
    """Westfall & Young's step-down maxT adjusted p-values. ``observed`` (T), ``null`` (n, T), larger is more extreme; -inf never is."""
    order = np.argsort(-observed, kind="stable")
    p, running = np.ones(len(observed)), 0.0
    for position, index in enumerate(order):
        if np.isneginf(observed[index]):
            break  # these and all after them stay at 1
        largest = null[:, order[position:]].max(axis=1)
        running = max(running, (1.0 + float((largest >= observed[index] - 1e-9).sum())) / (1.0 + len(null)))
        p[index] = running
    return p


def _standardised(weights: Floats, cells: Sequence[Stratum], null_strata: Floats) -> tuple[Floats, Floats, Floats]:
    """(standard deviation under sign flips (T), statistic (T), null (n, T)) of weighted sums; nan where nothing can differ."""
    flips = np.sqrt(weights**2 @ np.array([cell.flip_variance for cell in cells]))
    scale = np.where(flips > 0, flips, np.nan)
    return flips, weights @ np.array([cell.difference for cell in cells]) / scale, null_strata @ weights.T / scale


def _smoothed(weights: Floats, cells: Sequence[Stratum]) -> Floats:
    """Standard deviation under sign flips (T) were one item more answered differently in every stratum."""
    return np.sqrt(weights**2 @ np.array([cell.flip_variance + 1.0 / cell.n**2 for cell in cells]))


@dataclass(frozen=True)
class Loss:
    """Is B worse? One-sided, adjusted over all categories and averages together. ``detectable``: the loss found with 80 % power."""

    name: str
    level: str
    n: int
    difference: float
    p_adjusted: float
    detectable: float


def losses(cells: Sequence[Stratum], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Loss]:
    """One-sided tests of every category and average; the chance that any is significant though the models are interchangeable is ``alpha``."""
    if not cells:
        raise ValueError("No item was answered by both models after the same prompt; there is nothing to compare.")
    rng = np.random.default_rng(seed)
    targets = [t for t in _targets(cells) if t.level != "task"]
    weights = np.stack([t.weights for t in targets])
    _, statistic, null = _standardised(weights, cells, sign_flips(cells, rng, resamples))
    p = step_down(np.where(np.isnan(statistic), -np.inf, -statistic), np.where(np.isnan(null), -np.inf, -null))
    worst = np.where(np.isnan(null), -np.inf, -null).max(axis=1)
    critical = float(np.quantile(worst, CONFIDENCE)) if np.isfinite(worst).any() else float(stats.norm.ppf(CONFIDENCE))
    reach = (critical + float(stats.norm.ppf(POWER))) * _smoothed(weights, cells)
    difference = weights @ np.array([cell.difference for cell in cells])
    sizes = [sum(cell.n for cell, w in zip(cells, t.weights, strict=True) if w > 0) for t in targets]
    return [
        Loss(t.name, t.level, n, float(d), float(x), float(r)) for t, n, d, x, r in zip(targets, sizes, difference, p, reach, strict=True)
    ]  # fmt: skip


def compare(pairs: Pairs, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Effect]:
    """Every task, category and average of B minus A. Raises ValueError when there is nothing to compare."""
    cells = strata(pairs)
    if not cells:
        raise ValueError("No item was answered by both models after the same prompt; there is nothing to compare.")
    rng = np.random.default_rng(seed)
    targets = _targets(cells)
    weights = np.stack([t.weights for t in targets])
    resampled = bootstrap(cells, rng, resamples) @ weights.T
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    _, statistic, null = _standardised(weights, cells, sign_flips(cells, rng, resamples))
    extreme, extremes = np.where(np.isnan(statistic), -np.inf, np.abs(statistic)), np.where(np.isnan(null), -np.inf, np.abs(null))
    single = np.where(np.isneginf(extreme), 1.0, (1.0 + (extremes >= extreme - 1e-9).sum(axis=0)) / (1.0 + resamples))
    tasks = np.array([t.level == "task" for t in targets])
    tests = [_test(t, cells, float(p)) for t, p in zip(targets, single, strict=True)]
    adjusted = np.empty(len(targets))
    adjusted[tasks] = holm([tests[i][1] for i in np.flatnonzero(tasks)])
    adjusted[~tasks] = step_down(extreme[~tasks], extremes[:, ~tasks])
    largest = extremes[:, ~tasks].max(axis=1)
    critical = float(np.quantile(largest, CONFIDENCE)) if np.isfinite(largest).any() else float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    needed = np.where(tasks, stats.norm.ppf(1 - (1 - CONFIDENCE) / 2 / tasks.sum()), critical) + stats.norm.ppf(POWER)
    accuracies = _accuracies(pairs, cells)
    spread = np.sqrt(weights**2 @ np.array([cell.variance for cell in cells]))
    reach = needed * _smoothed(weights, cells)
    return [
        _effect(t, cells, accuracies, (low[i], high[i]), tests[i], (spread[i], adjusted[i], reach[i])) for i, t in enumerate(targets)
    ]  # fmt: skip


def _test(target: _Target, cells: Sequence[Stratum], flipped: float) -> tuple[str, float, float | None]:
    """(name of the test, p, mid-p)."""
    own = [cell for cell, w in zip(cells, target.weights, strict=True) if w > 0]
    if target.level == "task" and len(own) == 1 and own[0].independent:
        return "mcnemar_exact", *mcnemar(own[0].gained, own[0].lost)
    return "sign_flip", flipped, None


def _accuracies(pairs: Pairs, cells: Sequence[Stratum]) -> Floats:
    """(2, S): A's and B's share right in every stratum."""
    found = np.empty((2, len(cells)))
    for s, cell in enumerate(cells):
        rows = (pairs.benchmark == cell.benchmark) & (pairs.subset == cell.subset)
        found[:, s] = pairs.a[rows].mean(), pairs.b[rows].mean()
    return found


def _effect(
    target: _Target, cells: Sequence[Stratum], accuracies: Floats, interval: tuple[float, float], test: tuple[str, float, float | None],
    numbers: tuple[float, float, float],
) -> Effect:  # fmt: skip
    own = [(cell, float(w)) for cell, w in zip(cells, target.weights, strict=True) if w > 0]
    low, high = interval
    if all(cell.flip_variance == 0 for cell, _ in own):  # nothing differs: what n agreeing clusters still allow
        high = sum(w * (1.0 - ((1 - CONFIDENCE) / 2) ** (1.0 / cell.counts.sum())) for cell, w in own)
        low = -high
    stderr, adjusted, reach = numbers
    a, b = (float(target.weights @ row) for row in accuracies)
    return Effect(
        name=target.name, level=target.level, n=sum(cell.n for cell, _ in own), n_tasks=target.n_tasks, accuracy_a=a, accuracy_b=b,
        difference=sum(w * cell.difference for cell, w in own), stderr=float(stderr), low=float(low), high=float(high),
        gained=sum(cell.gained for cell, _ in own), lost=sum(cell.lost for cell, _ in own), test=test[0], p=test[1], p_mid=test[2],
        p_adjusted=float(adjusted), detectable=float(reach),
    )  # fmt: skip
