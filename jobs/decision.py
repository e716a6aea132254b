"""What the decision page, its CSV files and ``moeline report --html`` are made of: one dict of figures from the tables, read once.

Change here: what a figure holds. Not here: what a run is (services/report.py), how figures look (report_page.py, infra/dashboards/static/).

cost-vs-accuracy  every build with its cost, score, place on the Pareto front, forecast of the whole cost, and its gain over the champion of then
forecasts         every forecast beside its outcome; calibration: how often they were right
spend             dollars by day (UTC, start of the charge), recipe and phase; of them wasted: attempts that failed or were killed
wasted            those attempts, dearest first
budget            this month's spending, by day, against every budget, with its projection at this pace
next              recipes that were forecast and not trained, against what is built: who is on the predicted Pareto front, dollars per point gained
published         published models (published_models.py)

A gain is only known between runs of one suite: the same tasks, shots, metrics and number of items. Missing is None, never 0.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs import budgets, calibration, published_models
from jobs.environment import Environment
from jobs.services import charges, report
from jobs.services.spent import LOST

Z95 = 1.959964
MOST_WASTED = 1000  # attempts listed; the sums hold all
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

COLUMNS: dict[str, tuple[str, ...]] = {
    "cost-vs-accuracy": (
        "run_id", "recipe", "suite", "status", "model_version", "finished_at", "tokens", "cost_usd", "wasted_usd", "cost_forecast_usd", "accuracy",
        "accuracy_stderr", "accuracy_forecast", "loss", "loss_forecast", "on_front", "champion_before", "gain_points", "gain_low", "gain_high", "usd_per_point",
    ),
    "forecasts": ("run_id", "recipe", "finished_at", "metric", "predicted", "low", "high", "naive", "outcome", "inside"),
    "calibration": (
        "metric", "n", "inside", "coverage", "coverage_low", "coverage_high", "bias", "error", "sharpness", "score", "beats_naive", "compared", "verdict",
        "chance_adjusted", "check_passed",
    ),
    "spend": ("day", "recipe", "phase", "usd", "wasted_usd"),
    "wasted": ("started", "stage", "recipe", "outcome", "usd", "error", "run_id"),
    "budget": ("recipe", "month", "day", "usd", "so_far_usd", "limit_usd", "projected_usd", "level"),
    "next": (
        "recipe", "run_id", "suite", "accuracy_forecast", "accuracy_low", "accuracy_high", "cost_usd", "cost_low", "cost_high", "gain_points", "gain_low",
        "gain_high", "usd_per_point", "on_front", "decision", "command",
    ),
    "published": (
        "name", "params_total", "params_active", "tokens", "flops", "cost_usd", "cost_low", "cost_high", "gauntlet", "mmlu", "source", "priced_by",
    ),
}  # fmt: skip


def figures(env: Environment, *, now: dt.datetime | None = None, records: report.Records | None = None) -> dict[str, Any]:
    """Every figure by name, each a list of rows with the columns of COLUMNS, and ``runs``: the builds of the report without their checks.

    ``records``: what was read already.
    """
    now = now or dt.datetime.now(dt.UTC)
    records = records or report.Records(env)
    runs = report.runs_of(records, checks=False)
    measured(records, runs)
    judged = calibration.of_runs(runs)
    tried = report.attempts_of(records.costs)
    return {
        "environment": env.name, "currency": env.prices.currency, "made_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"), "runs": runs,
        "total_usd": math.fsum(c["BilledCost"] for c in records.costs) if records.costs else None,
        "wasted_usd": math.fsum(a["BilledCost"] for a in tried if a["x_Outcome"] in LOST) if records.costs else None,
        "cost-vs-accuracy": [{k: run[k] for k in COLUMNS["cost-vs-accuracy"]} for run in runs],
        "forecasts": judged["forecasts"], "calibration": judged["metrics"], "spend": _spend(records.costs), "wasted": _wasted(tried),
        "budget": _budget(env, records.costs, now), "next": _next(records, runs), "published": published_models.priced(env),
    }  # fmt: skip


def measured(records: report.Records, runs: list[dict[str, Any]]) -> None:
    """Adds to each run what a decision needs: on_front, cost_forecast_usd (of the whole run), and gain over the champion before it, with its price."""
    for run in runs:
        run["cost_forecast_usd"] = _whole_cost(run, "predicted")
        run.update(_over_champion_before(records, run))
    by_version = {run["model_version"]: run for run in runs if run["model_version"] is not None}
    for run in runs:
        before = by_version.get(run["champion_before"])
        run.update(_gain(run, before) if before is not run else _gain(run, None))
    suites = defaultdict(list)
    for run in runs:
        suites[run["suite"]].append(run)
    front = {id(run) for alike in suites.values() for run in pareto_front(alike)}  # scores of two suites cannot be compared
    for run in runs:
        run["on_front"] = id(run) in front


def pareto_front(rows: Iterable[Mapping[str, Any]], score: str = "accuracy", cost: str = "cost_usd") -> list[Mapping[str, Any]]:
    """Rows that no other row beats on both cost and score, cheapest first; equals stay together. Rows without either are left out."""
    usable = sorted((r for r in rows if r[cost] is not None and r[score] is not None), key=lambda r: (r[cost], -r[score]))
    found: list[Mapping[str, Any]] = []
    for row in usable:
        if not found or row[score] > found[-1][score] or (row[score] == found[-1][score] and row[cost] == found[-1][cost]):
            found.append(row)
    return found


def _whole_cost(run: Mapping[str, Any], which: str) -> float | None:
    """What the whole run was forecast to cost: the forecast is of the training alone, the rest is what it was charged."""
    row = next((f for f in run["forecast"] if f["metric"] == "cost_usd"), None)
    if row is None or run["cost_usd"] is None or ("train" in run["run_keys"] and row["outcome"] is None):
        return None
    return float(run["cost_usd"] - (row["outcome"] or 0.0) + row[which])


def _over_champion_before(records: report.Records, run: Mapping[str, Any]) -> dict[str, Any]:
    """Which version was the champion when this run was registered, or finished where it was not."""
    own = records.registration_of.get(run["run_keys"].get("register"))
    at = own["registered_at"] if own else dt.datetime.fromisoformat(run["finished_at"])
    return {"champion_before": records.champion_at(at)}


def _gain(run: Mapping[str, Any], champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Points gained over ``champion`` with the sampling errors of both (95 %); dollars per point where something was gained."""
    nothing = dict.fromkeys(("gain_points", "gain_low", "gain_high", "usd_per_point"))
    if champion is None or run["accuracy"] is None or champion["accuracy"] is None or run["suite"] != champion["suite"]:
        return nothing
    gain = 100 * (run["accuracy"] - champion["accuracy"])
    half = 100 * Z95 * math.hypot(run["accuracy_stderr"] or 0.0, champion["accuracy_stderr"] or 0.0)
    per_point = run["cost_usd"] / gain if gain > 0 and run["cost_usd"] is not None else None
    return {"gain_points": gain, "gain_low": gain - half, "gain_high": gain + half, "usd_per_point": per_point}


