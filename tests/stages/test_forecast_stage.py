"""Stage forecast on a small corpus through a local Ray: four proxies in one launch, four hashed rows, and a decision about the budget."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import pytest
import training_parts as parts

from expectations.tables import TABLES
from jobs import proxies, proxy_plan, recipes
from jobs.config import ForecastConfig, PackConfig, SuiteConfig
from jobs.contract import MoelineError, StageResult
from jobs.services import delta, ray, results
from jobs.stages import forecast
from models.scaling_fit import Forecast

SUITE = SuiteConfig(own_data_tasks=(), symbolic_tasks=("brackets", "arithmetic"), items_per_task=24)
TARGET = parts.small_train(tokens=160 * 8 * parts.SEQ_LEN)


def proxy(steps: int, width: int):
    model = replace(TARGET.model, d_model=width, ffn_hidden=width)
    return replace(TARGET, model=model, tokens=steps * TARGET.tokens_per_step)


CONFIG = ForecastConfig(target=TARGET, proxies=(proxy(20, 8), proxy(40, 8), proxy(20, 16), proxy(40, 16)), suite=SUITE, budget_usd=10.0)


@pytest.fixture(scope="module")
def forecasted(tmp_path_factory):
    """(tools, inputs, output) of one forecast."""
    home = tmp_path_factory.mktemp("home")
    tools = parts.TrainingTools(home)
    parts.write_tokenizer(tools.env.artifacts)
    inputs = {"sequences": parts.sequences(home / "table"), "benchmark_items": None}
    return tools, inputs, forecast.run(CONFIG, inputs, tools)


def test_four_rows_with_intervals_around_the_prediction(forecasted):
    rows = forecasted[2].tables["forecasts"].to_pylist()
    assert set(rows[0]) == {c.name for c in TABLES["forecasts"].columns}
    assert sorted(row["metric"] for row in rows) == ["accuracy", "cost_usd", "loss", "wall_seconds"]
    for row in rows:
        assert row["low"] <= row["predicted"] <= row["high"], row["metric"]
        assert row["decision"] == "go"
        assert len(json.loads(row["proxies"])) == 4
    loss = next(row for row in rows if row["metric"] == "loss")
    assert loss["predicted"] < loss["naive"]  # more training helps
    reached = [p["reached"] for p in json.loads(loss["proxies"])]
    assert all({"held_out_loss", "seconds", "tokens", "accuracy"} <= set(r) for r in reached)
    assert loss["naive"] == min(r["held_out_loss"] for r in reached)
    assert json.loads(loss["law"])["chosen"] in ("tied", "hoffmann", "besiroglu")


def test_the_hash_changes_with_any_number(forecasted):
    rows = forecasted[2].tables["forecasts"].to_pylist()
    assert {row["content_hash"] for row in rows} == {forecast.content_hash(rows)}
    assert forecast.content_hash(rows[::-1]) == forecast.content_hash(rows)  # a table has no order
    moved = [{**row, "registered_at": row["registered_at"].astimezone(dt.timezone(dt.timedelta(hours=2)))} for row in rows]
    assert forecast.content_hash(moved) == forecast.content_hash(rows)
    assert forecast.content_hash([{**rows[0], "predicted": rows[0]["predicted"] + 1e-9}, *rows[1:]]) != forecast.content_hash(rows)


def test_cost_is_the_price_of_the_forecast_seconds(forecasted):
    tools, _, output = forecasted
    rows = {row["metric"]: row for row in output.tables["forecasts"].to_pylist()}
    assert rows["cost_usd"]["predicted"] == pytest.approx(tools.stage_price("train", rows["wall_seconds"]["predicted"]))
    assert rows["wall_seconds"]["predicted"] > output.metrics["launch_seconds"] > 0


def test_a_retry_reuses_every_proxy_and_launches_nothing(forecasted, monkeypatch):
    tools, inputs, output = forecasted
    monkeypatch.setattr(ray, "_fit", lambda *args, **kwargs: pytest.fail("launched"))
    tools.run_key = "d" * 32  # another budget is another run; its proxies are the same
    again = forecast.run(replace(CONFIG, budget_usd=1e-9, on_over_budget="ask"), inputs, tools)
    assert again.metrics["proxies_reused"] == 4
    assert again.metrics["loss"] == output.metrics["loss"]
    assert again.metrics["decision"] == "ask"


def test_over_budget_stops_or_asks():
    assert forecast._decision(CONFIG, 10.0) == "go"
    assert forecast._decision(CONFIG, 10.01) == "stop"
    assert forecast._decision(replace(CONFIG, on_over_budget="ask"), 10.01) == "ask"


def test_seconds_follow_the_targets_own_timed_steps():
    """The naive forecast takes the largest proxy's speed per FLOP instead."""
    results = [{"median_step_seconds": 1e-11 * p.model.flops_per_token * p.tokens_per_step} for p in CONFIG.proxies]
    found = forecast._wall_seconds(CONFIG, results, {"step_seconds": 0.25, "held_out_seconds": 0.5}, fixed=7.0)
    assert found.predicted == pytest.approx(7.0 + 160 * 0.25 + 0.5)
    assert found.naive == pytest.approx(7.0 + 160 * 1e-11 * TARGET.model.flops_per_token * TARGET.tokens_per_step + 0.5)
    assert found.low < found.predicted < found.high
    assert isinstance(found, Forecast)


