"""The decision about a forecast, taken when it is asked for: its numbers against the budget and against the champion of now.

Not part of the recorded forecast, whose identity knows no champion: the same forecast may be worth its money today and not after a better model
was promoted. Each decision is a row of ``checks`` (rule ForecastGate), and so is whether past forecasts were right
as often as they said (ForecastCoverage by metric; jobs/calibration.py): a warning goes with the decision to Airflow, which asks or stops. Who
then said that it may go on is a row too (Approval).
Change here: where the numbers come from. Not here: what decides (expectations/forecast_gate.py), the recipe's minimum gain (jobs/config.py).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from expectations import forecast_gate
from jobs import budget, budgets, calibration
from jobs.config import Recipe
from jobs.contract import StageResult, config_hash
from jobs.environment import Environment
from jobs.services import delta

if TYPE_CHECKING:
    from jobs.services import report

RULE = "ForecastGate"
APPROVAL = "Approval"
COVERAGE = "ForecastCoverage"


def decided(env: Environment, recipe: Recipe, result: StageResult, *, raised_by: str | None = None) -> StageResult:
    """``result`` of stage forecast with today's decision among its metrics: decision, why, gate_sentences, gain and usd_per_point.

    ``raised_by``: who asked for more than the recipe's own budget and may not decide that alone; where it would go on, a person is asked.
    """
    from jobs.services import report

    rows = {row["metric"]: row for row in delta.rows(env, "forecasts", where_in=[result.run_key])}
    if not {"cost_usd", "accuracy"} <= set(rows):
        return result
    money, skill = rows["cost_usd"], rows["accuracy"]
    spent = float(result.metrics.get("spent_usd", 0.0))
    cost = forecast_gate.Cost(spent, money["predicted"], money["low"], money["high"], recipe.budget_usd, budgets.left(env, recipe.name))
    records = report.Records(env)
    runs = report.runs_of(records, checks=False)
    gain, incomparable = _gain(records, runs, recipe, skill)
    found = forecast_gate.decide(cost, gain, minimum=recipe.minimum_gain_points, on_over=recipe.on_over_budget, incomparable=incomparable)
    if raised_by and found.verdict == "go":
        found = replace(found, verdict="ask", why=f"budget raised by {raised_by}")
    judged = calibration.of_runs(runs)
    _record_coverage(env, result, judged)
    decision: dict[str, Any] = {
        "decision": found.verdict, "why": found.why, "gate_sentences": [*found.sentences, *calibration.warnings(judged)], "budget_usd": recipe.budget_usd,
        "usd_per_point": found.usd_per_point, "gain_points": gain and gain.predicted, "gain_low": gain and gain.low, "gain_high": gain and gain.high,
        "minimum_gain_points": recipe.minimum_gain_points,
    }  # fmt: skip
    _record(env, result, found, {**decision, "cost": asdict(cost)})
    return replace(result, metrics={**result.metrics, **decision})


def approved(env: Environment, recipe: Recipe, inputs: Mapping[str, str], by: str) -> None:
    """Write down who said that the training may go on: a row of ``checks`` beside the decision it answers."""
    if forecast := budget.forecast_of(env, recipe, inputs):
        _check(env, forecast, APPROVAL, {"approved_by": by, "budget_usd": recipe.budget_usd}, passed=True, failed=0)


def _gain(
    records: report.Records, runs: Sequence[Mapping[str, Any]], recipe: Recipe, skill: dict[str, Any]
) -> tuple[forecast_gate.Gain | None, str]:  # fmt: skip
    """Expected gain over the champion; or None and, where there is one that cannot be compared, why."""
    if records.champion is None:
        return None, ""
    champion = next((run for run in reversed(runs) if run["model_version"] == records.champion), None)
    evaluated = champion and next((r for r in records.by_stage["evaluate"] if r.run_key == champion["run_keys"].get("evaluate")), None)
    if champion is None or evaluated is None or champion["accuracy"] is None:
        return None, f"champion v{records.champion} has no recorded scores"
    if evaluated.config_hash != recipe.config_hash("evaluate"):
        return None, f"champion v{records.champion} answered another suite of benchmarks"
    forecast = {name: skill[name] for name in ("predicted", "low", "high")}
    return forecast_gate.gain_over(f"v{records.champion}", champion["accuracy"], champion["accuracy_stderr"] or 0.0, **forecast), ""


def _record(env: Environment, result: StageResult, found: forecast_gate.Decision, observed: dict[str, Any]) -> None:
    _check(env, result, RULE, observed, passed=found.verdict == "go", failed=int(found.verdict != "go"))


def _record_coverage(env: Environment, result: StageResult, judged: dict[str, Any]) -> None:
    for metric in judged["metrics"]:
        kept = {name: metric[name] for name in ("metric", "n", "inside", "coverage", "chance_of_so_few", "chance_adjusted")}
        _check(env, result, f"{COVERAGE}({metric['metric']})", kept, passed=metric["check_passed"], failed=metric["n"] - metric["inside"])


def _check(env: Environment, result: StageResult, rule: str, observed: dict[str, Any], *, passed: bool, failed: int) -> None:
    row = {
        "checked_at": dt.datetime.now(dt.UTC), "run_key": result.run_key, "stage": "forecast", "attempt_id": "", "table_name": "forecasts",
        "table_version": result.table("forecasts").version, "rule": rule, "severity": "warning", "observed": json.dumps(observed, sort_keys=True),
        "passed": passed, "failed_rows": failed,
    }  # fmt: skip
    delta.append(env, "checks", [row], once=f"{rule}:{result.run_key}:{config_hash(observed)}")  # the same again is not another check
