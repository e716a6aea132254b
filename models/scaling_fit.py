"""Fitting loss laws to runs, and honest intervals around what three to six of them predict. Deterministic: the same runs give the same numbers.

Variable projection (exponents searched, the rest solved linearly; as VPNLS 2026) finds the start, L-BFGS-B ends at the minimum of the
sum of Huber(1e-3) on log loss (Hoffmann et al. 2022, approach 3; summed, not averaged: Besiroglu et al. 2024).
Change here: how loss laws are fitted, the forecast of stage forecast. Not here: the laws themselves (scaling.py), accuracy from many runs
(scaling_tasks.py), choosing a law by held-out runs and its interval, for anyone's runs (scaling_selection.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from models.scaling import BESIROGLU, HOFFMANN, LossLaw, RunPoint, accuracy_from_loss, effective_params

HUBER_DELTA = 1e-3
# What is fitted, and how many runs it needs at least. tied has 4 coefficients: with 3 runs its exponent is mostly the prior below.
FORMS = {"power": 3, "hoffmann": 3, "besiroglu": 3, "tied": 3, "compute": 4, "chinchilla": 6, "moe": 8}
FEW_FORMS = ("power", "hoffmann", "besiroglu", "tied", "chinchilla")  # what forecast_loss tries
# Exponents vary between data sets and recipes; with few runs the fit is pulled towards the published ones this gently
# (one unit of objective at 3 standard deviations of .15, against residuals that are measured in 1e-3).
_PRIOR_MEAN, _PRIOR_SD, _PRIOR_WEIGHT = 0.3, 0.15, 1e-7
_GRID = np.round(np.arange(0.05, 1.01, 0.05), 2)
_SHARES = np.linspace(0.0, 1.0, 6)
_FIXED = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU}
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


@dataclass(frozen=True)
class _Columns:
    """Runs as arrays (R,), sizes and tokens divided by their geometric means: keeps A and B near the losses in size."""

    n: np.ndarray
    d: np.ndarray
    ratio: np.ndarray  # total / active parameters
    loss: np.ndarray
    scale_n: float
    scale_d: float

    @classmethod
    def of(cls, points: Sequence[RunPoint]) -> _Columns:
        n, d, loss = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("params", "tokens", "loss"))
        total = np.array([p.params if p.total_params is None else p.total_params for p in points], dtype=float)
        scale_n, scale_d = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
        return cls(n / scale_n, d / scale_d, total / n, loss, scale_n, scale_d)

    def law(self, form: str, coefficients: Sequence[float]) -> LossLaw:
        """In real units, from (E, A, B, alpha, beta, share) in scaled ones."""
        e, a, b, alpha, beta, share = map(float, coefficients)
        if form == "compute":
            return LossLaw(form, E=e, A=a * (6.0 * self.scale_n * self.scale_d) ** alpha, B=0.0, alpha=alpha, beta=alpha)
        return LossLaw(form, E=e, A=a * self.scale_n**alpha, B=b * self.scale_d**beta, alpha=alpha, beta=beta, share=share)

    def sizes(self, form: str, share: np.ndarray | float) -> np.ndarray:
        """What A's exponent is taken of: N, N·D for ``compute``, effective parameters for ``moe``."""
        return self.n * self.d if form == "compute" else effective_params(self.n, self.n * self.ratio, share=share)


def _exponents(form: str, near: LossLaw | None = None, *, step: float = 0.05) -> np.ndarray:
    """(alpha, beta, share) rows (P, 3) to search; with ``near``, only those around that law's."""
    if form in _FIXED:
        return np.array([(*_FIXED[form], 0.0)])
    grid = _GRID if step == 0.05 or near is None else np.round(np.arange(max(0.01, near.alpha - 0.2), near.alpha + 0.2001, step), 4)
    if form in ("tied", "compute"):
        return np.stack([grid, grid, 0 * grid], axis=1)
    other = grid if grid is _GRID else np.round(np.arange(max(0.01, near.beta - 0.2), near.beta + 0.2001, step), 4)  # type: ignore[union-attr]
    found = np.array([(a, b, s) for a in grid for b in other for s in (_SHARES if form == "moe" else (0.0,))])
    if near is None or grid is not _GRID:
        return found
    close = found[(np.abs(found[:, :2] - (near.alpha, near.beta)) <= 0.2).all(axis=1)]
    return close if len(close) else np.array([(near.alpha, near.beta, near.share)])


