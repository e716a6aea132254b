"""Two published fitting procedures, exactly as their authors ran them: what our own fits and forecasts are measured against.

Gadre et al. 2024 (arXiv 2403.08540) and the OLMo ladder (Bhagia et al. 2024, arXiv 2412.04403).
Change here: nothing but a discrepancy with the publication. Not here: our own fits (scaling_fit.py, scaling_tasks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.scaling import RunPoint, error_from_loss, tied_loss
from models.scaling_fit import HUBER_DELTA


@dataclass(frozen=True)
class TiedLaw:
    """Gadre et al.'s law in N and tokens per parameter; see scaling.tied_loss."""

    E: float
    a: float
    b: float
    c: float

    def predict(self, params: float, tokens_per_param: float) -> float:
        return float(tied_loss(params, tokens_per_param, E=self.E, a=self.a, b=self.b, c=self.c))


def fit_tied_least_squares(points: Sequence[RunPoint]) -> TiedLaw:
    """Gadre et al.'s fit: least squares on the loss itself. Variable projection over c; deterministic, no start values."""
    if len(points) < 4:
        raise ValueError(f"The tied law has 4 coefficients and needs at least 4 runs, got {len(points)}.")
    n, d, loss = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("params", "tokens", "loss"))

    def solve(c: float) -> tuple[float, np.ndarray]:
        design = np.stack([np.ones_like(loss), n**c, 6.0 ** (c / 2) * d**c], axis=1)
        scale = np.abs(design).max(axis=0)
        solved, *_ = np.linalg.lstsq(design / scale, loss, rcond=None)
        return float(((design / scale @ solved - loss) ** 2).sum()), solved / scale

    c = _minimum(lambda c: solve(c)[0], np.linspace(-1.5, -0.005, 600))
    e, a, b = solve(c)[1]
    return TiedLaw(E=float(e), a=float(a), b=float(b), c=c)


@dataclass(frozen=True)
class ErrorLaw:
    """Mean top-1 error from loss; see scaling.error_from_loss."""

    epsilon: float
    k: float
    gamma: float

    def predict(self, loss: float) -> float:
        return float(error_from_loss(loss, epsilon=self.epsilon, k=self.k, gamma=self.gamma))


def fit_error_law(losses: Sequence[float], errors: Sequence[float]) -> ErrorLaw:
    """Gadre et al.'s second step: error = epsilon - k·e^(-gamma·L) by least squares, variable projection over gamma."""
    if len(losses) < 3 or len(losses) != len(errors):
        raise ValueError(f"The error law needs at least 3 (loss, error) pairs, got {len(losses)} and {len(errors)}.")
    x, y = np.asarray(losses, dtype=float), np.asarray(errors, dtype=float)

    def solve(gamma: float) -> tuple[float, np.ndarray]:
        design = np.stack([np.ones_like(x), -np.exp(-gamma * x)], axis=1)
        scale = np.abs(design).max(axis=0)
        solved, *_ = np.linalg.lstsq(design / scale, y, rcond=None)
        return float(((design / scale @ solved - y) ** 2).sum()), solved / scale

    gamma = _minimum(lambda g: solve(g)[0], np.linspace(0.01, 6.0, 600))
    epsilon, k = solve(gamma)[1]
    return ErrorLaw(epsilon=float(epsilon), k=float(k), gamma=gamma)


def _minimum(function: object, grid: np.ndarray) -> float:
    """Minimum of a one-dimensional function: the best grid point, refined between its neighbours."""
    from scipy.optimize import minimize_scalar

    values = [function(x) for x in grid]  # type: ignore[operator]
    best = int(np.argmin(values))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return float(found.x)


def ladder_loss(points: Sequence[RunPoint], params: float, tokens: float) -> float:
    """Step 1 of the OLMo ladder: exp(a)/N^alpha + exp(b)/D^beta + E, summed Huber on the log, one start, all bounds >= 0."""
    from scipy.optimize import minimize

    log_n, log_d, log_loss = (np.log([getattr(p, name) for p in points]) for name in ("params", "tokens", "loss"))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, alpha, beta, e = x
        by_n, by_d = np.exp(a - alpha * log_n), np.exp(b - beta * log_d)
        predicted = by_n + by_d + e
        residual = np.log(predicted) - log_loss
        size = np.abs(residual)
        huber = np.where(size < HUBER_DELTA, 0.5 * residual**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
        pull = np.clip(residual, -HUBER_DELTA, HUBER_DELTA) / predicted
        gradient = [(pull * by_n).sum(), (pull * by_d).sum(), -(pull * by_n * log_n).sum(), -(pull * by_d * log_d).sum(), pull.sum()]
        return float(huber.sum()), np.array(gradient)

    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 10_000}
    found = minimize(objective, [3.0, 6.0, 0.1, 0.2, 1.0], jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * 5, options=options)
    a, b, alpha, beta, e = found.x
    return float(np.exp(a) / params**alpha + np.exp(b) / tokens**beta + e)


def ladder_accuracy(losses: Sequence[float], accuracies: Sequence[float], at: float, *, chance: float) -> float:
    """Step 2 of the OLMo ladder: a/(1 + e^(-k(x - x0))) + b over all checkpoints and the point (0, 1), read at the loss ``at``."""
    from scipy.optimize import curve_fit

    def sigmoid(x: np.ndarray, a: float, x0: float, k: float, b: float) -> np.ndarray:
        return a / (1.0 + np.exp(-k * (x - x0))) + b

    bounds = ([-1.0, 0.0, 0.0, 0.0], [0.0, np.inf, np.inf, 1.0])
    found, _ = curve_fit(sigmoid, [*losses, 0.0], [*accuracies, 1.0], p0=[chance - 1.0, 0.9, 3.0, 1.0], bounds=bounds)
    return float(sigmoid(np.float64(at), *found))
