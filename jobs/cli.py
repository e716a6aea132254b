"""moeline: from raw text to a registered mixture-of-experts model, every step checked and priced.

Every command takes --json (the result on stdout, nothing else) and --debug (tracebacks). Errors say what was asked, what was found and
what to do; the exit status is 0 only when everything asked for was done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.terminal import say

_EXAMPLES = """examples:
  moeline up                                       start the local platform (PostgreSQL, Airflow, Spark, Ray, MLflow)
  moeline run --recipe tiny --days 3               the whole job through Airflow, with progress
  moeline backfill --from 2026-11-01 --to 2026-11-03
  moeline stage clean --recipe tiny --interval 2026-11-01
  moeline gauntlet fetch                           Foundry's evaluation data, verified, outside the repository
  moeline evaluate --model DIR --suite tasks.yaml --data DIR --out DIR
  moeline lm-eval --model moeline --model_args pretrained=DIR --tasks arc_easy
  moeline compare v1 champion                      paired, on the items both answered
  moeline propose champion --as-recipe more-docs   what to train on next, priced, as a recipe
  moeline forget DOC_ID                            delete a document everywhere; who trained on it
  moeline gc                                       what killed processes left behind goes
  moeline backup FOLDER                            all of it, while it runs; moeline restore brings it back
  moeline forecast fit --runs runs.csv --target 13B,5T
  moeline report --json                            runs by cost and accuracy
