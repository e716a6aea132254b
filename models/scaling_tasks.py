"""Task accuracy of a larger run: from its forecast loss (two steps) or directly from its size and tokens. Fits of both, many at once.

Two steps: a loss law (scaling_fit.py), then a bounded logistic from loss to accuracy whose slope is shrunk. Direct: -log Q' with
Q' = (accuracy - chance)/(1 - chance) as a power law (Apple 2025, arXiv 2512.08894). Every fit takes weights (B, R), one row per
bootstrap, and solves all rows together. Deterministic.
Change here: how a task's curve is fitted. Not here: the laws (scaling.py), which of them is believed (scaling_selection.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.scaling import RunPoint, accuracy_from_loss, direct_accuracy
from models.scaling_fit import nonnegative

DIRECT_FORMS = ("compute", "product", "sum")
# Chosen on held-out proxies (infra/decisions): the slope is the logistic's over the whole range of losses seen, so the shrinkage has no unit.
_SLOPE_SHRINKAGE = 0.005
_FLOOR_PULL = 0.5  # a floor 10 points off chance costs as much as one run missed by 5
_LOWER, _UPPER = np.array([-12.0, 0.0, 0.0]), np.array([6.0, 60.0, np.inf])  # level, slope, floor
_FLOOR_ABOVE_CHANCE = 0.1
_LEAST_Q = 0.01  # at or below chance log(-log Q') has no value; such runs are taken as this much above it, and hardly count
_EXPONENTS = np.round(np.arange(0.05, 1.01, 0.05), 2)
_EXPONENT_PULL = 1e-5  # towards .3, at one standard deviation of .15: decides only what the runs leave open


@dataclass(frozen=True)
class Task:
    """One benchmark: accuracy of each run (R,), the accuracy of guessing, and the loss of each run on this task's right answers (R,), or None."""

    name: str
    accuracies: np.ndarray
    chance: float
    losses: np.ndarray | None = None

    def of(self, kept: Sequence[int]) -> Task:
        """The same for some of the runs."""
        return Task(self.name, self.accuracies[list(kept)], self.chance, None if self.losses is None else self.losses[list(kept)])


@dataclass(frozen=True)
class Links:
    """B fitted curves from loss to accuracy: (level, slope, floor) rows in the unit z = (loss - middle) / spread."""

    coefficients: np.ndarray
    middle: float
    spread: float

    def predict(self, losses: np.ndarray) -> np.ndarray:
        """Accuracies for losses (B, T)."""
        return _curve(self.coefficients, (losses - self.middle) / self.spread)


def _curve(p: np.ndarray, z: np.ndarray) -> np.ndarray:
    level, slope, floor = (p[:, i : i + 1] for i in range(3))
    return accuracy_from_loss(z, chance=floor, level=level, slope=slope, pivot=0.0)


def fit_links(losses: np.ndarray, accuracies: np.ndarray, chance: float, weights: np.ndarray) -> Links:
    """Bounded logistics by least squares, for each row of ``weights`` (B, R), with three mild beliefs as extra residuals.

    No loss left means every answer right (as the OLMo ladder's point (0, 1)); the floor is near ``chance``; the slope is no steeper than
    the runs demand. Levenberg-Marquardt on all rows at once, from the best of four starts.
    """
    middle, spread = float(np.median(losses)), max(float(np.ptp(losses)), 1e-6)
    problem = _LinkProblem((losses - middle) / spread, accuracies, chance, -middle / spread)
    ones = np.ones((4, len(losses)))
    starts = np.array([(-1.0, 2.0, chance), (0.0, 4.0, chance), (-3.0, 1.0, chance), (-2.0, 6.0, chance)])
    tried, costs = problem.solve(starts, ones)
    best = tried[int(np.argmin(costs))]
    return Links(problem.solve(np.broadcast_to(best, (len(weights), 3)).copy(), weights)[0], middle, spread)


