"""What a training may still cost, and when a recorded one that ended early is done again. Real tables, no engines."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from jobs import budget, recipes, run
from jobs.contract import StageOutput, StageResult
from jobs.environment import Resources
from jobs.services import delta, ledger, results

RECIPE = replace(recipes.load("smoke"), budget_usd=1.0)
SEQUENCES = {"sequences": "sequences@3"}


def recorded(stage: str, key: str, cost: float, recipe=RECIPE, **metrics) -> StageResult:
    return StageResult(
        stage=stage, run_key=key, recipe=recipe.name, interval=None, inputs=SEQUENCES, outputs={}, metrics=metrics, cost_usd=cost, wall_seconds=1.0,
        config_hash=recipe.config_hash(stage), finished_at="2026-11-02T00:00:00Z",
    )  # fmt: skip


def charge(env, key: str, hours: float, outcome: str) -> float:
    attempt = ledger.Attempt("train", "smoke", key, None, Resources(10.0, 0.0), time.time() - hours * 3600)
    row = ledger.charge_row(env, attempt, attempt.started_at + hours * 3600, outcome)
    delta.append(env, "costs", [row])
    return float(row["BilledCost"])


def test_the_forecast_and_every_earlier_attempt_count_and_the_judging_is_kept(env):
    assert budget.of_training(env, RECIPE, "a" * 32, SEQUENCES) == budget.Spending(1.0, 0.0, 0.0, 0.0)
    results.record(env, recorded("forecast", "f" * 32, 0.1, decision="go", cost_usd_high=0.4))
    results.record(env, recorded("evaluate", "e" * 32, 0.03))
    results.record(env, recorded("review", "d" * 32, 0.02))
    tries = [charge(env, "a" * 32, 0.1, "killed"), charge(env, "a" * 32, 0.2, "failed")]
    charge(env, "b" * 32, 1.0, "succeeded")  # another training
    found = budget.of_training(env, RECIPE, "a" * 32, SEQUENCES)
    assert (found.limit, found.kept) == (1.0, pytest.approx(0.05))
    assert (found.forecast, found.forecast_key) == (0.1, "f" * 32)
    assert found.spent == pytest.approx(0.1 + sum(tries))
    assert found.left == pytest.approx(1.0 - 0.15 - sum(tries))
    assert budget.of_training(env, RECIPE, "a" * 32, {"sequences": "sequences@4"}).spent == pytest.approx(sum(tries))  # its forecast was about other data


def test_what_a_person_approved_is_the_limit(env):
    asked = replace(RECIPE, on_over_budget="ask")
    results.record(env, recorded("forecast", "f" * 32, 0.1, asked, decision="ask", cost_usd_high=4.0))
    assert budget.of_training(env, asked, "a" * 32, SEQUENCES).limit == pytest.approx(4.1)
    assert budget.of_training(env, RECIPE, "a" * 32, SEQUENCES).limit == 1.0  # nobody was asked with these settings


def test_a_training_that_ended_for_its_budget_is_done_again_for_a_larger_one_only(env, monkeypatch):
    seen = []

    def execute(config, inputs, tools):
        seen.append(tools.spending)
        row = {"uri": "u", "sha256": "s", "step": 1, "tokens": 10, "loss": 2.0, "held_out_loss": 2.0, "config": "{}", "final": True, "mlflow_run_id": None}
        early = {"ended_early": "budget", "steps": 1, "budget_usd": tools.spending.limit} if tools.spending.limit < 2 else {}
        return StageOutput({"checkpoints": pa.Table.from_pylist([row])}, {"tokens": 10, "flops": 1e6, **early})

    module = SimpleNamespace(__name__="jobs.stages.train", ENGINE="arrow", READS={}, WRITES=("checkpoints",), REVISION=1, run=execute)
    monkeypatch.setattr(run, "stage_module", lambda name: module)
    first = run.run_stage(env, "train", RECIPE)
    assert first.metrics["ended_early"] == "budget"
    assert run.run_stage(env, "train", RECIPE).reused
    assert run.run_stage(env, "train", replace(RECIPE, budget_usd=0.5)).reused
    more = run.run_stage(env, "train", replace(RECIPE, budget_usd=2.0))
    assert not more.reused and more.run_key == first.run_key
    assert seen[1].spent > 0, "the first attempt's cost counts"
    assert run.run_stage(env, "train", replace(RECIPE, budget_usd=9.0)).reused, "it was trained to its end"
    (row,) = delta.rows(env, "checkpoints")
    assert row["run_key"] == first.run_key
