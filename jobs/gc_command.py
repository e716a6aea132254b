"""The command `moeline gc`: its options, and what a person is told.

Change here: options and words. Not here: what is removed (jobs/gc.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.terminal import printed

ABOUT = (
    "Remove what killed processes left behind: rows never published, working folders, unfinished checkpoints, temporary files, locks, Spark's scratch space; "
    "end orphaned processes of a platform whose supervisor is gone; charge attempts that died. No published row, no version of a table, no model and no "
    "record goes, and what anybody uses stays. Harmless at any time."
)
_MINUTES, _DAY = 60.0, 86_400.0  # default of --older-than; seconds


def add_to(commands: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    made = leaf(commands, "gc", _gc, ABOUT)
    made.add_argument("--dry-run", action="store_true", help="only tell what would go")
    made.add_argument(
        "--older-than", type=float, default=_MINUTES, metavar="MINUTES", help="age from which a temporary file is nobody's any more (default: 60; 0: any age)"
    )
    made.add_argument(
        "--history", type=float, metavar="DAYS",
        help="remove what only tells of work that ended more than DAYS ago, too: runs in Airflow and their logs, services' logs beyond 20 MB, the single files "
        "of costs and checks that were joined since (default: all of it stays)",
    )  # fmt: skip


def _gc(arguments: argparse.Namespace, env: Environment) -> dict[str, Any]:
    from jobs import gc

    if not 0 <= arguments.older_than < float("inf"):
        raise MoelineError(f"--older-than {arguments.older_than} is no age. Give minutes, 0 or more; without the option: {_MINUTES:.0f}.")
    if arguments.history is not None and not 1 <= arguments.history < float("inf"):
        raise MoelineError(f"--history {arguments.history} is no number of days from 1 on. Younger runs may still be looked at; without the option all stay.")
    days = None if arguments.history is None else _DAY * arguments.history
    found = gc.collect(env, older_than_seconds=60 * arguments.older_than, dry_run=arguments.dry_run, history_seconds=days)
    if not arguments.json:
        print(render(found), end="")
    return found


def render(found: Mapping[str, Any]) -> str:
    """What went and what stayed, for a person."""
    from jobs.services.backup_folder import in_words

    verb = "would go" if found["dry_run"] else "gone"
    lines = [f"{number:,} {kind}" for kind, number in sorted(found["counts"].items())]
    lines += [f"{in_words(found['bytes'])} {verb}" if lines else "Nothing was left behind."]
    lines += [f"kept: {reason}" for reason in found["kept"]]
    return printed(lines)
