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

ABOUT = "The ledger of costs: export it as FOCUS 1.3."


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """The actions of ``moeline costs``."""
    export = leaf(actions, "export", _export, "Write the ledger as a FOCUS 1.3 dataset; refused, with the rule, when a row breaks the specification.")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="default: csv")
    export.add_argument("--out", required=True, metavar="FILE", help="file to write")
    export.add_argument("--from", dest="first", metavar="DAY", help="first day on which a charge began, YYYY-MM-DD, UTC (default: the first there is)")
    export.add_argument("--to", dest="last", metavar="DAY", help="last such day, included (default: the last there is)")


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
