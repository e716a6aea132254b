"""moeline forecast plan: shares and dollars add up by hand, finished proxies are found where they lie and nowhere else, plans become recipes."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import pytest

from jobs import cli, own_recipes, proxies, proxy_plan, recipes
from jobs.contract import MoelineError, StageResult, canonical, config_hash
from jobs.environment import Environment
from jobs.price_sheet import Resources
from jobs.services import delta, results
from jobs.stages import forecast
from models.scaling_plan import PUBLISHED

RECIPE = recipes.load("small_cpu")
INPUTS = {"sequences": "sequences@3", "benchmark_items": "benchmark_items@2"}
LAW = {"form": "power", "E": 0.0, "A": 90.0, "B": 0.0, "alpha": 0.05, "beta": 0.12, "share": 0.0}


@pytest.fixture
def env(tmp_path):
    return Environment.load("local", tmp_path)


def flops_by_hand(model):
    """Training FLOPs of a token, counted from the shapes again: 6 per weight of every product, and attention."""
    d, kv = model.d_model, model.n_kv_heads * model.d_model // model.n_heads
    layer = d * (d + 2 * kv) + d * d + d * model.n_experts + 3 * model.top_k * d * model.ffn_hidden + 2 * d
    return 6 * (model.vocab_size * d + model.n_layers * layer + d) + 6 * model.n_layers * d * model.max_seq_len


def record(env, recipe=RECIPE, *, inputs=INPUTS, key="f" * 32, law=LAW, suite=None, trained=None):
    """A forecast of the recipe's own proxies: 2 s per step of each on half the machine, 3 s per step of the target."""
    trained = recipe.proxies if trained is None else trained
    reached = [{"config": canonical(p), "reached": {"seconds": 2.0 * p.steps, "held_out_seconds": 8.0, "held_out_loss": 5.0}} for p in trained]
    laws = {"loss": {"laws": {law["form"]: law}, "chosen": law["form"]}, "wall_seconds": {"step_seconds": 3.0, "timed_steps": 20}}
    rows = [
        {"run_key": key, "metric": metric, "predicted": 1.0, "low": 0.5, "high": 2.0, "naive": 3.0, "law": json.dumps(laws.get(metric, {})),
         "proxies": json.dumps(reached), "target": json.dumps(canonical(recipe.train)), "decision": "go", "registered_at": dt.datetime.now(dt.UTC),
         "content_hash": "0"}
        for metric in ("loss", "accuracy", "cost_usd", "wall_seconds")
    ]  # fmt: skip
    metrics = {"launch_seconds": 12.0, "sequences_digest": "5e", "questions_digest": "9a", "suite_hash": config_hash(suite or recipe.suite)}
    delta.append(env, "forecasts", rows)
    results.record(env, StageResult("forecast", key, recipe.name, None, inputs, {"forecasts": "forecasts@1"},
                                    metrics, 0.0, 1.0, finished_at="2026-11-01T00:00:00Z"))  # fmt: skip


def prepare(env, recipe=RECIPE, sequences="sequences@3"):
    for stage, output in (("pack", sequences), ("decontaminate", "benchmark_items@2")):
        made = StageResult(stage, stage + sequences, recipe.name, "2026-11-01", {}, {output.split("@")[0]: output}, {}, 0.0, 1.0, recipe.config_hash(stage))
        results.record(env, made)


def finish(env, proxy):
    """The file a finished proxy leaves."""
    folder = env.artifacts / "proxies" / forecast.proxy_identity(proxy, "5e", "9a")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text("{}")
    return folder


@pytest.mark.parametrize("share", [0.05, 0.1, 0.4])
@pytest.mark.parametrize("name", ["small_cpu", "small_gpu", "h200_dense", "moe_b"])
def test_planned_proxies_are_the_recipe_narrower_and_cost_at_most_the_share(name, share):
    train = recipes.load(name).train
    plan, chosen = proxies.planned(train, share)
    assert 4 <= len(set(chosen)) == len(chosen) <= 6
    whole = flops_by_hand(train.model) * train.steps * train.tokens_per_step
    trained = sum(flops_by_hand(p.model) * p.steps * p.tokens_per_step for p in chosen)
    held_out = sum(flops_by_hand(p.model) / 3 * p.held_out_sequences * p.model.max_seq_len for p in chosen)
    assert (trained + held_out) / whole == pytest.approx(plan.cost, rel=1e-3) and plan.cost <= share
    assert len({p.model.d_model for p in chosen}) > 1 and len({p.steps for p in chosen}) > 1  # a law needs both
    for proxy in chosen:
        assert proxy.model.head_dim == train.model.head_dim and proxy.steps >= proxies.LEAST_STEPS
        kept = ("batch_sequences", "learning_rate", "schedule", "warmup_fraction", "decay_fraction", "seed", "precision", "mixture")
        assert [getattr(proxy, k) for k in kept] == [getattr(train, k) for k in kept]
        assert proxies.is_proxy_of(proxy, train) and not proxies.is_proxy_of(replace(proxy, learning_rate=1.0), train)