def _spend(costs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    total: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for c in costs:
        found = total[c["ChargePeriodStart"].date().isoformat(), c["x_Recipe"], c["x_Phase"]]
        found[0] += c["BilledCost"]
        found[1] += c["BilledCost"] if c["x_Outcome"] in LOST else 0.0
    return [{"day": day, "recipe": recipe, "phase": phase, "usd": usd, "wasted_usd": lost} for (day, recipe, phase), (usd, lost) in sorted(total.items())]


def _wasted(tried: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lost = sorted((a for a in tried if a["x_Outcome"] in LOST), key=lambda a: (-a["BilledCost"], a["ChargePeriodStart"]))
    return [
        {
            "started": a["ChargePeriodStart"].strftime("%Y-%m-%dT%H:%M:%SZ"), "stage": a["x_Stage"], "recipe": a["x_Recipe"], "outcome": a["x_Outcome"],
            "usd": a["BilledCost"], "error": a["x_Error"], "run_id": a["x_DagRunId"] or a["x_RunId"],
        }
        for a in lost[:MOST_WASTED]
    ]  # fmt: skip


def _budget(env: Environment, costs: Sequence[Mapping[str, Any]], now: dt.datetime) -> list[dict[str, Any]]:
    """A row per budget (without any: one of everything, without limit) and day of this month with a charge."""
    start, end = charges.month_of(now.timestamp())
    spent = [c for c in costs if start <= c["ChargePeriodStart"] < end]
    kept = budgets.status(env, now=now, costs=costs)
    if not any(one["recipe"] is None for one in kept):
        elapsed = max(1.0, (now - start).total_seconds()) / (end - start).total_seconds()
        projected = math.fsum(c["BilledCost"] for c in spent) / elapsed
        kept.insert(0, {"recipe": None, "month": start.strftime("%Y-%m"), "limit_usd": None, "projected_usd": projected, "level": "no budget"})
    found = []
    for one in kept:
        by_day: dict[str, float] = defaultdict(float)
        for c in spent:
            if one["recipe"] is None or c["x_Recipe"] == one["recipe"]:
                by_day[c["ChargePeriodStart"].date().isoformat()] += c["BilledCost"]
        so_far = 0.0
        for day, usd in sorted(by_day.items()) or [(start.date().isoformat(), 0.0)]:
            so_far += usd
            kept_of = {k: one[k] for k in ("recipe", "month", "limit_usd", "projected_usd", "level")}
            found.append({**kept_of, "day": day, "usd": usd, "so_far_usd": so_far})
    return found


def _next(records: report.Records, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest forecast of every recipe that was not trained since; on the front of builds and forecasts first, then by dollars per point."""
    newest: dict[str, dict[str, Any]] = {}
    for run in runs:  # oldest first
        newest[run["recipe"]] = run
    champion = next((r for r in runs if records.champion is not None and r["model_version"] == records.champion), None)
    waiting = [_candidate(run, champion) for run in newest.values() if "train" not in run["run_keys"] and run["accuracy_forecast"] is not None]
    suite = champion["suite"] if champion else next((r["suite"] for r in reversed(runs) if r["suite"]), None)
    built = [{"cost_usd": r["cost_usd"], "accuracy_forecast": r["accuracy"]} for r in runs if r["suite"] == suite]
    front = {id(row) for row in pareto_front([*waiting, *built], score="accuracy_forecast")}
    for row in waiting:
        row["on_front"] = id(row) in front
    return sorted(waiting, key=lambda r: (not r["on_front"], r["usd_per_point"] is None, r["usd_per_point"] or 0.0, r["recipe"]))


def _candidate(run: Mapping[str, Any], champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """A forecast as a row of ``next``. Whether the champion answered the suite this one will be asked is not known before; its gain assumes it."""
    accuracy = next(f for f in run["forecast"] if f["metric"] == "accuracy")
    cost = {name: _whole_cost(run, which) for name, which in (("cost_usd", "predicted"), ("cost_low", "low"), ("cost_high", "high"))}
    gained: dict[str, Any] = dict.fromkeys(("gain_points", "gain_low", "gain_high", "usd_per_point"))
    if champion is not None and champion["accuracy"] is not None:
        noise = 100 * Z95 * (champion["accuracy_stderr"] or 0.0)
        gain, below, above = (100 * x for x in (
            accuracy["predicted"] - champion["accuracy"], accuracy["predicted"] - accuracy["low"], accuracy["high"] - accuracy["predicted"],
        ))  # fmt: skip
        gained = {"gain_points": gain, "gain_low": gain - math.hypot(below, noise), "gain_high": gain + math.hypot(above, noise)}
        gained["usd_per_point"] = cost["cost_usd"] / gain if gain > 0 and cost["cost_usd"] is not None else None
    return {
        "recipe": run["recipe"], "run_id": run["run_id"], "suite": champion and champion["suite"], "accuracy_forecast": accuracy["predicted"],
        "accuracy_low": accuracy["low"], "accuracy_high": accuracy["high"], **cost, **gained, "decision": accuracy["decision"],
        "command": f"moeline run --recipe {run['recipe']}" if _PLAIN.fullmatch(run["recipe"]) else None,
    }  # fmt: skip
