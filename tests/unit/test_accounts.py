"""Accounts: roles, generated passwords kept as hashes, changes that count at once and never lose each other."""

from __future__ import annotations

import argparse
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import users_command
from jobs.cli import main
from jobs.contract import MoelineError
from jobs.services import accounts
from jobs.services.accounts import OWNER, ROLES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = accounts.file_of(tmp_path)
    accounts.keep_owner(found, "the owner's")
    return found


def test_a_password_lets_in_and_is_kept_nowhere(file: Path) -> None:
    password = accounts.add(file, "ann", "runner")
    assert len(password) >= 24
    account = accounts.signed_in(file, "ann", password)
    assert account is not None and (account.name, account.role) == ("ann", "runner")
    assert password not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for name, wrong in (("ann", ""), ("ann", password + " "), ("ann", account.hash), ("bob", password), ("", ""), ("ANN", password)):
        assert accounts.signed_in(file, name, wrong) is None


def test_each_role_may_what_those_before_it_may(file: Path) -> None:
    for role in ROLES:
        accounts.add(file, f"a-{role}", role)
    found = accounts.read(file)
    assert [[found[f"a-{role}"].may(other) for other in ROLES] for role in ROLES] == [[j <= i for j in range(4)] for i in range(4)]


def test_a_new_password_or_a_new_role_changes_what_counts(file: Path) -> None:
    first = accounts.add(file, "ann", "viewer")
    session = accounts.read(file)["ann"].session
    accounts.change_role(file, "ann", "approver")
    assert (accounts.read(file)["ann"].role, accounts.read(file)["ann"].session) == ("approver", session)
    second = accounts.new_password(file, "ann")
    assert accounts.signed_in(file, "ann", first) is None and accounts.signed_in(file, "ann", second) is not None
    assert accounts.read(file)["ann"].session != session, "who is signed in is out"
    accounts.remove(file, "ann")
    assert accounts.signed_in(file, "ann", second) is None


def test_the_owner_stays(file: Path) -> None:
    before = file.read_bytes()
    accounts.keep_owner(file, "the owner's")
    assert file.read_bytes() == before
    for change in (lambda: accounts.remove(file, OWNER), lambda: accounts.change_role(file, OWNER, "viewer")):
        with pytest.raises(MoelineError, match="moeline itself signs in"):
            change()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({OWNER: {**kept[OWNER], "role": "viewer"}}))
    accounts.keep_owner(file, "the owner's")
    assert accounts.read(file)[OWNER].role == "admin"


@pytest.mark.parametrize("name", ["", "Ann", "an n", "ann;x", "../ann", "ann\n", "1ann", "a" * 65, "änn", "<b>", "{{x}}"])
def test_a_name_that_is_none_is_refused(file: Path, name: str) -> None:
    with pytest.raises(MoelineError, match="cannot be a user's name"):
        accounts.add(file, name, "viewer")
    assert list(accounts.read(file)) == [OWNER]


def test_errors_say_what_there_is(file: Path) -> None:
    accounts.add(file, "ann", "viewer")
    with pytest.raises(MoelineError, match=r"a user ann already, a viewer"):
        accounts.add(file, "ann", "admin")
    with pytest.raises(MoelineError, match=r"no role 'root'. There are: viewer, runner, approver, admin"):
        accounts.add(file, "bob", "root")
    with pytest.raises(MoelineError, match=r"no user 'bob'. There are: admin, ann"):
        accounts.remove(file, "bob")
    for broken in ("", "{", "[]", '{"ann": {}}', '{"ann": {"role": "viewer"}}'):
        file.write_text(broken)
        with pytest.raises(MoelineError, match="does not hold accounts"):
            accounts.signed_in(file, "ann", "x")


def test_changes_at_once_lose_nothing(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        passwords = list(pool.map(lambda i: accounts.add(file, f"u{i}", ROLES[i % 4]), range(16)))
    assert len(accounts.read(file)) == 17
    assert accounts.signed_in(file, "u7", passwords[7]) is not None


def test_without_accounts_airflows_own_roles_decide(tmp_path: Path) -> None:
    assert accounts.may(tmp_path, "anybody", "admin")
    accounts.add(accounts.file_of(tmp_path), "ann", "runner")
    assert [accounts.may(tmp_path, name, "approver") for name in ("ann", "anybody", "", None)] == [False] * 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert main(["users", "add", "ann", "--role", "runner", "--json", *home]) == 0
    made = json.loads(capsys.readouterr().out)
    assert accounts.signed_in(accounts.file_of(tmp_path), "ann", made["password"]) is not None
    assert main(["users", "role", "ann", "--role", "approver", *home]) == 0
    assert main(["users", "list", *home]) == 0
    assert capsys.readouterr().out.split("\n")[1].split() == ["ann", "approver"]
    assert main(["users", "remove", "bob", *home]) == 1
    assert "no user 'bob'" in capsys.readouterr().err
    accounts.keep_owner(accounts.file_of(tmp_path), "before")
    assert main(["users", "password", OWNER, "--json", *home]) == 0
    new = json.loads(capsys.readouterr().out)["password"]
    assert json.loads((tmp_path / "airflow" / "passwords.json").read_text()) == {OWNER: new}, "moeline itself still gets in"


def test_help_names_the_roles_there_are() -> None:
    assert all(f"{role}:" in users_command.ABOUT for role in ROLES)
    given = users_command._with_role(argparse.ArgumentParser())._option_string_actions["--role"]
    assert tuple(given.choices) == ROLES, "a literal there, so that --help stays quick"
