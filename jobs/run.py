"""python -m jobs.run STAGE --recipe tiny --interval 2026-11-01: run one stage, the only way anything is written.

Reads the inputs, runs the stage, checks its rows, publishes them, records the result and prices the attempt, so that a check or a
cost cannot be forgotten. Logs go to stderr; the last line of stdout is the StageResult as JSON (what Airflow's XCom carries).
Exit status: 0 done, 3 refused by a data check or a budget (a retry cannot help), 1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from jobs import budget, budgets, gate, recipes, stale
from jobs.config import PREPARE_STAGES, STAGES
from jobs.contract import BudgetExceeded, CheckFailed, MoelineError, StageResult, parse_day, run_key
from jobs.environment import Environment
from jobs.inputs import Inputs, parse_versions, resolve_inputs
from jobs.publishing import check_staged, publish_staged, stage_rows, turn
from jobs.services import configs, ledger, results, table_migrations, unfinished_home
from jobs.services.locks import locked
from jobs.terminal import say
from jobs.tools import StageTools, process_name

EXIT_REFUSED = 3


class Stopped(BaseException):
    """SIGTERM arrived: stop cleanly, write the cost row."""


def run_stage(
    env: Environment, stage: str, recipe: recipes.Recipe, *, interval: str | None = None, inputs: Mapping[str, str] | None = None,
    attempt: Mapping[str, Any] | None = None, gauntlet_data: str | None = None, raised_by: str | None = None, approved_by: str | None = None,
) -> StageResult:  # fmt: skip
    """Run one stage, or return its recorded result when the same work was done before.

    ``inputs`` maps table names to ``name@version``; what is missing is taken from the newest recorded results. ``attempt`` names the
    Airflow task (dag_id, dag_run_id, task_id, map_index, try_number). ``raised_by`` (forecast): who raised the budget and needs an approver's
    yes for it; ``approved_by`` (train): who said yes. Raises MoelineError and its kinds (CheckFailed, ...).
    """
    module = stage_module(stage)
    interval = _require_interval(stage, interval)
    config = recipe.stage_config(stage)
    unfinished_home.refuse(env)
    table_migrations.require_current(env, {**dict.fromkeys((*module.READS, *module.WRITES)), "checks": None, "costs": None})
    configs.keep(env, recipe.config_hash(stage), recipe.asked(stage))
    ledger.reconcile(env)
    resolved = resolve_inputs(env, stage, module, recipe, interval, inputs or {})
    key = run_key(stage, module.REVISION, config, resolved.identity, interval)
    if stage == "train" and approved_by:
        gate.approved(env, recipe, resolved.versions, approved_by)
    found = _recorded(env, recipe, stage, key)
    if found is None:
        with locked(env, f"run--{key}"):  # the same work asked for twice at once is done once
            found = _recorded(env, recipe, stage, key)
            if found is None:
                return _decided(env, recipe, raised_by, _compute(env, module, config, recipe, resolved, key, interval, attempt or {}, gauntlet_data))
    say(f"[{stage}] recorded before as {', '.join(found.outputs.values())}: nothing to compute, nothing to pay (run key {key})")
    if found.config_hash != recipe.config_hash(stage):  # recorded by a version that identified a corpus otherwise: readers look for this name
        results.record(env, found := replace(found, config_hash=recipe.config_hash(stage)))
    return _decided(env, recipe, raised_by, replace(found, reused=True))


def _decided(env: Environment, recipe: recipes.Recipe, raised_by: str | None, result: StageResult) -> StageResult:
    """A forecast with today's decision about it; any other result as it is."""
    return gate.decided(env, recipe, result, raised_by=raised_by) if result.stage == "forecast" else result


def _recorded(env: Environment, recipe: recipes.Recipe, stage: str, key: str) -> StageResult | None:
    """The recorded result of this work, if it still holds."""
    found = results.find(env, stage, key)
    if found is not None and stale.must_be_done_again(env, stage, found):
        say(f"[{stage}] {found.interval} is done again: it dropped documents for copies or benchmark items that another day no longer keeps")
        return None
    if found is not None and budget.may_go_on(env, recipe, found):
        say(f"[{stage}] goes on from step {found.metrics['steps']}: it ended there for a budget of ${found.metrics['budget_usd']:.4f}")
        return None
    return found


