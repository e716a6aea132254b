"""Calibration of past forecasts: exact on invented outcomes, scipy as the oracle of its statistics."""

from __future__ import annotations

import datetime as dt
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from jobs import calibration, calibration_plot, cli
from jobs.contract import StageResult
from jobs.services import delta, results


def row(outcome, *, predicted=10.0, low=9.0, high=11.0, naive=12.0):
    return {"predicted": predicted, "low": low, "high": high, "naive": naive, "outcome": outcome, "inside": low <= outcome <= high}


@pytest.mark.parametrize(("inside", "n"), [(0, 1), (1, 1), (3, 7), (95, 100), (0, 40)])
def test_interval_and_chance_are_scipys(inside, n):
    theirs = stats.binomtest(inside, n).proportion_ci(method="wilson")
    assert calibration.wilson(inside, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert calibration.at_most(inside, n, 0.95) == pytest.approx(stats.binom.cdf(inside, n, 0.95), rel=1e-9)


def test_the_score_is_the_width_plus_forty_times_what_lies_outside():
    assert calibration.interval_score(row(10.0)) == 2.0
    assert calibration.interval_score(row(11.5)) == pytest.approx(2.0 + 40 * 0.5)
    assert calibration.interval_score(row(8.0)) == pytest.approx(2.0 + 40 * 1.0)


def test_a_summary_says_coverage_bias_sharpness_and_what_beats_the_naive_forecast():
    found = calibration.summarise([row(10.0), row(8.0), row(12.5), row(20.0, predicted=19.0, low=18.0, high=22.0, naive=19.5)])
    assert (found["n"], found["inside"], found["coverage"]) == (4, 2, 0.5)
    assert found["bias"] == pytest.approx(np.mean([0, 0.25, -0.2, -0.05])) and found["error"] == pytest.approx(np.mean([0, 0.25, 0.2, 0.05]))
    assert found["sharpness"] == pytest.approx(np.median([2 / 10, 2 / 8, 2 / 12.5, 4 / 20]))
    assert (found["beats_naive"], found["compared"]) == (2, 4)  # 10 and 8; the naive 12 and 19.5 lie nearer to 12.5 and 20
    assert found["verdict"] == "too narrow" and found["chance_of_so_few"] == pytest.approx(stats.binom.cdf(2, 4, 0.95))


def test_an_outcome_of_zero_has_no_relative_error():
    found = calibration.summarise([row(0.0, predicted=0.1, low=-1.0, high=1.0, naive=None)])
    assert (found["bias"], found["error"], found["sharpness"], found["score"]) == (None, None, None, None) and found["compared"] == 0
    assert "missing" in calibration.render({"metrics": [{"metric": "loss", **found}], "forecasts": []})


def test_intervals_that_hold_what_they_claim_are_rarely_called_too_narrow_and_half_as_wide_ones_nearly_always():
    rng = np.random.default_rng(0)

    def alarms(half_width: float) -> float:
        called = [
            calibration.summarise([row(10.0 + e, low=10.0 - half_width, high=10.0 + half_width) for e in rng.normal(0, 1, 40)])["verdict"] == "too narrow"
            for _ in range(300)
        ]
        return float(np.mean(called))

    assert alarms(1.96) <= 0.06
    assert alarms(0.98) >= 0.99


def record(env, stage, number, reads, writes, finished_at, **metrics):
    results.record(env, StageResult(
        stage=stage, run_key=f"{stage}-{number}", recipe="tiny", interval=None, inputs=reads, outputs={writes: f"{writes}@{number}"}, metrics=metrics,
        cost_usd=0.5, wall_seconds=10.0, finished_at=finished_at,
    ))  # fmt: skip


@pytest.fixture
def came_out(env):
    """Two builds whose loss was forecast, one inside its interval and one not, and a forecast that was never run."""
    for number, loss in ((1, 4.0), (2, 6.0), (3, None)):
        record(env, "forecast", number, {"sequences": f"sequences@{number}"}, "forecasts", f"2026-11-0{number}T10:00:00Z", decision="go")
        shared = {"run_key": f"forecast-{number}", "target": "{}", "law": "{}", "proxies": "[]", "decision": "go", "content_hash": f"hash {number}"}
        values = {"metric": "loss", "predicted": 4.2, "low": 3.9, "high": 4.6, "naive": 5.0, "registered_at": dt.datetime(2026, 11, number, tzinfo=dt.UTC)}
        delta.append(env, "forecasts", [{**shared, **values}])
        if loss is not None:
            record(env, "train", number, {"sequences": f"sequences@{number}"}, "checkpoints", f"2026-11-0{number}T11:00:00Z", held_out_loss=loss)
    return env


def test_only_forecasts_that_came_out_count_each_once(came_out):
    found = calibration.calibration(came_out)
    assert [(f["forecast_id"], f["metric"], f["outcome"], f["inside"]) for f in found["forecasts"]] == [
        ("hash 1", "loss", 4.0, True), ("hash 2", "loss", 6.0, False),
    ]  # fmt: skip
    assert [(m["metric"], m["n"], m["inside"]) for m in found["metrics"]] == [("loss", 2, 1)]


def test_the_command_prints_a_line_per_forecast_and_json(came_out, capsys):
    assert cli.main(["forecast", "calibration", "--home", str(came_out.home)]) == 0
    text = capsys.readouterr().out
    assert "1/2" in text and text.count("OUTSIDE") == 1 and text.count("inside ") >= 2
    assert cli.main(["forecast", "calibration", "--json", "--home", str(came_out.home)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["coverage"] == 0.5


def test_without_outcomes_it_says_what_to_do(env, capsys):
    assert cli.main(["forecast", "calibration", "--home", str(env.home)]) == 0
    assert "moeline run" in capsys.readouterr().out


def test_a_run_with_a_hostile_name_cannot_move_the_cursor():
    assert "\x1b" not in calibration.render({"metrics": [{"metric": "loss", **calibration.summarise([row(10.0)])}], "forecasts": [
        {"metric": "loss", "run_id": "\x1b[2J\nx", **row(10.0)},
    ]})  # fmt: skip


def test_the_check_is_holms_over_the_metrics():
    assert calibration.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert calibration.holm([0.6, 0.9]) == [1.0, 1.0] and calibration.holm([]) == []


def test_intervals_that_hold_warn_about_any_of_four_metrics_in_one_case_of_twenty_at_most():
    rng = np.random.default_rng(1)
    alarms = [min(calibration.holm([calibration.at_most(int(k), 30, 0.95) for k in rng.binomial(30, 0.95, 4)])) < 0.05 for _ in range(1000)]
    assert np.mean(alarms) <= 0.06


def test_too_few_inside_warns_in_the_text_and_the_picture_shows_every_forecast(came_out, tmp_path, capsys):
    for number in range(4, 9):  # five more, all outside
        record(came_out, "forecast", number, {"sequences": f"sequences@{number}"}, "forecasts", f"2026-11-0{number}T10:00:00Z", decision="go")
        delta.append(came_out, "forecasts", [{"run_key": f"forecast-{number}", "metric": "loss", "predicted": 4.2, "low": 3.9, "high": 4.6, "naive": 5.0,
                                              "target": "{}", "law": "{}", "proxies": "[]", "decision": "go", "content_hash": f"hash {number}",
                                              "registered_at": dt.datetime(2026, 11, number, tzinfo=dt.UTC)}])  # fmt: skip
        record(came_out, "train", number, {"sequences": f"sequences@{number}"}, "checkpoints", f"2026-11-0{number}T11:00:00Z", held_out_loss=7.0 + number)
    picture = tmp_path / "calibration.svg"
    assert cli.main(["forecast", "calibration", "--svg", str(picture), "--home", str(came_out.home)]) == 0
    assert "WARNING: past forecasts of loss were too sure: 1 of 7 outcomes inside" in capsys.readouterr().out
    root = ElementTree.fromstring(picture.read_text())  # noqa: S314 - we wrote it
    names = [e.tag.rpartition("}")[2] for e in root.iter()]
    assert (names.count("circle"), names.count("path")) == (1, 6)
    assert root.find("{http://www.w3.org/2000/svg}title").text == "loss: 1 of 7 inside, too narrow"


def test_a_hostile_run_in_the_picture_is_text():
    found = {"metrics": [{"metric": "<b>", **calibration.summarise([row(10.0)])}], "forecasts": [{"metric": "<b>", "run_id": '<script>&"', **row(10.0)}]}
    text = calibration_plot.svg(found)
    assert "<script>" not in text and ElementTree.fromstring(text) is not None  # noqa: S314 - we wrote it


@pytest.mark.parametrize(("outcome", "at"), [(10.0, 0.0), (11.0, 1.0), (9.5, -0.5), (100.0, 3.0), (0.0, -3.0)])
def test_an_outcome_lies_where_its_own_side_of_the_interval_puts_it(outcome, at):
    assert calibration_plot.position(row(outcome)) == pytest.approx(at)
    assert calibration_plot.position(row(5.0, low=10.0)) == -3.0, "a side without width"


def test_the_chance_of_so_few_is_exact_and_holds_for_ten_thousand_forecasts():
    from fractions import Fraction

    for inside, n in ((0, 1), (3, 5), (17, 20), (90, 100)):
        p = Fraction(95, 100)
        exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(inside + 1))
        assert calibration.at_most(inside, n, 0.95) == pytest.approx(float(exact), rel=1e-10)
    assert calibration.at_most(9_500, 10_000, 0.95) == pytest.approx(0.5, abs=0.02)  # a float holds no binomial coefficient of 10,000
    assert calibration.at_most(10_000, 10_000, 0.95) == 1.0
