"""Two recorded builds side by side: settings by name, days, paired scores, costs; and what is kept of what was asked."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from builds import Build, answered, asked, forecast_only, write

from jobs import cli, recipes, run_comparison
from jobs.config import BUILD_STAGES, PREPARE_STAGES
from jobs.contract import config_hash
from jobs.services import configs, report

SMOKE = recipes.load("smoke")
WIDER = dataclasses.replace(SMOKE, name="wider", train=dataclasses.replace(SMOKE.train, tokens=SMOKE.train.tokens + 7), budget_usd=9.5)
CHEAP, DEAR = Build(1, accuracy=0.5, loss=4.0, core_hours=1.0), Build(2, accuracy=0.6, loss=3.5, core_hours=3.0, recipe="wider", promoted=True)


@pytest.fixture
def two(env):
    """CHEAP and DEAR, which has every fourth item right that CHEAP has wrong; each cost 2.5 core hours per hour of training."""
    right = np.random.default_rng(0).random(400) < 0.5
    for build, recipe, answers in ((CHEAP, SMOKE, right), (DEAR, WIDER, right | (np.arange(400) % 4 == 0))):
        write(env, build)
        asked(env, build, recipe)
        answered(env, build, answers)
    return env


def of_both(env):
    records = report.Records(env)
    return run_comparison.of_runs(env, records, report.named(records, "v1"), report.named(records, "v2"))


def test_settings_that_differ_are_named_once_and_with_both_values(two):
    assert of_both(two)["settings"] == [
        {"setting": "forecast.budget_usd", "a": SMOKE.budget_usd, "b": 9.5},
        {"setting": "register.budget_usd", "a": SMOKE.budget_usd, "b": 9.5},
        {"setting": "train.tokens", "a": SMOKE.train.tokens, "b": SMOKE.train.tokens + 7},
    ]


def test_proxies_are_told_by_what_they_have_otherwise_than_their_target(two):
    fewer = dataclasses.replace(SMOKE, proxies=SMOKE.proxies[1:])
    write(two, Build(3, accuracy=0.5, loss=4.0, core_hours=1.0, recipe="fewer"))
    asked(two, Build(3, accuracy=0.5, loss=4.0, core_hours=1.0), fewer)
    records = report.Records(two)
    found = run_comparison.of_runs(two, records, report.named(records, "v1"), report.named(records, "v3"))
    (row,) = found["settings"]
    first, target = SMOKE.proxies[0], SMOKE.train
    assert row["setting"] == "forecast.proxies" and row["a"][1:] == row["b"]
    assert row["a"][0]["tokens"] == first.tokens != target.tokens and row["a"][0]["model.d_model"] == first.model.d_model != target.model.d_model
    assert "model.vocab_size" not in row["a"][0] and "model.rope_theta" not in row["a"][0]


def test_scores_are_paired_and_the_price_of_a_point_is_of_what_more_was_spent(two):
    found = of_both(two)
    average = found["effects"][0]
    gained = np.array([e["difference"] for e in found["effects"] if e["level"] == "category"])
    assert average["level"] == "average" and average["difference"] == pytest.approx(gained.mean()) and average["low"] > 0
    more = sum(c["difference"] for c in found["costs"])
    assert found["cost_difference_usd"] == pytest.approx(more) and more > 0
    assert found["usd_per_point"] == pytest.approx(more / (100 * average["difference"]))
    assert [c["stage"] for c in found["costs"]] == list(BUILD_STAGES)


def test_the_suites_own_average_comes_before_that_of_another_gauntlet(two):
    for build, answers in ((Build(7, 0.5, 4.0, 1.0, recipe="c"), [True, False] * 50), (Build(8, 0.5, 4.0, 1.0, recipe="d"), [True, True] * 50)):
        write(two, build)
        answered(two, build, answers, "gauntlet/reading")
    records = report.Records(two)
    runs = {r["recipe"]: r for r in report.runs_of(records)}
    effects = run_comparison.of_runs(two, records, runs["c"], runs["d"])["effects"]
    assert [(e["level"], e["name"], e["difference"]) for e in effects[:2]] == [("average", "average", 1.0), ("average", "gauntlet/average", 0.0)]


def test_turned_round_everything_has_the_other_sign_and_no_point_is_bought(two):
    records = report.Records(two)
    there = of_both(two)
    back = run_comparison.of_runs(two, records, report.named(records, "v2"), report.named(records, "v1"))
    assert back["cost_difference_usd"] == pytest.approx(-there["cost_difference_usd"])
    assert back["effects"][0]["difference"] == pytest.approx(-there["effects"][0]["difference"])
    assert back["usd_per_point"] is None
    assert [(s["a"], s["b"]) for s in back["settings"]] == [(s["b"], s["a"]) for s in there["settings"]]


def test_what_cannot_be_compared_is_said(two):
    forecast_only(two, Build(5, accuracy=0.6, loss=3.0, core_hours=9.0, recipe="waiting"))
    write(two, Build(6, accuracy=0.6, loss=3.0, core_hours=9.0, recipe="old"))
    records = report.Records(two)
    runs = {r["recipe"]: r for r in report.runs_of(records)}
    waiting = run_comparison.of_runs(two, records, runs["tiny"], runs["waiting"])
    assert waiting["effects"] == [] and "no model of it was evaluated" in waiting["problem"]
    old = run_comparison.of_runs(two, records, runs["tiny"], runs["old"])
    assert old["settings"] is None and old["problem"]
    assert "before settings were kept" in run_comparison.render(old)


def test_the_command_line_says_it_with_the_scores(two, capsys):
    names = [r["run_id"] for r in report.runs(two)]
    assert cli.main(["compare", *names, "--home", str(two.home), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"]["settings"] == of_both(two)["settings"]
    assert found["runs"]["effects"] == of_both(two)["effects"]
    assert cli.main(["compare", *names, "--home", str(two.home)]) == 0
    text = capsys.readouterr().out
    assert "What differs: A = tiny, B = wider" in text and "train.tokens" in text and "A point more costs $" in text


def test_the_table_for_csv_holds_all_of_it(two):
    found = of_both(two)
    rows = run_comparison.rows(found)
    assert all(set(row) == set(run_comparison.COLUMNS) for row in rows)
    assert [r["kind"] for r in rows].count("cost_usd") == len(found["costs"]) and [r["kind"] for r in rows].count("setting") == 3
    assert [r["difference"] for r in rows if r["kind"] == "category"] == [e["difference"] for e in found["effects"] if e["level"] == "category"]


@pytest.mark.parametrize("stage", (*PREPARE_STAGES, *BUILD_STAGES))
def test_what_is_kept_under_a_hash_is_what_was_hashed(env, stage):
    configs.keep(env, SMOKE.config_hash(stage), SMOKE.asked(stage))
    kept = configs.find(env, SMOKE.config_hash(stage))
    assert list(sorted(kept)) == sorted(PREPARE_STAGES[: PREPARE_STAGES.index(stage) + 1] if stage in PREPARE_STAGES else (stage,))
    values = [kept[s] for s in PREPARE_STAGES if s in kept]
    assert config_hash(values if stage in PREPARE_STAGES else kept[stage]) == SMOKE.config_hash(stage)


def test_names_and_differences_of_settings():
    a = {"train": {"model": {"d_model": 8, "norm": {}}, "steps": 3, "mixture": [["x", 1]]}}
    b = {"train": {"model": {"d_model": 8, "norm": {}, "qk_clip": 5.0}, "steps": 4, "mixture": [["x", 2]]}}
    assert configs.flat(a) == {"train.model.d_model": 8, "train.model.norm": {}, "train.steps": 3, "train.mixture": [["x", 1]]}
    assert configs.differences(a, b) == [
        {"setting": "train.mixture", "a": [["x", 1]], "b": [["x", 2]]},
        {"setting": "train.model.qk_clip", "a": configs.DEFAULT, "b": 5.0},
        {"setting": "train.steps", "a": 3, "b": 4},
    ]
    assert configs.differences(a, a) == []