"""


def _up(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs.services import platform

    return platform.up(env, echo=say)


def _down(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs.services import platform

    return platform.down(env)


def _status(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs.services import ledger, platform

    ledger.reconcile(env)
    found = platform.status(env)
    if not arguments.json:
        print(platform.render_status(found))
    return found


def _run(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import launch

    return launch.run(
        env, arguments.recipe, arguments.days, echo=say, gauntlet_data=arguments.gauntlet_data, budget_usd=arguments.budget, over_budget=arguments.over_budget
    )


def _backfill(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import launch, recipes, stale

    if arguments.stale == bool(arguments.first or arguments.last) or bool(arguments.first) != bool(arguments.last):
        raise MoelineError("A backfill needs its days: --from DAY --to DAY, or --stale.")
    if arguments.stale:
        found = stale.stale_days(env, recipes.load(arguments.recipe, gauntlet_data=arguments.gauntlet_data, home=env.home))
        for day in found:
            say(f"{day.interval}: {day.why()}")
        days = [day.interval for day in found]
    else:
        days = launch.day_range(arguments.first, arguments.last)
    return launch.backfill(
        env, days, recipe=arguments.recipe, reprocess=arguments.reprocess or arguments.stale, echo=say, gauntlet_data=arguments.gauntlet_data
    )


def _stale(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import recipes, stale, unchecked

    recipe = recipes.load(arguments.recipe, gauntlet_data=arguments.gauntlet_data, home=env.home)
    found = stale.summary(env, recipe) | {"unchecked": unchecked.unchecked_days(env, recipe)}
    if not arguments.json:
        print(stale.render(found) + unchecked.render(found["unchecked"]), end="")
    return found


def _stage(arguments: argparse.Namespace, env: Any) -> Any:
    import dataclasses

    from jobs import recipes, run
    from jobs.inputs import parse_versions

    recipe = recipes.load(arguments.recipe, gauntlet_data=arguments.gauntlet_data, home=env.home)
    inputs = parse_versions(arguments.inputs)
    result = run.run_stage(env, arguments.name, recipe, interval=arguments.interval, inputs=inputs, gauntlet_data=arguments.gauntlet_data)
    if not arguments.json:
        outputs = ", ".join(result.outputs.values())
        spent = "reused, nothing spent" if result.reused else f"{result.wall_seconds:.1f} s, ${result.cost_usd:.4f}"
        print(f"{result.stage}: {outputs} ({spent})")
    return dataclasses.asdict(result)


def _report(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs.services import ledger, report

    ledger.reconcile(env)
    if arguments.html:
        from jobs import report_page

        written = report_page.write(env, arguments.html)
        if not arguments.json:
            print(f"{written['file']}: {written['runs']} runs on one page, opens in any browser, offline")
        return written
    if not arguments.json:
        print(report.render(env), end="")
    return report.summary(env)


def _statistics(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import statistics

    found = statistics.read(env, arguments.first, arguments.last, arguments.source)
    if not arguments.json:
        print(statistics.render(found), end="")
    return {"rows": found}


def _recipes(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import own_recipes

    found = own_recipes.listing(env.home)
    if not arguments.json:
        print(own_recipes.render(found), end="")
    return found


def _propose(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import proposals

    if arguments.as_recipe is None and not arguments.group and not arguments.only_nearest:
        found, text = proposals.describe(env, arguments.run), proposals.render
    else:
        found = proposals.propose(
            env, arguments.run, arguments.group, as_recipe=arguments.as_recipe, only_nearest=arguments.only_nearest, budget_usd=arguments.budget
        )
        text = proposals.render_proposed
    if not arguments.json:
        print(text(found), end="")
    return found


def _compare(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import compare, run_comparison

    found = compare.compare(env, arguments.model_a, arguments.model_b, by_text=arguments.by_text)
    found["runs"] = run_comparison.beside(env, found)
    if not arguments.json:
        print(compare.render(found) + (run_comparison.render(found["runs"]) if found["runs"] else ""), end="")
    return found


def _audit(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import audit

    found = audit.audit(arguments.responses, out=arguments.out, verdicts=arguments.verdicts, top=arguments.top)
    if not arguments.json:
        print(audit.render(found), end="")
    return found


def _explain(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import explain, recipes

    recipe = recipes.load(arguments.recipe, home=env.home) if arguments.recipe else None
    found = explain.explain(env, arguments.document, recipe=recipe)
    if not arguments.json:
        print(explain.render(found), end="")
    return found


def _forget(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import forget

    return forget.act(arguments, env, say)


def _order(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import order

    found = order.order(env, arguments.run, arguments.from_step, arguments.steps)
    if not arguments.json:
        print(order.render(found), end="")
    return found


def _sample_data(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import sample_data

    return sample_data.act(arguments, env, say)


def _evaluate(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs.evaluating import arguments as given

    return given.evaluate(arguments, env, echo=say)


def _lm_eval(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import lm_eval_command

    return lm_eval_command.run(arguments.rest, env.artifacts / "tokenizers", env.home)


def _leaf(commands: Any, name: str, action: Callable[[argparse.Namespace, Any], Any], about: str) -> argparse.ArgumentParser:
    """One command that does something, with the options all of them have."""
    found: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    found.set_defaults(action=action)
    found.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    found.add_argument("--debug", action="store_true", help="show tracebacks")
    found.add_argument("--env", help="environment in infra/env, or a .toml file (default: MOELINE_ENV or local)")
    found.add_argument("--home", help="folder of tables, landing zone, logs and state (default: MOELINE_HOME or .moeline in the checkout)")
    return found


def _forecast(arguments: argparse.Namespace, env: Any) -> Any:
    from jobs import forecast_command

    return forecast_command.act(arguments, env)


def _add_commands(commands: Any) -> None:
    def add(name: str, action: Callable[[argparse.Namespace, Any], Any], about: str) -> argparse.ArgumentParser:
        return _leaf(commands, name, action, about)

    def with_recipe(found: argparse.ArgumentParser) -> argparse.ArgumentParser:
        found.add_argument("--recipe", default="tiny", help="a recipe that `moeline recipes` lists (default: tiny)")
        found.add_argument("--gauntlet-data", help="folder with Foundry's task files and data to evaluate on as well (default: GAUNTLET_DATA)")
        return found

    add("up", _up, "Start the local platform (PostgreSQL, Airflow, Spark Connect, Ray, MLflow, checks) on loopback; harmless when it runs already.")
    add("down", _down, "Stop every service of the platform, and nothing else. Tables, models and history stay.")
    add("status", _status, "Health, address, log and restarts of every service.")
    run = with_recipe(add("run", _run, "The main job through Airflow: sample corpus, backfill of its days, one model build; with progress."))
    run.add_argument("--days", type=int, default=3, help="data days of sample corpus (default: 3)")
    run.add_argument("--budget", type=float, metavar="USD", help="replaces the recipe's budget")
    run.add_argument("--over-budget", choices=("stop", "ask"), help="replaces what the recipe does over its budget: stop, or ask a person in Airflow")
    fill = with_recipe(add("backfill", _backfill, "Prepare a range of data days through Airflow's own backfill, with progress."))
    fill.add_argument("--from", dest="first", metavar="DAY", help="first data day, YYYY-MM-DD")
    fill.add_argument("--to", dest="last", metavar="DAY", help="last data day, included")
    fill.add_argument("--stale", action="store_true", help="instead of a range: exactly the days `moeline stale` lists")
    fill.add_argument("--reprocess", action="store_true", help="also days that are done already (unchanged input is still not recomputed)")
    with_recipe(
        add("stale", _stale, "Days to do again: they held a forgotten document, dropped some for copies another day no longer keeps, or the rules changed.")
    )
    stage = with_recipe(add("stage", _stage, "Run one stage in this process, without Airflow (its own local engines if the platform is down)."))
    stage.add_argument("name", help="ingest, clean, deduplicate, decontaminate, pack, summarise, forecast, train, evaluate, review or register")
    stage.add_argument("--interval", help="data day YYYY-MM-DD (preparation stages)")
    stage.add_argument("--inputs", default="{}", help='exact table versions as JSON, e.g. {"documents": "documents@3"}; default: the newest recorded ones')
    add("recipes", _recipes, "The recipes there are: functions of jobs/recipes.py, and your own made by `moeline propose`.")
    told = add("report", _report, "Runs by cost and accuracy, forecast beside outcome, wasted money.")
    told.add_argument("--html", metavar="FILE", help="write the decision figures as one printable page that opens offline, instead")
    _add_corpus_commands(add)
    sample = add("sample-data", _sample_data, "Write the sample corpus (text of the installed Python distributions) into the landing zone.")
    sample.add_argument("--days", type=int, default=3, help="number of data days (default: 3)")
    sample.add_argument("--day", action="append", metavar="DAY", help="a data day by name, may be repeated; instead of --days")
    sample.add_argument("--megabytes", type=float, default=42.0, help="text over all days (default: 42)")
    _add_model_commands(add)
    about = "lm-evaluation-harness's own command line, with --model moeline --model_args pretrained=DIR: our scorer over any model folder."
    # All that follows belongs to lm_eval: with such a prefix nothing of it, --help included, looks like an option of ours.
    theirs = commands.add_parser("lm-eval", help=about, prefix_chars="\0", add_help=False)
    theirs.add_argument("rest", nargs=argparse.REMAINDER)
    theirs.set_defaults(action=_lm_eval, json=False, debug=False, env=None, home=None)
    _add_groups(commands)


def _add_corpus_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What is asked about the documents of the corpus."""
    from jobs import forget

    counted = add("statistics", _statistics, "What became of the documents of every day and source: funnel, rejections by rule, languages, lengths, tokens.")
    counted.add_argument("--from", dest="first", metavar="DAY", help="first data day, YYYY-MM-DD (default: the first there is)")
    counted.add_argument("--to", dest="last", metavar="DAY", help="last data day, included (default: the last there is)")
    counted.add_argument("--source", help="one source, by its landing folder (default: all)")
    story = add("explain", _explain, "The story of one document: where it landed, every rule it broke or what it is a copy of, the sequences that hold it.")
    story.add_argument("document", help="doc_id, its beginning, or a uri")
    story.add_argument("--recipe", help="the days as this recipe prepared them (default: as they were prepared last)")
    forget.add_to(add("forget", _forget, forget.ABOUT))
    reads = add("order", _order, "Which sequences a training reads, from any step: the order written before it started.")
    reads.add_argument("--run", required=True, metavar="RUN", help="run key of the training, or its beginning")
    reads.add_argument("--from-step", type=int, default=0, metavar="N", help="first step, from 0 (default: 0)")
    reads.add_argument("--steps", type=int, default=1, metavar="K", help="number of steps (default: 1)")