def test_a_width_a_rate_was_tuned_at_stays_with_every_proxy():
    train = replace(RECIPE.train, model=replace(RECIPE.model, base_width=64))
    assert {p.model.base_width for p in proxies.planned(train, 0.1)[1]} == {64}
    assert "0.003 at width 64" in proxy_plan._transfer(train)
    assert any("init='by_width'" in note for note in proxy_plan._notes(recipes.load("dbrx"), proxy_plan.Pace(None, None, 0.0, "")))


def test_without_any_timing_dollars_are_missing_and_a_budget_in_dollars_is_refused(env):
    found = proxy_plan.plan(env, RECIPE)
    assert found["share"] == 0.1 and found["usd"] is None and found["target"]["usd"] is None and {r["usd"] for r in found["proxies"]} == {None}
    assert "missing" in proxy_plan.render(found) and "nothing is prepared" in found["reuse"] and "published" in found["law"]
    with pytest.raises(MoelineError, match=r"none was timed there.*moeline stage forecast --recipe small_cpu"):
        proxy_plan.plan(env, RECIPE, budget_usd=1.0)


def test_dollars_are_the_seconds_of_recorded_proxies_at_the_sheets_price(env):
    record(env)
    found, hourly = proxy_plan.plan(env, RECIPE, share=0.2), 2 * 0.045 + 4 * 0.005
    taken = sum(2.0 * p.steps + 8.0 for p in RECIPE.proxies) / 2  # two beside each other
    per_flop = taken / sum(flops_by_hand(p.model) * (p.steps * p.tokens_per_step + p.held_out_sequences * 512 / 3) for p in RECIPE.proxies)
    for row in found["proxies"]:
        assert row["seconds"] == pytest.approx(row["flops"] * per_flop, rel=1e-3)
    assert found["proxies_usd"] == pytest.approx(sum(r["flops"] for r in found["proxies"]) * per_flop * hourly / 3600, rel=1e-3)
    assert found["launch_usd"] == pytest.approx((12.0 + 20 * 3.0) * hourly / 3600)
    assert found["target"]["usd"] == pytest.approx(3.0 * RECIPE.train.steps * hourly / 3600)
    assert found["usd"] == pytest.approx(found["proxies_usd"] + found["launch_usd"])
    assert "power" in found["law"]


def test_a_budget_in_dollars_buys_what_its_share_buys(env):
    record(env)
    by_share = proxy_plan.plan(env, RECIPE, share=0.2)
    most = 0.2 * by_share["target"]["flops"] * by_share["proxies"][0]["seconds"] / by_share["proxies"][0]["flops"] * 0.11 / 3600
    by_usd = proxy_plan.plan(env, RECIPE, budget_usd=most + by_share["launch_usd"])
    assert by_usd["share"] == pytest.approx(0.2) and by_usd["proxies"] == by_share["proxies"] and by_usd["usd"] <= most + by_share["launch_usd"]
    with pytest.raises(MoelineError, match="do not pay for starting the proxies"):
        proxy_plan.plan(env, RECIPE, budget_usd=by_share["launch_usd"])
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MoelineError, match="number of USD above 0"):
            proxy_plan.plan(env, RECIPE, budget_usd=budget)


def test_a_machine_with_a_peak_is_priced_by_it(tmp_path):
    there = Environment.load("cloud_gpu", tmp_path)
    found = proxy_plan.plan(there, recipes.load("h200"), share=0.05)
    flops = sum(r["flops"] for r in found["proxies"])
    assert found["proxies_usd"] == pytest.approx(flops / (7912e12 * (0.15 * 0.43) ** 0.5) * 55.04 / 3600)
    assert "is assumed" in found["timing"]
    eighth = replace(there, resources={**there.resources, "forecast": Resources(24.0, 256.0, 1.0, "p5.48xlarge")})
    assert proxy_plan.plan(eighth, recipes.load("h200"), share=0.05)["proxies_usd"] == pytest.approx(found["proxies_usd"])  # slower at a smaller price


def test_finished_proxies_are_free_and_only_where_everything_is_the_same(env):
    first = proxy_plan.plan(env, RECIPE, share=0.1)
    record(env)
    prepare(env)
    assert not any(r["finished"] for r in proxy_plan.plan(env, RECIPE, share=0.1)["proxies"])  # recorded, but its file is gone
    folders = [finish(env, p) for p in RECIPE.proxies]
    found = proxy_plan.plan(env, RECIPE, share=0.1)
    done = [r for r in found["proxies"] if r["finished"]]
    assert {(r["d_model"], r["tokens"]) for r in done} <= {(p.model.d_model, p.tokens) for p in RECIPE.proxies} and done
    assert all(r["usd"] == 0.0 for r in done) and all(r["usd"] > 0 for r in found["proxies"] if not r["finished"])
    assert sum(r["share"] for r in found["proxies"] if not r["finished"]) == pytest.approx(found["planned_share"]) and found["planned_share"] <= 0.1
    assert "4 finished proxies" in found["reuse"] and found["expected"]["half_width"] < first["expected"]["half_width"]
    (folders[0] / "result.json").unlink()
    assert "3 finished proxies" in proxy_plan.plan(env, RECIPE, share=0.1)["reuse"]
    faster = replace(RECIPE, train=replace(RECIPE.train, learning_rate=1e-3))
    other_suite = replace(RECIPE, suite=replace(RECIPE.suite, items_per_task=7))
    for other in (faster, other_suite):
        prepare(env, other)
        assert "0 finished proxies" in proxy_plan.plan(env, other, share=0.1)["reuse"]
    prepare(env, sequences="sequences@4")  # a day came in: other sequences, other proxies
    assert "0 finished proxies" in proxy_plan.plan(env, RECIPE, share=0.1)["reuse"]


