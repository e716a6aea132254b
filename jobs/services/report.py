"""The read side: every model build with its cost, accuracy, forecast and checks, from the tables alone (no Spark, no MLflow).

``moeline report`` prints it, the page in Airflow draws it. Missing stays missing (None): a cost or a score nobody measured is never 0.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, shared_costs
from jobs.services.kept import Kept
from jobs.services.spent import LOST, Spent, sum_by
from jobs.terminal import text_console

PREPARATION = ("ingest", "clean", "deduplicate", "decontaminate", "pack", "summarise")
BUILD = ("forecast", "train", "evaluate", "review", "register")
CHARGE = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ChargePeriodStart", "ChargePeriodEnd", "x_AttemptId", "x_RunKey", "x_Recipe", "x_Stage",
    "x_Phase", "x_DagRunId", "x_Outcome", "x_WallSeconds", "x_Cores", "x_MemoryGib", "x_Gpus", "x_EnergyKwh", "x_EnergyMethod", "x_InstanceType", "x_Error",
    "x_CorrectsId", "BillingCurrency",
)  # fmt: skip
SCORE = ("run_key", "benchmark", "category", "shots", "n", "metric", "accuracy", "stderr", "chance", "best_constant", "score", "n_contaminated")
FORECAST = ("run_key", "metric", "predicted", "low", "high", "naive", "decision", "content_hash")
SETTLED_NS = 2 * 10**9
_KEY_DIGITS = 6
_LOSS = {"predicted": "loss_forecast", "low": "loss_low", "high": "loss_high"}


@dataclass(frozen=True)
class Corpus:
    results: tuple[StageResult, ...]
    spent: Spent


class Records:
    """Everything the report reads, read once. ``kept``: what this process has read before."""

    def __init__(self, env: Environment, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self.by_stage: dict[str, list[StageResult]] = {stage: kept.of_stage(env, stage) for stage in (*PREPARATION, *BUILD)}
        self.by_output = {version: r for found in self.by_stage.values() for r in found for version in r.outputs.values()}
        self.env = env
        self.costs = kept.rows(env, "costs", CHARGE)
        self.costs_of = _grouped(self.costs, "x_RunKey")
        self.scores_of = _grouped(kept.rows(env, "scores", SCORE), "run_key")
        self.forecasts_of = _grouped(kept.rows(env, "forecasts", FORECAST), "run_key")
        self.registrations = sorted(kept.rows(env, "registrations"), key=lambda r: r["registered_at"])
        self.promotions = [r for r in self.registrations if r["promoted"]]
        self.champion = self.promotions[-1]["model_version"] if self.promotions else None
        self.registration_of = {r["run_key"]: r for r in reversed(self.registrations)}
        # Found by what they read: with thousands of builds a scan of all results for each of them would take minutes.
        self.forecasts_by = _grouped_by(self.by_stage["forecast"], lambda r: (r.recipe, r.inputs.get("sequences")))
        self.last_reader = {(stage, v): r for stage in BUILD for r in self.by_stage[stage] for v in r.inputs.values()}
        self._corpora: dict[str | None, Corpus] = {}

    @functools.cached_property
    def checks_of(self) -> dict[Any, list[Any]]:
        """Every check by run key: most rows of all tables, so read when first asked for."""
        return _grouped(delta.rows(self.env, "checks"), "run_key")

    def champion_at(self, at: dt.datetime) -> str | None:
        """The version that was the champion just before ``at``."""
        place = bisect.bisect_left(self.promotions, at, key=lambda r: r["registered_at"])
        return self.promotions[place - 1]["model_version"] if place else None

    def corpus(self, sequences: str | None) -> Corpus:
        """Every preparation result behind a version of ``sequences``, the newest of each day, followed back; and what they cost."""
        if sequences not in self._corpora:
            found = self._followed(sequences)
            self._corpora[sequences] = Corpus(tuple(found), Spent.of(c for r in found for c in self.costs_of[r.run_key]))
        return self._corpora[sequences]

    def _followed(self, sequences: str | None) -> list[StageResult]:
        if sequences is None:
            return []
        limit = TableVersion.parse(sequences)
        writer = self.by_output.get(sequences)
        days: dict[str | None, StageResult] = {}
        for packed in self.by_stage["pack"]:
            if writer is not None and packed.config_hash == writer.config_hash and packed.table("sequences") <= limit:
                days[packed.interval] = packed
        found: dict[str, StageResult] = {}
        waiting = list(days.values())
        while waiting:
            result = waiting.pop()
            if result.run_key in found:
                continue
            found[result.run_key] = result
            # only this day's own inputs: other days' rows (deduplication) are those days' cost
            parents = (self.by_output.get(v) for v in result.inputs.values())
            waiting += [p for p in parents if p is not None and p.interval == result.interval]
        packed_as = {r.table("sequences") for r in days.values()}  # what was written about them belongs to the corpus as well
        about = [r for r in self.by_stage["summarise"] if "sequences" in r.inputs and TableVersion.parse(r.inputs["sequences"]) in packed_as]
        return [*found.values(), *about]


def _grouped_by(found: Iterable[StageResult], key: Callable[[StageResult], Any]) -> dict[Any, list[StageResult]]:
    grouped = defaultdict(list)
    for result in found:
        grouped[key(result)].append(result)
    return grouped


def _grouped(rows: Iterable[Mapping[str, Any]], key: str) -> dict[Any, list[Any]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row[key]].append(row)
    return grouped


def runs(env: Environment) -> list[dict[str, Any]]:
    """One dict per model build, oldest first (the fields of ``moeline report --json``, plus details for the page)."""
    return runs_of(Records(env))


def runs_of(records: Records, *, checks: bool = True) -> list[dict[str, Any]]:
    """As ``runs``, of what was read already. Without ``checks``, which are most of it: each check of a corpus stands in all its builds."""
    builds = [_build(records, trained) for trained in records.by_stage["train"]]
    known = {stages["forecast"].run_key for stages in builds if "forecast" in stages}
    builds += [{"forecast": r} for r in records.by_stage["forecast"] if r.run_key not in known]  # stopped before training
    described = [_describe(records, stages, checks=checks) for stages in builds]
    return sorted(described, key=lambda run: run["finished_at"])


def one(records: Records, key: str) -> dict[str, Any] | None:
    """The build of the training (or, where there is none, the forecast) with this run key, or None; with its checks and its training's run in MLflow."""
    trained = next((r for r in records.by_stage["train"] if r.run_key == key), None)
    stopped = next((r for r in records.by_stage["forecast"] if r.run_key == key), None)
    stages = _build(records, trained) if trained else {"forecast": stopped} if stopped else None
    if stages is None:
        return None
    run = _describe(records, stages, checks=False)
    behind = [*records.corpus(next(iter(stages.values())).inputs.get("sequences")).results, *stages.values()]
    keys = [r.run_key for r in behind]
    rows = _grouped(delta.rows(records.env, "checks", where=_is_in("run_key", keys)), "run_key")  # of this build alone
    logged = delta.rows(records.env, "checkpoints", columns=("mlflow_run_id",), where_in=[key])
    return {**run, "checks": [_check(row) for key in keys for row in rows[key]], "mlflow_run_id": logged[-1]["mlflow_run_id"] if logged else None}


