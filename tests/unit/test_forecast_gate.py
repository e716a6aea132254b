"""Go, ask or stop: money, the expected gain over the champion and its price per point."""

import datetime as dt
import json
import math
from dataclasses import replace

import pytest

from expectations.forecast_gate import Cost, decide, gain_over
from jobs import gate, recipes
from jobs.contract import MoelineError, StageResult
from jobs.services import delta, results

MONEY = Cost(spent=1.0, predicted=8.0, low=7.0, high=10.0, budget=10.0)


def gain(points, width=1.0):
    return gain_over("v3", 0.5, 0.0, predicted=0.5 + points / 100, low=0.5 + (points - width) / 100, high=0.5 + (points + width) / 100)


@pytest.mark.parametrize(
    ("cost", "points", "minimum", "verdict", "why"),
    [
        (MONEY, None, None, "go", "within budget"),
        (MONEY, -5.0, None, "go", "within budget"),  # without a minimum only money decides
        (MONEY, 2.0, 1.5, "go", "within budget"),
        (MONEY, 1.0, 1.5, "ask", "doubtful gain"),
        (MONEY, 0.4, 1.5, "stop", "not worth it"),
        (replace(MONEY, predicted=9.1), 2.0, 1.5, "stop", "over budget"),
        (replace(MONEY, month_left=8.0), 2.0, 1.5, "stop", "over budget"),
        (replace(MONEY, predicted=math.nan), 2.0, None, "stop", "over budget"),
        (MONEY, math.nan, 1.5, "stop", "not worth it"),
        (MONEY, None, 1.5, "go", "within budget"),  # no champion yet
    ],
)
def test_money_first_then_the_gain(cost, points, minimum, verdict, why):
    found = decide(cost, None if points is None else gain(points), minimum=minimum, on_over="stop")
    assert (found.verdict, found.why) == (verdict, why)


def test_a_recipe_that_asks_is_asked_where_it_would_be_stopped():
    assert decide(replace(MONEY, budget=1.0), None, minimum=None, on_over="ask").verdict == "ask"
    assert decide(MONEY, gain(0.1), minimum=5.0, on_over="ask").verdict == "ask"


def test_a_gain_that_cannot_be_compared_is_asked_about_only_where_one_is_demanded():
    assert decide(MONEY, None, minimum=1.0, on_over="stop", incomparable="champion v3 answered another suite").verdict == "ask"
    assert decide(MONEY, None, minimum=None, on_over="stop", incomparable="champion v3 answered another suite").verdict == "go"


def test_the_sentences_hold_the_numbers():
    found = decide(MONEY, gain(2.0), minimum=1.5, on_over="stop")
    assert found.usd_per_point == pytest.approx(4.0)
    money, skill = found.sentences
    assert "8.0000 USD (95 %: 7.0000 to 10.0000) after 1.0000 USD" in money and "budget is 10.0000 USD" in money
    assert "champion v3: +2.00 points (95 %: +1.00 to +3.00), 4.0000 USD per point; the recipe asks for at least 1.5" in skill
    assert "nothing gained" in decide(MONEY, gain(-1.0), minimum=None, on_over="stop").sentences[1]


def test_the_champions_own_noise_widens_the_gain():
    found = gain_over("v3", 0.5, 0.01, predicted=0.52, low=0.49, high=0.56)
    assert (found.predicted, found.low, found.high) == pytest.approx((2.0, 2 - math.hypot(3, 1.959964), 2 + math.hypot(4, 1.959964)))


# -- with tables --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def forecasted(env):
    """A recorded forecast of the recipe tiny (accuracy .45 to .55, 0.01 USD), no champion."""
    recipe = recipes.load("tiny")
    result = StageResult("forecast", "f" * 32, "tiny", None, {}, {"forecasts": "forecasts@1"}, {"spent_usd": 0.001, "decision": "go"}, 0.0, 1.0)
    common = {
        "run_key": "f" * 32,
        "target": "{}",
        "law": "{}",
        "proxies": "[]",
        "decision": "go",
        "registered_at": dt.datetime.now(dt.UTC),
        "content_hash": "0",
    }
    rows = {"accuracy": (0.5, 0.45, 0.55), "cost_usd": (0.01, 0.008, 0.012)}
    delta.append(env, "forecasts", [{**common, "metric": m, "predicted": p, "low": a, "high": b} for m, (p, a, b) in rows.items()])
    return env, recipe, result


