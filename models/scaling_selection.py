"""What a larger run will reach, from anyone's runs: laws chosen by holding out the largest of them, with 95 % intervals, beside the naive forecast.

Nothing here sees the target's outcome. Laws whose hold-out error is within _PLAUSIBLE of the best are averaged; the interval holds the
bootstrap over runs, the spread of the plausible laws, and the hold-out error carried to the target's distance. The naive forecast is
"same as the best run so far"; a forecast that does not beat it on the hold-outs says so.
Change here: which runs are held out, what is plausible, how wide intervals are. Not here: how one law is fitted (scaling_fit.py, scaling_tasks.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.scaling import LossLaw, RunPoint
from models.scaling_fit import FORMS, SEED_NOISE, Forecast, fit_projected, fit_weighted
from models.scaling_tasks import DIRECT_FORMS, Task, direct_predictions, fit_links

LEAST_RUNS = 5
BOOTSTRAPS = 1000
_PLAUSIBLE = 1.5  # times the best hold-out error: with a few held-out runs such errors cannot be told apart
_HELD_OUT_SHARES = (0.2, 0.4)  # of the runs, whole sizes from the largest down
_LEAST_DISTANCE = math.log(2.0)  # in log compute; a run held out nearer than that says no less about one that far
_ACCURACY_NOISE = 0.005  # half a point: about the standard error of 10,000 questions


@dataclass(frozen=True)
class HoldOut:
    """Runs to fit on and runs to predict, by index."""

    kept: tuple[int, ...]
    held: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """The run to forecast: active parameters, tokens, all parameters (None: dense)."""

    params: float
    tokens: float
    total_params: float | None = None


def hold_outs(points: Sequence[RunPoint]) -> list[HoldOut]:
    """The largest sizes with a fifth, then with two fifths of the runs; with fewer than 3 sizes, the runs of the largest compute.

    At least 2 sizes (where there are 3) and 3 runs stay, 6 where there are 8 or more, so that every law can take part.
    """
    sizes = sorted({p.params for p in points})
    rank = {i: (p.params if len(sizes) > 2 else p.params * p.tokens) for i, p in enumerate(points)}
    levels = sorted(set(rank.values()))
    least = 6 if len(points) >= 8 else 3
    found: list[HoldOut] = []
    for share in _HELD_OUT_SHARES:
        for cut in reversed(levels[1:]):
            held = tuple(i for i in rank if rank[i] >= cut)
            if len(held) >= share * len(points):
                break
        kept = tuple(i for i in rank if i not in held)
        enough = len({rank[i] for i in kept}) >= 2 and len(kept) >= least
        if enough and HoldOut(kept, held) not in found:
            found.append(HoldOut(kept, held))
    if not found:
        raise ValueError(
            f"The {len(points)} runs ({len(sizes)} sizes) leave too few to fit on once the largest are held out. Add runs of other sizes or tokens."
        )
    return found


def loss_forms(points: Sequence[RunPoint]) -> list[str]:
    """The laws that ``points`` can tell apart: ``moe`` only where the share of active parameters differs between runs."""
    ratios = [1.0 if p.total_params is None else p.total_params / p.params for p in points]
    return [form for form, least in FORMS.items() if len(points) >= least and (form != "moe" or max(ratios) > 1.1 * min(ratios))]


def _targets(points: Sequence[RunPoint], which: Sequence[int]) -> list[Target]:
    return [Target(points[i].params, points[i].tokens, points[i].total_params) for i in which]


def _predict(law: LossLaw, targets: Sequence[Target]) -> list[float]:
    return [law.predict(t.params, t.tokens, t.total_params) for t in targets]


def _loss_predictions(points: Sequence[RunPoint], form: str, weights: np.ndarray | None, targets: Sequence[Target]) -> np.ndarray:
    """(B, T) for ``weights`` (B, R); (1, T) of the plain fit without them."""
    law = fit_projected(points, form)
    laws = [law] if weights is None else fit_weighted(points, law, weights)
    return np.array([_predict(each, targets) for each in laws])


def _task_predictions(points: Sequence[RunPoint], task: Task, method: str, weights: np.ndarray | None, targets: Sequence[Target]) -> np.ndarray:
    """(B, T) accuracies by ``two-step LAW`` or ``direct FORM``."""
    kind, form = method.split()
    ones = np.ones((1, len(points))) if weights is None else weights
    if kind == "direct":
        return direct_predictions(points, task, form, ones, [(t.params, t.tokens) for t in targets])
    losses = np.array([p.loss for p in points]) if task.losses is None else task.losses
    own = [RunPoint(p.params, p.tokens, float(loss), p.total_params) for p, loss in zip(points, losses, strict=True)]
    return fit_links(losses, task.accuracies, task.chance, ones).predict(_loss_predictions(own, form, weights, targets))


def _distance(points: Sequence[RunPoint], params: float, tokens: float) -> float:
    """How far in log compute a run lies beyond the largest of ``points``."""
    return max(_LEAST_DISTANCE, math.log(params * tokens) - max(math.log(p.params * p.tokens) for p in points))


def _plausible(errors: dict[str, float]) -> list[str]:
    """The best first, and all within _PLAUSIBLE of it."""
    best = min(errors.values())
    return sorted((name for name, error in errors.items() if error <= _PLAUSIBLE * best), key=lambda name: (errors[name], name))


def _bootstrap_weights(count: int, runs: int, seed: int) -> np.ndarray:
    """(B, R) Bayesian bootstrap (Rubin 1981): every run keeps some weight, so no bootstrap has fewer runs than coefficients."""
    return np.random.default_rng(seed).dirichlet(np.ones(runs), count) * runs


@dataclass(frozen=True)
class _HeldOutErrors:
    """Signed misses on the held-out runs, hold-outs one after another, and how far each run was."""

    misses: np.ndarray
    distances: np.ndarray

    @property
    def mean(self) -> float:
        return float(np.abs(self.misses).mean())

    def carried(self, distance: float) -> float:
        """Standard error at ``distance``, growing with its square root, as if every step in log compute added its own error."""
        return float(np.sqrt((self.misses**2 / self.distances).mean() * distance))


def _distances(points: Sequence[RunPoint], plans: Sequence[HoldOut]) -> np.ndarray:
    return np.array([_distance([points[i] for i in plan.kept], points[j].params, points[j].tokens) for plan in plans for j in plan.held])


def _widened(center: float, draws: np.ndarray, error: float, others: Sequence[float], held: int) -> tuple[float, float]:
    """95 % interval: bootstrap half-widths and ``error`` (times Student's t) in quadrature, and never without ``others``."""
    from scipy.stats import t

    beyond = float(t.ppf(0.975, held)) * error
    low, high = (float(np.percentile(draws, q)) for q in (2.5, 97.5))
    low, high = center - math.hypot(max(0.0, center - low), beyond), center + math.hypot(max(0.0, high - center), beyond)
    return min(low, *others), max(high, *others)


def _forms_on_all(points: Sequence[RunPoint], plans: Sequence[HoldOut]) -> list[str]:
    return [form for form in loss_forms(points) if all(len(plan.kept) >= FORMS[form] for plan in plans)]


def _checked(points: Sequence[RunPoint]) -> list[HoldOut]:
    if len(points) < LEAST_RUNS:
        raise ValueError(f"A forecast from anyone's runs needs at least {LEAST_RUNS}, got {len(points)}.")
    return hold_outs(points)


def forecast_loss_of(points: Sequence[RunPoint], target: Target, *, bootstraps: int = BOOTSTRAPS, seed: int = 0) -> Forecast:
    """Loss of ``target`` from at least LEAST_RUNS runs. ``details``: hold-out errors (mean |log ratio|) of every law and of the naive forecast,
    the laws averaged, each one's prediction, ``beats_naive``. Raises ValueError with too few runs."""
    plans = _checked(points)
    distances = _distances(points, plans)
    truth = np.log([points[j].loss for plan in plans for j in plan.held])
    misses = {}
    for form in _forms_on_all(points, plans):
        predicted = [_loss_predictions([points[i] for i in plan.kept], form, None, _targets(points, plan.held))[0] for plan in plans]
        misses[form] = np.log(np.concatenate(predicted)) - truth
    naive = np.concatenate([np.full(len(plan.held), math.log(min(points[i].loss for i in plan.kept))) for plan in plans]) - truth
    errors = {form: float(np.abs(m).mean()) for form, m in misses.items()}
    chosen = _plausible(errors)
    predictions = {form: float(_loss_predictions(points, form, None, [target])[0, 0]) for form in chosen}
    weights = _bootstrap_weights(bootstraps, len(points), seed)
    draws = np.mean([np.log(_loss_predictions(points, form, weights, [target])[:, 0]) for form in chosen], axis=0)
    center = float(np.mean(np.log(list(predictions.values()))))
    held = _HeldOutErrors(np.mean([misses[form] for form in chosen], axis=0), distances)
    error = max(held.carried(_distance(points, target.params, target.tokens)), SEED_NOISE)
    low, high = _widened(center, draws, error, [math.log(v) for v in predictions.values()], len(distances))
    details = {"chosen": chosen, "predictions": predictions, "held_out_errors": errors, **_beside_naive(held, naive), "bootstraps": bootstraps}
    return Forecast(math.exp(center), math.exp(low), math.exp(high), min(p.loss for p in points), details)


def _beside_naive(held: _HeldOutErrors, naive_misses: np.ndarray) -> dict[str, float | bool]:
    naive = float(np.abs(naive_misses).mean())
    return {"held_out_error": held.mean, "naive_held_out_error": naive, "beats_naive": held.mean < naive}


def forecast_tasks(points: Sequence[RunPoint], tasks: Sequence[Task], target: Target, *, bootstraps: int = BOOTSTRAPS, seed: int = 0) -> dict[str, Forecast]:
    """Accuracy of ``target`` on each task. The laws are chosen for all tasks together (mean hold-out error in accuracy), two-step and direct
    ones each for themselves; the forecast is the average of both kinds. Raises ValueError with too few runs."""
    plans = _checked(points)
    kinds = {"two-step": _forms_on_all(points, plans), "direct": list(DIRECT_FORMS)}
    methods = [f"{kind} {form}" for kind, forms in kinds.items() for form in forms]
    misses = {task.name: _task_misses(points, task, methods, plans) for task in tasks}
    errors = {m: float(np.mean([np.abs(found[m]).mean() for found in misses.values()])) for m in methods}
    chosen = {kind: _plausible({m: errors[m] for m in methods if m.startswith(kind)}) for kind in kinds}
    combined = {name: _averaged({m: v[None] for m, v in found.items()}, chosen)[0] for name, found in misses.items()}
    pooled = np.mean([misses_of**2 / _distances(points, plans) for misses_of in combined.values()])
    weights = _bootstrap_weights(bootstraps, len(points), seed)
    setting = _Setting(points, target, plans, chosen, errors, weights, math.sqrt(pooled))
    return {task.name: _task_forecast(task, combined[task.name], setting) for task in tasks}


@dataclass(frozen=True)
class _Setting:
    """What the tasks of one forecast share."""

    points: Sequence[RunPoint]
    target: Target
    plans: Sequence[HoldOut]
    chosen: dict[str, list[str]]
    errors: dict[str, float]
    weights: np.ndarray
    pooled: float  # hold-out error per square root of distance, over all tasks


def _task_misses(points: Sequence[RunPoint], task: Task, methods: Sequence[str], plans: Sequence[HoldOut]) -> dict[str, np.ndarray]:
    """Signed misses of each method on all hold-outs."""
    truth = np.concatenate([task.accuracies[list(plan.held)] for plan in plans])
    found = {}
    for method in methods:
        parts = [_task_predictions([points[i] for i in p.kept], task.of(p.kept), method, None, _targets(points, p.held))[0] for p in plans]
        found[method] = np.concatenate(parts) - truth
    return found


def _averaged(values: dict[str, np.ndarray], chosen: dict[str, list[str]]) -> np.ndarray:
    """Mean over the kinds of the mean over each kind's laws."""
    return np.mean([np.mean([values[m] for m in each], axis=0) for each in chosen.values()], axis=0)


def _task_forecast(task: Task, misses: np.ndarray, setting: _Setting) -> Forecast:
    points, target, chosen = setting.points, setting.target, setting.chosen
    methods = [m for each in chosen.values() for m in each]
    predictions = {m: float(_task_predictions(points, task, m, None, [target])[0, 0]) for m in methods}
    draws = _averaged({m: _task_predictions(points, task, m, setting.weights, [target])[:, 0] for m in methods}, chosen)
    center = float(_averaged({m: np.array(v) for m, v in predictions.items()}, chosen))
    held = _HeldOutErrors(misses, _distances(points, setting.plans))
    distance = _distance(points, target.params, target.tokens)
    error = max(math.hypot(held.carried(distance), setting.pooled * math.sqrt(distance)) / math.sqrt(2.0), _ACCURACY_NOISE)
    low, high = _widened(center, draws, error, list(predictions.values()), len(misses))

    def best(among: Sequence[int]) -> float:
        return float(task.accuracies[min(among, key=lambda i: points[i].loss)])

    naive = np.concatenate([task.accuracies[list(plan.held)] - best(plan.kept) for plan in setting.plans])
    details = {
        "chosen": methods, "predictions": predictions, "held_out_errors": setting.errors, **_beside_naive(held, naive), "chance": task.chance,
        "bootstraps": len(setting.weights),
    }  # fmt: skip
    return Forecast(center, max(0.0, low), min(1.0, high), best(range(len(points))), details)
