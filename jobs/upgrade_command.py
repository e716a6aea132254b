"""The command `moeline upgrade`: tables of earlier versions get the columns of this one.

Change here: options and words. Not here: how a table is upgraded (jobs/services/table_migrations.py), what changed (expectations/migrations.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jobs.environment import Environment
from jobs.terminal import say

ABOUT = (
    "Bring the tables of a home that an earlier moeline wrote to this version's columns. Each table changes in one commit; its older versions, and recorded "
    "results that name them, stay valid, so nothing is computed again. Interrupted, run it again. `moeline up` and stages add by themselves what touches no "
    "file."
)


def add_to(commands: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    found = leaf(commands, "upgrade", _upgrade, ABOUT)
    found.add_argument("--check", action="store_true", help="change nothing: list the tables, their versions and how much has to be written again")


def _upgrade(arguments: argparse.Namespace, env: Environment) -> dict[str, Any]:
    from jobs.services import table_migrations

    found = table_migrations.upgrade(env, only_look=arguments.check, echo=say)
    if not arguments.json:
        print(table_migrations.render(found), end="")
    return found