def crown(env, accuracy, config):
    """A promoted model that reached ``accuracy`` on the suite whose config is ``config``."""
    finished = {"finished_at": "2026-11-01T00:00:00Z"}
    read = {"checkpoints": "checkpoints@1"}
    written = {"train": read, "evaluate": {"scores": "scores@1", "responses": "responses@1"}, "register": {"registrations": "registrations@1"}}
    for stage, writes in written.items():
        reads = {} if stage == "train" else read
        results.record(env, StageResult(stage, stage[0] * 32, "tiny", None, reads, writes, {}, 0.0, 1.0, config if stage == "evaluate" else "", **finished))
    delta.append(env, "scores", [{"run_key": "e" * 32, "benchmark": "**", "category": "average", "accuracy": accuracy, "stderr": 0.01}])
    delta.append(env, "registrations", [{"run_key": "r" * 32, "model_name": "moeline", "model_version": "1", "aliases": ["champion"], "promoted": True,
                                         "gates": "[]", "registered_at": dt.datetime.now(dt.UTC)}])  # fmt: skip


def test_the_same_forecast_is_worth_less_once_a_better_champion_stands(forecasted):
    env, recipe, result = forecasted
    demanding = replace(recipe, minimum_gain_points=1.0)
    first = gate.decided(env, demanding, result)
    assert first.metrics["decision"] == "go" and "no champion yet" in first.metrics["gate_sentences"][1]
    crown(env, 0.48, recipe.config_hash("evaluate"))
    second = gate.decided(env, demanding, result)
    assert (second.metrics["decision"], second.metrics["gain_points"]) == ("go", pytest.approx(2.0))
    assert second.metrics["usd_per_point"] == pytest.approx(0.005)
    assert gate.decided(env, replace(recipe, minimum_gain_points=3.0), result).metrics["decision"] == "ask"
    assert gate.decided(env, replace(recipe, minimum_gain_points=30.0), result).metrics["why"] == "not worth it"
    assert result.metrics["decision"] == "go", "the recorded forecast stays what it was"


def test_every_decision_is_a_check_and_the_same_one_again_is_not_another(forecasted):
    env, recipe, result = forecasted
    for budget in (1.0, 1.0, 0.001):
        gate.decided(env, replace(recipe, budget_usd=budget), result)
    rows = sorted(delta.rows(env, "checks"), key=lambda r: r["checked_at"])
    assert [(r["rule"], r["severity"], r["passed"]) for r in rows] == [("ForecastGate", "warning", True), ("ForecastGate", "warning", False)]
    assert json.loads(rows[1]["observed"])["why"] == "over budget"


def test_a_champion_of_another_suite_cannot_be_compared_and_says_so(forecasted):
    env, recipe, result = forecasted
    crown(env, 0.48, "0" * 16)
    found = gate.decided(env, replace(recipe, minimum_gain_points=1.0), result).metrics
    assert found["decision"] == "ask" and found["gain_points"] is None and "another suite" in found["gate_sentences"][1]


def test_a_month_with_too_little_left_is_over_budget(forecasted):
    env, recipe, result = forecasted
    found = gate.decided(replace(env, budgets={"month_usd": 0.005}), recipe, result).metrics
    assert (found["decision"], found["why"]) == ("stop", "over budget") and "month's budget has 0.0050 USD left" in found["gate_sentences"][0]


def test_a_minimum_gain_is_points_and_no_part_of_the_work():
    recipe = recipes.load("tiny")
    assert {s: replace(recipe, minimum_gain_points=1.0).config_hash(s) for s in ("pack", "forecast", "train")} == {
        s: recipe.config_hash(s) for s in ("pack", "forecast", "train")
    }
    with pytest.raises(MoelineError, match="between 0 and 100"):
        replace(recipe, minimum_gain_points=-1.0)
