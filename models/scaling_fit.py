"""Fitting scaling laws to few runs, and honest intervals around what they predict. Deterministic: the same runs give the same numbers.

Variable projection (exponents searched, the rest solved linearly; as VPNLS 2026) finds the start, L-BFGS-B ends at the minimum of the
sum of Huber(1e-3) on log loss (Hoffmann et al. 2022, approach 3; summed, not averaged: Besiroglu et al. 2024).
Change here: how laws are fitted, which forms are tried, how wide intervals are. Not here: the laws themselves (scaling.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from models.scaling import BESIROGLU, HOFFMANN, LossLaw, RunPoint, accuracy_from_loss, error_from_loss, tied_loss

HUBER_DELTA = 1e-3
# What is fitted, and how many runs it needs at least. tied has 4 coefficients: with 3 runs its exponent is mostly the prior below.
FORMS = {"power": 3, "hoffmann": 3, "besiroglu": 3, "tied": 3, "chinchilla": 6}
# Exponents vary between data sets and recipes; with few runs the fit is pulled towards the published ones this gently
# (one unit of objective at 3 standard deviations of .15, against residuals that are measured in 1e-3).
_PRIOR_MEAN, _PRIOR_SD, _PRIOR_WEIGHT = 0.3, 0.15, 1e-7
_GRID = np.round(np.arange(0.05, 1.01, 0.05), 2)
SEED_NOISE = 0.005  # relative: two seeds of the same small run differ by about this much
# With a handful of runs the true form is not known: the gain beyond the best run is uncertain by this share of itself. Set after small
# mixtures of experts far above their floor, where every form underestimated the gain of a 3 to 5 times longer run (infra/decisions/0006).
FORM_DOUBT = 0.4
_BOOTSTRAPS = 200


@dataclass(frozen=True)
class Forecast:
    """A prediction with its 95 % interval, the comparator that must be beaten, and what it rests on (``details``: JSON values)."""

    predicted: float
    low: float
    high: float
    naive: float
    details: dict = field(default_factory=dict)


def _huber(residuals: np.ndarray) -> float:
    size = np.abs(residuals)
    return float(np.where(size <= HUBER_DELTA, 0.5 * size**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA)).sum())


def _arrays(points: Sequence[RunPoint]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d, loss = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("params", "tokens", "loss"))
    return n, d, loss


def _exponents(form: str, near: LossLaw | None = None) -> np.ndarray:
    """Exponent pairs (P, 2) to search; with ``near``, only those around that law's."""
    if form in ("hoffmann", "besiroglu"):
        return np.array([HOFFMANN if form == "hoffmann" else BESIROGLU])
    if form == "tied":
        return np.stack([_GRID, _GRID], axis=1)
    pairs = np.array([(a, b) for a in _GRID for b in _GRID])
    if near is None:
        return pairs
    close = pairs[(np.abs(pairs - (near.alpha, near.beta)) <= 0.2).all(axis=1)]
    return close if len(close) else np.array([(near.alpha, near.beta)])


def fit_form(points: Sequence[RunPoint], form: str) -> LossLaw:
    """Fit one form of FORMS; E, A, B are never negative. Raises ValueError with fewer runs than the form needs."""
    if form not in FORMS:
        raise ValueError(f"Unknown law {form!r}. Known: {', '.join(FORMS)}.")
    if len(points) < FORMS[form]:
        raise ValueError(f"The law {form} needs at least {FORMS[form]} runs, got {len(points)}.")
    return _fit(points, form, starts=3, near=None)


def _fit(points: Sequence[RunPoint], form: str, *, starts: int, near: LossLaw | None) -> LossLaw:
    """Variable projection over the exponents, then a descent from the best ``starts`` (0: none, for the hundreds of bootstraps)."""
    n, d, loss = _arrays(points)
    if form == "power":
        return _power(n, d, loss)
    scale_n, scale_d = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))  # keeps A and B near the losses in size
    n, d = n / scale_n, d / scale_d
    candidates = _projected(n, d, loss, _exponents(form, near))
    ranked = sorted((_objective(n, d, loss, c, form), tuple(c)) for c in candidates)
    best = ranked[0][1] if not starts else min(_polished(n, d, loss, c, form) for _, c in ranked[:starts])[1]
    e, a, b, alpha, beta = map(float, best)
    return LossLaw(form=form, E=e, A=a * scale_n**alpha, B=b * scale_d**beta, alpha=alpha, beta=beta)