def fit_form(points: Sequence[RunPoint], form: str) -> LossLaw:
    """Fit one form of FORMS; E, A, B are never negative. Raises ValueError with fewer runs than the form needs."""
    if form not in FORMS:
        raise ValueError(f"Unknown law {form!r}. Known: {', '.join(FORMS)}.")
    if len(points) < FORMS[form]:
        raise ValueError(f"The law {form} needs at least {FORMS[form]} runs, got {len(points)}.")
    return _fit(points, form, starts=3, near=None)


def _fit(points: Sequence[RunPoint], form: str, *, starts: int, near: LossLaw | None) -> LossLaw:
    """Variable projection over the exponents, then a descent from the best ``starts`` (0: none, for the hundreds of bootstraps)."""
    runs = _Columns.of(points)
    if form == "power":
        return _power(points, np.ones((1, len(points))))[0]
    candidates = projected(runs, form, _exponents(form, near), np.ones((1, len(points))))[0]
    values = _objectives(runs, form, candidates[None], np.ones((1, len(points))))[0]
    order = np.lexsort((*candidates.T[::-1], values))
    if not starts:
        return runs.law(form, candidates[order[0]])
    return runs.law(form, min(_polished(runs, form, candidates[i]) for i in order[:starts])[1])


def fit_projected(points: Sequence[RunPoint], form: str) -> LossLaw:
    """fit_form without the descent: variable projection on a grid, then on a finer one. Some 20 times faster, for many fits in a row."""
    if form not in FORMS or len(points) < FORMS[form]:
        return fit_form(points, form)  # says what is wrong
    return fit_weighted(points, _fit(points, form, starts=0, near=None), np.ones((1, len(points))))[0]