def _add_groups(commands: Any) -> None:
    """Commands declared where they are defined, and those that have actions of their own."""
    from jobs import backup_command, costs_command, gauntlet_data, gc_command, migrate_command, model_command, upgrade_command, users_command

    for module in (backup_command, gc_command, upgrade_command, migrate_command):
        module.add_to(commands, _leaf)
    for name, module, about in (
        ("gauntlet", gauntlet_data, "Foundry's evaluation data: fetch it, check it."), ("costs", costs_command, costs_command.ABOUT),
        ("model", model_command, model_command.ABOUT), ("users", users_command, users_command.ABOUT),
    ):  # fmt: skip
        group = commands.add_parser(name, help=about, description=about)
        module.add_to(group.add_subparsers(dest=f"{name}_action", required=True, metavar="ACTION"), _leaf)


def _add_model_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What is asked about models that exist, or could: forecast, evaluate, compare, propose, audit."""
    from jobs import forecast_command
    from jobs.evaluating import arguments as evaluation

    forecast_command.add_to(add("forecast", _forecast, forecast_command.ABOUT))
    evaluation.add_to(add("evaluate", _evaluate, evaluation.ABOUT))
    pair = add(
        "compare",
        _compare,
        "Paired comparison of two models on the items both answered: effects, intervals, tests, what the suite can see; of two runs, settings and costs too.",
    )
    for side in ("model_a", "model_b"):
        pair.add_argument(side, help="v3, 3, champion, a run id, a checkpoint's sha256, or a folder or .parquet written by `moeline evaluate`")
    pair.add_argument("--by-text", action="store_true", help="items are the same when prompt and choices read the same, whatever the tokenizer")
    more = add("propose", _propose, "What to train on next: every group of a run's failures with sources, tokens and a price; as a recipe with --as-recipe.")
    more.add_argument("run", metavar="RUN", help="a run id of `moeline report`, v3, 3, champion, or the first 6 or more characters of a training's run key")
    more.add_argument("--group", type=int, action="append", default=[], metavar="N", help="a failure group, may be repeated (default: all together)")
    more.add_argument("--as-recipe", metavar="NAME", help="write the proposal as the recipe NAME, for `moeline run --recipe NAME`")
    more.add_argument("--only-nearest", action="store_true", help="train on the named sources only: another corpus, which is prepared anew")
    more.add_argument("--budget", type=float, metavar="USD", help="the recipe's budget (default: that of the run's recipe)")
    check = add("audit", _audit, "Rank benchmark items by how likely their key is wrong, from several strong models' answers. Never relabels anything.")
    check.add_argument(
        "--responses", nargs="+", required=True, metavar="FILE", help=".csv or .parquet of answers (item_id, model, prediction, gold), or folders"
    )
    check.add_argument("--out", metavar="DIR", help="write a review sheet (CSV) there")
    check.add_argument("--verdicts", metavar="FILE", help="the review sheet with its column verdict filled in: scores with and without rejected items")
    check.add_argument("--top", type=int, default=200, help="items shown and put on the sheet (default: 200)")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(prog="moeline", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_commands(found.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return found


def _require_text(arguments: argparse.Namespace) -> None:
    """Raise MoelineError for a value that is no text: with a zero character no file can have it as its name, and undecodable bytes cannot be written down."""
    for name, given in vars(arguments).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str) and ("\0" in value or (not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value))):
                raise MoelineError(f"{name.replace('_', '-')} is no text: {ascii(value)[:100]} holds a zero character or bytes that are not UTF-8.")


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``moeline``; returns the exit status."""
    import os

    arguments = parser().parse_args(argv)
    try:
        from jobs.environment import Environment

        _require_text(arguments)
        if hasattr(arguments, "gauntlet_data"):
            data = arguments.gauntlet_data or os.environ.get("GAUNTLET_DATA") or None
            arguments.gauntlet_data = str(Path(data).resolve()) if data else None

        outcome = arguments.action(arguments, Environment.load(arguments.env, arguments.home))
    except MoelineError as problem:
        if arguments.debug:
            raise
        say(f"moeline {arguments.command}: {problem}")
        return 3 if type(problem).__name__ in ("CheckFailed", "BudgetExceeded") else 1
    except OSError as problem:  # a name too long, no folder there, no permission: whichever file it was
        if arguments.debug:
            raise
        about = f"{problem.strerror}: {str(problem.filename)[:300]}" if problem.filename is not None else problem
        say(f"moeline {arguments.command}: {about}. With --debug: where it happened.")
        return 1
    except KeyboardInterrupt:
        say(f"moeline {arguments.command}: interrupted")
        return 130
    if arguments.json:
        print(json.dumps(outcome, default=str, sort_keys=True))
    return int(outcome.get("exit_status", 0)) if isinstance(outcome, dict) else 0


if __name__ == "__main__":
    sys.exit(main())
