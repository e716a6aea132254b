"""Price sheets: what holding resources costs on which day, budgets of a month, and what a training would cost elsewhere."""

import datetime as dt
import json
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobs import budgets, cli, recipes, run, whatif
from jobs.contract import BudgetExceeded, MoelineError, StageResult, canonical
from jobs.environment import REPO, Environment
from jobs.price_sheet import InstanceType, Prices, Resources
from jobs.services import delta, ledger, results

MACHINE = {"name": "big", "cores": 100.0, "memory_gib": 1000.0, "gpus": 8.0, "source": "a test"}
CORES = Resources(2.0, 4.0)


def sheet(**more):
    return Prices.read({"currency": "USD", "core_hour": 0.04, "gib_hour": 0.01, "gpu_hour": 0.0, "valid_from": "2026-03-01", **more}, "sheet.toml")


def at(day):
    return dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp()


def test_a_share_of_a_machine_is_its_largest_share_of_anything():
    machine = InstanceType(**MACHINE, valid_from="2026-01-01")
    assert machine.share(Resources(50.0, 100.0, 2.0)) == 0.5
    assert machine.share(Resources(10.0, 900.0, 2.0)) == 0.9
    assert machine.share(Resources(1.0, 1.0, 16.0)) == 2.0


@pytest.mark.parametrize(("purchase", "hour"), [("on_demand", 80.0), ("spot", 30.0), ("reserved", 50.0)])
def test_each_way_to_buy_has_its_price(purchase, hour):
    prices = sheet(instances=[{**MACHINE, "valid_from": "2026-01-01", "on_demand": 80.0, "spot": 30.0, "reserved": 50.0}], purchase=purchase)
    assert prices.allocated(Resources(25.0, 10.0, 4.0, "big"), 1800.0, at("2026-05-01")) == pytest.approx(hour * 0.5 * 0.5)


def test_the_price_is_that_of_the_day_it_was_held():
    old, new = ({**MACHINE, "valid_from": day, "on_demand": usd} for day, usd in (("2026-01-01", 80.0), ("2026-06-01", 60.0)))
    prices = sheet(instances=[new, old], earlier=[{"valid_from": "2026-01-15", "core_hour": 0.08}])
    whole = Resources(100.0, 1000.0, 8.0, "big")
    assert [prices.hourly(whole, at(day)) for day in ("2026-05-31", "2026-06-01")] == [80.0, 60.0]
    assert [prices.hourly(CORES, at(day)) for day in ("2026-02-28", "2026-03-01")] == pytest.approx([0.2, 0.12])


@pytest.mark.parametrize(
    ("held", "day", "purchase", "words"),
    [
        (CORES, "2026-02-28", "on_demand", "they begin on 2026-03-01"),
        (Resources(1.0, 1.0, 1.0), "2026-03-01", "on_demand", "gpu_hour is 0"),
        (Resources(1.0, 1.0, 1.0, "small"), "2026-03-01", "on_demand", "it has big"),
        (Resources(1.0, 1.0, 1.0, "big"), "2025-12-31", "on_demand", "begin on 2026-01-01"),
        (Resources(1.0, 1.0, 1.0, "big"), "2026-03-01", "spot", "it has on_demand"),
        (CORES, "2026-03-01", "spot", "which only machine types have"),
    ],
)
def test_a_missing_price_is_an_error_that_says_where_it_belongs(held, day, purchase, words):
    prices = sheet(instances=[{**MACHINE, "valid_from": "2026-01-01", "on_demand": 80.0}]).bought(purchase)
    with pytest.raises(MoelineError, match=words) as told:
        prices.hourly(held, at(day))
    assert "sheet.toml" in str(told.value)


def test_an_attempt_without_a_price_never_starts(env):
    attempt = ledger.Attempt("train", "tiny", "k", None, Resources(1.0, 1.0, 1.0), at("2026-11-01"))
    with pytest.raises(MoelineError, match="gpu_hour"):
        ledger.Running(env, attempt)
    assert not ledger.journal(env).exists()


