"""``moeline costs ...``: the ledger exported, reconciled, corrected, held against budgets, and priced elsewhere.

Change here: options and what is printed. Not here: the export (jobs/focus.py), reconciling (services/reconciling.py), idle time and storage
(services/shared_costs.py), what-if (jobs/whatif.py), budgets (jobs/budgets.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.price_sheet import PURCHASES

ABOUT = "The ledger of costs: export it as FOCUS 1.3, compare it with what Airflow and Ray recorded, correct it, hold it against budgets, price it elsewhere."


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """The actions of ``moeline costs``."""
    export = leaf(actions, "export", _export, "Write the ledger as a FOCUS 1.3 dataset; refused, with the rule, when a row breaks the specification.")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="default: csv")
    export.add_argument("--out", required=True, metavar="FILE", help="file to write")
    export.add_argument("--from", dest="first", metavar="DAY", help="first day on which a charge began, YYYY-MM-DD, UTC (default: the first there is)")
    export.add_argument("--to", dest="last", metavar="DAY", help="last such day, included (default: the last there is)")
    leaf(actions, "reconcile", _reconcile, "Charge what nobody wrote down: killed attempts by Airflow's and Ray's records, idle time of the platform, storage.")
    fix = leaf(actions, "correct", _correct, "Correct the charge of an attempt by a new row; no row is ever changed.")
    fix.add_argument("attempt", metavar="ATTEMPT", help="x_AttemptId of the row, or its beginning")
    fix.add_argument("--seconds", type=float, required=True, metavar="S", help="how long the attempt held its machine in all")
    fix.add_argument("--because", required=True, metavar="TEXT", help="the reason, kept in the row")
    leaf(actions, "budgets", _budgets, "What this month's budgets of the environment and of recipes have left, and where they go at this pace.")
    elsewhere = leaf(actions, "whatif", _whatif, "What a recipe's training would cost by the price sheet of another environment, with its interval.")
    elsewhere.add_argument("--recipe", default="tiny", help="a recipe that `moeline recipes` lists (default: tiny)")
    elsewhere.add_argument("--purchase", choices=PURCHASES, help="how machines are bought there (default: what its sheet says)")
    elsewhere.add_argument("--gpus", type=float, metavar="N", help="GPUs instead of what the environment gives a training")
    elsewhere.add_argument("--here", metavar="ENV", help="environment whose forecast counts (default: MOELINE_ENV or local); --env is the other one")


def _whatif(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import recipes, whatif
    from jobs.environment import Environment

    here = Environment.load(arguments.here, arguments.home)
    found = whatif.whatif(here, recipes.load(arguments.recipe, home=here.home), env, purchase=arguments.purchase, gpus=arguments.gpus)
    if not arguments.json:
        print(whatif.render(found), end="")
    return found


def _budgets(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import budgets
    from jobs.services import ledger

    ledger.reconcile(env)
    found = budgets.status(env)
    if not arguments.json:
        print(budgets.render(found), end="")
    return {"budgets": found, "exit_status": 0}


def _reconcile(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import reconciling

    found = reconciling.reconcile(env)
    if not arguments.json:
        about = {"unseen": "tries only Airflow knew", "corrected": "killed later than their heartbeat", "idle": "idle time", "storage": "storage"}
        print(f"killed attempts closed: {found['killed']}")
        for name, words in about.items():
            print(f"{words}: {found[name]['rows']} rows, {found[name]['usd']:.4f} {env.prices.currency}")
        for sentence in found["missing"]:
            print(f"missing: {sentence}")
    return found


def _correct(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import reconciling

    row = reconciling.correct(env, arguments.attempt, arguments.seconds, arguments.because)
    if not arguments.json:
        print(f"{row['ChargeDescription']}: {row['BilledCost']:+.6f} {env.prices.currency}")
    return row


def _export(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import focus
    from jobs.services import ledger

    ledger.reconcile(env)
    try:
        found = focus.export(env, Path(arguments.out), arguments.format, arguments.first, arguments.last)
    except OSError as problem:
        raise MoelineError(f"Cannot write {arguments.out}: {problem}.") from None
    if not arguments.json:
        print(f"{found['file']}: {found['rows']} charges, {found['billed']:.4f} {env.prices.currency} billed, FOCUS {found['version']}")
    return found