def _power(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> LossLaw:
    """Least squares on log loss = log A - alpha log N - beta log D with alpha, beta >= 0."""
    from scipy.optimize import nnls  # half a second of import that only fitting needs

    x, y = np.log(np.stack([n, d], axis=1)), np.log(loss)
    (alpha, beta), _ = nnls(-(x - x.mean(axis=0)), y - y.mean())
    level = float(y.mean() + alpha * x[:, 0].mean() + beta * x[:, 1].mean())
    return LossLaw("power", E=0.0, A=math.exp(level), B=0.0, alpha=float(alpha), beta=float(beta))


def _projected(n: np.ndarray, d: np.ndarray, loss: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Best E, A, B >= 0 for each exponent pair, in relative least squares; (P, 5) with the exponents.

    Exact non-negative least squares: of three coefficients, every subset is solved and the best non-negative solution taken.
    """
    columns = [np.ones((len(exponents), len(loss))), n ** -exponents[:, :1], d ** -exponents[:, 1:]]
    design = np.stack(columns, axis=2) / loss[:, None]
    found, best = np.zeros((len(exponents), 3)), np.full(len(exponents), np.inf)
    for subset in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        part = design[:, :, subset]
        gram = part.transpose(0, 2, 1) @ part + 1e-12 * np.eye(len(subset))
        solved = np.linalg.solve(gram, part.sum(axis=1)[:, :, None])
        residual = ((part @ solved)[:, :, 0] - 1.0) ** 2
        better = (solved[:, :, 0] >= 0).all(axis=1) & (residual.sum(axis=1) < best)
        best[better] = residual.sum(axis=1)[better]
        found[better] = 0.0
        found[np.ix_(better, subset)] = solved[better, :, 0]
    return np.concatenate([found, exponents], axis=1)


def _objective(n: np.ndarray, d: np.ndarray, loss: np.ndarray, coefficients: Sequence[float], form: str) -> float:
    e, a, b, alpha, beta = coefficients
    predicted = np.maximum(e + a * n**-alpha + b * d**-beta, 1e-9)
    prior = 0.0 if form in ("hoffmann", "besiroglu") else ((alpha - _PRIOR_MEAN) ** 2 + (beta - _PRIOR_MEAN) ** 2) / _PRIOR_SD**2
    return _huber(np.log(predicted) - np.log(loss)) + _PRIOR_WEIGHT * prior


def _polished(n: np.ndarray, d: np.ndarray, loss: np.ndarray, start: Sequence[float], form: str) -> tuple[float, tuple[float, ...]]:
    """Descend from ``start`` on the Huber objective."""
    from scipy.optimize import minimize

    def full(x: np.ndarray) -> tuple[float, ...]:
        e, a, b, *exponents = x
        if form in ("hoffmann", "besiroglu"):
            return (e, a, b, start[3], start[4])
        return (e, a, b, exponents[0], exponents[-1])

    free = {"hoffmann": 0, "besiroglu": 0, "tied": 1, "chinchilla": 2}[form]
    x0 = np.array([*start[:3], *start[3 : 3 + free]])
    bounds = [(0.0, None)] * 3 + [(0.01, 2.0)] * free
    # The objective is tiny near its minimum; scaled up, so that the optimiser's stopping rules see it.
    found = minimize(lambda x: 1e6 * _objective(n, d, loss, full(x), form), x0, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-14})
    better = found.x if np.isfinite(found.fun) and found.fun <= 1e6 * _objective(n, d, loss, start, form) else x0
    return _objective(n, d, loss, full(better), form), full(better)


def held_out_error(points: Sequence[RunPoint], form: str) -> float:
    """Relative error of ``form`` on the largest run (by N·D) when fitted without it; infinite when too few runs remain."""
    ordered = sorted(points, key=lambda p: (p.params * p.tokens, p.tokens))
    if len(ordered) - 1 < FORMS[form]:
        return math.inf
    last = ordered[-1]
    return abs(fit_form(ordered[:-1], form).predict(last.params, last.tokens) / last.loss - 1.0)


def forecast_loss(points: Sequence[RunPoint], *, params: float, tokens: float, seed: int = 0) -> Forecast:
    """Predict the loss of a run of (``params``, ``tokens``) from at least 3 smaller runs.

    The form is chosen by leaving out the largest run, never by the target; plausible are all forms whose error there is within twice
    the best one's (or within seed noise). The interval spans the bootstraps of all plausible forms, and is never narrower than the
    leave-largest-out error carried over the distance still to be extrapolated. The naive forecast is the best proxy's own loss.
    """
    if len(points) < 3:
        raise ValueError(f"A loss forecast needs at least 3 finished runs, got {len(points)}.")
    errors = {form: held_out_error(points, form) for form, least in FORMS.items() if len(points) >= least}
    finite = {form: error for form, error in errors.items() if math.isfinite(error)}
    ranked = sorted(finite or dict.fromkeys(errors, 0.0), key=lambda form: (finite.get(form, 0.0), form))
    limit = max(2.0 * finite.get(ranked[0], 0.0), SEED_NOISE)
    plausible = [form for form in ranked if finite.get(form, 0.0) <= limit]
    laws = {form: fit_form(points, form) for form in plausible}
    predictions = {form: law.predict(params, tokens) for form, law in laws.items()}
    predicted = float(np.median(list(predictions.values()))) if len(predictions) > 2 else predictions[ranked[0]]
    spread = _bootstrapped(points, laws, params, tokens, np.random.default_rng(seed))
    carried = finite.get(ranked[0], SEED_NOISE) * _distance_ratio(points, params, tokens) * predicted
    naive = min(p.loss for p in points)
    half = max(carried, 2 * SEED_NOISE * predicted, FORM_DOUBT * (naive - predicted))
    low = min(float(np.percentile(spread, 2.5)), predicted - half, *predictions.values())
    high = max(float(np.percentile(spread, 97.5)), predicted + half, *predictions.values())
    details = {
        "chosen": ranked[0], "plausible": plausible, "predictions": predictions, "laws": {form: asdict(law) for form, law in laws.items()},
        "held_out_errors": {form: (error if math.isfinite(error) else None) for form, error in errors.items()},
        "runs": [asdict(p) for p in points],
    }  # fmt: skip
    return Forecast(predicted, max(low, 0.0), high, naive=naive, details=details)


def _distance_ratio(points: Sequence[RunPoint], params: float, tokens: float) -> float:
    """How much further (in log N·D) the target lies beyond the largest run than that run beyond the next; at least 1."""
    sizes = sorted(math.log(p.params * p.tokens) for p in points)
    return max(1.0, (math.log(params * tokens) - sizes[-1]) / max(sizes[-1] - sizes[-2], math.log(1.5)))


def _bootstrapped(points: Sequence[RunPoint], laws: dict[str, LossLaw], params: float, tokens: float, rng: np.random.Generator) -> np.ndarray:
    """Predictions of every law refitted to losses disturbed by its own residual (or seed noise, whichever is larger).

    Parametric: with 4 to 6 runs, drawing runs with replacement would mostly give fewer runs than coefficients.
    """
    found = []
    for law in laws.values():
        residuals = np.array([math.log(law.predict(p.params, p.tokens) / p.loss) for p in points])
        sd = max(SEED_NOISE, float(np.sqrt((residuals**2).sum() / max(1, len(points) - 3))))
        for _ in range(max(20, _BOOTSTRAPS // len(laws))):
            noise = np.exp(rng.normal(0.0, sd, len(points)))
            disturbed = [RunPoint(p.params, p.tokens, p.loss * float(f)) for p, f in zip(points, noise, strict=True)]
            found.append(_fit(disturbed, law.form, starts=0, near=law).predict(params, tokens))
    return np.array(found)


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
    n, d, loss = _arrays(points)

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


def forecast_accuracy(losses: Sequence[float], accuracies: Sequence[float], *, chance: float, items: int, loss: Forecast) -> Forecast:
    """Predict accuracy at a forecast loss by a logistic bounded by ``chance`` and 1 whose slope is shrunk towards 0.

    ``items``: questions each accuracy was measured on. The unbounded exponential loses to the naive forecast on published runs;
    this one, and always beside it the naive forecast (the best proxy's accuracy). The interval covers the loss interval, the sampling
    error of the questions, and the naive forecast.
    """
    from scipy.optimize import least_squares

    if not losses or len(losses) != len(accuracies):
        raise ValueError(f"Accuracies and losses must come in pairs, got {len(losses)} and {len(accuracies)}.")
    x, y = np.asarray(losses, dtype=float), np.asarray(accuracies, dtype=float)
    pivot = float(x.min())

    def law(level: float, slope: float, at: float | np.ndarray) -> float | np.ndarray:
        return accuracy_from_loss(at, chance=chance, level=level, slope=slope, pivot=pivot)

    found = least_squares(lambda p: np.append(law(p[0], p[1], x) - y, 0.05 * p[1]), x0=(-3.0, 0.5), bounds=([-12.0, 0.0], [6.0, 8.0]))
    level, slope = map(float, found.x)
    predicted = float(law(level, slope, loss.predicted))
    naive = float(y[int(np.argmin(x))])
    sampling = 1.96 * math.sqrt(max(predicted * (1 - predicted), 0.25 / items) / items)
    ends = [float(law(level, slope, loss.low)), float(law(level, slope, loss.high)), predicted, naive]
    details = {"form": "bounded_logistic", "chance": chance, "level": level, "slope": slope, "pivot": pivot, "items": items}
    return Forecast(predicted, max(0.0, min(ends) - sampling), min(1.0, max(ends) + sampling), naive, details)