@dataclass(frozen=True)
class _LinkProblem:
    z: np.ndarray
    y: np.ndarray
    chance: float
    z_of_no_loss: float

    def residuals(self, p: np.ndarray, root: np.ndarray) -> np.ndarray:
        """(B, R + 3): weighted misses, then the anchor, the slope, the floor."""
        beliefs = [_curve(p, np.full((1, 1), self.z_of_no_loss)) - 1.0, _SLOPE_SHRINKAGE * p[:, 1:2], _FLOOR_PULL * (p[:, 2:] - self.chance)]
        return np.concatenate([root * (_curve(p, self.z[None]) - self.y), *beliefs], axis=1)

    def jacobian(self, p: np.ndarray, root: np.ndarray) -> np.ndarray:
        z = np.append(self.z, self.z_of_no_loss)[None]
        rise = 1.0 / (1.0 + np.exp(-(p[:, :1] - p[:, 1:2] * z)))
        steep = (1.0 - p[:, 2:]) * rise * (1.0 - rise)
        scale = np.concatenate([root, np.ones((len(p), 1))], axis=1)
        curve = np.stack([steep, -z * steep, 1.0 - rise], axis=2) * scale[:, :, None]
        beliefs = np.broadcast_to(np.array([[0.0, _SLOPE_SHRINKAGE, 0.0], [0.0, 0.0, _FLOOR_PULL]]), (len(p), 2, 3))
        return np.concatenate([curve, beliefs], axis=1)

    def solve(self, p: np.ndarray, weights: np.ndarray, *, steps: int = 60) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (B, 3) and sums of squares (B,), from starts (B, 3)."""
        upper = _UPPER.copy()
        upper[2] = self.chance + _FLOOR_ABOVE_CHANCE
        root, damping = np.sqrt(weights), np.full(len(p), 1e-2)
        r = self.residuals(p, root)
        cost = (r**2).sum(axis=1)
        for _ in range(steps):
            j = self.jacobian(p, root)
            normal, slope = np.einsum("bri,brj->bij", j, j), np.einsum("bri,br->bi", j, r)
            diagonal = np.einsum("bii->bi", normal)
            damped = normal + (damping[:, None] * diagonal + 1e-10)[:, :, None] * np.eye(3)
            new = np.clip(p - np.linalg.solve(damped, slope[:, :, None])[:, :, 0], _LOWER, upper)
            new_r = self.residuals(new, root)
            new_cost = (new_r**2).sum(axis=1)
            better = new_cost < cost
            p, r = np.where(better[:, None], new, p), np.where(better[:, None], new_r, r)
            gained, cost = np.where(better, cost - new_cost, 0.0), np.where(better, new_cost, cost)
            damping = np.clip(np.where(better, damping * 0.3, damping * 5.0), 1e-9, 1e9)
            if (gained <= 1e-12 * cost).all() and (better | (damping > 1e3)).all():
                break
        return p, cost


def direct_predictions(points: Sequence[RunPoint], task: Task, form: str, weights: np.ndarray, targets: Sequence[tuple[float, float]]) -> np.ndarray:
    """Accuracies (B, T) at ``targets`` (active parameters, tokens).

    Least squares of the accuracies: log(-log Q') is weighted by how much it moves the accuracy, (Q' log Q')^2, so runs near chance hardly count.
    """
    q = np.clip((task.accuracies - task.chance) / (1.0 - task.chance), _LEAST_Q, 1.0 - 1e-4)
    n, d = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("params", "tokens"))
    at = np.array(targets, dtype=float)
    scale = np.exp([np.log(n).mean(), np.log(d).mean()])
    n, d, at = n / scale[0], d / scale[1], at / scale
    fit = _sum_law if form == "sum" else _log_law
    return direct_accuracy(fit(form, n, d, q, weights, at), chance=task.chance)


def _log_law(form: str, n: np.ndarray, d: np.ndarray, q: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """log s = a - alpha·log C, or a - alpha·log N - beta·log D; exponents are not negative. (B, T) of log s."""

    def columns(size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        if form == "compute":
            return np.stack([np.ones_like(size), -np.log(size * tokens), np.zeros_like(size)], axis=1)
        return np.stack([np.ones_like(size), -np.log(size), -np.log(tokens)], axis=1)

    # The level may have any sign, the exponents may not: a constant is added to log s and taken away again.
    shift = 50.0
    design, y = columns(n, d), np.log(-np.log(q)) + shift
    w = weights * (q * np.log(q)) ** 2
    gram, right = np.einsum("br,ri,rj->bij", w, design, design, optimize=True), np.einsum("br,ri,r->bi", w, design, y, optimize=True)
    return nonnegative(gram, right) @ columns(at[:, 0], at[:, 1]).T - shift


def _sum_law(form: str, n: np.ndarray, d: np.ndarray, q: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """s = A/N^alpha + B/D^beta with A, B >= 0, exponents searched. (B, T) of log s."""
    pairs = np.array([(a, b) for a in _EXPONENTS for b in _EXPONENTS])
    zero = np.zeros((len(pairs), len(n)))
    design = np.stack([zero, n ** -pairs[:, :1], d ** -pairs[:, 1:]], axis=2)
    y, w = -np.log(q), weights * q**2
    products = design[:, :, :, None] * design[:, :, None, :]
    gram = np.einsum("br,prij->bpij", w, products, optimize=True)
    right = np.einsum("br,pri->bpi", w * y, design, optimize=True)
    solved = nonnegative(gram, right)
    missed = (w @ y**2)[:, None] - (solved * right).sum(axis=2) + _EXPONENT_PULL * ((pairs - 0.3) ** 2).sum(axis=1) / 0.15**2
    best = missed.argmin(axis=1)
    a, b = solved[np.arange(len(w)), best, 1:].T
    alpha, beta = pairs[best].T
    s = a[:, None] * at[:, 0] ** -alpha[:, None] + b[:, None] * at[:, 1] ** -beta[:, None]
    return np.log(np.maximum(s, 1e-12))
