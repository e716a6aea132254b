"""Scaling laws: published answers, planted coefficients, intervals that cover, and the same numbers every time."""

from __future__ import annotations

import ast
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from models import scaling, scaling_fit, scaling_published
from models.scaling import LossLaw, RunPoint

GADRE = Path(__file__).resolve().parents[2].parent / "shared" / "forecast_data" / "gadre" / "exp_data"
GRID = [(n, d) for n in (1e7, 5e7, 4e8) for d in (3e8, 3e9, 2e10)]


def planted(points=GRID, *, alpha=0.34, beta=0.28, noise=0.0, seed=0, E=1.7, A=400.0, B=410.0):  # noqa: N803
    rng = np.random.default_rng(seed)
    losses = [scaling.chinchilla_loss(n, d, E=E, A=A, B=B, alpha=alpha, beta=beta) for n, d in points]
    return [RunPoint(n, d, loss * math.exp(rng.normal(0, noise))) for (n, d), loss in zip(points, losses, strict=True)]


def test_chinchilla_loss_adds_three_terms():
    assert scaling.chinchilla_loss(16.0, 81.0, E=1.0, A=4.0, B=9.0, alpha=0.5, beta=0.25) == pytest.approx(1.0 + 1.0 + 3.0)


def test_tied_loss_is_chinchilla_loss_with_one_exponent():
    n, ratio, c = 3e8, 40.0, -0.27
    tied = scaling.tied_loss(n, ratio, E=1.8, a=166.0, b=366.0, c=c)
    same = scaling.chinchilla_loss(n, ratio * n, E=1.8, A=166.0, B=366.0 * 6 ** (c / 2), alpha=-c, beta=-c)
    assert tied == pytest.approx(same, rel=1e-12)


def test_full_form_recovers_planted_coefficients():
    law = scaling_fit.fit_form(planted(), "chinchilla")
    assert (law.E, law.alpha, law.beta) == (pytest.approx(1.7, abs=0.05), pytest.approx(0.34, abs=0.01), pytest.approx(0.28, abs=0.01))
    assert law.predict(7e9, 1.4e12) == pytest.approx(planted([(7e9, 1.4e12)])[0].loss, rel=2e-3)


def test_tied_form_recovers_a_planted_exponent_from_four_runs():
    points = planted([(1e7, 3e8), (1e7, 3e9), (5e7, 3e8), (4e8, 8e9)], alpha=0.3, beta=0.3)
    law = scaling_fit.fit_form(points, "tied")
    assert law.alpha == law.beta == pytest.approx(0.3, abs=0.02)
    assert law.predict(1e9, 2e10) == pytest.approx(planted([(1e9, 2e10)], alpha=0.3, beta=0.3)[0].loss, rel=0.01)


@pytest.mark.parametrize("form", sorted(scaling_fit.FORMS))
def test_coefficients_are_never_negative(form):
    noisy = planted(noise=0.2, seed=3)
    law = scaling_fit.fit_form(noisy, form)
    assert min(law.E, law.A, law.B) >= 0
    assert min(law.alpha, law.beta) > 0


def test_too_few_runs_are_refused_by_name():
    with pytest.raises(ValueError, match="chinchilla needs at least 6 runs, got 4"):
        scaling_fit.fit_form(planted()[:4], "chinchilla")
    with pytest.raises(ValueError, match="at least 3 finished runs, got 2"):
        scaling_fit.forecast_loss(planted()[:2], params=1e9, tokens=1e10)
    with pytest.raises(ValueError, match="Unknown law 'linear'"):
        scaling_fit.fit_form(planted(), "linear")


def test_a_forecast_is_the_same_every_time():
    points = planted(noise=0.01, seed=5)[:5]
    first, second = (scaling_fit.forecast_loss(points, params=1e9, tokens=2e10) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first.details)) == first.details  # storable as it is


def test_intervals_cover_and_the_forecast_beats_the_naive_one():
    """Four cheap proxies and a target of 12 times their largest compute, laws and noise drawn anew each time."""
    rng = np.random.default_rng(11)
    proxies, target = [(5e6, 1e8), (5e6, 3e8), (2e7, 1e8), (2e7, 3e8)], (4e7, 1.8e9)
    covered, better, total, widths = 0, 0, 24, []
    for seed in range(total):
        form = {"alpha": rng.uniform(0.2, 0.45), "beta": rng.uniform(0.2, 0.4), "E": rng.uniform(1.2, 2.2)}
        found = scaling_fit.forecast_loss(planted(proxies, noise=0.004, seed=seed, **form), params=target[0], tokens=target[1])
        truth = planted([target], **form)[0].loss
        covered += found.low <= truth <= found.high
        better += abs(found.predicted - truth) < abs(found.naive - truth)
        widths.append((found.high - found.low) / truth)
    assert covered >= 0.9 * total
    assert better >= 0.9 * total
    assert np.median(widths) < 0.5  # an interval that covers by covering everything says nothing


def test_interval_widens_when_the_largest_run_contradicts_the_others():
    smooth = planted([(1e7, 1e8), (1e7, 3e8), (1e7, 9e8), (1e7, 2.7e9)])
    broken = [*smooth[:-1], RunPoint(smooth[-1].params, smooth[-1].tokens, smooth[-1].loss * 1.15)]
    width = {}
    for name, points in (("smooth", smooth), ("broken", broken)):
        found = scaling_fit.forecast_loss(points, params=1e7, tokens=1e10)
        width[name] = found.high - found.low
    assert width["broken"] > 3 * width["smooth"]


