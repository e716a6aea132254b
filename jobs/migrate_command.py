"""The command `moeline migrate`: its options, and what a person is told.

Change here: options and words. Not here: what moves and how (jobs/migrate.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.terminal import say

ABOUT = (
    "Make a new home, with another environment file, out of one whose platform is stopped: tables with all versions, recorded results, artifacts, registry and "
    "history. `moeline migrate --to cluster.toml --home NEW`: warehouse and artifacts go where its [paths] say, databases to its postgres_url (there: empty "
    "databases airflow and mlflow) or into NEW; a landing zone behind a URL is only named anew. All is compared by sha256 and counts. The old home stays."
)


def add_to(commands: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    found = leaf(commands, "migrate", _migrate, ABOUT)
    found.add_argument("--to", required=True, metavar="ENV", help="environment of the new home (--home NEW): in infra/env, or a .toml file")
    found.add_argument(
        "--from", dest="source", metavar="HOME", help="the home that moves (default: MOELINE_HOME or .moeline in the checkout); --env is its own"
    )
    found.add_argument("--landing", action=argparse.BooleanOptionalAction, default=True, help="copy the landing zone where it is a folder too (default)")


def _migrate(arguments: argparse.Namespace, env: Environment) -> dict[str, Any]:
    from jobs import migrate

    if not arguments.home:
        raise MoelineError(f"A migration to {arguments.to[:300]!r} makes a new home and was given none. Name it: --home NEW")
    source, target = Environment.load(arguments.env, arguments.source), Environment.load(arguments.to, arguments.home)
    asked = str(Path(arguments.to).resolve()) if arguments.to.endswith(".toml") else arguments.to
    try:
        found = migrate.migrate(source, target, landing=arguments.landing, asked=asked, echo=say)
    except OSError as error:
        raise MoelineError(f"{error}. Nothing was made; can {source.home} be read, is there room for {target.home}?") from error
    if not arguments.json:
        print(migrate.render(found), end="")
    return found
