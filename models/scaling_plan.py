"""Which proxies to train so that the forecast of a target is best constrained, before any of them is trained. Pure and deterministic.

A set of runs is judged by the variance that a law fitted to them would have at the target (c-optimal design, Elfving 1952; Atkinson, Donev and
Tobias 2007, chapter 10), to first order in the law's coefficients at a law believed beforehand, averaged over several such laws. Runs are taken from
a list of candidates by exchange (Fedorov 1972) under a budget.
Change here: what a good set is, how it is searched. Not here: which sizes and tokens there are to choose from (jobs/proxies.py), what they cost
(jobs/proxy_plan.py), laws and fits (scaling.py, scaling_fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.scaling import BESIROGLU, HOFFMANN, LossLaw
from models.scaling_fit import FORM_DOUBT, SEED_NOISE

LEAST, MOST = 4, 6  # what stage forecast needs; with 6 every law of FEW_FORMS can be fitted
# Full coefficients of the two fits to Chinchilla's runs, in the sources named beside their exponents: beliefs where no law of one's own is known.
PUBLISHED = (
    LossLaw("chinchilla", E=1.6934, A=406.4, B=410.7, alpha=HOFFMANN[0], beta=HOFFMANN[1]),
    LossLaw("chinchilla", E=1.8172, A=482.01, B=2085.43, alpha=BESIROGLU[0], beta=BESIROGLU[1]),
)
_EXPONENT_SD = 0.15  # between data sets and recipes, as in scaling_fit: 4 runs would not determine 5 coefficients
_VAGUE_SD = 10.0  # of the others, in units of the target's loss and of log A: says nothing, keeps matrices invertible
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Candidate:
    """A run that could be trained: ``params`` N and ``tokens`` D as a law counts them, ``cost`` in any unit (0: finished already)."""

    params: float
    tokens: float
    cost: float

    def __post_init__(self) -> None:
        if not (self.params > 0 and self.tokens > 0 and 0 <= self.cost < math.inf):
            raise ValueError(f"A candidate needs positive params and tokens and a cost of at least 0, not {self.params}, {self.tokens}, {self.cost}.")


@dataclass(frozen=True)
class Judged:
    """Relative standard errors of the target's forecast loss: ``noise`` from run-to-run noise through the fitted coefficients, ``doubt`` from the
    law's form, as scaling_fit's interval has it (FORM_DOUBT of the gain beyond the best run)."""

    noise: float
    doubt: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval to expect, relative to the loss."""
        return _NORMAL_95 * math.hypot(self.noise, self.doubt)


@dataclass(frozen=True)
class Plan:
    """Which candidates (indices, ascending), what they cost together, and what they are worth."""

    chosen: tuple[int, ...]
    cost: float
    judged: Judged


def gradient(law: LossLaw, params: np.ndarray | float, tokens: np.ndarray | float, unit: float = 1.0) -> np.ndarray:
    """d log L / d coefficients, (..., P): (E in units of ``unit``, log A, log B, alpha, beta), for ``power`` (log A, alpha, beta)."""
    n, d = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    if law.form == "power":
        return np.stack([np.ones_like(n), -np.log(n), -np.log(d)], axis=-1)
    by_n, by_d = law.A * n**-law.alpha, law.B * d**-law.beta
    loss = law.E + by_n + by_d
    return np.stack([unit + 0 * n, by_n, by_d, -by_n * np.log(n), -by_d * np.log(d)], axis=-1) / loss[..., None]


class _Belief:
    """One law at all candidates and the target."""

    def __init__(self, law: LossLaw, candidates: Sequence[Candidate], target: tuple[float, float]) -> None:
        if law.form in ("compute", "moe"):
            raise ValueError(f"A plan cannot be made by the law {law.form}; use power or one with the form of chinchilla_loss.")
        self.at_target = law.predict(*target)
        # Centred on the target, log A and the exponents are told apart by the runs and not by where N = 1 lies.
        n, d = (np.array([getattr(c, name) for c in candidates]) / t for name, t in (("params", target[0]), ("tokens", target[1])))
        moved = LossLaw(law.form, law.E, law.A * target[0] ** -law.alpha, law.B * target[1] ** -law.beta, law.alpha, law.beta)
        if law.form == "power":
            moved = LossLaw("power", 0.0, self.at_target, 0.0, law.alpha, law.beta)
        self.g = gradient(moved, n, d, self.at_target)
        self.c = gradient(moved, 1.0, 1.0, self.at_target)
        self.loss = np.array([moved.predict(a, b) for a, b in zip(n, d, strict=True)])
        sd = np.full(self.c.shape, _VAGUE_SD)
        sd[-2:] = _EXPONENT_SD
        self.prior = np.diag(1.0 / sd**2)

    def spread(self, chosen: Sequence[int]) -> np.ndarray:
        """Covariance (P, P) of the coefficients after the runs ``chosen``."""
        g = self.g[list(chosen)]
        return np.linalg.inv(self.prior + g.T @ g / SEED_NOISE**2)

    def doubt(self, best: np.ndarray | float) -> np.ndarray:
        """Standard error from the law's form when the best run has the loss ``best``."""
        return FORM_DOUBT / _NORMAL_95 * np.maximum(0.0, np.asarray(best) / self.at_target - 1.0)

    def judged(self, chosen: Sequence[int]) -> tuple[float, float]:
        """Variances (noise, doubt)."""
        return float(self.c @ self.spread(chosen) @ self.c), float(self.doubt(self.loss[list(chosen)].min()) ** 2)

    def with_one_more(self, chosen: Sequence[int]) -> np.ndarray:
        """(C,) variance of the target after ``chosen`` and each candidate: the inverse is updated by Sherman and Morrison's formula."""
        spread = self.spread(chosen)
        along = self.g @ spread
        noise = self.c @ spread @ self.c - (along @ self.c) ** 2 / (SEED_NOISE**2 + (along * self.g).sum(axis=1))
        best = np.minimum(self.loss, self.loss[list(chosen)].min() if len(chosen) else math.inf)
        return noise + self.doubt(best) ** 2