def _compute(
    env: Environment, module: ModuleType, config: Any, recipe: recipes.Recipe, resolved: Inputs, key: str, interval: str | None, attempt: Mapping[str, Any],
    gauntlet_data: str | None,
) -> StageResult:  # fmt: skip
    stage = module.__name__.rpartition(".")[2]
    budgets.refuse_if_spent(env, stage, recipe.name)
    running = ledger.Running(
        env, ledger.Attempt(stage, recipe.name, key, interval, env.stage_resources(stage), time.time(), **{k: v for k, v in attempt.items() if v is not None})
    )
    tools = StageTools(env, running, gauntlet_data=gauntlet_data, inputs_read=resolved.versions)
    outcome, error, metrics = "failed", None, {}
    try:
        if stage == "train":
            tools.spending = budget.of_training(env, recipe, key, resolved.versions)
        _warm_up_checks(env, module)
        output = module.run(config, resolved.open(env, module, tools), tools)
        metrics = dict(output.metrics)
        staged = stage_rows(env, module, output, tools, interval, key)
        with running.phase("checks"):
            metrics.update(check_staged(env, stage, staged, tools, key, interval, output))
        with turn(env, module):
            versions = publish_staged(
                env, module, staged, resolved, {"run_key": key, "code_revision": code_revision(), "stage": stage, "config": repr(config)[:4000]}
            )
            result = StageResult(
                stage=stage, run_key=key, recipe=recipe.name, interval=interval, inputs=resolved.versions, outputs={k: str(v) for k, v in versions.items()},
                metrics=metrics, config_hash=recipe.config_hash(stage), cost_usd=running.cost_so_far(),
                wall_seconds=time.time() - running.attempt.started_at, code_revision=code_revision(),
                finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )  # fmt: skip
            results.record(env, result)
        outcome = "succeeded"
        return result
    except (Stopped, KeyboardInterrupt):
        outcome, error = "killed", "stopped by a signal"
        raise
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}".splitlines()[0][:500]
        raise
    finally:
        running.close(
            outcome, error=error, tokens=metrics.get("tokens"), flops=metrics.get("flops"), mfu=metrics.get("mfu"),
            forecast_id=metrics.get("content_hash") or _forecast_id(env, stage, recipe, resolved),
        )  # fmt: skip
        tools.close()


def _forecast_id(env: Environment, stage: str, recipe: recipes.Recipe, resolved: Inputs) -> str | None:
    """Content hash of the forecast a training was decided on: the newest one of its recipe over the same sequences."""
    if stage != "train":
        return None
    made = [r for r in results.of_stage(env, "forecast") if r.recipe == recipe.name and r.inputs.get("sequences") == resolved.versions.get("sequences")]
    return made[-1].metrics.get("content_hash") if made else None


def stage_module(stage: str) -> ModuleType:
    """Load one stage (lazily: no process imports torch and pyspark unless it needs both)."""
    if stage not in STAGES:
        raise MoelineError(f"Unknown stage {stage!r}. The stages are {', '.join(STAGES)}.")
    return importlib.import_module(f"jobs.stages.{stage}")


def _require_interval(stage: str, interval: str | None) -> str | None:
    if stage in PREPARE_STAGES:
        if interval is None:
            raise MoelineError(f"Stage {stage} works on one data day and got none. Add --interval YYYY-MM-DD.")
        return parse_day(interval)
    return None


def _warm_up_checks(env: Environment, module: ModuleType) -> None:
    """Import Great Expectations (seconds) in the background while the stage waits for its engine, unless the platform's check server has."""
    if module.WRITES and not env.platform.get("check_socket"):
        threading.Thread(target=lambda: importlib.import_module("great_expectations"), daemon=True, name="import-checks").start()


def code_revision() -> str:
    """The commit this code is at (read from .git, no subprocess), or ``unknown`` outside a checkout."""
    root = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (root / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = root / head[5:]
        if reference.is_file():
            return reference.read_text().strip()
        packed = (root / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(head[5:])), "unknown")
    except OSError:
        return "unknown"


def plan(env: Environment, recipe: recipes.Recipe) -> dict[str, Any]:
    """What a model build would read now, and whether enough new tokens arrived since the recipe's last build.

    ``missing`` says in a sentence what no day has written yet, or is empty: a build by hand is refused with it, one by the asset waits.
    """
    configs = {stage: recipe.config_hash(stage) for stage in ("pack", "decontaminate")}
    days = {r.interval: r for r in results.of_stage(env, "pack") if r.config_hash == configs["pack"]}  # newest result per day
    tokens = sum(int(r.metrics.get("tokens", 0)) for r in days.values())
    built = results.newest(env, "train", recipe=recipe.name)
    before = int(built.metrics.get("corpus_tokens", 0)) if built else 0
    written = ("benchmark_items", "contamination", "contaminated_items", "training_documents")
    tables = {"sequences": "pack", **dict.fromkeys(written, "decontaminate")}
    versions = {table: results.newest_version(env, stage, table, configs[stage]) for table, stage in tables.items()}
    absent = [table for table, version in versions.items() if version is None]
    missing = (
        f"A model of recipe {recipe.name} needs {', '.join(absent)}, which no data day has written for it yet. "
        "Run prepare_corpus with this recipe for at least one day (moeline backfill)."
    )
    return {
        "missing": missing if absent else "",
        "enough": tokens - before >= recipe.min_new_tokens, "new_tokens": tokens - before, "min_new_tokens": recipe.min_new_tokens,
        "corpus_tokens": tokens, "days": sorted(d for d in days if d), "inputs": {table: str(version) for table, version in versions.items() if version},
    }  # fmt: skip


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise Stopped(signal_number)