def test_joint_moe_law_limits():
    assert scaling.saturated_experts(1) == pytest.approx(2.0732, rel=1e-9)
    assert scaling.saturated_experts(1e9) == pytest.approx(290.4521, rel=1e-4)
    # At one expert ln(E^) = ln 2.0732: the exponents of N and D follow from the coefficients alone.
    floor = scaling.joint_moe_loss(1e30, 1e30, 1)
    by_params = math.log((scaling.joint_moe_loss(1e9, 1e60, 1) - 1.3637) / (scaling.joint_moe_loss(1e8, 1e60, 1) - 1.3637)) / math.log(10)
    by_tokens = math.log((scaling.joint_moe_loss(1e60, 1e11, 1) - 1.3637) / (scaling.joint_moe_loss(1e60, 1e10, 1) - 1.3637)) / math.log(10)
    assert floor == pytest.approx(1.3637, abs=1e-3)
    assert by_params == pytest.approx(-0.1889 + 0.0098 * math.log(2.0732), abs=2e-3)
    assert by_tokens == pytest.approx(-0.1775 - 0.0259 * math.log(2.0732), abs=2e-3)


def test_joint_moe_law_more_experts_help_at_equal_active_size():
    losses = [scaling.joint_moe_loss(1e9, 2e10, e) for e in (1, 4, 16)]
    assert losses == sorted(losses, reverse=True)
    assert scaling.joint_moe_loss(1e9, 1e11, 8) < scaling.joint_moe_loss(1e9, 2e10, 8)


def test_accuracy_stays_between_chance_and_one_and_falls_back_to_naive():
    loss = scaling_fit.Forecast(3.0, 2.8, 3.2, naive=4.0)
    rising = scaling_fit.forecast_accuracy([6.0, 5.0, 4.0], [0.26, 0.31, 0.42], chance=0.25, items=400, loss=loss)
    assert 0.42 < rising.predicted < 1.0
    assert rising.low <= 0.42 <= rising.predicted <= rising.high
    assert rising.naive == 0.42
    flat = scaling_fit.forecast_accuracy([6.0, 5.9, 5.8, 5.7], [0.25, 0.27, 0.24, 0.25], chance=0.25, items=200, loss=loss)
    assert flat.predicted == pytest.approx(0.25, abs=0.06)  # no evidence of a slope: about the naive forecast
    assert flat.low < 0.25 < flat.high


def test_run_points_and_laws_refuse_nonsense():
    with pytest.raises(ValueError, match="positive"):
        RunPoint(1e6, 0.0, 3.0)
    law = LossLaw("tied", E=1.0, A=2.0, B=3.0, alpha=0.5, beta=0.5)
    assert law.predict(4.0, 9.0) == pytest.approx(1.0 + 1.0 + 1.0)


def gadre_run(name: str) -> tuple[RunPoint, float]:
    """(size, tokens and C4 loss; mean top-1 error over 17 tasks) of one published model."""

    def literal(value):
        return ast.literal_eval(value) if isinstance(value, str) else value

    model = json.loads((GADRE / "models" / f"rpj-{name}.json").read_text())
    settings = literal(model["hyperparameters"])
    loss = next(r["loss"] for r in literal(model["results"]) if "c4_val" in r["val_data"][0].split("/"))
    with (GADRE / "tasks.csv").open() as rows:
        tasks = [row["task"] for row in csv.DictReader(rows) if row["in_17_task_average"] == "1"]
    accuracy = literal(json.loads((GADRE / "evals" / f"evaluation_rpj-{name}_heavy.json").read_text())["eval_metrics"])["icl"]
    return RunPoint(settings["params"], settings["tokens"], loss), 1 - sum(accuracy[task] for task in tasks) / len(tasks)


@pytest.mark.skipif(not GADRE.is_dir(), reason="the published runs lie in ../shared/forecast_data, which is not part of the repository")
@pytest.mark.parametrize(
    ("target", "loss_error", "top1_error"), [("open_lm_1b-32.0", 0.7103, 3.6365), ("open_lm_7b-1.0", 0.7320, 0.0464)], ids=["1.4B M=640", "6.9B M=20"]
)
def test_gadre_published_errors_are_reproduced(target, loss_error, top1_error):
    proxies = [gadre_run(f"{shape}-1.0") for shape in ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")]
    proxies.append(gadre_run("d=96_l=8_h=4-16.0"))
    law = scaling_published.fit_tied_least_squares([run for run, _ in proxies])
    larger = gadre_run("open_lm_1b-1.0")
    errors = scaling_published.fit_error_law([run.loss for run, _ in (*proxies, larger)], [error for _, error in (*proxies, larger)])
    run, error = gadre_run(target)
    predicted = law.predict(run.params, run.tokens / run.params)
    assert 100 * abs(predicted / run.loss - 1) == pytest.approx(loss_error, abs=5e-5)
    assert 100 * abs(errors.predict(predicted) / error - 1) == pytest.approx(top1_error, abs=5e-5)