def _is_in(column: str, values: list[str]) -> Any:
    import pyarrow.compute as pc

    return pc.field(column).isin(values)


def state(env: Environment) -> tuple[Any, ...] | None:
    """What changes when anything a report is made of does: newest entries of its tables and results, the price sheet, the hour. None: changing now."""
    places = [env.warehouse / "_results" / stage for stage in (*PREPARATION, *BUILD)]
    tables = ("costs", "checks", "scores", "forecasts", "registrations")
    places += [env.warehouse / table / "_delta_log" for table in tables if env.tables is None]
    versions = tuple(str(delta.latest(env, table)) for table in tables if env.tables is not None)  # a store knows no time of a folder
    changed = tuple(
        place.stat().st_mtime_ns if place.is_dir() else 0 for place in places
    )  # a file put into a folder, or renamed over another, changes its time
    now = time.time_ns()
    if max(changed) > now - SETTLED_NS:
        return None  # folder times are coarse: another change may get the same one
    return (str(env.home), env.name, hash(repr((env.prices, env.resources, env.budgets))), now // (3600 * 10**9), changed, versions)


def named(records: Records, name: str) -> dict[str, Any]:
    """The newest model build called ``name``: its run id, model version (v3, 3, champion) or the first 6 or more characters of its training's run key.

    Raises MoelineError when there is none, or more than one key begins so.
    """
    found = list(reversed(runs_of(records, checks=False)))
    version = records.champion if name == "champion" else name.removeprefix("v")
    exact = [run for run in found if run["run_id"] == name or (run["model_version"] is not None and run["model_version"] == version)]
    if exact:
        return exact[0]
    begun = [run for run in found if len(name) >= _KEY_DIGITS and run["run_keys"].get("train", "").startswith(name)]
    if len(begun) == 1:
        return begun[0]
    what = f"the run keys of {len(begun)} trainings begin so" if begun else f"there are {len(found)} others" if found else "nothing has been built yet"
    raise MoelineError(
        f"No run is called {name!r}: {what}. A run is a run id of `moeline report`, a registered version (v3, 3 or champion) or the first "
        f"{_KEY_DIGITS} or more characters of a training's run key."
    )


def _build(records: Records, trained: StageResult) -> dict[str, StageResult]:
    """The results of one build by stage, joined by the versions they read."""
    stages = {"train": trained}
    sequences = trained.inputs.get("sequences")
    # The one the training was decided on: another budget or suite asks for another forecast later, which predicts nothing any more.
    began = _ended_at(trained) - trained.wall_seconds + 1.0  # ends are recorded in whole seconds
    forecasts = [r for r in records.forecasts_by[trained.recipe, sequences] if _ended_at(r) <= began]
    if forecasts:
        stages["forecast"] = forecasts[-1]
    for stage, table, parent in (("evaluate", "checkpoints", "train"), ("review", "responses", "evaluate"), ("register", "checkpoints", "train")):
        if parent in stages and table in stages[parent].outputs:
            child = records.last_reader.get((stage, stages[parent].outputs[table]))
            if child is not None:
                stages[stage] = child
    return stages


def _ended_at(result: StageResult) -> float:
    return dt.datetime.fromisoformat(result.finished_at).timestamp()


def _describe(records: Records, stages: Mapping[str, StageResult], *, checks: bool) -> dict[str, Any]:
    anchor = stages.get("train") or stages["forecast"]
    corpus = records.corpus(anchor.inputs.get("sequences"))
    own = list(stages.values())
    spent = corpus.spent + Spent.of(c for r in own for c in records.costs_of[r.run_key])
    behind = (*corpus.results, *own)
    trained = stages["train"].metrics if "train" in stages else {}
    run: dict[str, Any] = {
        "run_id": _run_id(records, anchor), "key": anchor.run_key, "recipe": anchor.recipe, "status": _status(stages),
        "finished_at": max(r.finished_at for r in own),
        "params_total": trained.get("params_total"), "params_active": trained.get("params_active"), "tokens": trained.get("tokens"),
        "cost_usd": spent.cost, "cost_by_phase": spent.by_phase, "cost_by_stage": spent.by_stage, "wasted_by_stage": spent.wasted_by_stage,
        "wasted_usd": spent.wasted, "energy_kwh": spent.energy, "wall_seconds": sum(r.wall_seconds for r in own),
        "loss": trained.get("held_out_loss"), "unigram_loss": trained.get("unigram_loss"),
        "checks_passed": sum(int(r.metrics.get("checks_passed", 0)) for r in behind),
        "checks_failed": sum(int(r.metrics.get("checks_failed", 0)) for r in behind),
        "days": sorted({r.interval for r in corpus.results if r.interval}), "run_keys": {stage: r.run_key for stage, r in stages.items()},
    }  # fmt: skip
    run.update(_forecast(records, stages.get("forecast")))
    run.update(_scores(records, stages.get("evaluate")))
    run.update(_registration(records, stages.get("register")))
    trained_in = stages.get("train")
    reached = {
        "loss": run["loss"], "accuracy": run["accuracy"],
        "cost_usd": trained_in and trained_in.cost_usd, "wall_seconds": trained_in and trained_in.wall_seconds,
    }  # fmt: skip
    if trained.get("ended_early"):  # another training than the one that was forecast
        reached = {}
    run["forecast"] = [{**row, "outcome": reached.get(row["metric"])} for row in run["forecast"]]
    if checks:
        run["checks"] = [_check(row) for r in behind for row in records.checks_of.get(r.run_key, ())]
    return run


def _run_id(records: Records, anchor: StageResult) -> str:
    named = [c["x_DagRunId"] for c in records.costs_of[anchor.run_key] if c["x_DagRunId"]]
    return named[-1] if named else f"by-hand-{anchor.run_key[:8]}"


def _status(stages: Mapping[str, StageResult]) -> str:
    for stage, word in (("register", "registered"), ("evaluate", "evaluated"), ("train", "trained")):
        if stage in stages:
            return word
    return f"forecast: {stages['forecast'].metrics.get('decision', 'made')}"


def _forecast(records: Records, result: StageResult | None) -> dict[str, Any]:
    rows = records.forecasts_of[result.run_key] if result else []
    shown = [{k: row[k] for k in ("metric", "predicted", "low", "high", "naive", "decision")} for row in rows]
    by_metric = {row["metric"]: row for row in rows}
    loss, accuracy, cost = (by_metric.get(m, {}) for m in ("loss", "accuracy", "cost_usd"))
    return {
        **{ours: loss.get(theirs) for theirs, ours in _LOSS.items()}, "accuracy_forecast": accuracy.get("predicted"), "cost_forecast": cost.get("predicted"),
        "forecast": shown, "forecast_id": rows[0]["content_hash"] if rows else None,
    }  # fmt: skip


def _scores(records: Records, result: StageResult | None) -> dict[str, Any]:
    rows = records.scores_of[result.run_key] if result else []
    overall = next((r for r in rows if r["benchmark"] == "**"), {})
    asked = sorted((r["benchmark"], r["shots"], r["metric"], r["n"]) for r in rows if not r["benchmark"].startswith("*"))
    fields = ("benchmark", "category", "n", "accuracy", "stderr", "chance", "best_constant", "score", "n_contaminated")
    return {
        "accuracy": overall.get("accuracy"), "accuracy_stderr": overall.get("stderr"),
        # scores of two runs can be compared where both answered the same: tasks, shots, metrics and number of items
        "suite": f"{len(asked)} tasks, {hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:6]}" if asked else None,
        "scores": [{k: r[k] for k in fields} for r in rows if not r["benchmark"].startswith("*")],
        "scores_by_category": [{k: r[k] for k in fields} for r in rows if r["benchmark"] == "*"],
    }  # fmt: skip


def _registration(records: Records, result: StageResult | None) -> dict[str, Any]:
    row = records.registration_of.get(result.run_key) if result else None
    if row is None:
        return {"registered": False, "model_name": None, "model_version": None, "aliases": [], "gates": []}
    held = [a for a in row["aliases"] if a != "champion" or row["model_version"] == records.champion]  # a later champion took the alias
    return {
        "registered": True, "model_name": row["model_name"], "model_version": row["model_version"], "aliases": held, "gates": json.loads(row["gates"]),
    }  # fmt: skip


def _check(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("stage", "interval", "table_name", "rule", "severity", "observed", "passed", "failed_rows", "where_rejected")
    return {k: row[k] for k in fields}


def attempts(env: Environment) -> list[dict[str, Any]]:
    """Every attempt, newest first, failed and killed ones too: its charges of all phases added up, corrections included."""
    return sorted(attempts_of(delta.rows(env, "costs")), key=lambda c: c["ChargePeriodStart"], reverse=True)


def attempts_of(charges: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The attempts behind these rows of the ledger, as in ``attempts``, in no order."""
    found = []
    for rows in _grouped((c for c in charges if c["x_Phase"] not in shared_costs.SHARED), "x_AttemptId").values():
        first = next((r for r in rows if r["x_Phase"] != "checks" and not r["x_CorrectsId"]), rows[0])
        added = {name: sum(r[name] for r in rows) for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "x_WallSeconds", "x_EnergyKwh")}
        ends = {"ChargePeriodStart": min(r["ChargePeriodStart"] for r in rows), "ChargePeriodEnd": max(r["ChargePeriodEnd"] for r in rows)}
        found.append({**first, **added, **ends, "cost_by_phase": sum_by(rows, "x_Phase")})
    return found


def of_dag_run(env: Environment, dag_run_id: str) -> dict[str, Any]:
    """Charges (by stage) and checks of one Airflow run; both empty when it reused everything or is unknown."""
    charges = [c for c in delta.rows(env, "costs") if c["x_DagRunId"] == dag_run_id]
    attempted = {c["x_AttemptId"] for c in charges}
    return {
        "cost_by_stage": sum_by(charges, "x_Stage"), "cost_usd": sum(c["BilledCost"] for c in charges) if charges else None,
        "checks": [_check(row) for row in delta.rows(env, "checks") if row["attempt_id"] in attempted],
    }  # fmt: skip


SUMMARY = (
    "run_id", "recipe", "status", "model_version", "params_total", "params_active", "tokens", "cost_usd", "cost_by_phase", "wasted_usd", "wall_seconds",
    "loss", "loss_forecast", "loss_low", "loss_high", "accuracy", "accuracy_stderr", "accuracy_forecast", "checks_passed", "checks_failed", "registered",
    "aliases",
)  # fmt: skip


def summary(env: Environment) -> dict[str, Any]:
    """What ``moeline report --json`` prints: the runs, and what all attempts together cost and wasted."""
    records = Records(env)
    found = [{k: run[k] for k in SUMMARY} for run in runs_of(records, checks=False)]
    tried = attempts_of(records.costs)
    wasted = [a for a in tried if a["x_Outcome"] in LOST]
    return {
        "runs": found, "total_usd": sum(c["BilledCost"] for c in records.costs), "wasted_usd": sum(a["BilledCost"] for a in wasted), "attempts": len(tried),
        "failed_attempts": len(wasted), "cost_by_phase": sum_by(records.costs, "x_Phase"), "energy_kwh": sum(c["x_EnergyKwh"] for c in records.costs),
    }  # fmt: skip


def render(env: Environment) -> str:
    """The report as text for a terminal."""
    from rich.table import Table

    found = summary(env)
    console = text_console()
    table = Table(title="Runs: cost against accuracy", title_justify="left")
    for heading in ("run", "recipe", "model", "tokens", "cost $", "wasted $", "loss (forecast)", "accuracy", "checks", "alias"):
        table.add_column(heading, justify="left" if heading in ("run", "recipe", "alias") else "right")
    for run in found["runs"]:
        table.add_row(*_cells(run))
    console.print(table)
    phases = ", ".join(f"{phase} ${usd:.4f}" for phase, usd in sorted(found["cost_by_phase"].items()))
    console.print(
        f"All {found['attempts']} attempts: ${found['total_usd']:.4f} ({phases or 'nothing spent yet'}); "
        f"wasted ${found['wasted_usd']:.4f} in {found['failed_attempts']} failed ones; about {found['energy_kwh']:.4f} kWh (estimated)."
    )
    return console.export_text()


def _cells(run: Mapping[str, Any]) -> list[str]:
    def number(value: Any, form: str) -> str:
        return "missing" if value is None else format(value, form)

    forecast = "" if run["loss_forecast"] is None else f" ({run['loss_forecast']:.3f}, {run['loss_low']:.3f} to {run['loss_high']:.3f})"
    error = "" if run["accuracy_stderr"] is None else f" ± {run['accuracy_stderr']:.3f}"
    version = "none" if run["model_version"] is None else f"v{run['model_version']}"
    return [
        run["run_id"], run["recipe"], version, number(run["tokens"], ",d"), number(run["cost_usd"], ".4f"), number(run["wasted_usd"], ".4f"),
        number(run["loss"], ".3f") + forecast, number(run["accuracy"], ".3f") + error, f"{run['checks_passed']} ok, {run['checks_failed']} not",
        ", ".join(run["aliases"]) or run["status"],
    ]  # fmt: skip