def test_when_all_that_is_wanted_is_finished_nothing_is_launched(env):
    trained = proxies.planned(RECIPE.train, 0.1)[1] + proxies.planned(RECIPE.train, 1.0)[1]
    record(env, trained=trained)
    prepare(env)
    for proxy in trained:
        finish(env, proxy)
    found = proxy_plan.plan(env, RECIPE, share=1e-6)
    assert all(r["finished"] for r in found["proxies"]) and (found["planned_share"], found["usd"]) == (0.0, 0.0)


def test_too_little_says_how_much_is_needed(env):
    with pytest.raises(MoelineError, match=r"1\.0% of the run's cost does not buy the 4 proxies.*take 7\.0% of it"):
        proxy_plan.plan(env, recipes.load("tiny"), share=0.01)
    assert proxy_plan.plan(env, recipes.load("tiny"), share=0.0701)["planned_share"] <= 0.0701
    smoke = recipes.load("smoke")
    with pytest.raises(MoelineError, match="its 30 steps leave 0 proxies of at least 25 steps"):
        proxy_plan.plan(env, replace(smoke, train=replace(smoke.train, tokens=30 * smoke.train.tokens_per_step)), share=1.0)
    for share in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(MoelineError, match="above 0 and at most at 1"):
            proxy_plan.plan(env, RECIPE, share=share)


def test_a_plan_becomes_a_recipe_whose_forecast_trains_exactly_these(env, capsys):
    given = ["forecast", "plan", "--recipe", "small_cpu", "--share", "0.08", "--home", str(env.home)]
    assert cli.main([*given, "--json", "--as-recipe", "planned"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cli.main(given) == 0
    text = capsys.readouterr().out
    for row in found["proxies"]:
        assert f"{row['tokens']:,}" in text and f"{row['steps']:,}" in text
    made = recipes.load("planned", home=env.home)
    assert made.proxies == tuple(proxies.planned(RECIPE.train, 0.08)[1]) and made.train == RECIPE.train
    changed = [s for s in ("pack", "forecast", "train", "evaluate") if made.config_hash(s) != RECIPE.config_hash(s)]
    assert changed == ["forecast"]
    assert cli.main([*given, "--as-recipe", "planned"]) == 0  # the same again is no conflict
    assert cli.main([*given[:5], "0.2", "--home", str(env.home), "--as-recipe", "planned"]) == 1
    assert "says something else" in capsys.readouterr().err
    own_recipes.save(env.home, "docs", own_recipes.OwnRecipe(base="small_cpu", tokens=20_000_000, sources=("docs",)))
    assert cli.main(["forecast", "plan", "--recipe", "docs", "--home", str(env.home), "--as-recipe", "docs-planned"]) == 0
    docs = recipes.load("docs-planned", home=env.home)
    assert docs.ingest.sources == ("docs",) and docs.proxies != recipes.load("docs", home=env.home).proxies


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([[1, 90000]] * 4, "4 to 16 different pairs"), ([[1, 90000]], "4 to 16 different pairs"), ("x", "4 to 16 different pairs"),
        ([[9, 90000], [1, 2_000_000], [2, 90000], [4, 90000]], "at most the 8 heads"), ([[1, 9], [1, 90000], [2, 90000], [4, 90000]], r"holds \(1, 9\)"),
        ([[True, 90000], [1, 90000], [2, 90000], [4, 90000]], r"holds \(True"), ([[1, 10**12], [1, 9000], [2, 9000], [4, 9000]], "30,000,000 tokens"),
        ([[7, 90000], [1, 90000], [2, 90000], [4, 90000]], "which is no model"), ([{"a": 1}, [1, 90000], [2, 90000], [4, 90000]], "holds {'a': 1}"),
    ],
)  # fmt: skip
def test_proxies_in_a_file_are_checked(env, asked, words):
    file = env.home / "recipes" / "mine.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"base": "small_cpu", "tokens": 30_000_000, "proxies": asked}))
    with pytest.raises(MoelineError, match=words):
        recipes.load("mine", home=env.home)


def test_published_laws_are_believed_until_ones_own_is_known(env):
    assert proxy_plan._laws(None)[0] is None and {law.form for law in PUBLISHED} == {"chinchilla"}
    record(env, law={**LAW, "A": 0.0})  # a fit that found no size effect says nothing about sizes
    assert "published" in proxy_plan.plan(env, RECIPE)["law"]