def judge(candidates: Sequence[Candidate], target: tuple[float, float], laws: Sequence[LossLaw] = PUBLISHED) -> Judged:
    """What all of ``candidates`` together would tell about a target of (params, tokens): root mean square over ``laws``."""
    if not candidates or not laws:
        raise ValueError(f"Judging needs at least one run and one law, got {len(candidates)} and {len(laws)}.")
    each = np.array([_Belief(law, candidates, target).judged(range(len(candidates))) for law in laws])
    noise, doubt = np.sqrt(each.mean(axis=0))
    return Judged(float(noise), float(doubt))


def choose(
    candidates: Sequence[Candidate], target: tuple[float, float], budget: float, *, laws: Sequence[LossLaw] = PUBLISHED, least: int = LEAST, most: int = MOST
) -> Plan:  # fmt: skip
    """``least`` to ``most`` candidates that cost at most ``budget`` together and leave the target (params, tokens) the least variance.

    From every run that could be the largest on, runs are added one at a time, then exchanged one for one until nothing improves; the best of all
    these is taken. Not proven optimal; tests compare with all subsets. Raises ValueError when the budget does not buy the ``least`` cheapest.
    """
    cost = np.array([c.cost for c in candidates])
    cheapest = float(np.sort(cost)[:least].sum())
    if len(candidates) < least or cheapest > budget:
        raise ValueError(f"A budget of {budget:.4g} does not buy {least} proxies: the cheapest {least} of {len(candidates)} cost {cheapest:.4g}.")
    search = _Search([_Belief(law, candidates, target) for law in laws], cost, budget, least, most)
    found = [search.from_start(i) for i in range(len(cost)) if search.affordable(()).item(i)]
    best = min(found, key=lambda chosen: (round(search.value(chosen), 15), float(cost[list(chosen)].sum()), chosen))
    return Plan(best, float(cost[list(best)].sum()), judge([candidates[i] for i in best], target, laws))


@dataclass(frozen=True)
class _Search:
    beliefs: Sequence[_Belief]
    cost: np.ndarray
    budget: float
    least: int
    most: int

    def value(self, chosen: Sequence[int]) -> float:
        return float(np.mean([sum(b.judged(chosen)) for b in self.beliefs]))

    def affordable(self, chosen: Sequence[int]) -> np.ndarray:
        """(C,) which candidate can be added to ``chosen`` so that the money still buys ``least`` runs."""
        taken = list(chosen)
        free = np.ones(len(self.cost), dtype=bool)
        free[taken] = False
        missing = max(0, self.least - len(taken) - 1)
        order = np.array([i for i in np.lexsort((np.arange(len(free)), self.cost)) if free[i]], dtype=int)
        reserve = np.full(len(free), self.cost[order[:missing]].sum())
        among = order[:missing]  # one of the cheapest itself: the next cheapest takes its place
        if missing and len(order) > missing:
            reserve[among] += self.cost[order[missing]] - self.cost[among]
        # Sums of the same costs in another order differ in their last digits.
        return free & (self.cost[taken].sum() + self.cost + reserve <= self.budget * (1 + 1e-12))

    def best_addition(self, chosen: Sequence[int]) -> tuple[float, int] | None:
        """(variance, candidate); None when none can be paid."""
        possible = self.affordable(chosen)
        if not possible.any():
            return None
        after = np.where(possible, np.mean([b.with_one_more(chosen) for b in self.beliefs], axis=0), math.inf)
        best = int(after.argmin())
        return float(after[best]), best

    def from_start(self, first: int) -> tuple[int, ...]:
        chosen = self.filled([first])
        while True:
            before = self.value(chosen)
            for i in tuple(chosen):
                others = [j for j in chosen if j != i]
                found = self.best_addition(others)
                if found and found[1] != i and found[0] < self.value(chosen) * (1 - 1e-9):
                    chosen = [*others, found[1]]
            chosen = self.filled(chosen)
            if self.value(chosen) >= before * (1 - 1e-9):
                return tuple(sorted(chosen))

    def filled(self, chosen: Sequence[int]) -> list[int]:
        """``chosen`` and the best additions the money buys."""
        found = list(chosen)
        while len(found) < self.most and (more := self.best_addition(found)):
            found.append(more[1])
        return found
