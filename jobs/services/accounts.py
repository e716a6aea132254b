"""Who may sign in to the platform's Airflow and as what: a file (0600) of names, roles and hashed passwords.

Passwords are generated, shown once and kept as salted scrypt hashes (RFC 7914). Every request is held against the file, so that taking an account or a
role away counts at once, also for who is signed in. Change here: accounts and how they are kept. Not here: what a role may do in Airflow
(infra/local/airflow_auth.py), the command (jobs/users_command.py).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jobs.contract import MoelineError
from jobs.services.platform.record import locked, write_private

ROLES = ("viewer", "runner", "approver", "admin")  # each may do all that those before it may
OWNER = "admin"  # the account that `moeline` itself signs in with
NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and some 50 ms of a core; passwords have 144 random bits, so nobody finds one by trying


@dataclass(frozen=True)
class Account:
    """``session`` is in every token that was given out: a new one ends them all."""

    name: str
    role: str
    salt: str
    hash: str
    session: str

    def may(self, role: str) -> bool:
        """Whether the account has ``role`` or one above it."""
        return ROLES.index(self.role) >= ROLES.index(role)


def file_of(home: Path) -> Path:
    return home / "airflow" / "users.json"


def read(file: Path) -> dict[str, Account]:
    """All accounts by name; none where there is no file. Raises MoelineError when it cannot be understood."""
    try:
        return {name: Account(name=name, **kept) for name, kept in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise MoelineError(
            f"{file} does not hold accounts: {error}. Put a good copy back, or remove it and run `moeline up`: only {OWNER} is left then."
        ) from None


def add(file: Path, name: str, role: str) -> str:
    """Make an account and return its password, which is kept nowhere. Raises MoelineError for a bad or known name and an unknown role."""
    if not NAME.fullmatch(name):
        raise MoelineError(f"{name!r} cannot be a user's name: small letters, digits, dot, dash and underscore, at most 64, a letter first.")
    _known_role(role)
    password = secrets.token_urlsafe(18)

    def added(accounts: dict[str, Account]) -> None:
        if name in accounts:
            raise MoelineError(
                f"There is a user {name} already, a {accounts[name].role}. Change it: moeline users role {name} ROLE, or moeline users password {name}."
            )
        accounts[name] = _account(name, role, password)

    _change(file, added)
    return password


def remove(file: Path, name: str) -> None:
    """Take an account away; who is signed in with it is out with the next request. Raises MoelineError for the owner's and an unknown one."""

    def removed(accounts: dict[str, Account]) -> None:
        _not_the_owner(name, "removed")
        del accounts[_known(accounts, name)]

    _change(file, removed)


def change_role(file: Path, name: str, role: str) -> None:
    _known_role(role)

    def changed(accounts: dict[str, Account]) -> None:
        _not_the_owner(name, "given another role")
        accounts[name] = replace(accounts[_known(accounts, name)], role=role)

    _change(file, changed)


def new_password(file: Path, name: str) -> str:
    """Replace the password and end all sessions of the account; returns the new one."""
    password = secrets.token_urlsafe(18)

    def changed(accounts: dict[str, Account]) -> None:
        accounts[name] = _account(name, accounts[_known(accounts, name)].role, password)

    _change(file, changed)
    return password


def keep_owner(file: Path, password: str) -> None:
    """The owner's account has ``password`` and is an admin; nothing is written when that is so already."""

    def kept(accounts: dict[str, Account]) -> None:
        owner = accounts.get(OWNER)
        if owner is None or owner.role != "admin" or not _fits(owner, password):
            accounts[OWNER] = _account(OWNER, "admin", password)

    _change(file, kept)


def signed_in(file: Path, name: str, password: str) -> Account | None:
    """The account whose password this is; None otherwise, after as long for an unknown name as for a wrong password."""
    account = read(file).get(name)
    fits = _fits(account or _NOBODY, password)
    return account if fits and account is not None else None


def may(home: Path, name: str | None, role: str) -> bool:
    """Whether ``name`` has ``role`` on the platform of ``home``; true where no accounts are kept, as by another Airflow than ours."""
    accounts = read(file_of(home))
    return not accounts or (name in accounts and accounts[name].may(role))


def _account(name: str, role: str, password: str) -> Account:
    salt = secrets.token_hex(16)
    return Account(name, role, salt, _hashed(salt, password), secrets.token_hex(16))


def _hashed(salt: str, password: str) -> str:
    return hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), dklen=32, **_COST).hex()


_NOBODY = Account("", "viewer", "00" * 16, "", "")  # an empty hash fits no password


def _fits(account: Account, password: str) -> bool:
    return hmac.compare_digest(_hashed(account.salt, password), account.hash)


def _change(file: Path, change: Callable[[dict[str, Account]], None]) -> None:
    with locked(file.with_name(f"{file.name}.lock"), timeout_seconds=30):
        accounts = read(file)
        before = dict(accounts)
        change(accounts)
        if accounts != before:
            kept = {name: {key: value for key, value in asdict(account).items() if key != "name"} for name, account in sorted(accounts.items())}
            write_private(file, json.dumps(kept, indent=1) + "\n")


def _known(accounts: dict[str, Account], name: str) -> str:
    if name not in accounts:
        raise MoelineError(f"There is no user {name!r}. There are: {', '.join(sorted(accounts)) or 'none; run `moeline up` first'}.")
    return name


def _known_role(role: str) -> None:
    if role not in ROLES:
        raise MoelineError(f"There is no role {role!r}. There are: {', '.join(ROLES)}.")


def _not_the_owner(name: str, what: str) -> None:
    if name == OWNER:
        raise MoelineError(f"{OWNER} cannot be {what}: moeline itself signs in to Airflow with this account.")
