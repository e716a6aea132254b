"""Forecasts from anyone's runs, on data whose truth is known: recovered, covered, monotonic, the same every time, and honest about the naive one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import scaling, scaling_fit, scaling_selection, scaling_tasks
from models.scaling import LossLaw, RunPoint
from models.scaling_selection import Target, forecast_loss_of, forecast_tasks, hold_outs
from models.scaling_tasks import Task

GRID = [(n, times * 20 * n) for n in (5e7, 1e8, 2e8, 4e8) for times in (1, 2, 5, 10)]
LAW = LossLaw("chinchilla", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)


def runs(law=LAW, sizes=GRID, *, noise=0.0, seed=0, experts=None):
    rng = np.random.default_rng(seed)
    totals = [None if experts is None else n * e for (n, _), e in zip(sizes, experts or sizes, strict=True)]
    return [RunPoint(n, d, law.predict(n, d, total) * math.exp(rng.normal(0, noise)), total) for (n, d), total in zip(sizes, totals, strict=True)]


def task_of(points, *, chance=0.25, seed=None, slope=4.0, middle=2.6):
    """Accuracies that follow a logistic of the loss, as measured on 2,000 questions."""
    truth = [scaling.accuracy_from_loss(p.loss, chance=chance, level=0.0, slope=slope, pivot=middle) for p in points]
    measured = truth if seed is None else np.random.default_rng(seed).binomial(2000, truth) / 2000
    return Task("quiz", np.array(measured, dtype=float), chance)


def test_each_law_recovers_what_was_planted():
    compute = LossLaw("compute", E=1.8, A=2000.0, B=0.0, alpha=0.16, beta=0.16)
    found = scaling_fit.fit_form(runs(compute), "compute")
    assert (found.E, found.alpha) == (pytest.approx(1.8, abs=0.02), pytest.approx(0.16, abs=0.005))
    family = LossLaw("moe", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, share=0.4)
    found = scaling_fit.fit_form(runs(family, experts=[1, 4, 8, 16] * 4), "moe")
    assert found.share == pytest.approx(0.4, abs=0.05)
    assert found.predict(7e9, 1.4e12, 28e9) == pytest.approx(family.predict(7e9, 1.4e12, 28e9), rel=5e-3)


def test_the_moe_law_is_the_dense_law_at_one_expert_and_the_joint_laws_parameter_term():
    dense = scaling.moe_family_loss(1e9, 1e9, 2e10, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, share=0.7)
    assert dense == pytest.approx(scaling.chinchilla_loss(1e9, 2e10, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28))
    # a·Ê^delta·N^alpha with Ê = total/active = 8 and delta = share·alpha
    term = scaling.moe_family_loss(1e9, 8e9, 1e300, E=0.0, A=36.0, B=0.0, alpha=0.2, beta=0.3, share=0.5)
    assert term == pytest.approx(36.0 * 8 ** (-0.1) * 1e9**-0.2)


def test_the_moe_law_is_tried_only_where_active_shares_differ():
    assert "moe" not in scaling_selection.loss_forms(runs())
    assert "moe" not in scaling_selection.loss_forms(runs(experts=[8] * 16))
    assert "moe" in scaling_selection.loss_forms(runs(experts=[1, 4, 8, 16] * 4))


def test_mixtures_of_experts_are_forecast_by_the_family_law():
    family = LossLaw("moe", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, share=0.6)
    points = runs(family, experts=[1, 16, 4, 8, 8, 1, 16, 4, 4, 8, 1, 16, 16, 4, 8, 1], noise=1e-3)
    found = forecast_loss_of(points, Target(4e9, 1e12, 64e9), bootstraps=50)
    assert found.details["chosen"] == ["moe"]
    assert found.predicted == pytest.approx(family.predict(4e9, 1e12, 64e9), rel=0.01)


def test_the_loss_of_a_far_larger_run_is_recovered():
    found = forecast_loss_of(runs(noise=1e-3), Target(7e9, 1.4e12), bootstraps=200)
    truth = LAW.predict(7e9, 1.4e12)  # 300 times the compute of the largest run
    assert found.predicted == pytest.approx(truth, rel=0.01)
    assert found.low <= truth <= found.high
    assert found.naive == min(p.loss for p in runs(noise=1e-3))
    assert found.details["beats_naive"]


def test_a_forecast_is_the_same_every_time_and_can_be_stored():
    points = runs(noise=5e-3, seed=4)
    first, second = (forecast_loss_of(points, Target(3e9, 1e11), bootstraps=50) for _ in range(2))
    assert first == second
    tasks = [task_of(points, seed=1)]
    one, two = (forecast_tasks(points, tasks, Target(3e9, 1e11), bootstraps=50) for _ in range(2))
    assert one == two
    assert json.loads(json.dumps(one["quiz"].details)) == one["quiz"].details
    assert json.loads(json.dumps(first.details)) == first.details


def test_intervals_cover_on_planted_laws():
    """Loss and accuracy of runs with 100 times the compute; law, noise and questions drawn anew each time."""
    rng = np.random.default_rng(5)
    target, total = Target(4e9, 8e11), 20
    loss_inside, task_inside, loss_widths, task_widths = 0, 0, [], []
    for seed in range(total):
        law = LossLaw(
            "chinchilla", E=rng.uniform(1.5, 2.0), A=rng.uniform(200, 500), B=rng.uniform(300, 600), alpha=rng.uniform(0.28, 0.4), beta=rng.uniform(0.25, 0.35)
        )
        points = runs(law, noise=3e-3, seed=seed)
        middle = float(np.median([p.loss for p in points]))
        truth = law.predict(target.params, target.tokens)
        loss = forecast_loss_of(points, target, bootstraps=100)
        quiz = forecast_tasks(points, [task_of(points, seed=seed, middle=middle)], target, bootstraps=100)["quiz"]
        reached = scaling.accuracy_from_loss(truth, chance=0.25, level=0.0, slope=4.0, pivot=middle)
        loss_inside += loss.low <= truth <= loss.high
        task_inside += quiz.low <= reached <= quiz.high
        loss_widths.append((loss.high - loss.low) / truth)
        task_widths.append(quiz.high - quiz.low)
    assert loss_inside >= 0.9 * total
    assert task_inside >= 0.9 * total
    assert np.median(loss_widths) < 0.15
    assert np.median(task_widths) < 0.4


def test_the_largest_sizes_are_held_out_and_nothing_else():
    points = runs()
    plans = hold_outs(points)
    assert [sorted({points[i].params for i in plan.held}) for plan in plans] == [[4e8], [2e8, 4e8]]
    assert all(set(plan.kept) | set(plan.held) == set(range(16)) and not set(plan.kept) & set(plan.held) for plan in plans)
    two_sizes = [RunPoint(n, d, LAW.predict(n, d)) for n in (1e7, 4e7) for d in (1e9, 2e9, 4e9)]
    compute = [p.params * p.tokens for p in two_sizes]
    for plan in hold_outs(two_sizes):
        assert max(compute[i] for i in plan.kept) < min(compute[i] for i in plan.held)


def test_a_forecast_that_loses_to_the_naive_one_says_so():
    """Losses that stopped falling at the held-out sizes: any law of the smaller ones is worse than "no change"."""
    points = [RunPoint(p.params, p.tokens, 3.0 + (0.002 if p.params >= 2e8 else 0.3 * math.log(4e8 / p.params))) for p in runs()]
    assert not forecast_loss_of(points, Target(4e9, 1e11), bootstraps=20).details["beats_naive"]


def test_a_flat_task_stays_at_chance():
    points = runs()
    flat = Task("coin", np.full(16, 0.5), 0.5)
    found = forecast_tasks(points, [flat], Target(4e9, 1e11), bootstraps=20)["coin"]
    assert found.predicted == pytest.approx(0.5, abs=0.03)
    assert found.low <= 0.5 <= found.high


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="needs at least 5, got 4"):
        forecast_loss_of(runs()[:4], Target(1e9, 1e11))
    same = [RunPoint(1e7, 1e9, 3.0) for _ in range(6)]
    with pytest.raises(ValueError, match=r"6 runs \(1 sizes\) leave too few"):
        forecast_loss_of(same, Target(1e9, 1e11))


def test_equal_weights_give_the_fit_itself_and_weights_count_runs():
    points = runs(noise=0.01, seed=2)
    law = scaling_fit.fit_projected(points, "tied")
    plain, doubled = scaling_fit.fit_weighted(points, law, np.array([np.ones(16), np.r_[np.full(8, 2.0), np.ones(8)]]))
    assert plain == scaling_fit.fit_weighted(points, law, np.ones((1, 16)))[0]
    repeated = scaling_fit.fit_weighted([*points, *points[:8]], law, np.ones((1, 24)))[0]
    assert doubled.predict(1e9, 1e11) == pytest.approx(repeated.predict(1e9, 1e11), rel=1e-6)


def test_non_negative_least_squares_agree_with_scipys():
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    designs, rights = rng.normal(size=(200, 9, 3)), rng.normal(size=(200, 9))
    found = scaling_fit.nonnegative(np.einsum("kri,krj->kij", designs, designs), np.einsum("kri,kr->ki", designs, rights))
    expected = [nnls(design, right)[0] for design, right in zip(designs, rights, strict=True)]
    assert found == pytest.approx(np.array(expected), abs=1e-7)
    assert 0.1 < (found == 0).mean() < 0.9  # both bound and free ones were among them


def test_the_link_agrees_with_scipys_least_squares():
    from scipy.optimize import least_squares

    rng = np.random.default_rng(3)
    losses = np.linspace(0.8, 1.3, 14)
    accuracies = 0.25 + 0.75 / (1 + np.exp(9 * (losses - 0.85))) + rng.normal(0, 0.01, 14)
    links = scaling_tasks.fit_links(losses, accuracies, 0.25, np.ones((1, 14)))
    z, z0 = (losses - links.middle) / links.spread, -links.middle / links.spread

    def residuals(p):
        def curve(at):
            return p[2] + (1 - p[2]) / (1 + np.exp(-(p[0] - p[1] * at)))

        return np.r_[curve(z) - accuracies, curve(z0) - 1, 0.005 * p[1], 0.5 * (p[2] - 0.25)]

    expected = min((least_squares(residuals, start, bounds=([-12, 0, 0], [6, 60, 0.35])) for start in ((-1, 2, 0.25), (-3, 5, 0.2))), key=lambda f: f.cost)
    assert (residuals(links.coefficients[0]) ** 2).sum() <= 2 * expected.cost * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e6, 1e12), st.floats(1e8, 1e14), st.floats(1.0, 64.0), st.floats(1.01, 100.0))
def test_every_law_falls_with_size_tokens_and_experts(n, d, experts, more):
    law = LossLaw("moe", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, share=0.5)
    here = law.predict(n, d, n * experts)
    assert law.predict(n * more, d, n * more * experts) < here
    assert law.predict(n, d * more, n * experts) < here
    assert law.predict(n, d, n * experts * more) < here
    assert LossLaw("compute", E=1.0, A=5e3, B=0.0, alpha=0.2, beta=0.2).predict(n * more, d) < LossLaw("compute", 1.0, 5e3, 0.0, 0.2, 0.2).predict(n, d)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.02), st.floats(1.5, 30.0))
def test_fitted_forecasts_never_get_worse_with_more_of_either(seed, noise, more):
    """Whatever the noise: every fitted loss law falls, or stays, with N and with D, and every fitted task law rises, or stays."""
    points = runs(noise=noise, seed=seed)
    task, ones = task_of(points, seed=seed), np.ones((1, 16))
    at = [(1e9, 5e10), (1e9 * more, 5e10), (1e9, 5e10 * more)]
    for form in scaling_selection.loss_forms(points):
        here, larger, longer = (scaling_fit.fit_projected(points, form).predict(n, d) for n, d in at)
        assert larger <= here * (1 + 1e-12), form
        assert longer <= here * (1 + 1e-12), form
    for form in scaling_tasks.DIRECT_FORMS:
        here, larger, longer = scaling_tasks.direct_predictions(points, task, form, ones, at)[0]
        assert min(larger, longer) >= here - 1e-9, form
    link = scaling_tasks.fit_links(np.array([p.loss for p in points]), task.accuracies, task.chance, ones)
    curve = link.predict(np.linspace(5.0, 1.0, 50)[None])[0]
    assert (np.diff(curve) >= -1e-12).all()
    assert 0.0 <= curve.min() <= curve.max() <= 1.0