def test_the_target_is_timed_and_nothing_of_it_is_learnt(forecasted):
    tools, _, output = forecasted
    law = json.loads(next(r for r in output.tables["forecasts"].to_pylist() if r["metric"] == "wall_seconds")["law"])
    assert law["step_seconds"] > 0
    folders = [f.parent for f in (tools.env.artifacts / "proxies").glob("*/result.json") if "step_seconds" in json.loads(f.read_text())]
    assert len(folders) == 1
    assert not list(folders[0].glob("step-*"))


def test_a_corpus_smaller_than_the_target_is_said(forecasted):
    metrics = forecasted[2].metrics
    assert metrics["epochs"] == pytest.approx(160 * 8 / 300)
    assert "4.27 epochs" in metrics["note"]


def test_too_few_proxies_and_a_lost_tokenizer_are_named(tmp_path):
    tools = parts.TrainingTools(tmp_path)
    with pytest.raises(MoelineError, match="at least 4 proxy trainings, all different; the recipe has 1"):
        forecast.run(replace(CONFIG, proxies=CONFIG.proxies[:1] * 4), {"sequences": None}, tools)
    with pytest.raises(MoelineError, match=r"Tokenizer f+ is not among the artifacts"):
        forecast.run(CONFIG, {"sequences": parts.sequences(tmp_path / "table"), "benchmark_items": None}, tools)


def test_a_plan_takes_the_finished_proxies_and_the_stage_trains_only_the_others(forecasted):
    tools, inputs, output = forecasted
    given = {"sequences": "sequences@0", "benchmark_items": "benchmark_items@0"}
    pack = PackConfig(vocab_size=parts.VOCAB, seq_len=parts.SEQ_LEN)
    recipe = replace(recipes.load("smoke"), name="test", model=TARGET.model, tokens=TARGET.tokens, train=TARGET, proxies=CONFIG.proxies, suite=SUITE, pack=pack)
    for stage, name in (("pack", "sequences"), ("decontaminate", "benchmark_items")):
        results.record(tools.env, StageResult(stage, stage, "test", "2026-11-01", {}, {name: given[name]}, {}, 0.0, 1.0, config_hash=recipe.config_hash(stage)))
    rows = output.tables["forecasts"].to_pylist()
    delta.append(tools.env, "forecasts", rows)
    results.record(tools.env, StageResult("forecast", rows[0]["run_key"], "test", None, given, {"forecasts": "forecasts@0"}, output.metrics, 0.0, 1.0))
    found = proxy_plan.plan(tools.env, recipe, share=0.5)
    # Of the recipe's proxies two are the target itself on fewer tokens; the others keep two heads at half the width, which is not the rule of plans.
    finished = [row for row in found["proxies"] if row["finished"]]
    assert {(row["d_model"], row["steps"]) for row in finished} == {(16, 20), (16, 40)}
    planned = tuple(proxies.narrowed(TARGET, row["n_heads"], row["tokens"]) for row in found["proxies"])
    again = forecast.run(replace(CONFIG, proxies=planned), inputs, tools)
    assert again.metrics["proxies_reused"] == len(finished) < len(planned)
    loss = next(row for row in again.tables["forecasts"].to_pylist() if row["metric"] == "loss")
    assert [p["config"]["tokens"] for p in json.loads(loss["proxies"])] == [row["tokens"] for row in found["proxies"]]
