"""The options and actions of ``moeline users``: who may sign in to Airflow and our pages, and as what. Standard library only.

Change here: options and what is printed. Not here: the accounts (jobs/services/accounts.py), what a role may do (infra/local/airflow_auth.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

ABOUT = (
    "Who may sign in to Airflow and our pages. viewer: looks at runs, logs and pages; runner: also starts, backfills, clears and stops runs, within the "
    "recipe's budget; approver: also says whether more may be spent; admin: everything. Changes count at once, also for who is signed in."
)


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the actions to a group of commands; ``leaf`` makes one command with the options all have."""
    leaf(actions, "list", _list, "All users and their roles.")
    _with_role(_with_name(leaf(actions, "add", _add, "Make a user; the generated password is printed once and kept nowhere.")))
    _with_name(leaf(actions, "remove", _remove, "Take a user away; who is signed in as this user is out with the next click."))
    _with_role(_with_name(leaf(actions, "role", _role, "Give a user another role.")))
    _with_name(leaf(actions, "password", _password, "Give a user a new generated password and end this user's sessions (admin: moeline's own account too)."))


def _with_name(found: argparse.ArgumentParser) -> argparse.ArgumentParser:
    found.add_argument("name", metavar="NAME", help="small letters, digits, dot, dash and underscore")
    return found


def _with_role(found: argparse.ArgumentParser) -> argparse.ArgumentParser:
    found.add_argument("--role", choices=("viewer", "runner", "approver", "admin"), required=True, help="each may all that those before it may")
    return found


def _list(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import accounts

    found = {name: account.role for name, account in sorted(accounts.read(accounts.file_of(env.home)).items())}
    if not arguments.json:
        print("\n".join(f"{name:<24} {role}" for name, role in found.items()) or "There is nobody yet: `moeline up` makes the user admin.")
    return {"users": found}


def _add(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import accounts

    password = accounts.add(accounts.file_of(env.home), arguments.name, arguments.role)
    if not arguments.json:
        print(f"{arguments.name} may sign in as {arguments.role} with the password {password}")
        print(f"It is shown this once; a new one: moeline users password {arguments.name}")
    return {"name": arguments.name, "role": arguments.role, "password": password}


def _remove(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import accounts

    accounts.remove(accounts.file_of(env.home), arguments.name)
    if not arguments.json:
        print(f"{arguments.name} is gone")
    return {"name": arguments.name}


def _role(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import accounts

    accounts.change_role(accounts.file_of(env.home), arguments.name, arguments.role)
    if not arguments.json:
        print(f"{arguments.name} is {arguments.role} now")
    return {"name": arguments.name, "role": arguments.role}


def _password(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs.services import accounts

    password = accounts.new_password(accounts.file_of(env.home), arguments.name)
    if arguments.name == accounts.OWNER:  # killed before this line, `moeline up` makes the old one valid again
        from jobs.services.platform import airflow
        from jobs.services.platform.record import write_private

        write_private(airflow.password_file(env), json.dumps({accounts.OWNER: password}) + "\n")
    if not arguments.json:
        print(f"The new password of {arguments.name}: {password}")
    return {"name": arguments.name, "password": password}
