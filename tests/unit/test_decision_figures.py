"""Figures of the decision page from rows: the front, gains, whole costs, published models, and when what was read must be read again."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import random

import pytest

from jobs import decision, published_models, report_figures
from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import report, results


def dominated(row, rows) -> bool:
    return any(
        o["cost_usd"] <= row["cost_usd"] and o["accuracy"] >= row["accuracy"] and (o["cost_usd"] < row["cost_usd"] or o["accuracy"] > row["accuracy"])
        for o in rows
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_comparing_everything_with_everything_gives(seed):
    chance = random.Random(seed)
    rows = [{"cost_usd": chance.randrange(1, 8), "accuracy": chance.randrange(8) / 8} for _ in range(30)]  # coarse, so that there are ties
    front = decision.pareto_front([*rows, {"cost_usd": None, "accuracy": 1.0}, {"cost_usd": 0.1, "accuracy": None}])
    assert sorted(id(r) for r in front) == sorted(id(r) for r in rows if not dominated(r, rows))
    assert [r["cost_usd"] for r in front] == sorted(r["cost_usd"] for r in front)


def run(accuracy, **more):
    return {"accuracy": accuracy, "accuracy_stderr": 0.03, "suite": "a", "cost_usd": 6.0, **more}


def test_a_gain_is_in_points_with_both_errors_and_its_price():
    gained = decision._gain(run(0.50), run(0.46, accuracy_stderr=0.04))
    half = 1.959964 * 5.0  # 3 and 4 points in quadrature
    assert (gained["gain_points"], gained["gain_low"], gained["gain_high"]) == pytest.approx((4.0, 4.0 - half, 4.0 + half))
    assert gained["usd_per_point"] == pytest.approx(1.5)


@pytest.mark.parametrize("champion", [None, run(0.4, suite="b"), run(None)])
def test_without_a_champion_of_the_same_suite_there_is_no_gain(champion):
    assert set(decision._gain(run(0.5), champion).values()) == {None}


def test_nothing_gained_has_no_price_and_a_missing_cost_none_either():
    assert decision._gain(run(0.4), run(0.5))["usd_per_point"] is None
    assert decision._gain(run(0.4), run(0.5))["gain_points"] == pytest.approx(-10)
    assert decision._gain(run(0.5, cost_usd=None), run(0.4))["usd_per_point"] is None


def test_the_forecast_of_the_whole_cost_replaces_what_the_training_cost():
    row = {"metric": "cost_usd", "predicted": 3.0, "outcome": 5.0}
    assert decision._whole_cost({"forecast": [row], "cost_usd": 9.0, "run_keys": {"train": "x"}}, "predicted") == pytest.approx(7.0)
    assert decision._whole_cost({"forecast": [row | {"outcome": None}], "cost_usd": 1.0, "run_keys": {}}, "predicted") == pytest.approx(4.0)
    ended_early = {"forecast": [row | {"outcome": None}], "cost_usd": 9.0, "run_keys": {"train": "x"}}
    assert decision._whole_cost(ended_early, "predicted") is None  # another training than the one that was forecast


def test_published_compute_is_priced_by_the_sheets_training_machine(env):
    found = {m["name"]: m for m in published_models.priced(Environment.load("cloud_gpu", env.home))}
    dbrx = found["DBRX Instruct"]
    assert dbrx["flops"] == 6 * 36e9 * 12e12
    hours = dbrx["flops"] / (7912e12 * 0.43) / 3600  # p5.48xlarge at the best share of its peak
    assert dbrx["cost_low"] == pytest.approx(hours * 55.04)
    assert dbrx["cost_low"] < dbrx["cost_usd"] < dbrx["cost_high"] == pytest.approx(dbrx["cost_low"] * 0.43 / 0.15)
    assert found["Mixtral 8x7B base"]["cost_usd"] is None and "not published" in found["Mixtral 8x7B base"]["priced_by"]


def test_a_sheet_without_such_a_machine_borrows_the_gpu_clouds(env):
    assert published_models.priced(env)[0]["cost_usd"] == published_models.priced(Environment.load("cloud_gpu", env.home))[0]["cost_usd"]
    assert "cloud_gpu" in published_models.priced(env)[0]["priced_by"]


def test_a_price_that_the_sheet_does_not_have_is_missing_and_says_why(env):
    cloud = Environment.load("cloud_gpu", env.home)
    spot = dataclasses.replace(cloud, prices=cloud.prices.bought("spot"))
    assert published_models.priced(spot)[0]["cost_usd"] is None and "no spot price" in published_models.priced(spot)[0]["priced_by"]


def test_days_become_weeks_and_months_and_no_dollar_is_lost():
    first = dt.date(2025, 1, 1)
    for days, unit in ((40, "day"), (41, "week"), (273, "week"), (274, "month"), (1000, "month")):
        rows = [{"day": (first + dt.timedelta(days=i)).isoformat(), "phase": "train", "usd": 1.0, "wasted_usd": 0.25} for i in range(days)]
        found_unit, found = report_figures.bucketed(rows)
        assert found_unit == unit and len(found) <= report_figures.MOST_BUCKETS
        assert sum(phases["train"][0] for phases in found.values()) == days and sum(phases["train"][1] for phases in found.values()) == days / 4


def record(env, number):
    results.record(env, StageResult(
        stage="train", run_key=f"train-{number}", recipe="tiny", interval=None, inputs={"sequences": "sequences@1"},
        outputs={"checkpoints": f"checkpoints@{number}"}, metrics={}, cost_usd=0.0, wall_seconds=1.0, finished_at="2026-11-01T10:00:00Z",
    ))  # fmt: skip


def settle(env):
    """As if the last change was an hour ago."""
    for folder in (env.warehouse / "_results").iterdir():
        os.utime(folder, (1, 1))


def test_what_was_read_is_read_again_when_a_result_a_price_or_a_budget_changes(env):
    record(env, 1)
    assert report.state(env) is None  # just now: another change may get the same time
    settle(env)
    before = report.state(env)
    assert before is not None and before == report.state(env)
    assert report.state(dataclasses.replace(env, budgets={"month_usd": 1.0})) != before
    assert report.state(dataclasses.replace(env, prices=dataclasses.replace(env.prices, core_hour=9.0))) != before
    record(env, 2)
    assert report.state(env) is None


def test_one_build_is_found_by_its_training_and_nothing_by_another_key(env):
    record(env, 1)
    records = report.Records(env)
    assert report.one(records, "train-1")["run_keys"] == {"train": "train-1"}
    assert report.one(records, "train-9") is None