def fit_weighted(points: Sequence[RunPoint], law: LossLaw, weights: np.ndarray) -> list[LossLaw]:
    """``law`` fitted again to the same runs for each row of ``weights`` (B, R), by variable projection around its exponents: bootstraps.

    All rows at once: 1,000 of them take a fraction of a second.
    """
    if law.form == "power":
        return _power(points, weights)
    runs = _Columns.of(points)
    exponents = _exponents(law.form, law, step=0.025)
    found = []
    for part in np.array_split(weights, max(1, len(weights) * len(exponents) * len(points) // 2_000_000)):
        candidates = projected(runs, law.form, exponents, part)
        best = _objectives(runs, law.form, candidates, part).argmin(axis=1)
        found += [runs.law(law.form, row) for row in candidates[np.arange(len(part)), best]]
    return found


def _power(points: Sequence[RunPoint], weights: np.ndarray) -> list[LossLaw]:
    """Weighted least squares on log loss = log A - alpha log N - beta log D with alpha, beta >= 0, for each row of ``weights``."""
    from scipy.optimize import nnls  # half a second of import that only fitting needs

    x, y = np.log([[p.params, p.tokens] for p in points]), np.log([p.loss for p in points])
    found = []
    for w in weights / weights.sum(axis=1, keepdims=True):
        root, x0, y0 = np.sqrt(w), w @ x, w @ y
        (alpha, beta), _ = nnls(-(x - x0) * root[:, None], (y - y0) * root)
        found.append(LossLaw("power", E=0.0, A=math.exp(float(y0 + alpha * x0[0] + beta * x0[1])), B=0.0, alpha=float(alpha), beta=float(beta)))
    return found


def projected(runs: _Columns, form: str, exponents: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Best E, A, B >= 0 in weighted relative least squares: (B, P, 6) with the exponents, for ``weights`` (B, R) and ``exponents`` (P, 3)."""
    alpha, beta, share = (exponents[:, i : i + 1] for i in range(3))
    third = 0.0 * runs.d**-beta if form == "compute" else runs.d**-beta
    design = np.stack([np.ones((len(exponents), len(runs.loss))), runs.sizes(form, share) ** -alpha, third], axis=2) / runs.loss[:, None]
    products = design[:, :, :, None] * design[:, :, None, :]
    gram, right = np.einsum("br,prij->bpij", weights, products, optimize=True), np.einsum("br,pri->bpi", weights, design, optimize=True)
    solved = nonnegative(gram, right)
    return np.concatenate([solved, np.broadcast_to(exponents, (len(weights), *exponents.shape))], axis=2)


def nonnegative(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact non-negative least squares of three coefficients from normal equations (..., 3, 3) and (..., 3), all at once.

    Every subset of coefficients is solved in closed form and the non-negative solution that explains most is taken.
    """
    g = gram + 1e-12 * np.eye(3)
    best, found = np.zeros(right.shape[:-1]), np.zeros(right.shape)
    for subset in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        part, r = g[..., subset, :][..., :, subset], right[..., subset]
        solved = np.zeros_like(r)
        if len(subset) == 1:
            solved = r / part[..., 0]
        elif len(subset) == 2:
            determinant = part[..., 0, 0] * part[..., 1, 1] - part[..., 0, 1] ** 2
            solved[..., 0] = (part[..., 1, 1] * r[..., 0] - part[..., 0, 1] * r[..., 1]) / determinant
            solved[..., 1] = (part[..., 0, 0] * r[..., 1] - part[..., 0, 1] * r[..., 0]) / determinant
        else:
            cofactors = np.cross(part[..., [1, 2, 0], :], part[..., [2, 0, 1], :])
            solved = np.einsum("...ij,...i->...j", cofactors, r) / np.einsum("...j,...j->...", part[..., 0, :], cofactors[..., 0, :])[..., None]
        explained = (solved * r).sum(axis=-1)
        better = np.isfinite(explained) & (solved >= 0).all(axis=-1) & (explained > best)
        best = np.where(better, explained, best)
        filled = np.zeros(right.shape)
        filled[..., subset] = solved
        found = np.where(better[..., None], filled, found)
    return found


def _objectives(runs: _Columns, form: str, candidates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What is minimised, (B, P): weighted sum of Huber on log loss and a gentle pull of free exponents. ``candidates`` (B, P, 6)."""
    e, a, b, alpha, beta, share = (candidates[..., i : i + 1] for i in range(6))
    predicted = np.maximum(e + a * runs.sizes(form, share) ** -alpha + b * runs.d**-beta, 1e-9)
    size = np.abs(np.log(predicted) - np.log(runs.loss))
    huber = np.where(size <= HUBER_DELTA, 0.5 * size**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
    prior = 0.0 if form in _FIXED else ((alpha - _PRIOR_MEAN) ** 2 + (beta - _PRIOR_MEAN) ** 2)[..., 0] / _PRIOR_SD**2
    return np.einsum("bpr,br->bp", huber, weights) + _PRIOR_WEIGHT * prior


_FREE = {"hoffmann": (), "besiroglu": (), "tied": (3,), "compute": (3,), "chinchilla": (3, 4), "moe": (3, 4, 5)}


def _polished(runs: _Columns, form: str, start: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """Descend from ``start`` (E, A, B, alpha, beta, share) on the Huber objective."""
    from scipy.optimize import minimize

    free, ones = [0, 1, 2, *_FREE[form]], np.ones((1, len(runs.loss)))

    def full(x: np.ndarray) -> np.ndarray:
        found = np.array(start, dtype=float)
        found[free] = x
        if form in ("tied", "compute"):
            found[4] = found[3]
        return found

    def value(x: np.ndarray) -> float:
        return 1e6 * float(_objectives(runs, form, full(x)[None, None], ones)[0, 0])  # tiny near its minimum; scaled, so that stopping rules see it

    bounds = [(0.0, None)] * 3 + [(0.01, 2.0), (0.01, 2.0), (0.0, 1.0)][: len(_FREE[form])]
    x0 = np.array(start, dtype=float)[free]
    found = minimize(value, x0, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-14})
    better = found.x if np.isfinite(found.fun) and found.fun <= value(x0) else x0
    return value(better), tuple(full(better))


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
    errors = {form: held_out_error(points, form) for form in FEW_FORMS if len(points) >= FORMS[form]}
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
