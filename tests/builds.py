"""Model builds written into real tables through the ledger and the results store, without training anything."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.config import Recipe
from jobs.contract import StageResult
from jobs.environment import Environment, Resources
from jobs.services import configs, delta, ledger, results

STAGES = ("forecast", "train", "evaluate", "review", "register")
OUTPUT = {"forecast": "forecasts", "train": "checkpoints", "evaluate": "scores", "review": "verdicts", "register": "registrations"}
CATEGORIES = ("language", "code", "symbolic")


@dataclass(frozen=True)
class Build:
    """What one build reached. ``core_hours`` is what its training cost; ``wasted_hours`` what a killed try before it cost."""

    number: int
    accuracy: float
    loss: float | None
    core_hours: float
    wasted_hours: float = 0.0
    recipe: str = "tiny"
    dag_run_id: str = ""
    category: str = "language"
    failed_rule: str = ""
    promoted: bool = False
    day: float | None = None  # after 1 November 2026; None: its number

    def key(self, stage: str) -> str:
        return f"{stage}-{self.number:04d}".ljust(32, "0")


Append = Callable[[Environment, str, list[dict[str, Any]]], None]
Record = Callable[[Environment, StageResult], None]


def write(env: Environment, build: Build, *, append: Append = delta.append, record: Record = results.record) -> None:
    """Record ``build`` as if its stages had run: results, charges, forecast, scores, checks, registration. ``append``, ``record``: to write many at once."""
    sequences = f"sequences@{build.number}"
    finished = dt.datetime(2026, 11, 1, tzinfo=dt.UTC) + dt.timedelta(days=build.number if build.day is None else build.day)
    run_id = build.dag_run_id or f"manual__{finished.isoformat()}"
    for stage in STAGES:
        reads = {"forecast": {"sequences": sequences}, "train": {"sequences": sequences}, "evaluate": {"checkpoints": f"checkpoints@{build.number}"}}
        reads |= {"review": {"responses": f"responses@{build.number}"}, "register": reads["evaluate"]}
        writes = {OUTPUT[stage]: f"{OUTPUT[stage]}@{build.number}", **({"responses": f"responses@{build.number}"} if stage == "evaluate" else {})}
        metrics = {"checks_passed": 3, "checks_failed": 1 if build.failed_rule and stage == "train" else 0}
        if stage == "train":
            metrics |= {"held_out_loss": build.loss, "unigram_loss": 7.5, "tokens": 1_200_000, "params_total": 2_300_000, "params_active": 1_100_000}
        cost = _charge(env, build, stage, finished, run_id, append)
        ended = finished - dt.timedelta(minutes=10) if stage == "forecast" else finished
        record(
            env,
            StageResult(
                stage=stage, run_key=build.key(stage), recipe=build.recipe, interval=None, inputs=reads[stage], outputs=writes, metrics=metrics,
                cost_usd=cost, wall_seconds=100.0, finished_at=ended.strftime("%Y-%m-%dT%H:%M:%SZ"),
            ),
        )  # fmt: skip
    _forecast(env, build, append)
    _scores(env, build, append)
    _checks(env, build, finished, append)
    _registration(env, build, finished, append)


def forecast_only(env: Environment, build: Build) -> None:
    """Record that ``build`` was forecast and not trained."""
    finished = dt.datetime(2026, 11, 1, tzinfo=dt.UTC) + dt.timedelta(days=build.number)
    cost = _charge(env, build, "forecast", finished, build.dag_run_id or f"manual__{finished.isoformat()}")
    results.record(
        env,
        StageResult(
            stage="forecast", run_key=build.key("forecast"), recipe=build.recipe, interval=None, inputs={"sequences": f"sequences@{build.number}"},
            outputs={"forecasts": f"forecasts@{build.number}"}, metrics={"decision": "go"}, cost_usd=cost, wall_seconds=100.0,
            finished_at=finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ),
    )  # fmt: skip
    _forecast(env, build)


def _charge(env: Environment, build: Build, stage: str, finished: dt.datetime, run_id: str, append: Append = delta.append) -> float:
    hours = {"train": build.core_hours, "forecast": build.core_hours * 0.3}.get(stage, build.core_hours * 0.05)
    tries = [("succeeded", hours)] if stage != "train" or not build.wasted_hours else [("killed", build.wasted_hours), ("succeeded", hours)]
    end = finished.timestamp()
    for number, (outcome, spent) in enumerate(tries, 1):
        attempt = ledger.Attempt(
            stage, build.recipe, build.key(stage), None, Resources(cores=1.0, memory_gib=0.0), end - 3600 * spent, dag_id="build_model", dag_run_id=run_id,
            task_id=stage, try_number=number, attempt_id=f"{build.number}-{stage}-{number}",
        )  # fmt: skip
        row = ledger.charge_row(env, attempt, end, outcome)
        append(env, "costs", [row])
    return float(row["BilledCost"])


def _forecast(env: Environment, build: Build, append: Append = delta.append) -> None:
    reached = {"loss": build.loss, "accuracy": build.accuracy, "cost_usd": build.core_hours * env.prices.core_hour, "wall_seconds": 100.0}
    said = {  # the accuracy of every build is missed, the rest is met
        metric: (value * 1.1, value * (1.05 if metric == "accuracy" else 0.9), value * 1.3, value * 1.2)
        for metric, value in reached.items()
        if value is not None
    }
    append(env, "forecasts", [{"run_key": build.key("forecast"), **row} for row in forecast_rows(said, "0" * 64)])


def forecast_rows(said: Mapping[str, tuple[float | None, ...]], content_hash: str) -> list[dict[str, Any]]:
    """Rows of ``forecasts``, but for their run key: (predicted, low, high, naive) by metric."""
    common = {"target": "{}", "law": "{}", "proxies": "[]", "decision": "go", "registered_at": dt.datetime(2026, 11, 1, tzinfo=dt.UTC)}
    return [
        {"metric": m, "predicted": p, "low": low, "high": high, "naive": naive, **common, "content_hash": content_hash}
        for m, (p, low, high, naive) in said.items()
    ]


def _scores(env: Environment, build: Build, append: Append) -> None:
    common = {"run_key": build.key("evaluate"), "model": "0" * 16, "shots": 0, "metric": "accuracy", "stderr": 0.02, "chance": 0.25, "best_constant": 0.27,
              "n_contaminated": 0, "n": 400}  # fmt: skip
    named = [("**", "average", build.accuracy)]
    named += [("*", name, build.accuracy + 0.05 * i) for i, name in enumerate((build.category, *CATEGORIES[1:]))]
    named += [(f"task {i}", name, build.accuracy + 0.05 * i) for i, name in enumerate((build.category, *CATEGORIES[1:]))]
    rows = [{**common, "benchmark": b, "category": c, "accuracy": a, "score": (a - 0.27) / 0.73} for b, c, a in named]
    append(env, "scores", rows)


def _checks(env: Environment, build: Build, when: dt.datetime, append: Append) -> None:
    base = {"checked_at": when, "run_key": build.key("train"), "stage": "train", "attempt_id": f"{build.number}-train-1", "table_name": "checkpoints",
            "table_version": build.number, "severity": "error", "observed": "{}", "failed_rows": 0}  # fmt: skip
    rows = [{**base, "rule": f"ExpectColumnValuesToNotBeNull({column})", "passed": True} for column in ("uri", "sha256", "step")]
    if build.failed_rule:
        broken = {
            "passed": False,
            "failed_rows": 12,
            "observed": json.dumps({"observed": build.failed_rule}),
            "where_rejected": f"_rejected/{build.failed_rule}",
        }
        rows.append({**base, "rule": build.failed_rule, **broken})
    append(env, "checks", rows)


def _registration(env: Environment, build: Build, when: dt.datetime, append: Append) -> None:
    gates = [{"gate": f"{build.category}: accuracy above both baselines", "observed": build.accuracy, "limit": 0.27, "passed": build.accuracy > 0.27}]
    row = {"run_key": build.key("register"), "model_name": "moeline", "model_version": str(build.number), "aliases": ["champion"] if build.promoted else [],
           "promoted": build.promoted, "gates": json.dumps(gates), "moved_by": "gates", "lineage": "{}", "registered_at": when}  # fmt: skip
    append(env, "registrations", [row])


def hostile(text: str, number: int) -> Build:
    """A build whose every name is ``text``."""
    return dataclasses.replace(Build(number, 0.4, 4.0, 1.0), recipe=text, dag_run_id=text, category=text, failed_rule=text)


def asked(env: Environment, build: Build, recipe: Recipe) -> None:
    """Say that ``build`` was asked for what ``recipe`` asks: its settings are kept as a stage keeps them."""
    for stage in STAGES:
        configs.keep(env, recipe.config_hash(stage), recipe.asked(stage))
        results.record(env, dataclasses.replace(results.find(env, stage, build.key(stage)), config_hash=recipe.config_hash(stage)))


def answered(env: Environment, build: Build, right: Sequence[bool], name: str = "") -> None:
    """Store which items ``build`` had right, over two categories of two tasks each; ``name``: what the first category is called."""
    key = build.key("evaluate")
    rows = [response(key, i, bool(correct)) for i, correct in enumerate(right)]
    delta.append(env, "responses", [{**row, "category": name} if name and row["category"] == "c0" else row for row in rows])
    found = results.find(env, "evaluate", key)
    results.record(env, dataclasses.replace(found, outputs={**found.outputs, "responses": str(delta.latest(env, "responses"))}))


def response(run_key: str, i: int, correct: bool, prompt: str = "h") -> dict[str, Any]:
    """The answer to item ``i``: of four tasks in two categories, in turns."""
    return {
        "run_key": run_key, "benchmark": f"t{i % 4}", "category": f"c{i % 2}", "item_id": f"i{i}", "kind": "multiple_choice", "prompt_hash": f"{prompt}{i}",
        "n_prompt_tokens": 3, "choices": ["A", "B"], "sum_logprobs": [-1.0, -2.0], "mean_logprobs": [-1.0, -2.0], "output": "A", "prediction": 0,
        "gold": 0 if correct else 1, "correct": correct, "truncated": False, "weights_digest": "w", "item": json.dumps({"doc_id": None, "contaminated": False}),
    }  # fmt: skip
