"""Proxy plans: the predicted variance is what refits show, the chosen set is what trying every set gives, and the same plan every time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from models import scaling_plan
from models.scaling import LossLaw
from models.scaling_fit import FORM_DOUBT, SEED_NOISE
from models.scaling_plan import PUBLISHED, Candidate, choose, judge

TARGET = (1e9, 2e10)
LAW = PUBLISHED[0]
POWER = LossLaw("power", E=0.0, A=60.0, B=0.0, alpha=0.05, beta=0.1)


def grid(widths=(1 / 8, 1 / 4, 1 / 2, 1.0), shares=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)):
    return [Candidate(w * TARGET[0], s * TARGET[1], w * s) for w in widths for s in shares]


def refitted_at_target(law, runs, noise, rng):
    """log loss at the target of least squares on noisy log losses, written from the law's formula with scipy and nothing of scaling_fit.

    Fitted in (E, log A, log B, alpha, beta) or (log A, alpha, beta), with the plan's belief about exponents as further residuals.
    """
    from scipy.optimize import least_squares

    n, d = np.array([r.params for r in runs]), np.array([r.tokens for r in runs])
    if law.form == "power":
        start = np.array([math.log(law.A), law.alpha, law.beta])

        def log_loss(x, n, d):
            return x[0] - x[1] * np.log(n) - x[2] * np.log(d)
    else:
        start = np.array([law.E, math.log(law.A), math.log(law.B), law.alpha, law.beta])

        def log_loss(x, n, d):
            return np.log(x[0] + np.exp(x[1] - x[3] * np.log(n)) + np.exp(x[2] - x[4] * np.log(d)))

    seen = log_loss(start, n, d) + rng.normal(0.0, noise, len(runs))
    believed = start[-2:] + rng.normal(0.0, 0.15, 2)  # a belief is as far from the truth as it says

    def residuals(x):
        return np.append((log_loss(x, n, d) - seen) / noise, (x[-2:] - believed) / 0.15)

    found = least_squares(residuals, start, x_scale=[1.0, *[0.1] * (len(start) - 1)], xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return float(log_loss(found.x, *TARGET) - log_loss(start, *TARGET))


@pytest.mark.parametrize("law", [*PUBLISHED, POWER], ids=["hoffmann", "besiroglu", "power"])
def test_predicted_noise_is_the_spread_of_refits(law, monkeypatch):
    """To first order: with noise small enough that a law is straight over it."""
    noise = 5e-5
    monkeypatch.setattr(scaling_plan, "SEED_NOISE", noise)
    runs = [c for c in grid() if c.tokens < TARGET[1]]
    rng = np.random.default_rng(3)
    misses = [refitted_at_target(law, runs, noise, rng) for _ in range(400)]
    predicted = judge(runs, TARGET, [law]).noise
    # 400 draws: the standard error of a standard deviation is 3.5 %.
    assert predicted == pytest.approx(np.std(misses), rel=0.12)


def test_at_real_noise_the_prediction_is_of_the_right_size():
    plan = choose(grid(), TARGET, 0.1, laws=[LAW])
    runs, rng = [grid()[i] for i in plan.chosen], np.random.default_rng(4)
    misses = [refitted_at_target(LAW, runs, SEED_NOISE, rng) for _ in range(200)]
    middle = np.percentile(np.abs(misses), 68.3)  # curvature gives a few refits far tails
    assert plan.judged.noise == pytest.approx(middle, rel=0.35)


def best_of_all(candidates, budget, laws):
    """Lowest variance over every affordable set of 4 to 6, and that set."""
    affordable = (s for k in (4, 5, 6) for s in itertools.combinations(range(len(candidates)), k) if sum(candidates[i].cost for i in s) <= budget)

    def variance(chosen):
        found = judge([candidates[i] for i in chosen], TARGET, laws)
        return found.noise**2 + found.doubt**2

    return min((variance(s), s) for s in affordable)


@pytest.mark.parametrize("budget", [0.12, 0.2, 0.4, 0.9])
@pytest.mark.parametrize("laws", [PUBLISHED, (POWER,)], ids=["published", "power"])
def test_no_affordable_set_is_better(budget, laws):
    candidates = grid(widths=(1 / 4, 1 / 2, 1.0), shares=(1 / 32, 1 / 8, 1 / 4, 1 / 2))
    lowest, chosen = best_of_all(candidates, budget, laws)
    plan = choose(candidates, TARGET, budget, laws=laws)
    assert plan.cost <= budget * (1 + 1e-9)
    assert plan.cost == pytest.approx(sum(candidates[i].cost for i in plan.chosen))
    assert plan.judged.noise**2 + plan.judged.doubt**2 <= lowest * 1.02, (plan.chosen, chosen)


def test_random_candidates_and_costs_are_searched_as_well():
    rng, ratios = np.random.default_rng(7), []
    for _ in range(12):
        candidates = [Candidate(TARGET[0] * 2.0**-n, TARGET[1] * 2.0**-d, c) for n, d, c in zip(*rng.uniform((0, 0, 0), (5, 6, 1), (10, 3)).T, strict=True)]
        budget = float(np.sort([c.cost for c in candidates])[:4].sum() * rng.uniform(1.0, 2.0))
        plan = choose(candidates, TARGET, budget)
        assert 4 <= len(plan.chosen) <= 6
        assert plan.cost <= budget * (1 + 1e-9)
        ratios.append((plan.judged.noise**2 + plan.judged.doubt**2) / best_of_all(candidates, budget, PUBLISHED)[0])
    assert min(ratios) > 1 - 1e-9
    assert max(ratios) < 1.1
    assert np.median(ratios) < 1.001


def test_more_money_never_forecasts_worse_and_buys_larger_proxies():
    plans = [choose(grid(), TARGET, budget) for budget in (0.06, 0.1, 0.2, 0.4, 0.8)]
    widths = [p.judged.half_width for p in plans]
    assert all(later <= earlier * 1.001 for earlier, later in itertools.pairwise(widths))
    largest = [max(grid()[i].cost for i in p.chosen) for p in plans]
    assert largest == sorted(largest)
    assert all(big >= 0.5 * budget for big, budget in zip(largest, (0.06, 0.1, 0.2, 0.4, 0.8), strict=True))


def test_finished_runs_cost_nothing_and_are_used():
    candidates = grid()
    dear = choose(candidates, TARGET, 0.1)
    finished = next(i for i, c in enumerate(candidates) if c.params == TARGET[0] / 2 and c.tokens == TARGET[1] / 2)
    assert finished not in dear.chosen
    cheaper = choose([replace(c, cost=0.0) if i == finished else c for i, c in enumerate(candidates)], TARGET, 0.1)
    assert finished in cheaper.chosen
    assert cheaper.judged.half_width < dear.judged.half_width


def test_a_plan_is_the_same_every_time_and_in_any_order():
    candidates = grid()
    plan = choose(candidates, TARGET, 0.1)
    assert choose(candidates, TARGET, 0.1) == plan
    turned = choose(candidates[::-1], TARGET, 0.1)
    assert {candidates[::-1][i] for i in turned.chosen} == {candidates[i] for i in plan.chosen}


def test_units_of_parameters_and_tokens_do_not_matter():
    """With exponents believed equally, a law in thousands of parameters is the same law."""
    thousands = replace(LAW, A=LAW.A * 1e3**-LAW.alpha)
    runs = grid()[:9]
    same = judge([replace(c, params=c.params / 1e3) for c in runs], (TARGET[0] / 1e3, TARGET[1]), [thousands])
    assert same.noise == pytest.approx(judge(runs, TARGET, [LAW]).noise, rel=1e-9)


def test_doubt_is_what_the_forecasts_interval_takes():
    runs = grid()[:5]
    naive, at_target = min(LAW.predict(c.params, c.tokens) for c in runs), LAW.predict(*TARGET)
    assert 1.96 * judge(runs, TARGET, [LAW]).doubt == pytest.approx(FORM_DOUBT * (naive - at_target) / at_target)


def test_gradient_is_the_slope_of_the_log_loss():
    eps, (n, d) = 1e-6, (3e8, 5e9)

    def log_loss(e, log_a, log_b, alpha, beta):
        return math.log(LossLaw("chinchilla", e, math.exp(log_a), math.exp(log_b), alpha, beta).predict(n, d))

    at = [LAW.E, math.log(LAW.A), math.log(LAW.B), LAW.alpha, LAW.beta]
    slopes = [
        (log_loss(*[x + eps * (i == j) for j, x in enumerate(at)]) - log_loss(*[x - eps * (i == j) for j, x in enumerate(at)])) / (2 * eps) for i in range(5)
    ]
    assert scaling_plan.gradient(LAW, n, d) == pytest.approx(slopes, rel=1e-5)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"does not buy 4 proxies: the cheapest 4 of 20 cost 0\.03516"):
        choose(grid(), TARGET, 0.03)
    with pytest.raises(ValueError, match="does not buy 4 proxies: the cheapest 4 of 3"):
        choose(grid()[:3], TARGET, 10.0)
    with pytest.raises(ValueError, match="by the law moe"):
        choose(grid(), TARGET, 1.0, laws=[replace(LAW, form="moe")])
    with pytest.raises(ValueError, match="at least one run and one law, got 0 and 2"):
        judge([], TARGET)
    with pytest.raises(ValueError, match="cost of at least 0"):
        Candidate(1e6, 1e6, -1.0)