@pytest.mark.parametrize("change", [{"valid_from": "soon"}, {"purchase": "barter"}])
def test_a_sheet_with_a_bad_setting_is_refused(change):
    with pytest.raises(MoelineError, match=r"sheet\.toml"):
        sheet(**change)


@pytest.mark.parametrize("file", sorted((REPO / "infra/env").glob("*.toml")), ids=lambda f: f.stem)
def test_every_sheet_here_says_when_and_where_its_prices_were_read(file, tmp_path):
    env = Environment.load(file.stem, tmp_path)
    raw = tomllib.loads(file.read_text())["prices"]
    assert raw["source"] and raw["valid_from"]
    assert all(i.source and any((i.on_demand, i.spot, i.reserved)) for i in env.prices.instances)
    assert all(env.prices.hourly(held) > 0 for held in env.resources.values())


def test_spot_and_reserved_rows_say_so_and_keep_the_list_price(env):
    machine = {**MACHINE, "valid_from": "2026-01-01", "on_demand": 80.0, "spot": 30.0, "reserved": 50.0}
    held = Resources(100.0, 1000.0, 8.0, "big")
    found = {}
    for purchase in ("on_demand", "spot", "reserved"):
        there = replace(env, prices=sheet(instances=[machine], purchase=purchase))
        one = ledger.Attempt("train", "tiny", "k" * 32, None, held, at("2026-05-01"))
        found[purchase] = ledger.charge_row(there, one, one.started_at + 3600, "succeeded")
    assert [r["PricingCategory"] for r in found.values()] == ["Standard", "Dynamic", "Standard"]
    assert [(r["BilledCost"], r["ListCost"]) for r in found.values()] == [(80.0, 80.0), (30.0, 30.0), (50.0, 80.0)]
    assert len({r["SkuPriceId"] for r in found.values()}) == 3 and {r["SkuId"] for r in found.values()} == {"big"}


# -- budgets ------------------------------------------------------------------------------------------------------------------


def spend(env, recipe, usd, day="2026-11-10"):
    one = ledger.Attempt("train", recipe, "k" * 32, None, Resources(1.0, 0.0), at(day))
    delta.append(env, "costs", [ledger.charge_row(env, one, one.started_at + 3600 * usd / env.prices.core_hour, "succeeded")])


def test_budgets_are_of_a_month_and_a_recipe(env):
    there = replace(env, budgets={"month_usd": 10.0, "recipes": {"tiny": 4.0}})
    for recipe, usd, day in (("tiny", 3.0, "2026-11-02"), ("smoke", 1.0, "2026-11-03"), ("tiny", 99.0, "2026-10-31")):
        spend(there, recipe, usd, day)
    everything, tiny = budgets.status(there, now=dt.datetime(2026, 11, 16, tzinfo=dt.UTC))
    assert (everything["spent_usd"], everything["level"]) == (pytest.approx(4.0), "ok")
    assert (tiny["spent_usd"], tiny["projected_usd"], tiny["level"]) == (pytest.approx(3.0), pytest.approx(6.0), "warning")