def _stop_with_parent() -> None:
    """Ask Linux for a SIGTERM when the Airflow task process dies: killed outright, it cannot stop its stage, and the retry would find two."""
    if os.environ.get("MOELINE_ATTEMPT") and sys.platform == "linux":
        import ctypes

        parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGTERM)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m jobs.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("stage", help=f"one of {', '.join(STAGES)}, or plan (what a model build would read)")
    found.add_argument("--recipe", default="tiny", help=f"{', '.join(recipes.RECIPES)} or one of your own (default: tiny)")
    found.add_argument("--interval", help="data day YYYY-MM-DD; preparation stages need it")
    found.add_argument("--inputs", default="{}", help='exact table versions as JSON, e.g. {"documents": "documents@3"}; default: the newest recorded ones')
    found.add_argument("--budget-usd", type=float, help="replaces the recipe's budget")
    found.add_argument("--over-budget", choices=("stop", "ask"), help="replaces what the recipe does when the forecast is over the budget")
    found.add_argument("--asked-by", metavar="USER", help="who started this: more than the recipe's budget then needs an approver, or an approver's yes")
    found.add_argument("--approved-by", metavar="USER", help="who said that the training may go on; written down in the table checks")
    found.add_argument("--env", help="environment in infra/env (default: MOELINE_ENV or local)")
    found.add_argument("--debug", action="store_true", help="show tracebacks")
    return found


def _raised_by(env: Environment, recipe: recipes.Recipe, arguments: argparse.Namespace) -> str | None:
    """Who asked for more than the recipe's own budget without being an approver; None also where a person runs the stage by hand."""
    if arguments.asked_by is None or arguments.budget_usd is None or arguments.budget_usd <= recipe.budget_usd:
        return None
    from jobs.services import accounts  # with the platform's modules, which a stage does not need

    return None if accounts.may(env.home, arguments.asked_by, "approver") else arguments.asked_by or "somebody unknown"


def main(argv: list[str] | None = None) -> int:
    """Entry point of one task process; returns the exit status."""
    arguments = parser().parse_args(argv)
    process_name(arguments.stage)
    signal.signal(signal.SIGTERM, _stop)
    _stop_with_parent()
    try:
        env = Environment.load(arguments.env)
        data = os.environ.get("GAUNTLET_DATA") or None
        recipe = recipes.load(arguments.recipe, gauntlet_data=data, home=env.home)
        raised_by = _raised_by(env, recipe, arguments)
        if arguments.budget_usd is not None:
            recipe = replace(recipe, budget_usd=arguments.budget_usd)
        if arguments.over_budget is not None:
            recipe = replace(recipe, on_over_budget=arguments.over_budget)
        inputs = parse_versions(arguments.inputs)
        if arguments.stage == "plan":
            print(json.dumps(plan(env, recipe)))
            return 0
        attempt = json.loads(os.environ.get("MOELINE_ATTEMPT", "{}"))
        result = run_stage(
            env, arguments.stage, recipe, interval=arguments.interval, inputs=inputs, attempt=attempt, gauntlet_data=data, raised_by=raised_by,
            approved_by=arguments.approved_by,
        )  # fmt: skip
    except Stopped:
        say(f"[{arguments.stage}] stopped; nothing half-done is visible, the next try continues")
        return 143
    except (CheckFailed, BudgetExceeded) as refusal:
        say(f"[{arguments.stage}] refused: {refusal}")
        return EXIT_REFUSED
    except MoelineError as problem:
        if arguments.debug:
            raise
        say(f"[{arguments.stage}] {problem}")
        return 1
    shown = {k: v for k, v in result.metrics.items() if isinstance(v, (int, float, str, bool))}
    say(f"[{arguments.stage}] {'reused' if result.reused else f'done in {result.wall_seconds:.1f} s, ${result.cost_usd:.4f}'}: {shown}")
    sys.stdout.flush()
    print(result.to_json(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