def test_a_spent_budget_refuses_a_training_before_it_costs_anything(env, monkeypatch):
    there = replace(env, budgets={"recipes": {"smoke": 1.0}})
    month = dt.datetime.now(dt.UTC).replace(day=1, hour=0, minute=0).isoformat()
    spend(there, "smoke", 1.001, month)
    assert budgets.left(there, "smoke") == pytest.approx(-0.001) and budgets.left(there, "tiny") is None
    with pytest.raises(BudgetExceeded, match=r"train was not started: 1\.0010 of the budget of recipe smoke"):
        budgets.refuse_if_spent(there, "train", "smoke")
    budgets.refuse_if_spent(there, "evaluate", "smoke")
    budgets.refuse_if_spent(there, "train", "tiny")
    stage = SimpleNamespace(__name__="jobs.stages.train", ENGINE="arrow", READS={}, WRITES=("checkpoints",), REVISION=1, run=lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(run, "stage_module", lambda _: stage)
    with pytest.raises(BudgetExceeded):
        run.run_stage(there, "train", recipes.load("smoke"))
    assert len(delta.rows(there, "costs")) == 1


@pytest.mark.parametrize(
    ("given", "words"), [({"month": 1}, "not month"), ({"month_usd": -1}, "month_usd is not a number"), ({"recipes": {"a": "x"}}, "a is not")]
)
def test_a_budget_that_is_none_is_refused(env, given, words):
    with pytest.raises(MoelineError, match=words):
        budgets.status(replace(env, budgets=given))


# -- what if ------------------------------------------------------------------------------------------------------------------


def forecast(env, seconds=(100.0, 80.0, 130.0)):
    recipe = recipes.load("tiny")
    results.record(env, StageResult("forecast", "f" * 32, "tiny", None, {}, {"forecasts": "forecasts@1"}, {}, 0.0, 1.0, finished_at="2026-11-01T00:00:00Z"))
    row = {"run_key": "f" * 32, "metric": "wall_seconds", "predicted": seconds[0], "low": seconds[1], "high": seconds[2], "law": "{}",
           "proxies": "[]", "target": json.dumps(canonical(recipe.train), sort_keys=True), "decision": "go",
           "registered_at": dt.datetime.now(dt.UTC), "content_hash": "0"}  # fmt: skip
    delta.append(env, "forecasts", [row])
    return recipe


def test_another_sheet_for_the_same_machine_reprices_the_forecast_and_its_interval(env):
    recipe = forecast(env)
    dearer = replace(env, name="dearer", prices=replace(env.prices, core_hour=10 * env.prices.core_hour, gib_hour=0.0))
    found = whatif.whatif(env, recipe, dearer)
    assert found["basis"] == "forecast" and found["notes"] == []
    assert [found["cost"][n] for n in whatif.NAMES] == pytest.approx([s * 2 * 0.45 / 3600 for s in (100, 80, 130)])
    assert found["others"] == {"spot": None, "reserved": None}
    changed = replace(recipe, train=replace(recipe.train, tokens=1_000_000))
    assert "forecast it again" in whatif.whatif(env, changed, dearer)["notes"][0]


def test_machines_nobody_trained_on_are_timed_by_flops_with_the_sheets_range(env, tmp_path):
    there, recipe = Environment.load("cloud_gpu", tmp_path), recipes.load("small_gpu")
    found = whatif.whatif(env, recipe, there)
    flops = recipe.train.model.flops_per_token * recipe.train.steps * recipe.train.tokens_per_step
    assert found["seconds"]["low"] == pytest.approx(flops / (7912e12 * 0.43)) and found["seconds"]["high"] == pytest.approx(flops / (7912e12 * 0.15))
    assert found["cost"]["predicted"] == pytest.approx(55.04 * found["seconds"]["predicted"] / 3600)
    half = whatif.whatif(env, recipe, there, gpus=4)
    assert half["seconds"]["low"] == pytest.approx(2 * found["seconds"]["low"]) and half["cost"]["low"] == pytest.approx(found["cost"]["low"])
    assert "an assumption of the sheet" in found["notes"][0] and "2026-11-09" in found["source"]


def test_what_cannot_be_known_says_what_is_missing(env, tmp_path, capsys):
    recipe = recipes.load("tiny")
    with pytest.raises(MoelineError, match="moeline stage forecast --recipe tiny"):
        whatif.whatif(env, recipe, env)
    more = replace(env, resources={**env.resources, "train": Resources(64.0, 4.0)})
    with pytest.raises(MoelineError, match="peak_tflops, mfu_low and mfu_high"):
        whatif.whatif(env, recipe, more)
    asked = ["costs", "whatif", "--recipe", "small_gpu", "--env", "cloud_gpu", "--home", str(tmp_path)]
    assert cli.main([*asked, "--purchase", "spot"]) == 1
    assert "has no spot price of p5.48xlarge; it has on_demand" in capsys.readouterr().err
    assert cli.main(asked) == 0
    assert "the sheet's range" in capsys.readouterr().out
